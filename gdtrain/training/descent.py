"""One eager update's own work, with the bits of PyTorch's calls and less overhead around them.

Each function looks at the tensors and settings that there are when it is called, and makes
PyTorch's own call where it does not know better. Of SGD, Adam and AdamW it knows the steps: the
kernels are those that PyTorch calls for one parameter after the other, each called once for all of
a group's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import unwrap
from itertools import chain
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.autograd import Variable
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from gdtrain.errors import ModelError
from gdtrain.training import torch_code

# What Tensor.backward calls once it has looked at its arguments.
_run_backward: Callable[..., Any] = Variable._execution_engine.run_backward
# Dtypes in which the kernels of known steps have the bits of those that torch.optim calls.
_SAME_BITS = (torch.float32, torch.float64)
_PLAIN = (Parameter, Tensor)
NO_GRADIENT = (
    "loss: has no gradient: no trained parameter has a part in it; compute it by torch "
    "from what the model gives, without detach(), no_grad(), inference_mode() or numpy"
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
        seed = torch.ones((), dtype=loss.dtype, device="cpu")
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


# ── the steps of torch.optim ────────────────────────────────────────────────────────────────────

# Each group with its parameters that have a gradient, and these.
Work = list[tuple[dict[str, Any], list[Tensor], list[Tensor]]]
Step = Callable[[Optimizer, Work], bool]

_begin = UntypedStorage.data_ptr
# Settings of a group under which torch.optim takes other kernels than below.
_OTHER_KERNELS = ("foreach", "fused", "differentiable", "maximize", "capturable", "amsgrad")
_NUMBERS = ("weight_decay", "momentum", "dampening", "eps")


def known_step(optimizer: Optimizer, *, hooked: bool = False) -> Step | None:
    """What makes the update of ``optimizer.step()``, but for its post-hooks; or gives False.

    None where that is not PyTorch's own, is seen from within, or takes other kernels than those
    here. Tensors are to be real numbers of a CPU. hooked: whether who calls it sees to the
    optimizer's own pre-hooks, too.
    """
    known = _STEPS.get(type(optimizer))
    if known is None or _global_optimizer_pre_hooks:
        return None
    if optimizer._optimizer_step_pre_hooks and not hooked:
        return None
    own = vars(optimizer).get("step")
    if own is not None and not _is_scheduled(own, type(optimizer).step):
        return None
    if not torch.is_grad_enabled():
        return None
    step, functions_now, functions = known
    if "_init_group" in vars(optimizer):
        return None
    now = functions_now()
    if now != functions and not torch_code.are_own(now, functions):
        return None
    if not torch_code.is_of_torch(type(optimizer).step):
        return None
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return None  # a mode sees which kernels are called
    for group in optimizer.param_groups:
        if type(group["lr"]) is not float:
            return None
        for key in _NUMBERS:
            if type(group.get(key, 0.0)) not in (float, int):
                return None
        for key in _OTHER_KERNELS:
            if group.get(key):
                return None
    return step


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Tell learning-rate schedulers that an update was made without ``optimizer.step``."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


def call_post_hooks(optimizer: Optimizer) -> None:
    """As ``optimizer.step()`` does at its end."""
    hooks = optimizer._optimizer_step_post_hooks
    for hook in chain(hooks.values(), _global_optimizer_post_hooks.values()):
        hook(optimizer, (optimizer,), {})


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether somebody looks at ``optimizer.step``, or has put another in its place."""
    own = vars(optimizer).get("step")
    try:
        registered = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    except AttributeError:  # it takes none
        registered = None
    return bool(
        registered
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or (own is not None and not _is_scheduled(own, type(optimizer).step))
    )


def takes_hooks(optimizer: Optimizer) -> bool:
    """Whether hooks of steps can be registered.

    An optimizer around another one may be made without ``Optimizer.__init__``, and has none then.
    """
    return hasattr(optimizer, "_optimizer_step_post_hooks")


def _is_scheduled(step: Any, of_class: Any) -> bool:
    """Whether ``step`` is what a scheduler of PyTorch's makes of the class's own, and no more."""
    return (
        hasattr(step, "_wrapped_by_lr_sched")
        and not hasattr(step, "_torchdynamo_orig_callable")
        and torch_code.is_of_torch.__wrapped__(step)  # uncached: it may hold a model
        and unwrap(step) is unwrap(of_class)
    )


