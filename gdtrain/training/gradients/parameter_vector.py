"""What is trained as one vector: its gradient, and a pass with other weights in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import is_

import torch
from torch import Tensor

from gdtrain.training.evaluating.evaluation import whole
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.loss_weights import weight_of
from gdtrain.training.run import Run
from gdtrain.training.state.keeper import unchanged
from gdtrain.training.state.snapshot import parameter_names


class ParameterVector(Flat):
    """The parameters that a trainer's optimizer holds as one vector θ [P], in the model's order.

    Those that are frozen for the time being are among them, and get no gradient. Optimizers may
    be given other parameters in mid-run: see :meth:`is_current`.

    names: of the parameters.
    """

    def __init__(self, trainer: Run) -> None:
        self.trainer = trainer
        self._held = held_by(trainer)
        held = set(self._held)
        named = [(name, p) for p, name in parameter_names(trainer).items() if p in held]
        self.names = [name for name, _ in named]
        super().__init__([parameter for _, parameter in named])

    def is_current(self, trainer: Run) -> bool:
        """Whether it is of all that this trainer's optimizer holds now."""
        now = held_by(trainer)
        same = len(now) == len(self._held) and all(map(is_, now, self._held))
        return same and self.trainer is trainer

    def weights(self) -> Tensor:
        """θ, in a copy, [P]."""
        return self.joined()

    def gradient(self) -> Tensor:
        """``.grad``, in a copy, [P]; zeros where a parameter has none."""
        return self.joined([parameter.grad for parameter in self.tensors])

    def with_gradient(self) -> list[str]:
        """The names of the parameters that have a ``.grad``."""
        named = zip(self.names, self.tensors, strict=True)
        return [name for name, parameter in named if parameter.grad is not None]

    def set_gradient(self, vector: Tensor, names: list[str]) -> None:
        """Make ``vector`` [P] the ``.grad`` of those named; the others have none."""
        pieces = self.split(vector)
        for name, parameter, piece in zip(self.names, self.tensors, pieces, strict=True):
            own = piece.to(parameter.dtype)
            parameter.grad = own if name in names and parameter.requires_grad else None

    @contextmanager
    def at(self, theta: Tensor | None = None) -> Iterator[None]:
        """:func:`with_values`, θ = ``theta`` [P] if it is given."""
        pieces = [] if theta is None else zip(self.tensors, self.split(theta), strict=True)
        with with_values(self.trainer, dict(pieces)):
            yield

    def full_gradient(self) -> tuple[Tensor, list[str]]:
        """∇J(θ) of the mean loss J over the whole data set, [P], and the names that have a
        gradient.

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


@contextmanager
def with_values(trainer: Run, values: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Let passes be made with other values of parameters, and put back all that they change.

    values: parameter -> what it is meanwhile; cast to its dtype, never written to.
    """
    own = [(parameter, parameter.data) for parameter in values]
    with unchanged(trainer):
        try:
            for parameter, value in values.items():
                parameter.data = value.detach().to(parameter.dtype, copy=True)
            yield
        finally:
            for parameter, data in own:
                parameter.data = data


def held_by(trainer: Run) -> list[Tensor]:
    """What the optimizer holds, in the order of its groups."""
    return [p for group in trainer.updater.param_groups for p in group["params"]]
