"""The update of blocks in which no code runs but PyTorch's and the project's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn._reduction import get_enum

from gdtrain.data.batch import Batch
from gdtrain.data.samples import TensorSamples
from gdtrain.training.descent import (
    backward,
    gathered,
    has_step_hooks,
    known_step,
    steps_as_torch,
    zero_gradients,
)
from gdtrain.training.engines.foreign_code import calls_known_code
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.losses.known_means import of_torch
from gdtrain.training.losses.of_model import LossOfModel
from gdtrain.training.run import Run
from gdtrain.training.safety.checks import explain
from gdtrain.training.state.keeper import has_extra_state, modules_of, roots_of
from gdtrain.training.torch_code import has_global_hooks, has_own_pass, passes_of

# To look at all layers takes as long as it saves in so many updates.
_FEW = 4
_OF_LINEAR = frozenset(("weight", "bias"))
# Methods of the trainer for which the update below stands, or that run between two of them.
_RUNGS = (
    *("train_step", "batch_gradient", "finish_gradient", "batch_loss", "compute_loss", "forward"),
    *("output_loss", "loss_weight", "after_update", "pass_epoch", "read"),
)
# What losses call once they have brought both tensors to one shape.
_KERNELS: dict[Any, Any] = {
    F.mse_loss: torch._C._nn.mse_loss,
    F.l1_loss: torch._C._nn.l1_loss,
}


class KnownUpdates:
    """The known update of a trainer's blocks, made once for those between which nothing changes."""

    _update: Callable[[Batch], Tensor] | None = None
    _seen: _Seen
    _waiting = 0  # updates since the last one was made

    def of(self, trainer: Run, steps: int) -> Callable[[Batch], Tensor] | None:
        """What makes the updates of a block of so many; None where they are to be made in full."""
        if self._update is not None:
            if self._seen.is_as_before(trainer):
                return self._update
            self._update = None
        self._waiting += steps
        if self._waiting >= _FEW:
            self._waiting = 0
            self._update = known_update(trainer)
            if self._update is not None:
                self._seen = _Seen(trainer)
        return self._update


class _Seen:
    """What a known update takes for given, as it was when that was made.

    Somebody's code may have run since: a callback's, or that of an order.
    """

    def __init__(self, trainer: Run) -> None:
        self._parts, self._step = _parts(trainer), known_step(trainer.updater)
        self._layers = modules_of(roots_of(trainer))
        self._kinds, self._own = [*map(type, self._layers)], [*map(vars, self._layers)]
        self._passes = [*map(passes_of, self._kinds)]  # as classes may be changed, too
        inner = [d for own in self._own for d in own.values() if isinstance(d, dict)]
        self._empty = [held for held in inner if not held]  # such as hooks
        self._filled = [(held, tuple(held.values())) for held in (*self._own, *inner) if held]

    def is_as_before(self, trainer: Run) -> bool:
        """Whether all of it still holds, by identities and without a walk of the model."""
        return (
            all(map(is_, _parts(trainer), self._parts))
            and not _has_more(trainer)
            and _is_alone(trainer)
            and known_step(trainer.updater) is self._step
            and (self._step is not None or steps_as_torch(trainer.updater))
            and not has_step_hooks(trainer.updater)
            and has_own_pass()
            and self._has_same_layers()
        )

    def _has_same_layers(self) -> bool:
        if any(self._empty) or not all(map(is_, map(vars, self._layers), self._own)):
            return False
        for held, before in self._filled:
            if len(held) != len(before) or not all(map(is_, held.values(), before)):
                return False
        return (
            all(map(is_, map(type, self._layers), self._kinds))
            and [*map(passes_of, self._kinds)] == self._passes
            and _OF_LINEAR.isdisjoint(vars(nn.Linear))
        )


def _parts(trainer: Run) -> tuple[Any, ...]:
    return trainer.model, trainer.loss, trainer.updater, trainer.guard, trainer.progress


