"""An optimizer's state by the names of its parameters: take it, check it, put it back."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from gdtrain.errors import CheckpointError
from gdtrain.training.descent import descend, gathered
from gdtrain.training.placement.sharding import Part, local, split_like
from gdtrain.training.state import lbfgs_state
from gdtrain.training.state.plain_values import (
    check_like,
    check_plain,
    copied,
    demand,
    is_torchs,
    shown,
    shown_names,
)
from gdtrain.training.state.random_generators import RngState

logger = logging.getLogger("gdtrain")

Names = Mapping[Tensor, str]
# Under these names torch's optimizers keep means, sums and maxima of squares.
_SQUARES = (
    *("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf"),
    *("row_var", "col_var", "variance"),
)
# What can go wrong in an update from a state that no optimizer has made.
_FAILURES = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError),
)


def take_all(optimizers: Mapping[str, Optimizer], names: Names) -> dict[str, Any]:
    """:func:`take` of the only optimizer, or of each by its name, below ``several``."""
    if list(optimizers) == [""]:
        return take(optimizers[""], names)
    return {"several": {name: take(one, names) for name, one in optimizers.items()}}


def check_all(found: Any, optimizers: Mapping[str, Optimizer], names: Names) -> None:
    """:func:`check` of what :func:`take_all` gives."""
    if list(optimizers) == [""]:
        check(found, optimizers[""], names)
        return
    several: Any = found.get("several") if isinstance(found, dict) else None
    same = isinstance(several, dict) and several.keys() == optimizers.keys()
    demand(same, f"optimizer: the state's are not those here, {shown_names(optimizers)}")
    for name, one in optimizers.items():
        held = {p for group in one.param_groups for p in group["params"]}
        check(several[name], one, {p: n for p, n in names.items() if p in held})


def put_all(optimizers: Mapping[str, Optimizer], saved: Mapping[str, Any], names: Names) -> None:
    """:func:`put` of what :func:`check_all` has let pass."""
    for name, one in optimizers.items():
        put(one, saved["several"][name] if "several" in saved else saved, names)


def groups_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of all optimizers in a state."""
    several = found["several"].values() if "several" in found else [found]
    return [group for one in several for group in one["groups"]]


def take(optimizer: Optimizer, names: Names) -> dict[str, Any]:
    """What ``optimizer.state_dict()`` has, in copies, with names instead of numbers.

    names: of all parameters that it may hold. ``state``: by parameter; ``groups``: their settings
    and ``params``; where there are any, ``shared``: state of no parameter, ``own``: what else a
    state_dict of somebody's own has, and ``tied``: settings that are one tensor in several groups.
    Raises CheckpointError, naming it, for what can't be saved.
    """
    packed = _packed(optimizer)
    groups = [_with_names(group, names) for group in optimizer.param_groups]
    numbers = [number for group in packed["param_groups"] for number in group["params"]]
    of = dict(zip(numbers, (name for group in groups for name in group["params"]), strict=True))
    state: dict[str, Any] = {}
    shared: dict[Any, Any] = {}
    for key, value in packed["state"].items():
        (state if key in of else shared)[of.get(key, key)] = value
    own = {key: v for key, v in packed.items() if key not in ("state", "param_groups")}
    tied = _tied(optimizer.param_groups) if len(groups) > 1 else {}
    more = {"shared": shared, "own": own, "tied": tied}
    more = {key: value for key, value in more.items() if value}
    taken: dict[str, Any] = copied({"state": state, "groups": groups, **more}, "optimizer")
    return taken


def check(found: Any, optimizer: Optimizer, names: Names) -> None:
    """Raise CheckpointError unless an optimizer built like this one can go on from the state.

    Groups may have been added, of parameters that no group holds here. One of torch's own is
    tried: a copy must be able to make an update from it.
    """
    parts = set(found) if isinstance(found, dict) else set()
    complete = {"state", "groups"} <= parts <= {"state", "groups", "shared", "own", "tied"}
    demand(complete, "optimizer is not complete")
    here = [_with_names(group, names) for group in optimizer.param_groups]
    _check_groups(found["groups"], here, set(names.values()), set(optimizer.defaults))
    held = {name for group in found["groups"] for name in group["params"]}
    of_names = {name: parameter for parameter, name in names.items()}
    demand(isinstance(found["state"], dict), "optimizer: its state is not a mapping")
    for name, kept in found["state"].items():
        known = name in held
        demand(known, f"optimizer: the state is of a parameter {shown(name)}, not here")
        _check_kept(name, kept, of_names[name])
    for key in ("shared", "own"):
        demand(isinstance(found.get(key, {}), dict), f"optimizer: {key} is not a mapping")
        check_plain(f"optimizer: {key}", found.get(key, {}))
    _check_tied(found.get("tied", {}), found["groups"])
    if isinstance(optimizer, LBFGS):
        for kept in found["state"].values():
            lbfgs_state.check(kept, optimizer)
    if is_torchs(optimizer):
        _try(optimizer, found, names)


