"""Whether PyTorch's functions are still its own: a program may put others under their names.

The name of a class does not say what it does: ``nn.Linear.forward = …`` makes every layer another
one. Where the project takes a shorter way than PyTorch's function, or counts on it to do the same
each time, it asks here.
"""

from __future__ import annotations

from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.autograd import backward
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim import sgd as sgd_module

_FOLDER = str(Path(torch.__file__).parent)


@lru_cache(maxsize=1024)
def is_of_torch(function: Any) -> bool:
    """Whether a function is PyTorch's, whatever name it stands under, and so are those it wraps.

    >>> is_of_torch(torch.nn.Linear.forward), is_of_torch(lambda layer, x: x)
    (True, False)
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return isinstance(function, BuiltinFunctionType)
    wrapped = getattr(function, "__wrapped__", None)  # of the first SGD, PyTorch wraps its step
    return str(code.co_filename).startswith(_FOLDER) and (wrapped is None or is_of_torch(wrapped))


def _own(function: Any) -> Any:
    """What stands there when the project is imported, where that is PyTorch's."""
    return function if is_of_torch(function) else None


# Compared where they are needed, without a call, since that is in every update.
TENSOR_BACKWARD, BACKWARD = _own(torch.Tensor.backward), _own(backward)
KERNEL, ZERO_GRAD = _own(sgd_module.sgd), _own(Optimizer.zero_grad)

_PASS = tuple(
    map(_own, (nn.Module.__call__, nn.Module._call_impl, nn.Linear.forward, nn.Sequential.forward))
)
# Of torch.nn.functional; looked up all at once, since that is asked before every block.
_functions_now = itemgetter(
    *(
        name
        for name, function in vars(F).items()
        if isinstance(function, FunctionType | BuiltinFunctionType) and name[0] != "_"
    )
)
_FUNCTIONS = tuple(map(_own, _functions_now(vars(F))))


def has_own_pass() -> bool:
    """Whether layers are called as PyTorch calls them, and compute by its functions."""
    now = nn.Module.__call__, nn.Module._call_impl, nn.Linear.forward, nn.Sequential.forward
    return now == _PASS and _functions_now(vars(F)) == _FUNCTIONS


def has_own_update() -> bool:
    """Whether ``backward``, ``zero_grad`` and the step of SGD are PyTorch's."""
    return (
        torch.Tensor.backward is TENSOR_BACKWARD
        and torch.autograd.backward is BACKWARD
        and Optimizer.zero_grad is ZERO_GRAD
        and sgd_module.sgd is KERNEL
        and is_of_torch(SGD.step)
    )
