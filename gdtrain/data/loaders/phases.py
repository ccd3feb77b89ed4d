"""Settings that change with the epoch: the phases of a run, each with a value of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gdtrain.data.checks import whole_number
from gdtrain.errors import ConfigError
from gdtrain.registry import fault

T = TypeVar("T")


def misplaced_end(ends: Sequence[int | None]) -> tuple[int, str] | None:
    """The first phase whose end can't be, and what is wrong with it; None if all is well.

    ends: of each phase, the last epoch that it has, counted from 1; None for the last phase.
    """
    before = 0
    for number, end in enumerate(ends):
        last = number == len(ends) - 1
        if last and end is not None:
            return number, "must be left out in the last phase, which goes on to the end"
        if not last and end is None:
            return number, "missing; every phase but the last says with which epoch it ends"
        if end is not None and end <= before:
            bound = f"{before}, where the phase before it ends" if number else "0"
            return number, f"must be > {bound}; got {end}"
        before = end or 0
    return None


def following(phases: list[Any]) -> list[Any]:
    """Settings of phases of which each ends after the one before; else an error, at its place."""
    if misplaced := misplaced_end([phase.until_epoch for phase in phases]):
        raise fault(misplaced[1], misplaced[0], "until_epoch")
    return phases


def pairs_of(phases: Any, key: str) -> tuple[tuple[Any, Any], ...]:
    """``(until_epoch, value)`` pairs in their order. Raises ConfigError for anything else."""
    if isinstance(phases, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in phases
    ):
        return tuple((end, value) for end, value in phases)
    raise ConfigError.of(key, f"must be a list of pairs (until_epoch, value), got {phases!r}")


@dataclass(frozen=True)
class Piecewise(Generic[T]):
    """A value for each epoch, piecewise constant: ``until_epoch, value`` of each phase.

    pairs: ``until_epoch`` is the last epoch of a phase, counted from 1 as in a run's records: a
    phase until 5 has the first five epochs. It rises from phase to phase, and is None in the last.
    key: what the setting is called in messages.

    Raises ConfigError for phases that do not follow each other so.
    """

    pairs: tuple[tuple[int | None, T], ...]
    key: str = "phases"

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ConfigError.of(self.key, "is empty; at least one phase is needed")
        for number, (end, _) in enumerate(self.pairs):
            if end is not None:
                whole_number(f"{self.key}[{number}].until_epoch", end, minimum=1)
        if message := misplaced_end([end for end, _ in self.pairs]):
            raise ConfigError.of(f"{self.key}[{message[0]}].until_epoch", message[1])

    def at(self, epoch: int) -> T:
        """The value in ``epoch``, from 0."""
        return next(value for end, value in self.pairs if end is None or epoch < end)

    @property
    def values(self) -> list[T]:
        """The phases' values, in their order."""
        return [value for _, value in self.pairs]

    def spans(self, num_epochs: int) -> list[tuple[int, int, T]]:
        """Of the phases that begin before ``num_epochs``: first epoch, epoch after it, value."""
        spans, start = [], 0
        for end, value in self.pairs:
            stop = num_epochs if end is None else min(end, num_epochs)
            if start < num_epochs:
                spans.append((start, stop, value))
            start = stop
        return spans

    def __str__(self) -> str:
        return "; ".join(
            f"{value} until epoch {end}" if end is not None else f"{value}"
            for end, value in self.pairs
        )


class BatchSizes(Piecewise[int]):
    """A batch size for each epoch, as ``MiniBatchLoader`` takes it.

    For a small learning rate α the noise scale of SGD is g ≈ α n / (B (1 - μ)), with n samples,
    B of them in a batch and momentum μ: multiplying B reduces the noise like dividing α, with
    fewer updates (Smith, Kindermans, Ying and Le, 2018, "Don't decay the learning rate, increase
    the batch size", equations 2 and 5).

    ``BatchSizes([(5, 32), (10, 128), (None, 512)])``: 32 samples in the first five epochs, 128
    in the next five, then 512. :meth:`growing` makes sizes that grow by a constant factor.

    >>> from gdtrain import BatchSizes
    >>> sizes = BatchSizes.growing(initial=8, factor=2.0, every_n_epochs=1, largest=20)
    >>> [sizes.at(epoch) for epoch in range(4)]
    [8, 16, 20, 20]
    """

    def __init__(self, pairs: Sequence[tuple[int | None, int]]) -> None:
        super().__init__(pairs_of(pairs, "batch_size"), "batch_size")
        for number, (_, size) in enumerate(self.pairs):
            whole_number(f"batch_size[{number}].value", size, minimum=1)

    @classmethod
    def growing(
        cls, initial: int, *, factor: float = 2.0, every_n_epochs: int = 1, largest: int
    ) -> BatchSizes:
        """B_e = min(largest, ⌊initial · factor^⌊e / every_n_epochs⌋⌋) in epoch e, from 0.

        Raises ConfigError unless 1 <= initial <= largest, 1.01 <= factor < ∞ and
        every_n_epochs >= 1.
        """
        whole_number("initial", initial, minimum=1)
        whole_number("every_n_epochs", every_n_epochs, minimum=1)
        whole_number("largest", largest, minimum=initial)
        if not 1.01 <= factor < math.inf:
            raise ConfigError.of("factor", f"must be >= 1.01 and finite, got {factor}")
        pairs: list[tuple[int | None, int]] = []
        size, raised = initial, 0
        while size < largest:
            raised += 1
            later = min(largest, int(initial * factor**raised))
            if later > size:
                pairs.append((raised * every_n_epochs, size))
            size = later
        return cls([*pairs, (None, largest)])
