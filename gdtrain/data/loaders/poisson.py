"""Batches by Poisson sampling: each sample is in each batch with one probability, independently."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gdtrain.data.batch import Plan
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.orders.order import generator
from gdtrain.data.sources import Transform
from gdtrain.errors import ConfigError
from gdtrain.registry import register_loader
from gdtrain.settings import LoaderSettings, Positive


class PoissonSettings(LoaderSettings):
    """Each sample is in each batch with probability rate, independently."""

    rate: Annotated[float, Field(gt=0, le=1)]
    """The probability, which is also the expected share of the samples in a batch."""
    draws: Positive | None = None
    """Number of batches per epoch; 1 / rate if left out. Empty batches make no update."""


@register_loader("poisson_sampling", PoissonSettings)
class PoissonLoader(Loader):
    """Poisson sampling: each batch has each sample with probability ``rate``, independently.

    Batch sizes are then random, as differential privacy requires (Abadi and others, 2016,
    "Deep learning with differential privacy"). rate: in (0, 1]. draws: the number of batches in an
    epoch; if left out, 1 / rate, rounded, so that an epoch has each sample once on average. An
    empty batch has no loss, and makes no update.
    data, seed, num_workers, collate_fn, allow_nonfinite, transform: as of
    :class:`~gdtrain.data.loaders.loader.BatchLoader`.

    Raises ConfigError for a wrong setting, and for an epoch in which all batches are empty.

    >>> import torch
    >>> from gdtrain import PoissonLoader
    >>> loader = PoissonLoader((torch.zeros(100, 2), torch.zeros(100, 1)), rate=0.1)
    >>> sizes = [len(batch) for batch in loader]
    >>> len(sizes), 60 < sum(sizes) < 140
    (10, True)
    """

    def __init__(
        self,
        data: Any,
        rate: float,
        *,
        draws: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        allow_nonfinite: bool = False,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(
            data,
            seed=seed,
            num_workers=num_workers,
            collate_fn=collate_fn,
            allow_nonfinite=allow_nonfinite,
            transform=transform,
        )
        if not (isinstance(rate, float | int) and 0 < rate <= 1):
            raise ConfigError.of("rate", f"must be > 0 and <= 1, got {rate!r}")
        self.rate = float(rate)
        self.draws = whole_number("draws", draws or max(1, round(1 / rate)), minimum=1)

    def __repr__(self) -> str:
        return f"PoissonLoader({self.num_samples:,} samples, rate={self.rate:g}, seed={self.seed})"

    def plan(self, epoch: int) -> Plan:
        """The batches of an epoch: the successes of n · draws trials, one after the other."""
        places = self._successes(self.num_samples * self.draws, generator(self.seed, epoch))
        sizes = (places // self.num_samples).bincount(minlength=self.draws).tolist()
        batches = torch.split(places % self.num_samples, sizes)
        return Plan.of_batches(epoch, [batch for batch in batches if len(batch)])

    def _successes(self, trials: int, numbers: torch.Generator) -> Tensor:
        """Which of so many independent trials succeed, by the geometric gaps between them."""
        found, last = [], -1
        expected = trials * self.rate
        while last < trials:
            count = math.ceil(expected + 6 * math.sqrt(expected) + 8)
            # ⌈ln(1 - u) / ln(1 - rate)⌉ (Devroye, 1986, chapter X.2), which is 1 at rate 1.
            drawn = torch.rand(count, dtype=torch.float64, generator=numbers, device="cpu")
            per_failure = math.log1p(-self.rate) if self.rate < 1 else -math.inf
            gaps = ((-drawn).log1p() / per_failure).ceil().clamp(min=1)
            found.append(last + gaps.long().cumsum(0))
            last = int(found[-1][-1])
        places = torch.cat(found)
        return places[places < trials]
