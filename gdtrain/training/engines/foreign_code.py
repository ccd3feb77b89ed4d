"""Whose code a run calls: PyTorch's and the project's own is known, all other is foreign."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import torch
from torch import nn

from gdtrain.training.callbacks.callback import EVENTS, Callback, StepLosses
from gdtrain.training.engines.capturing.functional_step import Places, update_flags
from gdtrain.training.engines.capturing.python_state import (
    PythonState,
    content,
    is_foreign,
    names_in,
    root_package,
)
from gdtrain.training.run import Run
from gdtrain.training.state.keeper import modules_of, roots_of
from gdtrain.training.torch_code import has_own_pass, is_known_layer

# Rooms whose callbacks read the progress of a run, and call no model.
_READERS = ("gdtrain.output.", "gdtrain.cli.")
# Names in code that computes gradients: those that it reads then are its own.
_OWN_GRADIENTS = {"autograd", "backward", "batch_gradient", "func"}

_is_known_layer = functools.partial(is_known_layer, packages=("torch.nn.", "gdtrain."))


def only_reads(callback: Callback | None, trainer: Run) -> bool:
    """Whether a callback is one that leaves everything as it is, by its class alone.

    None stands for code of which nothing is known.
    """
    kind = type(callback)
    if kind is not StepLosses and not kind.__module__.startswith(_READERS):
        return False
    if any(event in vars(callback) for event in EVENTS):
        return False
    # What others report is asked of them.
    return all(
        root_package(type(other).report.__module__) == "gdtrain" and "report" not in vars(other)
        for other in trainer.callbacks
    )


def calls_known_code(trainer: Run) -> bool:
    """Whether a batch's loss is computed by code of PyTorch and of the project alone.

    Such code does the same in every step, and reads nothing but what :class:`Structure` has.
    """
    if trainer.has_own("compute_loss", "forward", "batch_loss") or not has_own_pass():
        return False
    layers = modules_of(roots_of(trainer))
    return all(map(_is_known_layer, layers)) and _is_known(trainer.loss)


def _is_known(loss: Any) -> bool:
    if isinstance(loss, nn.Module):
        return True  # as a layer
    if isinstance(loss, functools.partial):
        return _is_known(loss.func)
    return root_package(str(getattr(loss, "__module__", ""))) in ("torch", "gdtrain")


def reads_gradients(callback: Callback) -> bool:
    """Whether a callback of somebody's own reads ``.grad`` of the last update, by its code.

    What it, or a function that it calls by name, has computed itself is not of the update.
    """
    kind: type = type(callback)
    names = _names_in_class(kind)
    return "grad" in names and not names & _OWN_GRADIENTS


def _names_in_class(kind: type) -> set[str]:
    """What a class's methods name, and the functions that they call by name."""
    waiting: list[Any] = [part for k in kind.__mro__ if is_foreign(k) for part in vars(k).values()]
    names: set[str] = set()
    seen: set[FunctionType] = set()
    while waiting:
        part = waiting.pop()
        function = getattr(part, "__func__", part)  # of static and class methods
        if not isinstance(function, FunctionType) or function in seen or not is_foreign(function):
            continue
        seen.add(function)
        named = set(names_in(function.__code__))
        names |= named
        waiting += [value for name, value in function.__globals__.items() if name in named]
        waiting += map(content, function.__closure__ or ())
    return names


class Structure:
    """What known code reads of a trainer, and a captured step has as constants.

    The step writes to the tensors in its places, so these must be the same objects too.
    """

    def __init__(self, trainer: Run) -> None:
        roots = {"model": trainer.model, "loss": trainer.loss}
        self._places = Places(trainer)
        self._attributes = PythonState(roots, self._places.tensors.values())
        self._facts = _facts(trainer)

    def is_of(self, trainer: Run) -> bool:
        """Whether the trainer is as it was."""
        return (
            self._facts == _facts(trainer)
            and self._places.hold_what(Places(trainer))
            and not self._attributes.changes()
        )


def _facts(trainer: Run) -> tuple[Any, ...]:
    groups = trainer.updater.param_groups
    return (
        *(type(trainer), id(trainer.model), id(trainer.loss), trainer.precision, trainer.dtype),
        {(type(module), type(module).forward) for module in modules_of(roots_of(trainer))},
        (torch.get_default_dtype(), torch.initial_seed()),
        (trainer.clip_grad_norm, trainer.clip_grad_value),
        [(update_flags(group), *map(id, group["params"])) for group in groups],
    )