def _sgd(optimizer: Optimizer, work: Work) -> bool:
    """x ← x - lr (momentum, weight decay and Nesterov's as in torch.optim.SGD)."""
    momenta: list[list[Any]] = []
    for group, parameters, gradients in work:  # in loops: small models would feel more calls
        held: list[Any] = []
        for parameter in parameters if group["momentum"] else ():
            held.append(optimizer.state[parameter].get("momentum_buffer"))
        momenta.append(held)
        one_kernel = not (group["momentum"] or group["weight_decay"])  # which goes one by one
        if not (one_kernel or _are_apart(parameters, held, parameters, gradients)):
            return False
    # torch.no_grad() would take longer than the update of a small model.
    torch._C._set_grad_enabled(False)
    try:
        for (group, parameters, gradients), held in zip(work, momenta, strict=True):
            given: Any = gradients
            if group["weight_decay"]:
                given = torch._foreach_add(given, parameters, alpha=group["weight_decay"])
            if group["momentum"]:
                momentum, old, new = group["momentum"], [], []
                for number, buffer in enumerate(held):
                    if buffer is None:  # the first update takes it whole, whatever the dampening
                        held[number] = given[number].detach().clone()
                        optimizer.state[parameters[number]]["momentum_buffer"] = held[number]
                    else:
                        old.append(buffer)
                        new.append(given[number])
                if old:
                    torch._foreach_mul_(old, momentum)
                    torch._foreach_add_(old, new, alpha=1 - group["dampening"])
                given = (
                    torch._foreach_add(given, held, alpha=momentum) if group["nesterov"] else held
                )
            torch._foreach_add_(parameters, given, alpha=-group["lr"])
    finally:
        torch._C._set_grad_enabled(True)
    optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask for it
    return True


def _adam(optimizer: Optimizer, work: Work) -> bool:
    """m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², x ← x - lr m̂/(√v̂ + ε) (Kingma and Ba, 2015).

    Weight decay is added to g, or with AdamW taken from x (Loshchilov and Hutter, 2019).
    """
    states: list[list[dict[str, Any]]] = []
    for group, parameters, gradients in work:
        if not all(map(optimizer.state.get, parameters)):
            optimizer._init_group(group, [], [], [], [], [], [])  # type: ignore[attr-defined]
        held = [optimizer.state[parameter] for parameter in parameters]
        steps = [state.get("step") for state in held]
        means = [state.get(key) for key in ("exp_avg", "exp_avg_sq") for state in held]
        if not (_are_usual(group, steps) and all(map(torch.is_tensor, means))):
            return False
        if not _are_apart([*parameters, *steps], means, [*parameters, *parameters], gradients):
            return False
        states.append(held)
    torch._C._set_grad_enabled(False)
    try:
        for (group, parameters, gradients), held in zip(work, states, strict=True):
            _adam_group(group, parameters, gradients, held)
    finally:
        torch._C._set_grad_enabled(True)
    optimizer._opt_called = True  # type: ignore[attr-defined]
    return True


def _adam_group(
    group: dict[str, Any], parameters: list[Tensor], gradients: Any, states: list[dict[str, Any]]
) -> None:
    (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
    steps = [state["step"] for state in states]
    means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
    torch._foreach_add_(steps, 1)
    counts = [step.item() for step in steps]
    if decay and group.get("decoupled_weight_decay"):
        torch._foreach_mul_(parameters, 1 - lr * decay)
    elif decay:
        gradients = torch._foreach_add(gradients, parameters, alpha=decay)
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_addcdiv_(
        parameters, means, roots, [-(lr / (1 - beta1**count)) for count in counts]
    )


def _are_usual(group: dict[str, Any], steps: list[Any]) -> bool:
    """Whether Adam's settings are plain numbers, and its counts of steps as it makes them itself.

    With others it may fail at a parameter, when those before it have been stepped.
    """
    beta1, beta2 = group["betas"]
    if not (type(beta1) is type(beta2) is float and 0 <= beta1 < 1 and 0 <= beta2 < 1):
        return False
    for step in steps:
        if type(step) is not Tensor or step.ndim or not step.is_cpu or step.requires_grad:
            return False
        if step.dtype not in (torch.float32, torch.float64) or step.item() < 0:
            return False
    return True


def _are_apart(
    written: list[Tensor], state: list[Any], of: list[Tensor], gradients: list[Tensor]
) -> bool:
    """Whether each tensor of the state is like its parameter, or None, and all have own memory.

    Else the optimizer steps one parameter after the other: each sees what those before it have
    made, and it may fail at one. written: besides the state. of: the parameters of the state.
    """
    held = []
    for value, parameter in zip(state, of, strict=bool(state)):
        if value is None:
            continue
        if (
            type(value) is not Tensor
            or value.dtype is not parameter.dtype
            or value.shape != parameter.shape
            or value.layout is not torch.strided
            or not value.is_cpu
            or value.requires_grad
        ):
            return False
        held.append(value)
    try:
        memory = set(map(_begin, map(Tensor.untyped_storage, [*written, *held])))
        read = map(_begin, map(Tensor.untyped_storage, gradients))
        return len(memory) == len(written) + len(held) and memory.isdisjoint(read)
    except RuntimeError:  # of tensors without memory, which are known to be zero
        return False


_STEPS: dict[type[Optimizer], tuple[Step, Callable[[], Any], tuple[Any, ...]]] = {
    SGD: (_sgd, torch_code.sgd_now, torch_code.OF_SGD),
    Adam: (_adam, torch_code.adam_now, torch_code.OF_ADAM),
}
if issubclass(AdamW, Adam):  # as in newer versions of PyTorch, by the same code
    _STEPS[AdamW] = _STEPS[Adam]
