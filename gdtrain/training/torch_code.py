"""Whether PyTorch's functions are still its own: a program may put others under their names.

The name of a class does not say what it does: ``nn.Linear.forward = …`` makes every layer another
one. Where the project takes a shorter way than PyTorch's function, or counts on it to do the same
each time, it asks here, and so it does for hooks and modes that see the calls of all layers.
"""

from __future__ import annotations

from functools import lru_cache, partial
from inspect import unwrap
from operator import attrgetter, itemgetter
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import _reduction
from torch.nn import functional as F
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.optim import SGD, Optimizer
from torch.optim import adam as adam_module
from torch.optim import sgd as sgd_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

_FOLDER = str(Path(torch.__file__).parent)


@lru_cache(maxsize=1024)
def is_of_torch(function: Any) -> bool:
    """Whether a function is PyTorch's, whatever name it stands under, and so are those it wraps.

    >>> is_of_torch(torch.nn.Linear.forward), is_of_torch(lambda layer, x: x)
    (True, False)
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return isinstance(function, BuiltinFunctionType | MethodDescriptorType)
    wrapped = getattr(function, "__wrapped__", None)  # of the first SGD, PyTorch wraps its step
    return str(code.co_filename).startswith(_FOLDER) and (wrapped is None or is_of_torch(wrapped))


# How a layer is called and read, which its class has of torch.nn.Module.
_CALLS = ("__call__", "_call_impl", "__getattr__", "__getattribute__")
_calls_of = attrgetter(*_CALLS)
# All that a class has to do with its passes.
passes_of = attrgetter("forward", *_CALLS)


def is_known_layer(layer: nn.Module, packages: tuple[str, ...] = ("torch.nn.",)) -> bool:
    """Whether a layer's passes run the code of these packages alone, PyTorch's as it came.

    Hooks may be anybody's, and so may functions that stand in the place of its class's.

    >>> is_known_layer(torch.nn.Linear(2, 1))
    True
    """
    kind, own = type(layer), vars(layer)
    if not kind.__module__.startswith(packages) or "forward" in own or "_call_impl" in own:
        return False
    if layer._forward_hooks or layer._forward_pre_hooks:
        return False
    if layer._backward_hooks or layer._backward_pre_hooks:
        return False
    if not kind.__module__.startswith("torch."):
        return True
    return is_of_torch(kind.forward) and _calls_of(kind) == _calls_of(nn.Module)


def _own(function: Any) -> Any:
    """What stands there when the project is imported, where that is PyTorch's."""
    return function if is_of_torch(function) else None


@lru_cache(maxsize=16)
def are_own(now: tuple[Any, ...], own: tuple[Any, ...]) -> bool:
    """Whether what stands there now is what stood there, or that in wrappers of PyTorch's.

    ``torch.compile`` leaves such ones about the optimizers for the rest of the process; from then
    on this is asked in every update.
    """
    return all(
        a is b or (isinstance(a, FunctionType) and is_of_torch(a) and unwrap(a) is unwrap(b))
        for a, b in zip(now, own, strict=True)
    )


_ROOT = SimpleNamespace(torch=torch, nn=nn, reduction=_reduction, sgd=sgd_module, adam=adam_module)


def _table(*names: str) -> tuple[Any, tuple[Any, ...]]:
    """What looks up functions by their names, in no call of Python's, and PyTorch's own of these.

    Each table has all that PyTorch calls where the project takes a shorter way, down to the
    kernels, and the kernels that the project calls instead. Names that this version of PyTorch
    lacks are left out.
    """
    look = partial(attrgetter(*filter(_is_there, names)), _ROOT)
    return look, tuple(map(_own, look()))


def _is_there(name: str) -> bool:
    try:
        attrgetter(name)(_ROOT)
    except AttributeError:
        return False
    return True


# Compared where they are needed, without a call of Python's, since that is in every update.
backward_now, BACKWARD = _table(
    "torch.Tensor.backward",
    "torch.autograd.backward",
    "torch.autograd._tensor_or_tensors_to_tuple",
    "torch.autograd._make_grads",
    "torch.autograd._engine_run_backward",
    "torch.ones_like",
)
sgd_now, OF_SGD = _table(
    "torch.optim.Optimizer.zero_grad",
    "torch.optim.SGD._init_group",
    "sgd.sgd",
    "sgd._default_to_fused_or_foreach",
    "sgd._single_tensor_sgd",
    "torch.Tensor.add",
    "torch.Tensor.add_",
    "torch.Tensor.mul_",
    "torch.clone",
    "torch.Tensor.clone",
    "torch.Tensor.detach",
    "torch._foreach_add",
    "torch._foreach_add_",
    "torch._foreach_mul_",
)
adam_now, OF_ADAM = _table(
    "torch.optim.Optimizer.zero_grad",
    "torch.optim.Adam._init_group",
    "adam.adam",
    "adam._default_to_fused_or_foreach",
    "adam._single_tensor_adam",
    "adam._to_scalar",
    "adam._get_value",
    "torch.Tensor.__iadd__",
    "torch.Tensor.__truediv__",
    "torch.Tensor.item",
    "torch.Tensor.conj",
    "torch.Tensor.add",
    "torch.Tensor.add_",
    "torch.Tensor.mul_",
    "torch.Tensor.lerp_",
    "torch.Tensor.sqrt",
    "torch.Tensor.addcmul_",
    "torch.Tensor.addcdiv_",
    "torch._foreach_add",
    "torch._foreach_add_",
    "torch._foreach_mul_",
    "torch._foreach_lerp_",
    "torch._foreach_addcmul_",
    "torch._foreach_sqrt",
    "torch._foreach_div_",
    "torch._foreach_addcdiv_",
)
ZERO_GRAD = _own(Optimizer.zero_grad)
_pass_now, _PASS = _table(
    "nn.Module.__call__",
    "nn.Module._call_impl",
    "nn.Module.__getattr__",
    "nn.Linear.forward",
    "nn.Sequential.forward",
    "nn.Sequential.__iter__",
    "reduction.get_enum",
    "torch.broadcast_tensors",
    "torch._C._nn.mse_loss",
    "torch._C._nn.l1_loss",
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
    layers, functions = _pass_now(), _functions_now(vars(F))
    if layers == _PASS and functions == _FUNCTIONS:  # in each block
        return True
    return are_own(layers, _PASS) and are_own(functions, _FUNCTIONS)


def has_own_update() -> bool:
    """Whether ``backward``, ``zero_grad`` and the step of SGD are PyTorch's."""
    return (
        are_own(backward_now(), BACKWARD) and are_own(sgd_now(), OF_SGD) and is_of_torch(SGD.step)
    )


def has_global_hooks() -> bool:
    """Whether somebody looks at the passes of all layers there are."""
    return bool(
        _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    )


def is_in_a_mode() -> bool:
    """Whether a mode sees PyTorch's calls, other than the one that sets the default device."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    seen = any(not isinstance(mode, DeviceContext) for mode in modes)
    return seen or torch._C._len_torch_dispatch_stack() > 0
