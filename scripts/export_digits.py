"""Export the handwritten digits that gdtrain ships, from the copy in scikit-learn's wheel."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).resolve().parent.parent / "gdtrain" / "data" / "builtin" / "digits.npz"


def main() -> None:
    digits = load_digits()
    pixels = digits.data.astype(np.uint8)  # [1797, 64], 0 … 16
    labels = digits.target.astype(np.uint8)  # [1797], 0 … 9
    assert (pixels == digits.data).all()
    assert (labels == digits.target).all()
    np.savez_compressed(TARGET, pixels=pixels, labels=labels)
    print(f"{TARGET.name}: {pixels.shape[0]} digits, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
