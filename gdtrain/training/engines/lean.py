"""One eager update by plain SGD: the bits of the hand-written loop, with less overhead."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.optim import SGD, Optimizer

from gdtrain.data.batch import Batch
from gdtrain.training.engines.watchers import has_step_hooks, note_step, overridden
from gdtrain.training.gradient import scalar

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer

Tensors = list[Tensor] | tuple[Tensor, ...]

# What Tensor.backward calls once it has looked at its arguments.
_run_backward: Callable[..., Any] = Variable._execution_engine.run_backward
# Methods of the trainer of which an update is made.
_METHODS = ("train_step", "batch_gradient", "finish_gradient")
# Settings of a group under which torch.optim.SGD takes other kernels than below.
_OTHER_KERNELS = ("foreach", "fused", "differentiable", "maximize")


def fits(trainer: Trainer) -> bool:
    """Whether :class:`LeanStep` makes the trainer's updates, and nobody would see a difference."""
    optimizer = trainer.optimizer
    return (
        type(optimizer) is SGD
        and not trainer.guard.deferred  # so on a CPU, where looking costs nothing
        and trainer.world.size == 1
        and not trainer.microbatches
        and trainer.outputs is None
        and trainer.clip_grad_norm is None
        and trainer.clip_grad_value is None
        and not trainer.listeners.see_updates
        and not has_step_hooks(optimizer)
        and not overridden(trainer, _METHODS)
        and all(
            type(group["lr"]) is float and not any(group[key] for key in _OTHER_KERNELS)
            for group in optimizer.param_groups
        )
    )


class LeanStep:
    """``Trainer.train_step`` without what plain SGD on a CPU can do without; for one block.

    The kernels are those of torch.optim.SGD in their order, each called once for all parameters
    of a group. ``.grad`` and the momentum buffers end as they would.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._batch_loss = trainer.batch_loss
        self._groups = [
            _Group(trainer.optimizer, group) for group in trainer.optimizer.param_groups
        ]
        self._parameters = [p for group in self._groups for p in group.parameters]
        self._flag = torch.zeros(())  # 1 once something is not finite
        self._one = torch.ones(())
        self._seed = self._one  # ∂J/∂J
        self._is_plain = False  # whether the gradients are as the kernels here need them
        note_step(trainer.optimizer)

    def __call__(self, batch: Batch) -> Tensor:
        """Apply one update; return the batch-mean loss before it, shape [], detached.

        Raises NotFinite, before the update, if loss or gradient is not finite.
        """
        loss = scalar(self._batch_loss(batch))
        if loss.dtype is not self._seed.dtype:
            self._seed = torch.ones((), dtype=loss.dtype)
        for parameter in self._parameters:
            parameter.grad = None
        _run_backward(
            (loss,), (self._seed,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
        value = loss.detach()
        gradients = [parameter.grad for parameter in self._parameters]
        if not self._is_plain:
            self._is_plain = all(g is None or g.layout is torch.strided for g in gradients)
        present = [g for g in gradients if g is not None]
        if not self._is_plain or len(present) < len(gradients):
            return self._unusual(value)
        # One kernel looks at them all, and multiplies them by 1.
        torch._amp_foreach_non_finite_check_and_unscale_([*present, value], self._flag, self._one)
        if self._flag.item():
            self.trainer.guard.check(value)
        start = 0
        for group in self._groups:
            stop = start + len(group.parameters)
            group.descend(present[start:stop] if len(self._groups) > 1 else present)
            start = stop
        return value

    def _unusual(self, loss: Tensor) -> Tensor:
        """An update in which some parameters have no gradient, or a sparse one."""
        self.trainer.guard.check(loss)
        self.trainer.optimizer.step()
        for group in self._groups:
            group.find_momenta()
        return loss


class _Group:
    """One parameter group of the optimizer."""

    def __init__(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        self.parameters = [p for p in group["params"] if p.requires_grad]
        self._optimizer = optimizer
        self._settings = group
        # The same memory, which may be changed without asking autograd.
        self._plain = [p.detach() for p in self.parameters]
        self._momenta: list[Tensor] | None = None
        self.find_momenta()

    def find_momenta(self) -> None:
        """Look the momentum buffers up; without all of them, the next update makes them."""
        states = [self._optimizer.state.get(p, {}) for p in self.parameters]
        found = [state.get("momentum_buffer") for state in states]
        self._momenta = None if any(m is None for m in found) else found

    def descend(self, gradients: Tensors) -> None:
        """Update the group's parameters; see the equations of torch.optim.SGD."""
        settings = self._settings
        if settings["weight_decay"]:
            gradients = torch._foreach_add(gradients, self._plain, alpha=settings["weight_decay"])
        if settings["momentum"]:
            gradients = self._with_momentum(gradients, settings)
        torch._foreach_add_(self._plain, gradients, alpha=-settings["lr"])

    def _with_momentum(self, gradients: Tensors, settings: dict[str, Any]) -> Tensors:
        if self._momenta is None:
            self._make_momenta(gradients, settings)
        else:
            torch._foreach_mul_(self._momenta, settings["momentum"])
            torch._foreach_add_(self._momenta, gradients, alpha=1 - settings["dampening"])
        assert self._momenta is not None
        if settings["nesterov"]:
            return torch._foreach_add(gradients, self._momenta, alpha=settings["momentum"])
        return self._momenta

    def _make_momenta(self, gradients: Tensors, settings: dict[str, Any]) -> None:
        """The first update takes the gradient whole; a parameter that had its first goes on."""
        self._momenta = []
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            state = self._optimizer.state[parameter]
            momentum = state.get("momentum_buffer")
            if momentum is None:
                momentum = state["momentum_buffer"] = gradient.clone()
            else:
                momentum.mul_(settings["momentum"]).add_(gradient, alpha=1 - settings["dampening"])
            self._momenta.append(momentum)
