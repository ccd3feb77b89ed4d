"""State of a trainer's own: what a subclass registers is saved, resumed and kept from looks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.errors import CheckpointError, ConfigError
from gdtrain.training.run import Run
from gdtrain.training.state import module_state
from gdtrain.training.state.plain_values import check_plain, copied, demand, shown_names


def register(trainer: Run, name: str, value: Any) -> None:
    """Hold ``value`` as the trainer's attribute ``name``, which is state from now on.

    Raises ConfigError for a name that can't be one, and for a value that can't be saved.
    """
    key = f"register_state({name!r})"
    if not (isinstance(name, str) and name.isidentifier()):
        raise ConfigError.of(key, "the name must be one that an attribute can have")
    own = vars(trainer).setdefault("own_state", [])
    if name not in own and (name in vars(trainer) or hasattr(type(trainer), name)):
        raise ConfigError.of(
            key,
            "the trainer has an attribute of that name; register_state makes it, so leave the "
            "assignment out, or choose another name",
        )
    if isinstance(value, nn.Module) and _has_models(trainer, value):
        raise ConfigError.of(key, "the model and the loss are saved anyway; leave it out")
    try:
        taken(value, name)
    except CheckpointError as error:
        raise ConfigError.of(
            key,
            f"a {type(value).__name__} can't be saved; give tensors, numbers, text, None, dicts, "
            "lists or tuples of these, a torch.Generator, or an object with state_dict and "
            "load_state_dict",
        ) from error
    setattr(trainer, name, value)
    if name not in own:
        own.append(name)


def taken(value: Any, name: str) -> Any:
    """What is saved of a value, in copies. Raises CheckpointError for what can't be."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, nn.Module):
        return module_state.take(value, name)
    return copied(value.state_dict() if keeps_state(value) else value, name)


def keeps_state(value: Any) -> bool:
    """Whether it is an object that gives its state, and takes it back."""
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def take(trainer: Run) -> list[dict[str, Any]]:
    """The registered state of every process, by name, in copies; for all processes together."""
    own = {name: taken(getattr(trainer, name), name) for name in trainer.own_state}
    return trainer.world.gather_objects(own)


def check(found: Any, trainer: Run) -> None:
    """Raise CheckpointError unless a trainer that registers the same can go on from ``found``.

    In another number of processes only if all had the same.
    """
    rows = isinstance(found, list) and len(found) > 0 and all(isinstance(f, dict) for f in found)
    demand(rows, "own is not a list of mappings")
    for row in found:
        missing, foreign = set(trainer.own_state) - row.keys(), row.keys() - set(trainer.own_state)
        demand(not missing, f"own: the state lacks {shown_names(missing)}, registered here")
        demand(not foreign, f"own: {shown_names(map(str, foreign))} is not registered here")
        for name, value in row.items():
            check_plain(f"own: {name}", value)
            here = getattr(trainer, name)
            if isinstance(here, nn.Module):
                module_state.check(f"own: {name}", value, here)
    if len(found) != trainer.world.size:
        differ = [name for name in trainer.own_state if not _alike([row[name] for row in found])]
        demand(
            not differ,
            f"own: {shown_names(differ)} was another in each of {len(found)} processes, and can't "
            f"go on in {trainer.world.size}",
        )


def put(trainer: Run, found: list[dict[str, Any]]) -> None:
    """Give the trainer the state that :func:`check` has let pass, which is taken over."""
    row = found[trainer.world.rank if len(found) == trainer.world.size else 0]
    put_into = _PutInto(trainer)
    for name, value in row.items():
        here = getattr(trainer, name)
        if isinstance(here, torch.Generator):
            here.set_state(value)
        elif isinstance(here, nn.Module):
            module_state.put(here, value, trainer.device)
        elif keeps_state(here):
            here.load_state_dict(value)
        else:
            setattr(trainer, name, put_into(here, value))


class _PutInto:
    """Gives tensors, dicts and lists the values of a state; they stay the objects that they are.

    For others may hold them: an optimizer a parameter, a function the dict in which it counts. An
    object that stands in several places, or in the model, is left alone after the first: each
    place has a value of its own in the state.
    """

    def __init__(self, trainer: Run) -> None:
        self._device = trainer.device
        modules = [part for part in (trainer.model, trainer.loss) if isinstance(part, nn.Module)]
        self._passed = {
            id(tensor)
            for module in modules
            for tensor in chain(module.parameters(), module.buffers())
        }

    def __call__(self, here: Any, value: Any) -> Any:
        """What stands where ``here`` stood: ``here`` itself if it can take the value."""
        if isinstance(value, Tensor):
            value = value.to(here.device if isinstance(here, Tensor) else self._device)
        if id(here) in self._passed:
            here = None
        elif isinstance(here, Tensor | dict | list):
            self._passed.add(id(here))
        if isinstance(value, Mapping):
            return self._mapping(here, value)
        if isinstance(value, list | tuple):
            return self._row(here, value)
        if isinstance(value, Tensor) and isinstance(here, Tensor) and _can_hold(here, value):
            here.data = value
            return here
        return value

    def _mapping(self, here: Any, value: Mapping[Any, Any]) -> Any:
        if not isinstance(here, dict):
            here = copy.copy(value)  # a dict, or a Counter
        items = {key: self(here.get(key), item) for key, item in value.items()}
        here.clear()
        here.update(items)
        return here

    def _row(self, here: Any, value: Sequence[Any]) -> Any:
        known = chain(here if isinstance(here, list | tuple) else (), repeat(None))
        items = [self(one, item) for one, item in zip(known, value, strict=False)]
        if not isinstance(here, list):
            return tuple(items) if isinstance(value, tuple) else items
        here[:] = items
        return here


def _can_hold(tensor: Tensor, value: Tensor) -> bool:
    plain = tensor.grad_fn is None and not tensor.is_inference()
    alike = type(tensor.data) is type(value) and tensor.layout is value.layout
    return plain and alike and tensor.dtype == value.dtype


def _has_models(trainer: Run, value: nn.Module) -> bool:
    return any(value is part for part in (vars(trainer).get("model"), vars(trainer).get("loss")))


def _alike(values: list[Any]) -> bool:
    """Whether nested plain values are all the same."""
    first = values[0]
    if isinstance(first, Tensor):
        return all(isinstance(v, Tensor) and torch.equal(first, v) for v in values)
    if isinstance(first, Mapping):
        same = all(isinstance(v, Mapping) and v.keys() == first.keys() for v in values)
        return same and all(_alike([v[key] for v in values]) for key in first)
    if isinstance(first, list | tuple):
        same = all(isinstance(v, list | tuple) and len(v) == len(first) for v in values)
        return same and all(map(_alike, map(list, zip(*values, strict=True))))
    return all(type(v) is type(first) and v == first for v in values)
