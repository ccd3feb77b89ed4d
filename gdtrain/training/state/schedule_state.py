"""The state of a learning-rate scheduler: take it, check it, put it back."""

from __future__ import annotations

import functools
import types
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from gdtrain.training.state.plain_values import (
    check_like,
    check_plain,
    copied,
    demand,
    is_finite,
    is_torchs,
)

# Under these, torch's schedulers keep the attributes of callables that are somebody's own.
_OF_CALLABLES = ("lr_lambdas", "_scale_fn_custom")
_COUNTERS = ("last_epoch", "_step_count")
# Each group's rate follows from the last one, so that a group may be added in mid-run, of which
# they know no ``base_lrs``. torch's others can't go on with one.
_ALONE = {
    *(lr_scheduler.ConstantLR, lr_scheduler.LinearLR, lr_scheduler.PolynomialLR),
    *(lr_scheduler.ExponentialLR, lr_scheduler.StepLR, lr_scheduler.MultiStepLR),
}
_FUNCTIONS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial),
    type,
)


def take_all(schedulers: Mapping[str, LRScheduler]) -> dict[str, Any]:
    """:func:`take` of the only schedule, or of each by its optimizer's name."""
    if "" in schedulers:
        return take(schedulers[""])
    return {"several": {name: take(one) for name, one in schedulers.items()}}


def put_all(schedulers: Mapping[str, LRScheduler], saved: Mapping[str, Any] | None) -> None:
    """:func:`put` of what :func:`take_all` gives."""
    for name, one in schedulers.items():
        put(one, saved["several"][name] if saved and "several" in saved else saved)


def take(scheduler: LRScheduler) -> dict[str, Any]:
    """What ``scheduler.state_dict()`` has, in copies; functions are left out.

    They belong to how a scheduler is built, as torch has it of LambdaLR's.
    Raises CheckpointError, naming it, for what else can't be saved.
    """
    taken: dict[str, Any] = copied(_state(scheduler), "scheduler")
    return taken


def check(found: Any, scheduler: LRScheduler | None, groups: tuple[int, int] = (1, 1)) -> None:
    """Raise CheckpointError unless a scheduler built like this one can go on from the state.

    groups: how many the optimizer has here, and in the state.
    """
    if scheduler is None:
        demand(found is None, "scheduler: the state has one, and none is here")
    else:
        _check(found, scheduler, groups, depth=0)


def put(scheduler: LRScheduler | None, saved: Mapping[str, Any] | None) -> None:
    """Give the scheduler a state that :func:`check` has let pass."""
    if scheduler is not None and saved is not None:
        scheduler.load_state_dict(_typed(saved, scheduler.state_dict()))


def _check(found: Any, scheduler: LRScheduler, groups: tuple[int, int], depth: int) -> None:
    here, own = _state(scheduler), not is_torchs(scheduler)
    known = found.keys() if own and isinstance(found, dict) else here.keys()
    same = isinstance(found, dict) and here.keys() <= found.keys() <= known
    demand(same, "scheduler: the state's is another, with other settings than here")
    for key, theirs in found.items():
        where = f"scheduler: {key}"
        if key == "_schedulers":
            parts = getattr(scheduler, key)
            demand(isinstance(theirs, list) and len(theirs) == len(parts), f"{where} are others")
            for one, part in zip(theirs, parts, strict=True):
                _check(one, part, groups, depth + 1)
        elif own:
            shadows = key not in here and hasattr(scheduler, str(key))
            demand(not shadows, f"{where} is the name of something else")
            check_plain(where, theirs)
        elif key in _COUNTERS:
            # In a sequence, one whose turn has not come has taken its first step back.
            least = 0 if here[key] >= 0 and depth == 0 else -1 - depth
            counted = is_finite(theirs) and theirs >= least
            demand(counted, f"{where} is not what it has counted")
        else:
            sizes = groups if type(scheduler) in _ALONE else groups[1:]
            _check_value(key, theirs, here[key], groups, sizes)


def _check_value(
    key: str, theirs: Any, here: Any, groups: tuple[int, int], sizes: tuple[int, ...]
) -> None:
    """sizes: of how many groups ``base_lrs`` may be."""
    where = f"scheduler: {key}"
    if key in _OF_CALLABLES:
        both = (theirs, here) if isinstance(here, list) else ([theirs], [here])
        demand(isinstance(both[0], list) and len(both[0]) == len(both[1]), f"{where} are others")
        for one, function in zip(*both, strict=True):
            same = one is None if function is None else isinstance(one, dict)
            demand(same, f"{where}: the state has one, and none is here")
            check_plain(where, one)
        return
    if key == "base_lrs":
        fits = isinstance(theirs, list) and len(theirs) in sizes
        demand(fits, f"{where} is not of as many groups as the optimizer has")
    by_group = isinstance(here, list) and isinstance(theirs, list) and len(here) == groups[0]
    if by_group and here and len(theirs) == groups[1]:
        here = [*here, *[here[0]] * len(theirs)][: len(theirs)]
    check_like(where, theirs, here)


def _state(scheduler: LRScheduler) -> dict[str, Any]:
    """What the scheduler saves of itself, without functions."""
    state: dict[str, Any] = _data(scheduler.state_dict())
    functions = getattr(scheduler, "lr_lambdas", ())
    if isinstance(scheduler, lr_scheduler.LambdaLR | lr_scheduler.MultiplicativeLR):
        state["lr_lambdas"] = [  # torch takes the empty dict of a partial for a state
            None if _is_function(function) else kept
            for function, kept in zip(functions, state["lr_lambdas"], strict=True)
        ]
    if hasattr(scheduler, "_schedulers"):
        state["_schedulers"] = [_state(part) for part in scheduler._schedulers]
    return state


def _data(value: Any) -> Any:
    """The value without its functions."""
    if isinstance(value, Counter):
        return value
    if isinstance(value, Mapping):
        return {key: _data(item) for key, item in value.items() if not _is_function(item)}
    return [_data(item) for item in value] if isinstance(value, list) else value


def _is_function(value: Any) -> bool:
    """Whether it is a function, or nothing but functions."""
    if isinstance(value, Mapping | list | tuple):
        items = value.values() if isinstance(value, Mapping) else value
        return bool(value) and all(map(_is_function, items))
    return isinstance(value, _FUNCTIONS)


def _typed(saved: Any, here: Any) -> Any:
    """What was saved, with a Counter where the scheduler has one: 0.1.0 wrote it as a dict."""
    if isinstance(here, Counter):
        return Counter(saved)
    if isinstance(saved, dict) and isinstance(here, Mapping):
        return {key: _typed(item, here.get(key)) for key, item in saved.items()}
    if isinstance(saved, list) and isinstance(here, list) and len(saved) == len(here):
        return [_typed(*pair) for pair in zip(saved, here, strict=True)]
    return saved
