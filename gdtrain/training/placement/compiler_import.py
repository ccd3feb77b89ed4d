"""Keeps torch's compiler out of a process that compiles nothing: to import it takes a second."""

from __future__ import annotations

import sys

from torch.optim import Optimizer

# What torch.optim marks as not to be compiled.
_MARKED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def leave_compiler_out() -> None:
    """Let optimizers be made, and their states taken, without importing ``torch._dynamo``.

    At the first call of a method that is marked as not to be compiled, torch imports its compiler
    to make the variant of it that the compiler leaves alone, and keeps that beside the method.
    Where there is no compiler, the method itself is that variant.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in _MARKED:
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None:
            vars(method).setdefault("__dynamo_disable", method)
