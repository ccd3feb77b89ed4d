"""When torch's compiler is imported, which takes a second: where it is used, and in no block."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

from torch.optim import Optimizer

from gdtrain.training.descent import known_step

# What torch.optim marks as not to be compiled.
_MARKED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def leave_compiler_out(owner: type = Optimizer, names: tuple[str, ...] = _MARKED) -> None:
    """Let these methods be called without importing ``torch._dynamo``, which torch does there.

    At the first call of a method that is marked as not to be compiled, torch imports its compiler
    to make the variant of it that the compiler leaves alone, and keeps that beside the method.
    While nobody has imported the compiler, the method itself is that variant.
    """
    for name in names:
        marked = getattr(owner, name)
        method = getattr(marked, "__wrapped__", None)
        if method is not None and _VARIANT not in vars(method):
            vars(method)[_VARIANT] = _until_imported(marked, method)


_VARIANT = "__dynamo_disable"


def _until_imported(marked: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        if not hasattr(sys.modules.get("torch._dynamo"), "disable"):
            return method(*arguments, **options)
        vars(method).pop(_VARIANT, None)  # torch makes its own
        return marked(*arguments, **options)

    return call


def import_ahead(optimizer: Optimizer, *, steps_itself: bool) -> None:
    """Import the compiler now, if ``optimizer.step()`` will: an update's time is not an import's.

    steps_itself: whether somebody's own code calls that for every optimizer.
    """
    several = getattr(type(optimizer), "are_several", None)
    steps = several(optimizer) if several else [optimizer]
    if steps_itself or not all(map(known_step, steps)):
        import_module("torch._dynamo")
