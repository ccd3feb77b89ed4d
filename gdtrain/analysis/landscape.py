"""The full loss in the plane in which the weights have moved most, for a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.analysis.curvature.descended_function import descended
from gdtrain.analysis.curvature.slices import slice_losses
from gdtrain.analysis.monitors.trajectory import WeightPath
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import DataError
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.parameter_vector import held_by
from gdtrain.training.trainer import Trainer

if TYPE_CHECKING:
    from gdtrain.output.plots.picture import Picture

Array = np.ndarray[Any, Any]

MARGIN = 0.2  # on each side, of the wider of the ways' extents


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
        from gdtrain.output.plots.loss_map import draw_hill

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
    """The full loss around the path of a run's weights, or of several runs', in their principal
    plane.

    The plane (Li, Xu, Taylor, Studer and Goldstein, 2018, section 7) is spanned by the first two
    principal components u, v of all recorded weights of all runs, by a singular value
    decomposition of their deviations from the mean. Li and others subtract the last weights; this
    subtracts the mean, as principal components are defined, so that ``explained``
    is a share of variance. The plane passes through the last weights of a run, or the mean of those
    of several runs; other points are drawn at their orthogonal projections.

    J is the loss over all samples of ``loader`` (the trainer's if left out), at ``resolution`` ×
    ``resolution`` points, many at a time by ``torch.func`` if the model allows it. J is the
    function that training minimises, if there is one
    (:func:`~gdtrain.analysis.curvature.descended_function.descended`): for a BatchNorm network with
    a BatchLoader the loss in training mode, with statistics of all samples at each point; otherwise
    the loss in eval mode, with the trainer's buffers at all points. The trainer is not changed.

    Raises DataError for paths that are projected or not of this model, or a stream.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Trainer, Trajectory, landscape
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model, way = nn.Linear(1, 1), Trajectory(every_n_epochs=1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[way]
    ... )
    >>> _ = trainer.fit(10)
    >>> landscape(trainer, [way.weight_path()], resolution=5).losses.shape
    (5, 5)
    """
    whole_number("resolution", resolution, minimum=2)
    objective = descended(trainer, loader).objective
    for path in paths:
        _check_path(path, len(Flat(held_by(trainer))))
    points = [torch.from_numpy(path.points).double() for path in paths]
    together = torch.cat(points)
    directions, explained = principal_plane(together)
    centre = torch.stack([of_run[-1] for of_run in points]).mean(0)
    ways = [((of_run - centre) @ directions.T).numpy() for of_run in points]
    x, y = _axes(np.concatenate(ways), resolution)
    grid = torch.cartesian_prod(torch.from_numpy(y), torch.from_numpy(x)).flip(1)
    losses = slice_losses(objective, held_by(trainer), centre, directions, grid)
    if labels is None:
        labels = [f"run {number}" for number in range(1, len(paths) + 1)]
    losses = losses.view(resolution, resolution)
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
            components[number]
            if known
            else torch.randn(points.shape[1], generator=draw, device="cpu").double()
        )
        for other in found:
            direction = direction - (direction @ other) * other
        length = direction.norm()
        direction = direction / length if length > 0 else direction  # P = 1 has no plane
        found.append(direction * torch.sign(direction[direction.abs().argmax()]))
        shares.append(float(sizes[number]) ** 2 / total if known else 0.0)
    return torch.stack(found), (shares[0], shares[1])


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
