"""Batches by a budget of tokens: as many samples as, padded to the longest, stay within it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Plan
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.orders.asked_order import AskedOrder
from gdtrain.data.orders.order import Order, check_order, epoch_indices
from gdtrain.data.sources import Transform
from gdtrain.errors import ConfigError


class TokenBudgetLoader(Loader):
    """Cuts each epoch into batches of at most ``tokens`` tokens, including padding.

    A batch takes samples in their order as long as its number of samples, times the length of its
    longest, is at most ``tokens``; so batches of long sequences have fewer samples. A Dataset's
    ``collate_fn`` pads them to that length.
    lengths: [n], the tokens of each sample, whole numbers >= 1. order: as of
    :class:`~gdtrain.data.loaders.loader.MiniBatchLoader`, but no callable or sampler.
    data, seed, num_workers, collate_fn, allow_nonfinite, transform: as there.

    Raises ConfigError for lengths that do not fit the data or the budget.

    >>> import torch
    >>> from gdtrain import TokenBudgetLoader
    >>> data = torch.zeros(5, 8), torch.zeros(5, 1)
    >>> loader = TokenBudgetLoader(data, lengths=[2, 3, 8, 1, 1], tokens=8, order="sequential")
    >>> [batch.indices.tolist() for batch in loader]
    [[0, 1], [2], [3, 4]]
    """

    def __init__(
        self,
        data: Any,
        lengths: Any,
        tokens: int,
        *,
        order: Order = "reshuffle",
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
        self.tokens = whole_number("tokens", tokens, minimum=1)
        self._lengths = self._checked(lengths)
        self._order = check_order(order, len(self.samples), self.seed, self.samples)
        if isinstance(self._order, AskedOrder):
            message = "must not be a callable or a sampler here; give a name, indices or Weighted"
            raise ConfigError.of("order", message)

    def __repr__(self) -> str:
        order = self._order if isinstance(self._order, str) else type(self._order).__name__
        return (
            f"TokenBudgetLoader({self.num_samples:,} samples, tokens={self.tokens}, "
            f"order={order}, seed={self.seed})"
        )

    def plan(self, epoch: int) -> Plan:
        indices = epoch_indices(self._order, self.num_samples, self.seed, epoch)
        chosen = torch.arange(self.num_samples, device="cpu") if indices is None else indices[:]
        sizes, longest, size = [], 0, 0
        for length in self._lengths[chosen].tolist():
            if (size + 1) * max(longest, length) > self.tokens:
                sizes.append(size)
                longest, size = 0, 0
            longest, size = max(longest, length), size + 1
        return Plan.of_batches(epoch, torch.split(chosen, [*sizes, size]))

    def fingerprint(self, version: int | None = None) -> dict[str, Any]:
        order = self._order if isinstance(self._order, str) else repr(self._order)
        lengths = int(self._lengths.sum())
        return super().fingerprint(version) | {"order": order, "lengths": lengths}

    def _checked(self, lengths: Any) -> Tensor:
        row = torch.as_tensor(lengths, device="cpu")
        if row.ndim != 1 or row.is_floating_point() or len(row) != self.num_samples:
            message = f"must be {self.num_samples} whole numbers, one for each sample"
            raise ConfigError.of("lengths", f"{message}; got {row.dtype} of {list(row.shape)}")
        for what, wrong in (("< 1", row < 1), (f"over tokens={self.tokens}", row > self.tokens)):
            if bool(wrong.any()):
                place = int(wrong.nonzero()[0])
                message = f"that of sample {place} is {int(row[place])}, which is {what}"
                raise ConfigError.of("lengths", message)
        return row.long()
