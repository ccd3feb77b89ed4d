"""The data set that is part of the package: handwritten digits."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch

from gdtrain.data.tables.preparation import LoadedData
from gdtrain.registry import register_source
from gdtrain.settings import SourceSettings


class Digits(SourceSettings):
    """1,797 handwritten digits, 64 pixels 0 … 16, 10 classes (Alpaydin and Kaynak, 1998)."""


@register_source("digits", Digits)
def digits() -> LoadedData:
    """Optical Recognition of Handwritten Digits, test part (Alpaydin and Kaynak, 1998).

    inputs: [1797, 64] float32, pixels 0 … 16 of 8x8 pictures, row by row.
    targets: [1797] int64, the digits 0 … 9.
    UCI Machine Learning Repository, doi.org/10.24432/C50P49, CC BY 4.0.
    """
    with resources.files("gdtrain.data.builtin").joinpath("digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        pixels, labels = arrays["pixels"], arrays["labels"]
    return LoadedData(
        inputs=torch.from_numpy(pixels.astype(np.float32)),
        targets=torch.from_numpy(labels.astype(np.int64)),
        class_names=[str(digit) for digit in range(10)],
    )
