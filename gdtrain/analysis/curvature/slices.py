"""The loss on a line, a plane, or any other slice of the space of weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap

from gdtrain.analysis.curvature.full_loss import Objective
from gdtrain.analysis.curvature.functional_loss import UNMAPPABLE, FunctionalLoss
from gdtrain.data.batch import Batch
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.loss_weights import adds_up
from gdtrain.training.trainer import Trainer

logger = logging.getLogger("gdtrain")

_NUMBERS_AT_ONCE = 1 << 22  # of weights, and about of activations
_ACTIVATIONS = 256  # of a sample, a guess that only decides how much is computed at once


def slice_losses(
    objective: Objective,
    parameters: Sequence[Tensor],
    centre: Tensor,
    directions: Tensor,
    places: Tensor,
) -> Tensor:
    """J(centre + a · directions), [m] float64 on the CPU, at m places a: [m, d].

    Many at a time by ``torch.func`` where that can take the model. parameters: what the vectors
    ``centre`` [P] and ``directions`` [d, P] are made of.
    """
    trainer = objective.trainer
    sums, weights = torch.zeros(len(places), dtype=torch.float64, device="cpu"), 0.0
    with objective.looked_at(), torch.no_grad():
        slice_ = _Slice(trainer, parameters, centre, directions)
        for part, weight in objective.parts():
            weights += weight
            sums += weight * slice_.losses(places, part)
    return sums if adds_up(trainer) or not weights else sums / weights


class _Slice:
    """The losses of a batch on a plane of weights, many at a time where that is possible."""

    def __init__(
        self,
        trainer: Trainer,
        parameters: Sequence[Tensor],
        centre: Tensor,
        directions: Tensor,
    ) -> None:
        self.loss = FunctionalLoss(trainer, parameters)
        self.flat = Flat(self.loss.replaced)
        self.centre, self.directions = centre, directions
        self._vectorised = self.loss.is_mappable

    def losses(self, places: Tensor, part: Batch) -> Tensor:
        """The losses of the part, [m] float64 on the CPU, at places [m, d]."""
        size = max(len(self.flat), _ACTIVATIONS * len(part))
        chunks = torch.split(places, max(1, _NUMBERS_AT_ONCE // size))
        return torch.cat([self._chunk(chunk, part).double().cpu() for chunk in chunks])

    def _chunk(self, places: Tensor, part: Batch) -> Tensor:
        weights = (self.centre + places @ self.directions).to(self.flat.device, self.flat.dtype)
        if self._vectorised:
            try:
                return self._by_vmap(weights, part)
            except UNMAPPABLE as error:
                self._vectorised = False
                message = " ".join(str(error).split())[:100]
                logger.warning("the slice is computed point by point, which is slow: %s", message)
        return torch.stack([self.loss.with_values(self._values(row), part) for row in weights])

    def _by_vmap(self, weights: Tensor, part: Batch) -> Tensor:
        def loss_of(row: Tensor, others: dict[str, Tensor]) -> Tensor:
            return self.loss.at(self._values(row), others, part)

        mapped = vmap(loss_of, in_dims=(0, None), randomness="different")
        with self.loss.restored(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            losses: Tensor = mapped(weights, self.loss.others())
        return losses

    def _values(self, row: Tensor) -> list[Tensor]:
        parts = zip(self.flat.split(row), self.loss.replaced, strict=True)
        return [value.to(parameter.dtype) for value, parameter in parts]
