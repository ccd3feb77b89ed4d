"""The full loss to which forms are timed, and when a run has reached it."""

from __future__ import annotations

from typing import Any

from gdtrain.output.report.table import descended

LEAST_DROP = 0.1  # of the loss at the start: a target less far down tells no form from another
LATE = 0.75  # of its budget, at which the best run's loss makes a target
AT_ONCE = 2  # updates

Run = dict[str, Any]


def target_of(runs: list[Run], given: float | None) -> dict[str, Any]:
    """The target, and with ``note`` why no form is praised for its speed to it, if so.

    The largest of the final full losses of the runs that ended below their start, so that all of
    these reach it. Where that is hardly below the start, or all reach it at once, what the best
    run has reached at three quarters of its budget, as AlgoPerf (Dahl and others, 2023) has it;
    or None, if that is no better.
    """
    if given is not None:
        note = _fault(runs, given)
        return {"full_loss": given, "given": True, **({"note": note} if note else {})}
    sound = [run for run in runs if run["status"] == "done" and descended(run)]
    if not sound:
        return {"full_loss": None, "given": False}
    loosest = max(run["final"]["full_loss"] for run in sound)
    note = _fault(sound, loosest)
    if note is None:
        return {"full_loss": loosest, "given": False}
    highest = "the largest final loss"
    late = _late(min(sound, key=lambda run: run["final"]["full_loss"]))
    if late is not None and _fault(sound, late) is None:
        how = f"what the best run has at {LATE:.0%} of its budget: {highest}, {note}"
        return {"full_loss": late, "given": False, "chosen": how}
    return {"full_loss": None, "given": False, "note": f"there is no target: {highest}, {note}"}


def reached(run: Run, target: float | None) -> dict[str, Any] | None:
    """Where a run's curve was when the full loss was first at or below the target.

    A run that diverged, or ended above its start, has reached nothing that lasts: None.
    """
    if target is None or run["status"] == "diverged" or not descended(run):
        return None
    curve = run["curve"]
    for number, loss in enumerate(curve["full_loss"]):
        if loss is not None and loss <= target:
            names = ("updates", "samples", "gradient_evaluations", "seconds")
            return {name: curve[name][number] for name in names}
    return None


def _fault(runs: list[Run], target: float) -> str | None:
    """Why times to a target say nothing, or None."""
    starts = [run["curve"]["full_loss"][0] for run in runs]
    start = min((loss for loss in starts if loss is not None), default=None)
    if start is not None and target > start - LEAST_DROP * abs(start):
        return f"{target:.4g}, is less than {LEAST_DROP:.0%} below the start, {start:.4g}"
    there = [where["updates"] for run in runs if (where := reached(run, target))]
    if len(runs) > 1 and len(there) == len(runs) and max(there) <= AT_ONCE:
        return f"{target:.4g}, is reached by every form within {AT_ONCE} updates"
    return None


def _late(run: Run) -> float | None:
    """The full loss at the first look in the last quarter of the run."""
    curve = run["curve"]
    end = curve["updates"][-1]
    looks = zip(curve["updates"], curve["full_loss"], strict=True)
    return next((loss for at, loss in looks if at >= LATE * end), None)
