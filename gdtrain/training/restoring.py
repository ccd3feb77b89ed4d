"""Whether a state fits a trainer: looked at in full before anything is changed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gdtrain.errors import CheckpointError
from gdtrain.training.seeding import RngState

logger = logging.getLogger("gdtrain")

_PARTS = (
    *("model", "loss", "optimizer", "scheduler", "progress", "history", "callbacks"),
    *("lr", "rng", "data", "made_by"),
)
# A hostile file must not make a run impossible to end, or a counter that no array can hold.
_MAX_COUNT = 1 << 62


def check_fits(state: Any, template: dict[str, Any]) -> None:
    """Raise CheckpointError unless ``state`` is one of a trainer that was built like this one.

    template: what :func:`gdtrain.training.state.take_template` gives.
    """
    _demand(isinstance(state, dict) and set(state) == set(_PARTS), "it is not a trainer's state")
    for part in ("model", "loss"):
        _check_tensors(part, state[part], template[part])
    _check_optimizer(state["optimizer"], template)
    _check_data(state["data"], template["data"])
    _check_like("scheduler", state["scheduler"], template["scheduler"])
    _check_progress(state["progress"], template["progress"])
    _demand(_is_real(state["lr"]), "lr is not a number")
    history = state["history"]
    _demand(
        isinstance(history, list)
        and all(isinstance(r, dict) and all(isinstance(k, str) for k in r) for r in history),
        "its history is not a list of epochs",
    )
    _demand(isinstance(state["callbacks"], dict), "callbacks is not a mapping")
    for name in state["callbacks"]:
        _demand(
            name in template["callbacks"],
            f"the state has a callback {name} that this trainer lacks",
        )
    _demand(isinstance(state["made_by"], dict), "made_by is not a mapping")
    _check_rng(state["rng"])


def tell_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say what the last bits depend on and has changed since the state was taken."""
    changed = [
        f"{name} {then.get(name)} then, {value} now"
        for name, value in now.items()
        if then.get(name) != value
    ]
    if changed:
        logger.warning(
            "resumed under other conditions (%s): the same samples in the same order, but the "
            "last bits may differ from an undisturbed run's",
            "; ".join(changed),
        )


def _check_tensors(part: str, found: Any, expected: Mapping[str, Tensor]) -> None:
    _demand(isinstance(found, dict), f"{part} is not a mapping")
    missing, foreign = (
        sorted(expected.keys() - found.keys()),
        sorted(found.keys() - expected.keys()),
    )
    _demand(not missing, f"{part}: the state lacks {', '.join(missing)}")
    _demand(not foreign, f"{part}: the state has {', '.join(foreign)}, which is not in this {part}")
    for name, tensor in expected.items():
        theirs = found[name]
        _demand(isinstance(theirs, Tensor), f"{part}: {name} is not a tensor")
        _demand(
            theirs.shape == tensor.shape and theirs.dtype == tensor.dtype,
            f"{part}: {name} is {_said(theirs)} in the state and {_said(tensor)} here",
        )


def _check_optimizer(found: Any, template: dict[str, Any]) -> None:
    _demand(
        isinstance(found, dict) and set(found) == {"state", "groups"}, "optimizer is not complete"
    )
    parameters: Mapping[str, Tensor] = template["parameters"]
    _demand(isinstance(found["state"], dict), "optimizer: its state is not a mapping")
    total = sum(p.numel() for p in parameters.values())
    for name, kept in found["state"].items():
        _demand(name in parameters, f"optimizer: the state is of a parameter {name}, not held here")
        _demand(isinstance(kept, dict), f"optimizer: the state of {name} is not a mapping")
        for key, value in kept.items():
            if isinstance(value, Tensor):
                shapes = (parameters[name].shape, torch.Size([]), torch.Size([total]))
                _demand(
                    value.shape in shapes,
                    f"optimizer: {key} of {name} has shape {list(value.shape)} in the state, and "
                    f"the parameter {list(parameters[name].shape)} here",
                )
    groups, here = found["groups"], template["groups"]
    _demand(isinstance(groups, list) and len(groups) == len(here), "optimizer: other groups")
    theirs = {_members(group): group for group in groups}
    for group in here:
        members = _members(group)
        _demand(members in theirs, "optimizer: its groups hold other parameters than here")
        _check_like("optimizer", {**theirs[members], "params": []}, {**group, "params": []})


def _members(group: Any) -> frozenset[str]:
    names = group.get("params") if isinstance(group, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError("optimizer: a group has no list of parameters")
    return frozenset(names)


def _check_data(found: Any, here: Any) -> None:
    if here is None or found is None:
        return
    _demand(isinstance(found, dict), "data is not a mapping")
    differing = [
        f"{name} {found.get(name)} in the state, {value} here"
        for name, value in here.items()
        if found.get(name) != value
    ]
    _demand(not differing, f"the data or loader is another: {'; '.join(differing)}")


def _check_progress(found: Any, template: Mapping[str, Any]) -> None:
    _demand(isinstance(found, dict) and found.keys() == template.keys(), "progress is incomplete")
    for name, value in template.items():
        theirs = found[name]
        if name == "position":
            _demand(
                theirs is None or (isinstance(theirs, list) and all(map(_is_count, theirs))),
                "progress: position is no list of whole numbers",
            )
        elif isinstance(value, int):
            _demand(_is_count(theirs), f"progress: {name} is not a whole number >= 0")
        else:
            _demand(_is_real(theirs), f"progress: {name} is not a number")
    _demand(found["step_in_epoch"] <= found["step"], "progress: step_in_epoch is over step")


def _check_rng(found: Any) -> None:
    _demand(isinstance(found, list) and len(found) > 0, "rng: there are no generators")
    try:
        for kept in found:
            state = RngState.of_tensors(kept)
            size = torch.get_rng_state().shape
            _demand(state.cpu.dtype == torch.uint8 and state.cpu.shape == size, "rng: other torch")
            torch.Generator().set_state(state.cpu)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"rng: {error}") from error


def _check_like(where: str, found: Any, template: Any) -> None:
    """Raise CheckpointError unless ``found`` has the structure of ``template``."""
    if isinstance(template, dict):
        same = isinstance(found, dict) and found.keys() == template.keys()
        _demand(same, f"{where}: the state's is another, with other settings than here")
        for key, value in template.items():
            _check_like(f"{where}: {key}", found[key], value)
    elif isinstance(template, list | tuple):
        _demand(isinstance(found, list | tuple), f"{where} is not a list")
        for value in found if template else ():
            _check_like(where, value, template[0])
    elif isinstance(template, bool | str):
        _demand(type(found) is type(template), f"{where} is not a {type(template).__name__}")
    elif isinstance(template, int | float):
        _demand(_is_real(found) or isinstance(found, float), f"{where} is not a number")
    elif template is None:
        _demand(not isinstance(found, dict), f"{where}: the state has one, and none is here")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise CheckpointError(message)
