"""What is trained: models, data and batch sizes that all contestants are given alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# Trains so many epochs, or makes so many passes, and returns the seconds that they took.
Run = Callable[[int], float]

LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Workload:
    """A perceptron (``sizes``, ReLU between) trained by plain SGD with learning rate 0.01.

    kind: ``train`` (time per update), ``stream`` (time per row of a file, parsing included),
    ``loader`` (time per batch, nothing trained), ``scaling`` (time per sample of a loader),
    ``first`` (time to the end of the first block). batch_size: None for all samples, in sequence.
    Classes are trained for with cross-entropy, numbers with the mean squared error. compiled_only:
    an epoch would take the others too long.
    """

    name: str
    said: str
    sizes: tuple[int, ...]
    num_samples: int
    batch_size: int | None
    classes: bool = False
    kind: str = "train"
    devices: tuple[str, ...] = ("cpu", "cuda")
    compiled_only: bool = False

    @property
    def size(self) -> int:
        """Samples of a batch."""
        return self.num_samples if self.batch_size is None else self.batch_size

    @property
    def updates(self) -> int:
        """Updates (batches) of one epoch."""
        return -(-self.num_samples // self.size)

    @property
    def shuffled(self) -> bool:
        """Whether each epoch takes the samples in a new random order."""
        return self.batch_size is not None

    def data(self) -> tuple[Array, Array]:
        """Inputs [n, features] float32; targets [n, outputs] float32, or [n] int64 classes."""
        draw = np.random.default_rng(0)
        inputs = draw.standard_normal((self.num_samples, self.sizes[0]), dtype=np.float32)
        if self.classes:
            return inputs, draw.integers(0, self.sizes[-1], self.num_samples)
        weights = draw.standard_normal((self.sizes[0], self.sizes[-1]), dtype=np.float32)
        noise = draw.standard_normal((self.num_samples, self.sizes[-1]), dtype=np.float32)
        return inputs, (inputs @ weights + np.float32(0.1) * noise) / np.float32(self.sizes[0])

    def initial(self) -> list[tuple[Array, Array]]:
        """Weights [out, in] and bias [out] of each layer, as torch.nn.Linear draws them."""
        draw = np.random.default_rng(1)
        layers = []
        for width, outputs in pairwise(self.sizes):
            bound = width**-0.5
            layers.append(
                (
                    draw.uniform(-bound, bound, (outputs, width)).astype(np.float32),
                    draw.uniform(-bound, bound, outputs).astype(np.float32),
                )
            )
        return layers


TEACHING, SMALL, LARGE = (2, 4, 1), (64, 128, 10), (784, 256, 10)
LINEAR = (20, 1)
WIDE = (4096, 8192, 8192, 1000)

WORKLOADS = [
    Workload("teaching-1", "2-4-1, batch 1", TEACHING, 4096, 1),
    Workload("teaching-64", "2-4-1, batch 64", TEACHING, 32_768, 64),
    Workload("teaching-full", "2-4-1, all 500", TEACHING, 500, None),
    Workload("mlp-1", "64-128-10, batch 1", SMALL, 2048, 1, classes=True),
    Workload("mlp-64", "64-128-10, batch 64", SMALL, 32_768, 64, classes=True),
    Workload("mlp784-64", "784-256-10, batch 64", LARGE, 16_384, 64, classes=True),
    Workload("linear-1", "linear 20-1, batch 1", LINEAR, 4096, 1),
    Workload(
        "teaching-long", "2-4-1, batch 1, epochs of 262,144", TEACHING, 1 << 18, 1,
        compiled_only=True,
    ),
    Workload(
        "wide-full", "4096-8192-8192-1000, all 8,192", WIDE, 8192, None, classes=True,
        devices=("cuda",),
    ),
    Workload("stream", "linear 20-1 from a file", LINEAR, 100_000, 1, kind="stream"),
    Workload("loader-64", "20 columns, batches of 64", LINEAR, 10_000, 64, kind="loader"),
    Workload("loader-full", "20 columns, all 10,000", LINEAR, 10_000, 10_000, kind="loader"),
    *(
        Workload(f"scaling-1e{e}", f"10^{e} samples", TEACHING, 10**e, 64, kind="scaling")
        for e in range(3, 8)
    ),
    Workload("first", "2-4-1, first block", TEACHING, 500, 1, kind="first"),
]  # fmt: skip
