"""Whether an optimizer's saved state and settings are such that it can go on from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gdtrain.errors import CheckpointError
from gdtrain.training.plain import is_number, shown

# What these keep of each parameter: of its shape (like), or a counter. Others keep what they like.
_LIKE = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.Adam: ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
}
# Of rates and other settings; what is computed from them must fit float32.
_MAX_SETTING = 1e30
_COUNTERS = {torch.optim.Adam: ("step",), torch.optim.AdamW: ("step",)}


def check_optimizer(found: Any, template: dict[str, Any]) -> None:
    """Raise CheckpointError unless the state is one of an optimizer built like this one.

    template: what :func:`gdtrain.training.state.take_template` gives.
    """
    demand(
        isinstance(found, dict) and set(found) == {"state", "groups"}, "optimizer is not complete"
    )
    groups, here = found["groups"], template["groups"]
    demand(isinstance(groups, list) and len(groups) == len(here), "optimizer: other groups")
    theirs = {_members(group): group for group in groups}
    for group in here:
        members = _members(group)
        demand(members in theirs, "optimizer: its groups hold other parameters than here")
        kept = {**theirs[members], "params": []}
        check_like("optimizer", kept, {**group, "params": []}, settings=True)
        betas = kept.get("betas", ())
        demand(all(beta < 1 for beta in betas), "optimizer: betas must be below 1")
    held = {name for group in here for name in group["params"]}
    parameters = {name: p for name, p in template["parameters"].items() if name in held}
    demand(isinstance(found["state"], dict), "optimizer: its state is not a mapping")
    for name, kept in found["state"].items():
        demand(
            name in parameters, f"optimizer: the state is of a parameter {shown(name)}, not here"
        )
        _check_state(name, kept, parameters, template["optimizer"])


def _check_state(
    name: str, kept: Any, parameters: Mapping[str, Tensor], kind: type[torch.optim.Optimizer]
) -> None:
    """Look at what is kept of one parameter."""
    demand(isinstance(kept, dict), f"optimizer: the state of {name} is not a mapping")
    parameter = parameters[name]
    total = torch.Size([sum(p.numel() for p in parameters.values())])
    for key, value in kept.items():
        demand(isinstance(key, str), f"optimizer: the state of {name} has no names")
        what = f"optimizer: {shown(key)} of {name}"
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, Tensor):
                demand(
                    tensor.shape in (parameter.shape, torch.Size([]), total),
                    f"{what} has shape {list(tensor.shape)} in the state, and "
                    f"the parameter {list(parameter.shape)} here",
                )
            else:
                demand(tensor is None or is_number(tensor), f"{what} is no number or tensor")
    if kind not in _LIKE:
        return
    like, counters = _LIKE[kind], _COUNTERS.get(kind, ())
    foreign = kept.keys() - {*like, *counters}
    demand(not foreign, f"optimizer: the state of {name} has {shown(min(foreign, default=''))}")
    complete = not kept or not counters or {*like[:2], *counters} <= kept.keys()
    demand(complete, f"optimizer: the state of {name} is not complete")
    for key, value in kept.items():
        what = f"optimizer: {key} of {name}"
        if key in counters:
            single = isinstance(value, Tensor) and not value.dim() and value.is_floating_point()
            number = float(value) if single else math.nan
            demand(number >= 0 and math.isfinite(number), f"{what} is not a count of steps")
        elif value is not None or kind is not torch.optim.SGD:
            same = isinstance(value, Tensor) and value.shape == parameter.shape
            demand(same and value.is_floating_point(), f"{what} is not like the parameter")


def check_like(where: str, found: Any, template: Any, settings: bool = False) -> None:
    """Raise CheckpointError unless ``found`` has the structure of ``template``.

    settings: switches and names must be the same ones, and nothing is negative that is not here.
    """
    if isinstance(template, dict):
        same = isinstance(found, dict) and found.keys() == template.keys()
        demand(same, f"{where}: the state's is another, with other settings than here")
        for key, value in template.items():
            check_like(f"{where}: {key}", found[key], value, settings)
    elif isinstance(template, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(template)
        demand(same, f"{where} is not a list like the one here")
        for theirs, here in zip(found, template, strict=True):
            check_like(where, theirs, here, settings)
    elif isinstance(template, Tensor):
        same = isinstance(found, Tensor) and found.shape == template.shape
        demand(same and found.dtype == template.dtype, f"{where} is not a tensor like here")
    elif isinstance(template, bool | str):
        same = found == template if settings or isinstance(template, str) else True
        demand(
            type(found) is type(template) and same,
            f"{where} is {shown(found)} in the state, and {template} here",
        )
    elif isinstance(template, int | float):
        # Infinite is the best metric of a schedule that has seen none; a rate never is.
        demand(is_number(found) and found == found, f"{where} is not a number")
        if settings or "lr" in where:
            demand(abs(found) <= _MAX_SETTING, f"{where} is {found}, which nothing can bear")
        demand(not settings or found >= min(template, 0), f"{where} is negative")
    elif template is None:
        fixed = settings or "lr_lambdas" in where  # of functions, None stands for no state
        allowed = found is None or (not fixed and is_number(found))
        demand(allowed, f"{where}: the state has one, and none is here")


def demand(holds: bool, message: str) -> None:
    """Raise CheckpointError with this message unless what is demanded holds."""
    if not holds:
        raise CheckpointError(message)


def _members(group: Any) -> frozenset[str]:
    names = group.get("params") if isinstance(group, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError("optimizer: a group has no list of parameters")
    return frozenset(names)