def put(optimizer: Optimizer, saved: Mapping[str, Any], names: Names) -> None:
    """Give the optimizer a state that :func:`check` has let pass; its tensors are taken over.

    Each parameter gets the state that bears its name, in whatever place it stands here; each
    tensor keeps the dtype that it has in the state.
    """
    _match_groups(optimizer, saved["groups"], names)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {names[p]: number for number, p in enumerate(held)}
    state: dict[Any, Any] = {
        numbers[name]: {key: split_like(value, held[numbers[name]]) for key, value in kept.items()}
        for name, kept in saved["state"].items()
    }
    saved_groups = [dict(group) for group in saved["groups"]]
    for key, firsts in saved.get("tied", {}).items():
        for group, first in zip(saved_groups, firsts, strict=True):
            if key in group:
                group[key] = saved_groups[first][key]
    of_names = {frozenset(group["params"]): group for group in saved_groups}
    groups = []
    for group in optimizer.param_groups:
        members = [names[p] for p in group["params"]]
        settings = {**group, **of_names[frozenset(members)]}
        groups.append({**settings, "params": [numbers[name] for name in members]})
    state |= saved.get("shared", {})
    optimizer.load_state_dict({"state": state, "param_groups": groups, **saved.get("own", {})})
    for number, parameter in enumerate(held):  # torch casts all but "step" to the parameter's
        for key, value in state.get(number, {}).items():
            optimizer.state[parameter][key] = _recast(optimizer.state[parameter][key], value)


