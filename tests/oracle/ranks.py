"""A program run by gdtrain on two connected processes."""

from __future__ import annotations

from dataclasses import replace

from helpers.ranks import on_ranks

from oracle.by_gdtrain import by_gdtrain, default_dtype
from oracle.program import Program
from oracle.traces import Trace, difference


class RanksDiffer(Exception):  # noqa: N818
    """The ranks have come apart."""


def by_two_ranks(program: Program) -> list[Trace]:
    """What rank 0 shows, once rank 1 has shown the same."""
    first, second = on_ranks(_run, program)
    for one, other in zip(first, second, strict=True):
        # A rank whose share of a batch is empty computes no loss.
        text = difference(replace(other, notes=[]), replace(one, notes=[]), None)
        if text is not None:
            raise RanksDiffer(f"rank 1 is not as rank 0: {text}")
    return first


def _run(rank: int, program: Program) -> list[Trace]:
    with default_dtype(program.default_dtype):
        return by_gdtrain(program)
