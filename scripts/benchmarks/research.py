"""The examples of research code beside their plain loops: time with gdtrain, over that by hand.

python scripts/benchmarks/research.py [NAME …] [--epochs 40] [--repeats 5]

Times are a processor's. Models and data are those of tests/test_examples_research.py: a few samples
and weights, so that what a framework adds to an update weighs most. Both ways take turns; shown
are the median ratio, the least and the largest, and microseconds of an epoch by hand.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from test_examples_research import PROBLEMS, example

# How long they train, where they say so by another name; others go by EPOCHS.
LENGTHS = {"physics_informed": "STEPS"}
NOT_TRAINED = {"resnet_curvature"}


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    for name in options.names or sorted(set(PROBLEMS) - NOT_TRAINED):
        module = example(name)
        ways = [module.with_gdtrain, module.by_hand]
        length = LENGTHS.get(name, "EPOCHS")
        for way in ways:
            way.__globals__[length] = 2
            spent(way, name)
            way.__globals__[length] = options.epochs
        pairs = [[spent(way, name) for way in ways] for _ in range(options.repeats)]
        ratios = sorted(ours / by_hand for ours, by_hand in pairs)
        per_epoch = 1e6 * median(by_hand for _, by_hand in pairs) / options.epochs
        print(
            f"{name:18} {median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})  "
            f"{per_epoch:,.0f} µs an epoch by hand",
            flush=True,
        )


def spent(way: Callable[..., Any], name: str) -> float:
    """Processor seconds of one training."""
    given = PROBLEMS[name]()
    start = time.process_time()
    way(*given)
    return time.process_time() - start


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *sorted(PROBLEMS)], metavar="NAME")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