def _tied(groups: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The settings that are one tensor in several groups, such as a rate that is written in place.

    For each, by group, the number of the first group that holds the same tensor.
    """
    found: dict[str, list[int]] = {}
    for key in dict.fromkeys(key for group in groups for key in group):
        values = [group.get(key) for group in groups]
        firsts = [
            next((n for n in range(number) if values[n] is value), number)
            if isinstance(value, Tensor)
            else number
            for number, value in enumerate(values)
        ]
        if firsts != list(range(len(groups))):
            found[key] = firsts
    return found


def _check_tied(tied: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    demand(isinstance(tied, dict), "optimizer: tied is not a mapping")
    for key, firsts in tied.items():
        right = isinstance(firsts, list) and len(firsts) == len(groups)
        for number, first in enumerate(firsts if right else ()):
            right = right and type(first) is int and 0 <= first <= number
            if not right or first == number:
                continue
            one, other = groups[first].get(key), groups[number].get(key)
            right = isinstance(one, Tensor) and isinstance(other, Tensor) and _same(one, other)
        demand(right, f"optimizer: {shown(key)} is said to be shared by groups, which it is not")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _packed(optimizer: Optimizer) -> dict[str, Any]:
    try:
        packed = optimizer.state_dict()
    except KeyError as error:
        message = "optimizer: it keeps state of a tensor that is in none of its groups"
        raise CheckpointError(message) from error
    if not {"state", "param_groups"} <= packed.keys():
        raise CheckpointError("optimizer: its state_dict() has no state or no param_groups")
    return packed


def _with_names(group: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """A group's settings, and the names of its parameters instead of them."""
    for parameter in group["params"]:
        if parameter not in names:
            raise CheckpointError(
                f"optimizer: it holds a parameter {list(parameter.shape)} that is neither the "
                "model's nor the loss's, and so can't be saved"
            )
    return {
        key: [names[p] for p in value] if key == "params" else value
        for key, value in group.items()
        if not callable(value)
    }


# ── checks ──────────────────────────────────────────────────────────────────────────────────


def _check_groups(
    found: Any, here: list[dict[str, Any]], known: set[str], settings: set[str]
) -> None:
    demand(isinstance(found, list) and len(found) >= len(here), "optimizer: other groups")
    theirs = {_members(group): group for group in found}
    for group in here:
        members = _members(group)
        demand(members in theirs, "optimizer: its groups hold other parameters than here")
        _check_settings(theirs.pop(members), group)
    held = {name for group in here for name in group["params"]}
    for members, group in theirs.items():  # added in mid-run
        demand(members <= known - held, "optimizer: its groups hold other parameters than here")
        held |= members
        # A schedule notes its own settings in the groups that it finds, and not in later ones.
        like = {key: v for key, v in here[0].items() if key in settings or key in group}
        _check_settings(group, like)
    demand(
        sum(len(group["params"]) for group in found) == len(held),
        "optimizer: a parameter is in its groups twice",
    )


def _check_settings(theirs: dict[str, Any], here: dict[str, Any]) -> None:
    left_out: dict[str, Any] = {"params": [], "param_names": []}
    check_like("optimizer", theirs | left_out, here | left_out, settings=True)


def _members(group: Any) -> frozenset[str]:
    names = group.get("params") if isinstance(group, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError("optimizer: a group has no list of parameters")
    return frozenset(names)


def _check_kept(name: str, kept: Any, parameter: Tensor) -> None:
    """Look at what is kept of one parameter."""
    demand(isinstance(kept, dict), f"optimizer: the state of {name} is not a mapping")
    for key, value in kept.items():
        demand(isinstance(key, str), f"optimizer: the state of {name} has no names")
        what = f"optimizer: {shown(key)} of {name}"
        check_plain(what, value)
        value = local(value)
        if isinstance(value, Tensor) and value.is_sparse:
            demand(value.shape == parameter.shape, f"{what} is not of the parameter's shape")
        if key in _SQUARES and isinstance(value, Tensor) and not value.is_complex():
            demand(not bool((value < 0).any()), f"{what} is negative, and is a mean of squares")
        if key == "step":  # torch's word for it, in all of its optimizers
            counted = isinstance(value, int | float) or (
                isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
            )
            demand(counted and 0 <= float(value) < float("inf"), f"{what} is no count of steps")


def _try(optimizer: Optimizer, found: Mapping[str, Any], names: Names) -> None:
    """Raise CheckpointError if a copy of the optimizer can't make an update from the state.

    Not where it can't be tried: of an optimizer that wants a closure or sparse gradients.
    """
    held = [p for group in optimizer.param_groups for p in group["params"]]
    rng = RngState.take(held[0].device if held else torch.device("cpu"))
    try:
        _update_copies(optimizer, found, names)
    except _FAILURES as error:
        try:
            _update_copies(optimizer, take(optimizer, names), names)
        except _FAILURES:
            return
        message = f"optimizer: no update can be made from its state: {shown(str(error))}"
        raise CheckpointError(message) from error
    finally:
        rng.restore(held[0].device if held else torch.device("cpu"))


def _update_copies(optimizer: Optimizer, state: Mapping[str, Any], names: Names) -> None:
    """Make an update from ``state`` of a copy of each parameter by a copy of the optimizer."""
    of_names = {name: parameter for parameter, name in names.items()}
    for group in state["groups"]:
        for name in group["params"]:
            parameter, kept = of_names[name], state["state"].get(name)
            if _is_sparse(kept):
                continue  # the gradient would have to be sparse where the momentum is
            copy = torch.ones_like(parameter, requires_grad=parameter.requires_grad)
            copy.grad = torch.ones_like(copy)
            twin = _twin(optimizer, copy)
            one = {
                "state": {} if kept is None else {name: copied(kept, name)},
                "groups": [copied({**group, "params": [name]}, name)],
            }
            put(twin, one, {copy: name})
            _step(twin)


def state_after_update(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor
) -> dict[str, Any]:
    """What an optimizer like this one keeps of a parameter after an update; empty if unknown.

    group: the settings, as :func:`take` gives them.
    """
    copy = torch.ones_like(parameter, requires_grad=True)
    copy.grad = torch.ones_like(copy)
    rng = RngState.take(parameter.device)
    try:
        twin = _twin(optimizer, copy)
        put(twin, {"state": {}, "groups": [copied({**group, "params": ["0"]}, "0")]}, {copy: "0"})
        _step(twin)
    except _FAILURES:
        return {}
    finally:
        rng.restore(parameter.device)
    return {key: value for key, value in twin.state[copy].items() if value is not None}


def _step(optimizer: Optimizer) -> None:
    """Make an update as the trainer does, which imports no compiler where it need not."""
    descend(optimizer, lambda: None, gathered(optimizer))


def _twin(optimizer: Optimizer, parameter: Tensor) -> Optimizer:
    """An optimizer of the same kind for one parameter, as it comes back from a pickle."""
    twin = type(optimizer).__new__(type(optimizer))
    settings = {**optimizer.param_groups[0], "params": [parameter]}
    twin.__setstate__(
        {
            "defaults": dict(optimizer.defaults),
            "state": defaultdict(dict),
            "param_groups": [settings],
        }
    )
    return twin


def _is_sparse(kept: Any) -> bool:
    values = kept.values() if isinstance(kept, dict) else ()
    return any(isinstance(value, Tensor) and value.is_sparse for value in values)


# ── putting back ────────────────────────────────────────────────────────────────────────────


def _match_groups(optimizer: Optimizer, saved: list[dict[str, Any]], names: Names) -> None:
    """Add the groups that the state has and the optimizer lacks, or take away those it has over.

    Only a state to fall back to lacks some.
    """
    there = [frozenset(group["params"]) for group in saved]
    members = [frozenset(names[p] for p in group["params"]) for group in optimizer.param_groups]
    for number in reversed(range(len(members))):
        if members[number] not in there:
            del optimizer.param_groups[number]
    of_names = {name: parameter for parameter, name in names.items()}
    for group in saved:
        if frozenset(group["params"]) not in members:
            added = [of_names[name] for name in group["params"]]
            settings = {key: value for key, value in group.items() if key != "params"}
            logger.warning(
                "the optimizer gets a group of the state: %s", shown_names(group["params"])
            )
            optimizer.add_param_group({**settings, "params": added})


def _recast(loaded: Any, saved: Any) -> Any:
    """What was loaded, with the dtypes of what was saved."""
    if isinstance(saved, Tensor | Part):
        right = loaded.dtype == saved.dtype
        return loaded if right else split_like(saved, loaded).to(loaded.device)
    if isinstance(saved, dict):
        return {key: _recast(loaded[key], value) for key, value in saved.items()}
    if isinstance(saved, list | tuple):
        return type(saved)(_recast(a, b) for a, b in zip(loaded, saved, strict=True))
    return loaded
