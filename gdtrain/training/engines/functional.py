"""One update as a pure function of weights, settings and batch: what compiled engines capture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from gdtrain.data.batch import Batch
from gdtrain.errors import ModelError
from gdtrain.training.keeper import unchanged

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer

# Of each parameter group, in a row of settings: lr, weight_decay, momentum, 1 - dampening.
SETTINGS_PER_GROUP = 4
# What decides which of the update's terms there are.
_FLAGS = ("weight_decay", "momentum", "nesterov", "maximize")


class State(NamedTuple):
    """What an update changes, as tensors: trained parameters, buffers, momentum buffers.

    Of the last, one for each parameter of the groups with momentum; zeros stand for those that
    the optimizer has not made yet.
    """

    trained: list[Any]
    buffers: list[Any]
    momenta: list[Any]


class _Loss(nn.Module):
    """Model and loss as one module, whose forward is the trainer's loss of a batch."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer = trainer
        self.model = trainer.model
        if isinstance(trainer.loss, nn.Module):
            self.loss = trainer.loss

    def forward(self, batch: Batch) -> Tensor:
        return self.trainer.batch_loss(batch)


def update_flags(group: dict[str, Any]) -> tuple[bool, ...]:
    """Which of the terms of SGD's update a parameter group has."""
    return tuple(bool(group[key]) for key in _FLAGS)


def structure_of(trainer: Trainer) -> tuple[Any, ...]:
    """What a captured step takes for granted, and others may change at safe points."""
    modules = [trainer.model] + ([trainer.loss] if isinstance(trainer.loss, nn.Module) else [])
    return (
        *(trainer.model, trainer.loss),
        tuple(m.training for module in modules for m in module.modules()),
        tuple(p.requires_grad for module in modules for p in module.parameters()),
        trainer.clip_grad_norm,
        trainer.clip_grad_value,
        tuple(update_flags(group) for group in trainer.optimizer.param_groups),
    )


