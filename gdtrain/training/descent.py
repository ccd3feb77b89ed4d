"""One eager update's own work, with the bits of PyTorch's calls and less overhead around them.

Each function looks at the tensors and settings that there are when it is called, and makes
PyTorch's own call where it does not know better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks

from gdtrain.errors import ModelError
from gdtrain.training import torch_code
from gdtrain.training.known_steps import (
    Work,
    call_post_hooks,
    has_step_hooks,
    known_step,
    takes_hooks,
)

# What Tensor.backward calls once it has looked at its arguments.
_run_backward: Callable[..., Any] = Variable._execution_engine.run_backward
# Dtypes in which the kernels of known steps have the bits of those that torch.optim calls.
_SAME_BITS = (torch.float32, torch.float64)
_PLAIN = (Parameter, Tensor)
NO_GRADIENT = (
    "loss: has no gradient: no trained parameter has a part in it; compute it by torch "
    "from what the model gives, without detach(), no_grad() or numpy"
)


def zero_gradients(optimizer: Optimizer) -> None:
    """``optimizer.zero_grad()``."""
    if (
        type(optimizer).zero_grad is not Optimizer.zero_grad
        or "zero_grad" in vars(optimizer)
        or Optimizer.zero_grad is not torch_code.ZERO_GRAD
    ):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def backward(loss: Tensor, seed: Tensor | None = None) -> None:
    """``loss.backward()``, of a loss of shape []. Raises ModelError if it has no gradient.

    seed: ∂J/∂J, of a pass in which nobody's code runs; else each has one of its own, since a hook
    or a function of autograd's may write to it.
    """
    if (
        type(loss) is not Tensor
        or not loss.requires_grad
        or loss.device.type != "cpu"
        or torch_code.backward_now() != torch_code.BACKWARD
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
    ):
        if not loss.requires_grad:
            raise ModelError(NO_GRADIENT)
        loss.backward()  # type: ignore[no-untyped-call]
        return
    if seed is None or seed.dtype is not loss.dtype:
        seed = torch.ones((), dtype=loss.dtype)
    _run_backward((loss,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def gathered(optimizer: Optimizer) -> Work | None:
    """Each group with its parameters that have a gradient, and these.

    None unless all are plain tensors of float32 or float64 on a CPU.
    """
    work: Work = []
    for group in optimizer.param_groups:
        parameters, gradients = [], []
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if (
                gradient.dtype not in _SAME_BITS
                or gradient.dtype is not parameter.dtype
                or type(parameter) not in _PLAIN
                or (parameter.__dict__ and any(map(callable, parameter.__dict__.values())))
                or gradient.layout is not torch.strided
                or not gradient.is_cpu
                or type(gradient) is not Tensor
            ):
                return None
            parameters.append(parameter)
            gradients.append(gradient)
        if parameters:
            work.append((group, parameters, gradients))
    return work


def descend(optimizer: Optimizer, made: Callable[[], None], work: Work | None) -> None:
    """``optimizer.step()``; ``made`` is called as soon as the weights have moved.

    work: what :func:`gathered` has just given.
    """
    step = None if work is None else known_step(optimizer)
    if step is not None and work is not None and step(optimizer, work):
        made()
        if optimizer._optimizer_step_post_hooks or _global_optimizer_post_hooks:
            call_post_hooks(optimizer)
    elif several := getattr(type(optimizer), "are_several", None):
        for one in several(optimizer):  # which is counted when the first has stepped
            descend(one, made, gathered(one))
    elif steps_as_torch(optimizer):
        optimizer.step()
        made()
    else:
        with before_hooks(optimizer, made):
            optimizer.step()
        made()


@contextmanager
def before_hooks(optimizer: Optimizer, made: Callable[[], None]) -> Iterator[None]:
    """Have ``made`` called at each step of the optimizer before anybody else's post-hook."""
    if not takes_hooks(optimizer):
        yield
        return
    hook = optimizer.register_step_post_hook(lambda *_: made())
    optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        hook.remove()


def steps_as_torch(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step()`` is PyTorch's code alone."""
    kind = type(optimizer)
    return (
        kind.__module__.startswith("torch.optim.")
        and torch_code.is_of_torch(kind.step)
        and not has_step_hooks(optimizer)
    )
