"""Runs a program both ways, and says in what they differ."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from oracle.by_gdtrain import by_gdtrain, default_dtype
from oracle.by_hand import by_hand, by_hand_until
from oracle.program import Program
from oracle.ranks import by_two_ranks
from oracle.rules import INSIDE, SETTING_WEIGHTS, is_to_be_refused, is_to_be_refused_late
from oracle.traces import Trace, difference

TOLERANCES = {"float64": 1e-9, "float32": 3e-4}  # relative, of batches that are cut, and compiled


class NoReference(Exception):  # noqa: N818
    """PyTorch itself can't run the program: it is none."""


class Differs(AssertionError):  # noqa: N818
    """gdtrain does not do what the plain loop does."""


def reference(program: Program) -> Trace:
    with default_dtype(program.default_dtype):
        try:
            return by_hand(program)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            raise NoReference(f"{program}: {type(error).__name__}: {error}") from error


@contextmanager
def warned() -> Iterator[set[str]]:
    """The warnings that are given meanwhile."""
    texts: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts |= {str(warning.message) for warning in caught}


def check(program: Program) -> str:
    """Raise Differs if gdtrain does something else; return how the run has ended.

    Raises NoReference if PyTorch can't run the program.
    """
    run = by_two_ranks if program.ranks > 1 else by_gdtrain
    with warned() as by_torch:
        expected = reference(program)
    try:
        with warned() as by_us, default_dtype(program.default_dtype):
            traces = run(program)
    except Exception as error:
        raise Differs(f"{program}\n  raises {type(error).__name__}: {error}") from error
    if by_us - by_torch:
        raise Differs(f"{program}\n  warns: {min(by_us - by_torch)}")
    for number, trace in enumerate(traces):
        text = compare(program, trace, expected, resumed=number > 0)
        if text is not None:
            raise Differs(f"{program}\n  {'taken up: ' * (number > 0)}{text}")
    return traces[0].end


def compare(program: Program, got: Trace, expected: Trace, *, resumed: bool) -> str | None:
    if is_to_be_refused(program):
        late = is_to_be_refused_late(program)
        refused = got.end.startswith(("refused: ", "refused after ") if late else "refused: ")
        return None if refused else f"end: {got.end!r}, but no numbers can be right"
    tolerance = None if program.is_exact else TOLERANCES[program.dtype]
    if program.engine == "scan" and got.end.startswith("refused: "):
        return None
    if program.engine == "scan" and got.end.startswith("refused after ") and program.events:
        # What it can't follow came in mid-run. All that was made before it has to be right.
        with default_dtype(program.default_dtype):
            until = by_hand_until(program, got.steps)
        return difference(replace(got, end="done", notes=[]), _made(until, got), tolerance)
    if program.engine == "scan":
        got, expected = _without_gradients(got), _without_gradients(expected)
    if expected.end == "not finite" and program.watch == 0 and program.model in SETTING_WEIGHTS:
        # The clock says whether the last block ends before the bad forward pass, or behind it.
        got, expected = _before_the_last(got), _before_the_last(expected)
    if expected.end == "not finite" and _joins_at_the_end(program, expected):
        return None if got.end == expected.end else f"end: {got.end!r}, expected {expected.end!r}"
    # Who explains what is not finite computes that batch's loss once more.
    if not program.is_exact or expected.end == "not finite":
        got, expected = _as_cut(program, got), _as_cut(program, expected)
    if resumed:  # of what was before, it knows nothing
        kept = expected.notes[len(expected.notes) - len(got.notes) :] if got.notes else []
        looks = expected.looks[len(expected.looks) - len(got.looks) :] if got.looks else []
        expected = replace(expected, notes=kept, looks=looks)
        got, expected = _without_gradients(got), _without_gradients(expected)
    return difference(got, expected, tolerance)


def _joins_at_the_end(program: Program, expected: Trace) -> bool:
    """Whether a callback is added in the update that is not made.

    The clock says whether the safe point before it has been by then.
    """
    return any(
        event.what == "add_callback" and event.when in INSIDE and event.number == expected.steps
        for event in program.events
    )


def _before_the_last(trace: Trace) -> Trace:
    points = {step: point for step, point in trace.points.items() if step < trace.steps}
    return replace(trace, points=points)


def _made(until: Trace, got: Trace) -> Trace:
    """Of a run that was not ended, what there is to be compared with one that was."""
    return replace(until, steps=got.steps, notes=[], looks=until.looks[: len(got.looks)])


def _as_cut(program: Program, trace: Trace) -> Trace:
    """Without what depends on how batches are cut: how often a batch's loss is computed."""
    notes: list[tuple[Any, ...]] = []
    uncounted = program.engine == "scan" or program.ranks > 1
    for note in trace.notes:
        if note[0] != "compute_loss" or not (uncounted or note in notes):
            notes.append(note)
    return replace(trace, notes=notes)


def _without_gradients(trace: Trace) -> Trace:
    """Nor does a compiled engine leave gradients, nor a snapshot hold them."""
    final = {k: value for k, value in trace.final.items() if not k.endswith(".grad")}
    return replace(trace, final=final)


torch.set_num_threads(1)
