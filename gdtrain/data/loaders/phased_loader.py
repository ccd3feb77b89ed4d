"""A loader that changes its form in the course of a run: one loader after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from gdtrain.data.batch import Batch, Plan
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.loaders.phases import Piecewise, pairs_of
from gdtrain.data.orders.asked_order import AskedOrder
from gdtrain.data.orders.permutation import Draws
from gdtrain.data.samples import Samples
from gdtrain.data.sources import DatasetSamples, TransformedItems
from gdtrain.errors import ConfigError


class PhasedLoader(Loader):
    """Uses one loader until the end of an epoch, then the next: the form changes in mid-run.

    phases: ``(until_epoch, loader)`` pairs, all over the same data. ``until_epoch`` is the last
    epoch of a phase, counted from 1; it is None in the last phase. With

        PhasedLoader([(5, SampleLoader(data)), (None, BatchLoader(data))])

    five epochs of noisy steps come close to a minimum, and the exact gradient converges from there:
    the hybrid of Bertsekas (1997, "A new class of incremental gradient methods for least
    squares problems") and of Friedlander and Schmidt (2012, "Hybrid deterministic-stochastic
    methods for data fitting"), who grow the batch in between; see :class:`BatchSizes` for that.

    Epoch e has the batches that the phase's loader gives in epoch e, in the same order: nothing
    restarts, and no order depends on earlier phases.

    Raises ConfigError for phases that do not follow each other, streams, and different data.

    >>> import torch
    >>> from gdtrain import BatchLoader, PhasedLoader, SampleLoader
    >>> data = torch.zeros(5, 2), torch.zeros(5, 1)
    >>> loader = PhasedLoader([(2, SampleLoader(data)), (None, BatchLoader(data))])
    >>> [loader.plan(epoch).num_batches for epoch in range(4)]
    [5, 5, 1, 1]
    """

    def __init__(self, phases: Sequence[tuple[int | None, Loader]]) -> None:
        self.phases: Piecewise[Loader] = Piecewise(pairs_of(phases, "phases"))
        first, *others = self.phases.values
        for number, loader in enumerate(self.phases.values):
            if not isinstance(loader, Loader):
                message = f"must be a loader, got a {type(loader).__name__}"
                raise ConfigError.of(f"phases[{number}]", message)
            if loader.is_stream:
                message = "is over a stream, which is one epoch, and so has one phase"
                raise ConfigError.of(f"phases[{number}]", message)
        for number, loader in enumerate(others, start=1):
            if not _are_same(first.samples, loader.samples):
                message = "is over other data than the first; give all phases the same"
                raise ConfigError.of(f"phases[{number}]", message)
        is_one = all(_are_read_alike(first.samples, loader.samples) for loader in others)
        self.samples = first.samples if is_one else _SamplesOfPhases(self.phases)

    def __repr__(self) -> str:
        names = [
            f"{type(loader).__name__} until epoch {end}" if end else f"then {type(loader).__name__}"
            for end, loader in self.phases.pairs
        ]
        return f"PhasedLoader({', '.join(names)}; {self.extent})"

    def plan(self, epoch: int) -> Plan:
        return self.phases.at(whole_number("epoch", epoch, minimum=0)).plan(epoch)

    def cut(self, epoch: int, indices: Tensor | Draws) -> Plan:
        return self.phases.at(epoch).cut(epoch, indices)

    def outline(self, epoch: int) -> Plan:
        return self.phases.at(epoch).outline(epoch)

    def asked_order(self, epoch: int) -> AskedOrder | None:
        return self.phases.at(epoch).asked_order(epoch)

    def num_batches(self, epoch: int) -> int:
        return self.phases.at(epoch).num_batches(epoch)

    def use_orders(self, version: int) -> None:
        for loader in self.phases.values:
            loader.use_orders(version)

    def turns(self, num_epochs: int) -> list[int]:
        found = set()
        for start, stop, loader in self.phases.spans(num_epochs):
            found |= {start, *(epoch for epoch in loader.turns(stop) if epoch > start)}
        return sorted(found)

    @property
    def is_even(self) -> bool:
        return len(self.phases.values) == 1 and self.phases.values[0].is_even

    @property
    def has_known_plans(self) -> bool:
        of_phases = all(loader.has_known_plans for loader in self.phases.values)
        return of_phases and super().has_known_plans

    @property
    def calls_order(self) -> bool:
        return any(loader.calls_order for loader in self.phases.values)

    def fingerprint(self, version: int | None = None) -> dict[str, Any]:
        """``samples``, ``data``, ``orders``, ``files`` of all phases, and a text for each one."""
        marks: dict[str, Any] = {}
        for number, (end, loader) in enumerate(self.phases.pairs, start=1):
            own = loader.fingerprint(version)
            common: dict[str, Any] = {
                key: own.pop(key) for key in ("samples", "data", "orders", "files") if key in own
            }
            if number == 1:
                marks |= common
            message = ", ".join(f"{key} {value}" for key, value in own.items())
            marks[f"phase {number}"] = f"{message}, until_epoch {end}"
        return marks


def _are_same(one: Samples, other: Samples) -> bool:
    """Whether both read the same data, as far as a digest of it tells."""
    if one is other:
        return True
    sets = [samples for samples in (one, other) if _is_of_dataset(samples)]
    if sets:
        return len(sets) == 2 and one.dataset is other.dataset  # type: ignore[attr-defined]
    return len(one) == len(other) and one.fingerprint() == other.fingerprint()


def _is_of_dataset(samples: Samples) -> bool:
    """Whether the samples are a Dataset of the user, whose digest does not tell their values."""
    return isinstance(samples, DatasetSamples) and not isinstance(samples, TransformedItems)


def _are_read_alike(one: Samples, other: Samples) -> bool:
    """Whether both make the same batches of the same data: the same transform, collate, workers."""
    if one is other:
        return True
    if isinstance(one, DatasetSamples) and isinstance(other, DatasetSamples):
        return one.reading() == other.reading()
    return type(one) is type(other)


class _SamplesOfPhases(Samples):
    """The same data as each phase reads them: with its own transform, say."""

    def __init__(self, phases: Piecewise[Loader]) -> None:
        self.phases = phases
        self.first = phases.values[0].samples

    def __len__(self) -> int:
        return len(self.first)

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        return self.phases.at(plan.epoch).samples.read(plan, start)

    @property
    def has_own_collate(self) -> bool:
        return any(loader.samples.has_own_collate for loader in self.phases.values)

    def state(self) -> Any:
        return self.first.state()

    def digest(self) -> int:
        return self.first.digest()

    def fingerprint(self, version: int = 2) -> int | None:
        return self.first.fingerprint(version)