def known_update(trainer: Run) -> Callable[[Batch], Tensor] | None:
    """What makes an update as ``trainer.train_step`` does, and counts it.

    What it needs is looked up once: nobody can change it between two updates of a block. None where
    somebody else's code runs in between, in a layer, a loss, a hook, a callback, a data set or a
    loader; and where an update is more than a pass and a step.
    """
    if _has_more(trainer) or not (_is_alone(trainer) and calls_known_code(trainer)):
        return None
    layers = modules_of(roots_of(trainer))
    optimizer = trainer.updater
    step = known_step(optimizer)
    if (step is None and not steps_as_torch(optimizer)) or has_step_hooks(optimizer):
        return None
    if not all(map(_is_silent, layers)):
        return None
    model, direct_loss = _direct(trainer.model), _direct_loss(trainer)
    keep = _keeping(trainer, layers)
    loss_of: Callable[[Any, Any], Tensor] = trainer.output_loss  # which looks at the first batch
    check, count = trainer.guard.check, trainer.progress.count
    in_place = any(vars(layer).get("inplace") for layer in layers)
    seed: Tensor | None = None

    def update(batch: Batch) -> Tensor:
        nonlocal loss_of, seed
        keep()
        zero_gradients(optimizer)
        if in_place and batch.is_view:
            batch = batch.copy()
        inputs = batch.inputs
        try:
            output = model(*inputs) if type(inputs) is tuple else model(inputs)
            loss = loss_of(output, batch.targets)
        except (ValueError, RuntimeError, TypeError) as error:
            explain(error, inputs)
            raise
        if loss.ndim:
            scalar(loss)
        if seed is None:
            seed = torch.ones_like(loss)
        backward(loss, seed)
        loss, loss_of = loss.detach(), direct_loss
        work = gathered(optimizer)
        check(loss, work)
        if step is None or work is None or not step(optimizer, work):
            optimizer.step()
        count(1, batch.indices.shape[0])
        return loss

    return update


def _has_more(trainer: Run) -> bool:
    """Whether an update is more than the pass of a whole batch and a step of one optimizer."""
    return bool(
        trainer.device.type != "cpu"
        or trainer.world.size > 1
        or trainer.microbatches
        or trainer.precision in ("bf16", "fp16")
        or trainer.clip_grad_norm is not None
        or trainer.clip_grad_value is not None
        or trainer.outputs is not None
        or trainer.needs_closure
        or isinstance(trainer.loss, LossOfModel)
    )


def _is_alone(trainer: Run) -> bool:
    """Whether nobody's code runs in a block, but perhaps that of layers and loss."""
    loader, groups = trainer.loader, trainer.updater.param_groups
    if loader is None or not loader.has_known_plans:
        return False
    return (
        isinstance(trainer.placed(loader.samples), TensorSamples)
        and not trainer.listeners.see_updates
        and not trainer.has_own(*_RUNGS)
        and not trainer.schedule.own_code
        and not has_global_hooks()
        and not torch._C._len_torch_function_stack()
        and not torch._C._len_torch_dispatch_stack()
        and all(_is_unwatched(p) for group in groups for p in group["params"])
    )


def _is_silent(layer: nn.Module) -> bool:
    """Whether a layer, which has no hooks, has no functions among its settings either."""
    return not any(map(callable, layer.__dict__.values()))


def _is_unwatched(parameter: Any) -> bool:
    return type(parameter) in (nn.Parameter, Tensor) and not (
        parameter._backward_hooks or parameter._post_accumulate_grad_hooks
    )


def _keeping(trainer: Run, layers: Iterable[nn.Module]) -> Callable[[], None]:
    """Keeps what a forward pass may change: layers without buffers draw numbers at most."""
    still = not any(
        layer._buffers or has_extra_state(layer) or vars(layer).get("max_norm") for layer in layers
    )
    return trainer.guard.keeping("draws") if still else trainer.guard.keeping("buffers", "draws")


def _direct(module: nn.Module) -> Callable[..., Any]:
    """A module's forward pass without looking for hooks, of which there are none."""
    if type(module) is nn.Sequential and len(module):
        first, *others = [_direct(layer) for layer in module]

        def chain(*inputs: Any) -> Any:
            output = first(*inputs)
            for layer in others:
                output = layer(output)
            return output

        return chain
    own: dict[str, Any] = module._parameters
    if (
        type(module) is nn.Linear
        and own.keys() >= _OF_LINEAR  # not buffers, plain tensors or properties of the class
        and _OF_LINEAR.isdisjoint(vars(module))
        and _OF_LINEAR.isdisjoint(vars(nn.Linear))
    ):
        linear = F.linear
        return lambda x: linear(x, own["weight"], own["bias"])
    return module.forward


def _direct_loss(trainer: Run) -> Callable[[Any, Any], Tensor]:
    """``trainer.output_loss``, likewise, where it has seen a batch: shapes are still compared."""
    loss: Any = trainer.loss
    known = of_torch(loss)
    forward: Callable[[Any, Any], Tensor] = getattr(loss, "forward", loss)
    if known is None or not known.is_elementwise:
        return forward
    if isinstance(loss, nn.Module) and known.function in _KERNELS:
        forward = _reduced(_KERNELS[known.function], get_enum(str(loss.reduction)))

    def compared(output: Any, targets: Any) -> Tensor:
        alike = output.shape == targets.shape
        return forward(output, targets) if alike else trainer.output_loss(output, targets)

    return compared


def _reduced(kernel: Callable[..., Tensor], reduction: int) -> Callable[[Any, Any], Tensor]:
    return lambda output, targets: kernel(output, targets, reduction)