class FunctionalStep:
    """θ, v, buffers ← one update of torch.optim.SGD on the trainer's own ``compute_loss``.

    With g the gradient of the batch's mean loss, clipped, λ the weight decay, μ the momentum
    and τ the dampening, as in torch.optim.SGD:

        g ← g + λ θ;  v ← μ v + (1 - τ) g, the first time v ← g;  θ ← θ - α (g + μ v | v | g)

    for Nesterov's momentum, momentum, and none.

    without_gradient: names of parameters that the loss does not depend on. SGD leaves them alone.
    """

    def __init__(self, trainer: Trainer, without_gradient: Iterable[str] = ()) -> None:
        self.trainer = trainer
        self._loss = _Loss(trainer)
        named = dict(self._loss.named_parameters())
        name_of = {id(parameter): name for name, parameter in named.items()}
        self.groups = [
            [
                name
                for parameter in group["params"]
                if (name := name_of[id(parameter)]) not in without_gradient
                and parameter.requires_grad
            ]
            for group in trainer.optimizer.param_groups
        ]
        self.trained = [name for names in self.groups for name in names]
        self.with_momentum = [
            name
            for group, names in zip(trainer.optimizer.param_groups, self.groups, strict=True)
            for name in names
            if group["momentum"]
        ]
        self.fixed = [name for name in named if name not in set(self.trained)]
        self.buffers = [name for name, _ in self._loss.named_buffers()]
        self._flags = [
            dict(zip(_FLAGS, update_flags(group), strict=True))
            for group in trainer.optimizer.param_groups
        ]

    @classmethod
    def after_eager_pass(cls, trainer: Trainer, batch: Batch) -> FunctionalStep:
        """The step of a trainer, once loss and gradient of a batch have been computed eagerly.

        Whatever model, loss and data do not fit is said as it is said without an engine. Nothing
        is changed by it.
        """
        named = dict(_Loss(trainer).named_parameters())
        trained = {name: p for name, p in named.items() if p.requires_grad}
        with unchanged(trainer), torch.enable_grad():
            loss = trainer.batch_loss(batch)
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        unused = [n for n, g in zip(trained, gradients, strict=True) if g is None]
        return cls(trainer, unused)

    def tensors(self, missing: Sequence[Tensor] = ()) -> tuple[State, list[Tensor]]:
        """The live tensors that make up the state, and the parameters that stay as they are.

        Momentum buffers that the optimizer lacks are zeros, and not given to it; they are made,
        or taken from among ``missing``.
        """
        parameters = dict(self._loss.named_parameters())
        buffers = dict(self._loss.named_buffers())
        momenta = []
        for number, name in enumerate(self.with_momentum):
            held = self.trainer.optimizer.state.get(parameters[name], {}).get("momentum_buffer")
            if held is None:
                held = missing[number].zero_() if missing else torch.zeros_like(parameters[name])
            momenta.append(held)
        state = State(
            [parameters[name].detach() for name in self.trained],
            [buffers[name] for name in self.buffers],
            [momentum.detach() for momentum in momenta],
        )
        return state, [parameters[name].detach() for name in self.fixed]

    def keep_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Give the optimizer the momentum buffers that :meth:`tensors` made."""
        parameters = dict(self._loss.named_parameters())
        for name, momentum in zip(self.with_momentum, momenta, strict=True):
            state = self.trainer.optimizer.state[parameters[name]]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = momentum

    def groups_without_momenta(self) -> tuple[int, ...]:
        """Groups whose momentum buffers the optimizer has yet to make, if that makes a difference.

        The first update takes the gradient whole, whatever the dampening.
        """
        parameters = dict(self._loss.named_parameters())
        found = []
        for number, group in enumerate(self.trainer.optimizer.param_groups):
            held = [parameters[name] for name in self.groups[number]]
            if group["momentum"] and group["dampening"]:
                states = [self.trainer.optimizer.state.get(parameter, {}) for parameter in held]
                missing = [state.get("momentum_buffer") is None for state in states]
                if any(missing) and not all(missing):
                    raise ModelError("some parameters of a group with dampening are new to it")
                if any(missing):
                    found.append(number)
        return tuple(found)

    def settings_row(self, fresh_groups: Sequence[int] = ()) -> list[float]:
        """The optimizer's present settings, as :meth:`__call__` takes them."""
        row: list[float] = []
        for number, group in enumerate(self.trainer.optimizer.param_groups):
            kept = 1.0 if number in fresh_groups else 1.0 - group["dampening"]
            row += [float(group["lr"]), group["weight_decay"], group["momentum"], kept]
        return row

    def __call__(
        self, state: State, fixed: Sequence[Tensor], row: Tensor, batch: Batch
    ) -> tuple[State, Tensor, Tensor]:
        """The state after an update; the batch's loss before it; whether that and ∂J/∂θ are finite.

        row: [groups · SETTINGS_PER_GROUP], in the parameters' dtype.
        """
        unchanged = dict(zip(self.fixed, fixed, strict=True))

        def loss_of(
            trained: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
        ) -> tuple[Tensor, list[Tensor]]:
            changing = {name: buffer.clone() for name, buffer in buffers.items()}
            held = {**unchanged, **trained, **changing}
            return functional_call(self._loss, held, (batch,)), list(changing.values())

        trained = dict(zip(self.trained, state.trained, strict=True))
        buffers = dict(zip(self.buffers, state.buffers, strict=True))
        by_name, (loss, new_buffers) = grad_and_value(loss_of, has_aux=True)(trained, buffers)
        gradients = list(by_name.values())
        finite = torch.isfinite(loss)
        for gradient in gradients:
            finite = finite & torch.isfinite(gradient).all()
        return self._descend(state, self._clip(gradients), row, new_buffers), loss, finite

    def _clip(self, gradients: list[Tensor]) -> list[Tensor]:
        """Bound each element, then the 2-norm of all, as torch.nn.utils does."""
        norm, value = self.trainer.clip_grad_norm, self.trainer.clip_grad_value
        if value is not None:
            gradients = [gradient.clamp(-value, value) for gradient in gradients]
        if norm is not None:
            squares = [gradient.square().sum() for gradient in gradients]
            total = torch.stack(squares).sum().sqrt()
            scale = (norm / (total + 1e-6)).clamp(max=1.0)
            gradients = [gradient * scale for gradient in gradients]
        return gradients

    def _descend(
        self, state: State, gradients: list[Tensor], row: Tensor, buffers: list[Tensor]
    ) -> State:
        given, momenta = iter(zip(state.trained, gradients, strict=True)), iter(state.momenta)
        new = State([], buffers, [])
        for number, (names, flags) in enumerate(zip(self.groups, self._flags, strict=True)):
            lr, decay, momentum, kept = row[SETTINGS_PER_GROUP * number :][:SETTINGS_PER_GROUP]
            for _ in names:
                parameter, gradient = next(given)
                if flags["maximize"]:
                    gradient = -gradient
                if flags["weight_decay"]:
                    gradient = gradient + decay * parameter
                if flags["momentum"]:
                    velocity = momentum * next(momenta) + kept * gradient
                    new.momenta.append(velocity)
                    gradient = gradient + momentum * velocity if flags["nesterov"] else velocity
                new.trained.append(parameter - lr * gradient)
        return new
