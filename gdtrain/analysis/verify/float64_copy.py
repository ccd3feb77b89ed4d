"""A copy of a trainer's model and loss in float64, to be looked at without touching the trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from gdtrain.analysis.curvature.functional_loss import called_with
from gdtrain.data.batch import Batch
from gdtrain.data.tree import map_tensors
from gdtrain.errors import ModelError
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.safety.checks import OutputCheck
from gdtrain.training.state.keeper import unchanged, within
from gdtrain.training.trainer import Trainer

_CPU = torch.device("cpu")


class Float64Copy(nn.Module):
    """J(θ) of a batch as a module: a trainer's ``compute_loss`` on copies of its tensors.

    The copy is in float64, on the CPU, in training mode, with dropout off; ``forward(batch)`` is
    the loss, shape []. What the trainer holds besides modules and tensors is shared, and only
    read. θ, the parameters that are trained, is one flat vector [P] float64 here.

    Raises ModelError if model or loss can't be copied.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer = copy.copy(trainer)
        self.trainer.device = _CPU
        self.trainer.precision = "fp64"
        memo: dict[int, Any] = {}  # one, so that what is shared stays shared
        for name, value in vars(trainer).items():
            if any(isinstance(held, nn.Module | Tensor) for held in within(value)):
                setattr(self.trainer, name, _in_double(_copied(name, value, memo)))
        if isinstance(trainer.loss, partial):
            self.trainer.loss = _bound_in_double(trainer.loss)
        self.model: nn.Module = self.trainer.model.train()
        if isinstance(self.trainer.loss, nn.Module):
            self.loss = self.trainer.loss
        self.trainer._output_check = OutputCheck()
        self.silenced = _silence_dropout(self.model)
        self.trained = {n: p for n, p in self.named_parameters() if p.requires_grad}

    def forward(self, batch: Batch) -> Tensor:
        return self.trainer.batch_loss(batch)

    @property
    def num_parameters(self) -> int:
        """P, the length of θ."""
        return len(Flat(list(self.trained.values())))

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Let passes through the model leave it as it was; new tensors are float64 meanwhile."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with unchanged(self.trainer):
                yield
        finally:
            torch.set_default_dtype(default)

    def gradient(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """What ``compute`` adds to ``.grad``, flat [P], and the loss that it returns, []."""
        with self.passing():
            loss = compute().detach()
            return self.flat({name: p.grad for name, p in self.trained.items()}), loss

    def at(self, theta: Tensor, batch: Batch) -> float:
        """J(θ) at other parameters, given flat [P]."""
        values = Flat(list(self.trained.values())).split(theta)
        parameters = dict(zip(self.trained, values, strict=True))
        with torch.no_grad(), self.passing():
            return float(called_with(self, parameters, batch))

    def flat(self, named: dict[str, Tensor | None]) -> Tensor:
        """Tensors by the names of parameters as one vector [P]; None stands for zeros."""
        return Flat(list(self.trained.values())).joined([named[name] for name in self.trained])


def in_double(batch: Batch) -> Batch:
    """The batch on the CPU, its floating-point numbers in float64."""
    inputs, targets = map_tensors((batch.inputs, batch.targets), _tensor_in_double)
    return batch.with_trees(inputs, targets)


def pick(batch: Batch, rows: Tensor) -> Batch:
    """The samples at ``rows``, [b] int64, as a batch."""
    return batch.take(rows)


def _copied(name: str, value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{name}: can't be copied to be verified: {reason}") from error


def _in_double(value: Any) -> Any:
    """Modules and tensors, also in a list, tuple or dict."""
    if isinstance(value, list | tuple):
        return type(value)(map(_in_double, value))
    if isinstance(value, dict):
        return {key: _in_double(held) for key, held in value.items()}
    if isinstance(value, nn.Module):
        return value.to(_CPU).double()
    return _tensor_in_double(value) if isinstance(value, Tensor) else value


def _tensor_in_double(tensor: Tensor) -> Tensor:
    return tensor.to(_CPU, torch.float64 if tensor.is_floating_point() else None)


def _bound_in_double(loss: partial[Any]) -> partial[Any]:
    """A loss whose settings, such as class weights, are tensors in float64."""
    bound = map_tensors({**loss.keywords}, _tensor_in_double)
    return partial(loss.func, *map_tensors(loss.args, _tensor_in_double), **bound)


def _silence_dropout(model: nn.Module) -> list[str]:
    """Turn dropout off wherever torch.nn has it; return the names of those layers."""
    silenced = []
    for name, module in model.named_modules():
        rate = getattr(module, "dropout", None)  # of attention and recurrent layers
        if isinstance(module, _DropoutNd) and module.p:
            module.eval()
            silenced.append(name)
        elif isinstance(rate, float) and rate:
            setattr(module, "dropout", 0.0)  # noqa: B010
            silenced.append(name)
    return silenced
