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
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from gdtrain.errors import ModelError
from gdtrain.training import torch_code

# What Tensor.backward calls once it has looked at its arguments.
_run_backward: Callable[..., Any] = Variable._execution_engine.run_backward
# Settings of a group under which torch.optim.SGD takes other kernels than below.
_OTHER_KERNELS = ("foreach", "fused", "differentiable", "maximize")
# Dtypes in which the kernels below have the bits of those that torch.optim.SGD calls.
_SAME_BITS = (torch.float32, torch.float64)


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
            raise ModelError(
                "loss: has no gradient: no trained parameter has a part in it; compute it by torch "
                "from what the model gives, without detach(), no_grad() or numpy"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return
    if seed is None or seed.dtype is not loss.dtype:
        seed = torch.ones((), dtype=loss.dtype)
    _run_backward((loss,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)


Work = list[tuple[dict[str, Any], list[Tensor], list[Tensor]]]


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
    if work is not None and is_plain(optimizer):
        move(optimizer, work)
        made()
    elif isinstance(several := getattr(optimizer, "of", None), dict):
        for one in several.values():  # which is counted when the first has stepped
            descend(one, made, gathered(one))
    elif steps_as_torch(optimizer):
        optimizer.step()
        made()
    else:
        with before_hooks(optimizer, made):
            optimizer.step()
        made()


def move(optimizer: Optimizer, work: Work) -> None:
    """``optimizer.step()``, of one that :func:`is_plain`; its kernels are torch.optim.SGD's."""
    for group, parameters, _ in work:
        if (group["momentum"] or group["weight_decay"]) and len(
            set(map(Tensor.data_ptr, parameters))
        ) < len(parameters):
            optimizer.step()  # one after the other: each sees what those before it have made
            return
    # torch.no_grad() would take longer than the update of a small model.
    torch._C._set_grad_enabled(False)
    try:
        for group, parameters, gradients in work:
            given: Any = gradients
            if group["weight_decay"]:
                given = torch._foreach_add(given, parameters, alpha=group["weight_decay"])
            if group["momentum"]:
                given = _with_momentum(optimizer, group, parameters, given)
            torch._foreach_add_(parameters, given, alpha=-group["lr"])
    finally:
        torch._C._set_grad_enabled(True)
    optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask for it


@contextmanager
def before_hooks(optimizer: Optimizer, made: Callable[[], None]) -> Iterator[None]:
    """Have ``made`` called at each step of the optimizer before anybody else's post-hook."""
    hook = optimizer.register_step_post_hook(lambda *_: made())
    optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        hook.remove()


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether somebody looks at ``optimizer.step``, or has put another in its place.

    Learning-rate schedulers wrap it, only to see that it is called.
    """
    own = vars(optimizer).get("step")
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or (own is not None and not hasattr(own, "_wrapped_by_lr_sched"))
    )


def steps_as_torch(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step()`` is PyTorch's code alone."""
    kind = type(optimizer)
    return (
        kind.__module__.startswith("torch.optim.")
        and torch_code.is_of_torch(kind.step)
        and not has_step_hooks(optimizer)
    )


def is_plain(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step()`` is torch.optim.SGD's, on real numbers, and unobserved."""
    if type(optimizer) is not SGD or has_step_hooks(optimizer) or not torch.is_grad_enabled():
        return False
    if "_init_group" in vars(optimizer):
        return False
    step = torch_code.step_now()
    if step != torch_code.STEP and not torch_code.are_own(step, torch_code.STEP):
        return False
    if not torch_code.is_of_torch(SGD.step):
        return False
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return False  # a mode sees which kernels are called
    for group in optimizer.param_groups:
        if type(group["lr"]) is not float or type(group["weight_decay"]) not in (float, int):
            return False
        for key in _OTHER_KERNELS:
            if group[key]:
                return False
    return True


def _with_momentum(
    optimizer: Optimizer, group: dict[str, Any], parameters: list[Tensor], gradients: Any
) -> Any:
    """The first update of a parameter takes its gradient whole, whatever the dampening."""
    momentum, momenta, old, given = group["momentum"], [], [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        state = optimizer.state[parameter]
        held = state.get("momentum_buffer")
        if held is None:
            held = state["momentum_buffer"] = gradient.detach().clone()
        else:
            old.append(held)
            given.append(gradient)
        momenta.append(held)
    if old:
        torch._foreach_mul_(old, momentum)
        torch._foreach_add_(old, given, alpha=1 - group["dampening"])
    return torch._foreach_add(gradients, momenta, alpha=momentum) if group["nesterov"] else momenta
