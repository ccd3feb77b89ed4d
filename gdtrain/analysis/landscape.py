"""The picture of the hill: the full loss in the plane in which the weights have moved most."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from gdtrain.analysis.objective import Objective, undisturbed
from gdtrain.analysis.sample_gradients import PerSample
from gdtrain.analysis.trajectory import WeightPath
from gdtrain.data.batch import Batch
from gdtrain.data.loaders import Loader
from gdtrain.data.settings import whole_number
from gdtrain.errors import DataError
from gdtrain.training.evaluation import whole
from gdtrain.training.gradient import scalar
from gdtrain.training.losses import adds_up, weight_of
from gdtrain.training.trainer import Trainer

if TYPE_CHECKING:
    from gdtrain.monitoring.picture import Picture

logger = logging.getLogger("gdtrain")

Array = np.ndarray[Any, Any]

MARGIN = 0.2  # on each side, of the wider of the ways' extents
_NUMBERS_AT_ONCE = 1 << 22  # of weights, and about of activations
_ACTIVATIONS = 256  # of a sample, a guess that only decides how much is computed at once
_UNMAPPABLE = (RuntimeError, ValueError, NotImplementedError, TypeError)


@dataclass(frozen=True)
class Landscape:
    """A slice of the full loss J: J(θ_c + x u + y v).

    x, y: [g] float64, coordinates, in units of the weights. losses: [g, g] float64, row j column
    i at x_i, y_j. centre, directions: θ_c [P], and u, v [2, P], of length 1 and at right angles.
    explained: the shares of the variance of all recorded weights along u and v.
    ways: of each run, where its weights have been, [k, 2], as seen from straight above.
    labels: of the runs.
    """

    x: Array
    y: Array
    losses: Array
    centre: Tensor
    directions: Tensor
    explained: tuple[float, float]
    ways: list[Array]
    labels: list[str]

    def draw(self, loss_label: str = "full loss") -> Picture:
        """Its picture. Raises MissingPackageError without matplotlib."""
        from gdtrain.monitoring.hill import draw_hill

        return draw_hill(
            self.x, self.y, self.losses, self.ways, self.labels, self.explained, loss_label
        )


def landscape(
    trainer: Trainer,
    paths: Sequence[WeightPath],
    labels: Sequence[str] | None = None,
    *,
    loader: Loader | None = None,
    resolution: int = 40,
) -> Landscape:
    """The full loss around the ways of one run's weights, or of several, in their principal plane.

    The plane (Li, Xu, Taylor, Studer and Goldstein, 2018, section 7) is spanned by the first two
    principal components u, v of all recorded weights of all runs, by a singular value
    decomposition of what they are apart from their mean. Where Li and others subtract the last
    weights, this subtracts the mean, as principal components are defined, so that ``explained``
    is a share of variance. The plane passes through the last weights of a run, or of several
    runs, the mean of theirs; other points are drawn where they fall on it at right angles.

    J is the loss over all samples of ``loader`` (the trainer's if left out) in eval mode, with the
    trainer's buffers, at ``resolution`` × ``resolution`` points, many at a time by ``torch.func``
    where that can take the model. Nothing of the trainer is changed.

    Raises DataError for paths that are projected or not of this model, or a stream.
    """
    whole_number("resolution", resolution, minimum=2)
    objective = Objective(trainer, loader)
    for path in paths:
        _check_path(path, objective.num_parameters)
    points = [torch.from_numpy(path.points).double() for path in paths]
    together = torch.cat(points)
    directions, explained = principal_plane(together)
    centre = torch.stack([of_run[-1] for of_run in points]).mean(0)
    ways = [((of_run - centre) @ directions.T).numpy() for of_run in points]
    x, y = _axes(np.concatenate(ways), resolution)
    grid = torch.cartesian_prod(torch.from_numpy(y), torch.from_numpy(x)).flip(1)
    losses = slice_losses(objective, centre, directions, grid).view(resolution, resolution)
    if labels is None:
        labels = [f"run {number}" for number in range(1, len(paths) + 1)]
    return Landscape(x, y, losses.numpy(), centre, directions, explained, ways, list(labels))


def principal_plane(points: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The first two principal components of points [K, P], and their shares of the variance.

    Returns [2, P] float64, of length 1 and at right angles, each with its largest element
    positive. Where the points lie on a line or are one, random directions complete the plane.
    """
    apart = points.double() - points.double().mean(0)
    _, sizes, components = torch.linalg.svd(apart, full_matrices=False)
    total = float(sizes.square().sum())
    draw = torch.Generator().manual_seed(0)
    noise = 1e-12 * float(points.abs().max()) * math.sqrt(points.numel())
    found: list[Tensor] = []
    shares: list[float] = []
    for number in range(2):
        known = number < len(sizes) and float(sizes[number]) > noise
        direction = (
            components[number] if known else torch.randn(points.shape[1], generator=draw).double()
        )
        for other in found:
            direction = direction - (direction @ other) * other
        length = direction.norm()
        direction = direction / length if length > 0 else direction  # P = 1 has no plane
        found.append(direction * torch.sign(direction[direction.abs().argmax()]))
        shares.append(float(sizes[number]) ** 2 / total if known else 0.0)
    return torch.stack(found), (shares[0], shares[1])


def slice_losses(
    objective: Objective, centre: Tensor, directions: Tensor, places: Tensor
) -> Tensor:
    """J(centre + a · directions), [m] float64, at m places a: [m, 2]."""
    trainer, loader = objective.trainer, objective.loader
    model = _Model(trainer, objective)
    sums, weights = torch.zeros(len(places), dtype=torch.float64), 0.0
    plan = whole(loader.num_samples, trainer.microbatches.size)
    with undisturbed(trainer), torch.no_grad():
        for part in trainer.read(loader, plan, shared=False):
            weight = weight_of(trainer, part)
            if not weight:  # every target ignored: its mean would be 0/0
                continue
            weights += weight
            size = max(objective.num_parameters, _ACTIVATIONS * len(part))
            start = 0
            for chunk in torch.split(places, max(1, _NUMBERS_AT_ONCE // size)):
                stop = start + len(chunk)
                sums[start:stop] += weight * model.losses(centre + chunk @ directions, part)
                start = stop
    return sums if adds_up(trainer) or not weights else sums / weights


class _Model:
    """A trainer's loss as a function of the weights, of many at a time where that is possible."""

    def __init__(self, trainer: Trainer, objective: Objective) -> None:
        self.objective = objective
        self.module = PerSample(trainer)
        names = {id(p): name for name, p in self.module.trained.items()}
        self.names = [names[id(p)] for p in objective.parameters]
        self.batched = True

    def losses(self, weights: Tensor, part: Batch) -> Tensor:
        """The losses of the part, [c] float64 on the CPU, under weights [c, P]."""
        first = self.objective.parameters[0]
        weights = weights.to(first)
        if self.batched:
            try:
                mapped = vmap(lambda row: self._loss(row, part), randomness="different")
                return mapped(weights).double().cpu()
            except _UNMAPPABLE as error:
                self.batched = False
                said = " ".join(str(error).split())[:100]
                logger.warning("the slice is computed point by point, which is slow: %s", said)
        return torch.stack([self._loss(row, part) for row in weights]).double().cpu()

    def _loss(self, row: Tensor, part: Batch) -> Tensor:
        named = dict(zip(self.names, self.objective.unflatten(row), strict=True))
        return scalar(functional_call(self.module, named, (part,)))


def _check_path(path: WeightPath, num_parameters: int) -> None:
    if path.projected:
        raise DataError(
            "the trajectory holds random projections of the weights, and a slice needs all of "
            "them; record it without projections"
        )
    if path.points.shape[1] != num_parameters:
        raise DataError(
            f"the trajectory is of {path.points.shape[1]:,} weights, and the model has "
            f"{num_parameters:,}"
        )


def _axes(ways: Array, resolution: int) -> tuple[Array, Array]:
    low, high = ways.min(0), ways.max(0)
    margin = MARGIN * float((high - low).max()) or 1.0
    x, y = np.linspace(low - margin, high + margin, resolution).T
    return x, y
