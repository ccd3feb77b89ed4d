"""An order by weights: samples with larger weights come more often, or earlier."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.checks import whole_number
from gdtrain.errors import ConfigError


class Weighted:
    r"""An order in which sample i is drawn with a probability proportional to its weight.

    weights: [n], one for each sample, as a tensor, an array or a list of numbers ≥ 0, copied.
    replacement: with it, the draws of an epoch are independent, each with
    P(i) = w_i / Σ_j w_j, by the inverse of the distribution function (Devroye, 1986, "Non-uniform
    random variate generation", chapter III.2). Without it, no sample comes twice, and each draw is
    proportional to the weights of the remaining samples; all at once, by the order of the
    times e_i / w_i, e_i ~ Exp(1) (Efraimidis and Spirakis, 2006, "Weighted random sampling with a
    reservoir", with ln u = -e). A sample of weight 0 is never drawn.
    draws: the number of draws in an epoch; if left out, n, or without replacement all samples of
    weight > 0.

    As for every order, an epoch's draws depend only on the loader's seed and the epoch:
    ``MiniBatchLoader((X, y), 64, order=Weighted.balanced(y), seed=0)`` draws the classes of y
    equally often. Raises ConfigError for weights that can't be used.

    >>> import torch
    >>> from gdtrain import SampleLoader, Weighted
    >>> data = torch.arange(3.0).view(3, 1), torch.zeros(3, 1)
    >>> drawn = SampleLoader(data, order=Weighted([0.0, 1.0, 3.0], draws=1000))
    >>> counts = torch.bincount(torch.cat([batch.indices for batch in drawn]), minlength=3)
    >>> int(counts[0]), bool(2 < counts[2] / counts[1] < 4)
    (0, True)
    """

    def __init__(self, weights: Any, *, replacement: bool = True, draws: int | None = None) -> None:
        self.weights = _checked(weights)
        self.replacement = replacement
        positive = int((self.weights > 0).sum())
        if draws is None:
            draws = len(self.weights) if replacement else positive
        self.draws = whole_number("draws", draws, minimum=1)
        if not replacement and self.draws > positive:
            raise ConfigError.of(
                "draws",
                f"must be <= {positive}, the samples of weight > 0, without replacement; "
                f"got {self.draws}",
            )

    @classmethod
    def balanced(
        cls, labels: Any, *, replacement: bool = True, draws: int | None = None
    ) -> Weighted:
        """The order in which all classes are equally frequent: w_i = 1 / (samples of i's class).

        labels: [n] class indices, as a tensor, an array or a list. ``order="class_balanced"`` is
        this of a loader's own targets. Raises ConfigError for labels that are no whole numbers.

        >>> order = Weighted.balanced([0, 0, 0, 1], draws=1000)
        >>> order.weights.tolist() == [1 / 3, 1 / 3, 1 / 3, 1.0]
        True
        """
        row = torch.as_tensor(labels).cpu()
        if row.ndim == 2 and row.shape[1] == 1:
            row = row[:, 0]
        if row.ndim != 1 or (row.is_floating_point() and not torch.equal(row, row.round())):
            message = f"must be one class index for each sample, got {row.dtype} {list(row.shape)}"
            raise ConfigError.of("labels", message)
        _, places, counts = np.unique(row.numpy(), return_inverse=True, return_counts=True)
        return cls(1.0 / counts[places], replacement=replacement, draws=draws)

    def __len__(self) -> int:
        return self.draws

    def __repr__(self) -> str:
        how = "with" if self.replacement else "without"
        checksum = zlib.crc32(self.weights.numpy().tobytes())
        return f"{self.draws} draws {how} replacement by {len(self.weights)} weights {checksum:08x}"

    def checked(self, num_samples: int) -> Weighted:
        """Itself. Raises ConfigError if these are not the weights of so many samples."""
        if len(self.weights) != num_samples:
            message = f"{len(self.weights)} weights for {num_samples} samples; give one for each"
            raise ConfigError.of("order", message)
        return self

    def draw(self, generator: torch.Generator) -> Tensor:
        """The sample indices of an epoch, [draws] int64."""
        if not self.replacement:
            times = torch.empty_like(self.weights).exponential_(generator=generator) / self.weights
            return times.argsort(stable=True)[: self.draws]
        ends = self.weights.cumsum(0)
        places = torch.rand(self.draws, dtype=torch.float64, generator=generator) * ends[-1]
        # The first sample whose end lies beyond the place; rounding must not lead past the last.
        last = int(self.weights.nonzero()[-1])
        return torch.searchsorted(ends, places, right=True).clamp_(max=last)


def _checked(weights: Any) -> Tensor:
    """The weights as a tensor [n] float64 of its own."""
    try:
        if isinstance(weights, Tensor):
            weights = weights.detach().cpu().numpy()
        row = torch.from_numpy(np.array(weights, np.float64))  # a copy
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError.of("weights", "must be one row of numbers; these make none") from error
    if row.ndim != 1 or not len(row):
        message = f"must be one non-empty row of numbers, got shape {list(row.shape)}"
        raise ConfigError.of("weights", message)
    bad = (~(torch.isfinite(row) & (row >= 0))).nonzero()
    if len(bad):
        place = int(bad[0])
        message = f"must be finite and >= 0; that of sample {place} is {row[place].item():g}"
        raise ConfigError.of("weights", message)
    if not bool(torch.isfinite(row.sum()) and row.sum() > 0):
        raise ConfigError.of("weights", "must have a finite sum > 0")
    return row
