"""The state of a model, or of a loss that is a module: take it, check it, put it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gdtrain.data.tree import tensors_of
from gdtrain.training.placement.sharding import Part, split_like
from gdtrain.training.run import Run
from gdtrain.training.state.plain_values import check_plain, copied, demand, is_torchs, shown_names

# How torch calls what a module's get_extra_state gives.
_EXTRA = "_extra_state"


@dataclass(frozen=True)
class Slot:
    """A name of a module's state: its value as it stands, and what it may become.

    buffers, key: where a buffer is held by a module that is somebody's own, and so may come, go
    and grow, or change its dtype, as training goes on. Of layers of torch's own nothing does.
    """

    value: Any
    is_extra: bool = False
    buffers: dict[str, Tensor | None] | None = None
    key: str = ""

    @property
    def is_fixed(self) -> bool:
        """Whether it is a tensor that has its dtype and shape for good."""
        return not (self.is_extra or self.buffers is not None or is_lazy(self.value))


def modules(trainer: Run) -> dict[str, nn.Module]:
    """The parts of a trainer that are modules: the model, and perhaps the loss."""
    parts = {"model": trainer.model, "loss": trainer.loss}
    return {part: module for part, module in parts.items() if isinstance(module, nn.Module)}


def flagged(trainer: Run) -> dict[str, nn.Module]:
    """The modules whose modes and frozen parameters are state: those, and the registered ones.

    Parameters that are registered alone, or in dicts and lists, are one, too.
    """
    found = modules(trainer)
    for name in trainer.own_state:
        value = getattr(trainer, name)
        if not isinstance(value, nn.Module):
            value = nn.ParameterList(t for t in tensors_of(value) if isinstance(t, nn.Parameter))
        if not isinstance(value, nn.ParameterList) or len(value):
            found[f"own.{name}"] = value
    return found


def slots(module: nn.Module) -> dict[str, Slot]:
    """What ``module.state_dict()`` has by name, and the buffers that are None as yet."""
    found = {
        name: Slot(
            value, is_extra=name.rpartition(".")[2] == _EXTRA or not isinstance(value, Tensor)
        )
        for name, value in module.state_dict().items()
    }
    for path, part in module.named_modules(remove_duplicate=False):
        for key, buffer in () if is_torchs(part) else part._buffers.items():
            name = f"{path}.{key}" if path else key
            unset = buffer is None and key not in part._non_persistent_buffers_set
            if unset or name in found:
                found[name] = Slot(buffer, buffers=part._buffers, key=key)
    return found


def take(module: nn.Module, name: str) -> dict[str, Any]:
    """All that ``module.state_dict()`` has, in copies, and None for what is not there yet.

    That is a buffer registered as None, or a lazy layer's parameter before its first batch.
    name: of the module, for messages. Raises CheckpointError for extra state of another kind than
    checkpoints hold.
    """
    return {
        key: None if is_lazy(slot.value) else copied(slot.value, f"{name}.{key}")
        for key, slot in slots(module).items()
    }


def check(part: str, found: Any, module: nn.Module) -> None:
    """Raise CheckpointError unless ``found`` is the state of such a module at some moment."""
    demand(isinstance(found, dict), f"{part} is not a mapping")
    here = slots(module)
    needed = {name for name, slot in here.items() if slot.value is not None or slot.is_extra}
    missing, foreign = needed - found.keys(), found.keys() - here.keys()
    demand(not missing, f"{part}: the state lacks {shown_names(missing)}")
    there = f"the state has {shown_names(map(str, foreign))}"
    demand(not foreign, f"{part}: {there}, which is not in this {part}")
    for name, theirs in found.items():
        slot = here[name]
        if slot.is_extra:
            check_plain(f"{part}: {name}", theirs)
            continue
        tensor = isinstance(theirs, Tensor | Part)
        demand(tensor or (theirs is None and not slot.is_fixed), f"{part}: {name} is not a tensor")
        if slot.is_fixed:
            same = theirs.shape == slot.value.shape and theirs.dtype == slot.value.dtype
            both = f"{_said(theirs)} in the state and {_said(slot.value)} here"
            demand(same, f"{part}: {name} is {both}")
    _check_statistics(part, found, module)


def _check_statistics(part: str, found: Mapping[str, Any], module: nn.Module) -> None:
    """Raise CheckpointError for a variance or a count of a normalisation that is negative."""
    for path, layer in module.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._NormBase):
            continue
        for key in ("running_var", "num_batches_tracked"):
            name = f"{path}.{key}" if path else key
            value = found.get(name)
            negative = isinstance(value, Tensor) and bool((value < 0).any())
            demand(not negative, f"{part}: {name} is negative")


def put(module: nn.Module, state: Mapping[str, Any], device: torch.device) -> None:
    """Give the module a state that :func:`check` has let pass, in copies.

    A buffer of another shape or dtype is rebound. device: of buffers that were None.
    """
    given = {}
    for name, slot in slots(module).items():
        value = state.get(name)
        if value is not None and slot.buffers is not None:
            _bind(slot, value, device)
        elif slot.buffers is not None and not is_lazy(slot.value):
            slot.buffers[slot.key] = None
        if name in state and (value is not None or slot.is_extra):
            given[name] = value
    here = module.state_dict()
    given = {name: split_like(value, here[name]) for name, value in given.items()}
    # Lazy layers that are so in the state too are all that can be missing.
    module.load_state_dict(given, **({} if given.keys() == here.keys() else {"strict": False}))


def take_flags(module: nn.Module) -> dict[str, list[str]]:
    """Which parameters are frozen, and which layers are in eval mode, by name."""
    return {
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        "eval": [name for name, part in module.named_modules() if not part.training],
    }


def check_flags(part: str, found: Any, module: nn.Module) -> None:
    """Raise CheckpointError unless ``found`` is what :func:`take_flags` gives."""
    demand(isinstance(found, dict) and set(found) == {"frozen", "eval"}, f"{part}: no flags")
    for key, known in (("frozen", module.named_parameters()), ("eval", module.named_modules())):
        names, there = found[key], {name for name, _ in known}
        right = isinstance(names, list) and all(isinstance(n, str) and n in there for n in names)
        demand(right, f"{part}: {key} names what is not in this {part}")


def put_flags(module: nn.Module, flags: Mapping[str, list[str]]) -> None:
    """Freeze and unfreeze parameters, and set modes, as :func:`take_flags` found them."""
    frozen, still = set(flags["frozen"]), set(flags["eval"])
    for name, parameter in module.named_parameters():
        if parameter.requires_grad == (name in frozen):
            parameter.requires_grad_(name not in frozen)
    for name, part in module.named_modules():
        part.training = name not in still


def _bind(slot: Slot, value: Tensor, device: torch.device) -> None:
    """Make room for a value of another form than the buffer has; it is copied afterwards."""
    own, buffers = slot.value, slot.buffers
    assert buffers is not None
    if own is None:
        buffers[slot.key] = torch.empty_like(value, device=device)
    elif not is_lazy(own) and (own.shape != value.shape or own.dtype != value.dtype):
        buffers[slot.key] = torch.empty_like(value, device=own.device)


def _said(tensor: Tensor | Part) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
