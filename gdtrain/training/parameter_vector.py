"""What is trained as one vector: its gradient, and a pass with other weights in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gdtrain.training.evaluation import whole
from gdtrain.training.keeper import unchanged
from gdtrain.training.losses import weight_of
from gdtrain.training.state import parameter_names

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


class ParameterVector:
    """The parameters that a trainer's optimizer holds as one vector θ [P], in the model's order.

    Those that are frozen for the time being are among them, and get no gradient.

    names: of the parameters. dtype: the widest of theirs.
    """

    def __init__(self, trainer: Trainer) -> None:
        held = {p for group in trainer.optimizer.param_groups for p in group["params"]}
        named = parameter_names(trainer).items()
        trained = [(name, p) for p, name in named if p in held]
        self.trainer = trainer
        self.names = [name for name, _ in trained]
        self.parameters = [parameter for _, parameter in trained]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.dtype = self.parameters[0].dtype
        for parameter in self.parameters:
            self.dtype = torch.promote_types(self.dtype, parameter.dtype)
        self.device = self.parameters[0].device

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def wide(self) -> torch.dtype:
        """What sums are kept in: float64, where the device has it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def weights(self) -> Tensor:
        """θ, in a copy, [P]."""
        return torch.cat([p.detach().reshape(-1).to(self.dtype) for p in self.parameters])

    def gradient(self) -> Tensor:
        """``.grad``, in a copy, [P]; zeros where a parameter has none."""
        pieces = []
        for parameter in self.parameters:
            grad = parameter.grad
            if grad is None:
                grad = torch.zeros_like(parameter)
            dense = grad.detach().to_dense() if grad.layout is not torch.strided else grad.detach()
            pieces.append(dense.reshape(-1).to(self.dtype))
        return torch.cat(pieces)

    def with_gradient(self) -> list[str]:
        """The names of the parameters that have a ``.grad``."""
        named = zip(self.names, self.parameters, strict=True)
        return [name for name, parameter in named if parameter.grad is not None]

    def set_gradient(self, vector: Tensor, names: list[str]) -> None:
        """Make ``vector`` [P] the ``.grad`` of those named; the others have none."""
        pieces = torch.split(vector, self.sizes)
        for name, parameter, piece in zip(self.names, self.parameters, pieces, strict=True):
            own = piece.view_as(parameter).to(parameter.dtype)
            parameter.grad = own if name in names and parameter.requires_grad else None

    @contextmanager
    def at(self, theta: Tensor | None = None) -> Iterator[None]:
        """Let passes be made, with θ = ``theta`` [P] if given, and put back all that they change.

        Weights, modes, buffers, random number generators, the model's ``.grad`` and the outputs
        that metrics of the update are taken from.
        """
        own = [parameter.data for parameter in self.parameters]
        with unchanged(self.trainer):
            try:
                if theta is not None:
                    pieces = torch.split(theta, self.sizes)
                    for parameter, piece in zip(self.parameters, pieces, strict=True):
                        parameter.data = piece.view_as(parameter).to(parameter.dtype)
                yield
            finally:
                for parameter, data in zip(self.parameters, own, strict=True):
                    parameter.data = data

    def full_gradient(self) -> tuple[Tensor, list[str]]:
        """∇J(θ) of the mean loss J over the whole data set, [P], and who has a gradient at all.

        The sum over parts of moderate size is kept in float64.
        """
        trainer = self.trainer
        assert trainer.loader is not None
        total = torch.zeros(len(self), dtype=self.wide, device=self.device)
        weights, names = 0.0, set()
        plan = whole(trainer.loader.num_samples, trainer.microbatches.size)
        with self.at():
            for batch in trainer.read(trainer.loader, plan):
                (weight,) = trainer.world.sum_floats([weight_of(trainer, batch)])
                if weight:  # with every target ignored, the part's gradient would be 0/0
                    trainer.batch_gradient(batch)
                    total.add_(self.gradient(), alpha=weight)
                    names |= set(self.with_gradient())
                    weights += weight
        mean = total / weights if weights else total
        return mean.to(self.dtype), [name for name in self.names if name in names]
