"""The monitor that records where the weights have been: all of them, or random projections."""

from __future__ import annotations

import io
import logging
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gdtrain.analysis.curvature.full_loss import trained
from gdtrain.analysis.monitors.monitor import Monitor, MonitorSettings
from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.durable_files import Attempt
from gdtrain.data.checks import whole_number
from gdtrain.errors import DataError
from gdtrain.registry import register_monitor
from gdtrain.settings import Positive
from gdtrain.training.gradients.flat_vector import Flat
from gdtrain.training.gradients.parameter_vector import held_by
from gdtrain.training.state.plain_values import is_count
from gdtrain.training.state.snapshot import parameter_names
from gdtrain.training.trainer import Trainer

logger = logging.getLogger("gdtrain")

Array = np.ndarray[Any, Any]

# Numbers that are kept at most, 32 MB of float32; every checkpoint has them too.
MOST_NUMBERS = 8_000_000
FEWEST_POINTS = 32  # if there is no room for so many, the weights are projected
PROJECTIONS = 4096  # numbers of a projected point
_UNREADABLE = (OSError, ValueError, LookupError, EOFError, MemoryError, zipfile.BadZipFile)
_DRAWN_AT_ONCE = 1 << 20
_UPDATES_OF_A_STREAM = 1000  # between two points, where nobody knows how many there will be


@dataclass(frozen=True)
class WeightPath:
    """Where the weights of a run have been.

    steps: [k] int64, updates made, rising. points: [k, d], the weights then: what the optimizer
    held at the first of them, in its order; d is the number of all, or less if they are projected.
    """

    steps: Array
    points: Array
    projected: bool

    def save(self, path: Path) -> None:
        """Write an .npz of ``steps``, ``points`` and ``projected``. Raises StorageError."""
        file = io.BytesIO()
        np.savez(file, steps=self.steps, points=self.points, projected=self.projected)
        with disk.needed(path.name):
            disk.replace_file(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> WeightPath:
        """What :meth:`save` wrote. Raises DataError if the file holds anything else."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
                steps, points = held["steps"], held["points"]
                projected = bool(held["projected"])
        except _UNREADABLE as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path} can't be read: {reason}") from error
        fits = points.ndim == 2 and steps.shape == points.shape[:1] and len(steps)
        kinds = (steps.dtype.kind, points.dtype.kind)
        if not fits or kinds != ("i", "f") or not np.isfinite(points).all():
            raise DataError(f"{path} is no trajectory")
        return cls(steps, points, projected)


class TrajectorySettings(MonitorSettings):
    """The path of the weights, for the picture of the loss surface: trajectory.npz."""

    max_points: Annotated[int, Field(ge=4, lt=2**31)] = 200
    """Largest number of points; above it, every second one is dropped."""
    projections: Positive | None = None
    """Record this many random projections instead of all weights; if left out, the size of the
    model decides."""


@register_monitor("trajectory", TrajectorySettings)
class Trajectory(Monitor):
    """Records the weights at its cadence, about a hundred times in a run by default.

    The first point is the one before the first update. The weights are what the optimizer holds
    then, frozen or not; a parameter that it is given later is not among them, which is told.
    Where there is room for :data:`FEWEST_POINTS` of them, points are all weights; else, or with
    ``projections``, they are Sθ with a random S of as many rows, drawn by ``seed``: a single ±1 in
    each column (the count sketch of Charikar, Chen and Farach-Colton, 2002), for which
    E⟨Sa, Sb⟩ = ⟨a, b⟩ with a variance of at most 2 ‖a‖² ‖b‖² / rows, so that distances and
    principal components are kept nearly. Whenever ``max_points``, or :data:`MOST_NUMBERS` numbers,
    are reached, every second point is dropped, and from then on half as many are recorded.

    Reports ``distance_from_start``, ‖θ - θ_0‖; its estimate if projected. :meth:`weight_path` is
    what has been recorded, with the present weights as its end; it is written to ``path``, an
    .npz, when a fit ends, if that is given. Survives a resume.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Trajectory, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> way = Trajectory(every_n_epochs=1)
    >>> trainer = Trainer(
    ...     model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), callbacks=[way]
    ... )
    >>> history = trainer.fit(10)
    >>> way.weight_path().points.shape  # the start, and ten epochs, of two weights
    (11, 2)
    """

    name = "trajectory"

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        max_points: int = 200,
        projections: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, every_n_epochs=every_n_epochs)
        self.path = None if path is None else Path(path)
        self.attempt: Attempt = disk.required  # to write it, or whatever is to be done
        self.max_points = whole_number("max_points", max_points, minimum=4)
        if projections is not None:
            whole_number("projections", projections, minimum=1)
        self.projections = projections
        self.seed = whole_number("seed", seed, minimum=0)
        self.steps: list[int] = []
        self._points: list[Tensor] = []
        self._looks, self._stride = 0, 1  # of the looks, every so many are kept
        self._is_projected = False
        self._end: tuple[int, Tensor] | None = None
        self._parameters: list[Tensor] = []
        self._names: list[str] | None = None  # of these, if all have one
        self._told = False

    def check(self, trainer: Trainer) -> None:
        trained(trainer)

    def settle_cadence(self, trainer: Trainer) -> None:
        loader = trainer.loader
        if loader is None or loader.is_stream:
            self.every_n_steps = _UPDATES_OF_A_STREAM
            return
        updates = loader.updates(trainer.num_epochs)
        self.every_n_steps = max(1, updates // 100)

    def on_fit_start(self, trainer: Trainer) -> None:
        super().on_fit_start(trainer)
        if not self._points:
            self._record(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        self._end = (trainer.progress.step, self._point(trainer))
        if self.path is not None and not trainer.world.rank:
            self.attempt(self.path.name, partial(self.weight_path().save, self.path))

    def measure(self, trainer: Trainer) -> dict[str, Any]:
        self._record(trainer)
        return {"distance_from_start": float((self._point(trainer) - self._points[0]).norm())}

    def weight_path(self) -> WeightPath:
        """What has been recorded. Raises DataError before a fit has begun."""
        if not self._points:
            raise DataError("the trajectory is empty; it is recorded by fit")
        steps, points = list(self.steps), list(self._points)
        if self._end is not None and self._end[0] > steps[-1]:
            steps.append(self._end[0])
            points.append(self._end[1])
        return WeightPath(np.array(steps), torch.stack(points).numpy(), self._is_projected)

    def state_dict(self) -> dict[str, Any]:
        points = torch.stack(self._points) if self._points else None
        return {
            **super().state_dict(),
            "looks": self._looks,
            "stride": self._stride,
            "steps": list(self.steps),
            "points": points,
            "projected": self._is_projected,
            "names": self._names,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        points, steps = state["points"], state["steps"]
        counts = [state["looks"], state["stride"], *steps]
        is_tensor = isinstance(points, Tensor) and points.ndim == 2 and len(points) == len(steps)
        if not (is_tensor or (points is None and not steps)) or not all(map(is_count, counts)):
            raise ValueError("points: they are no trajectory")
        super().load_state_dict(state)
        self.steps = list(steps)
        self._points = [] if points is None else [point.clone() for point in points]
        self._looks, self._stride = state["looks"], max(1, state["stride"])
        self._is_projected = bool(state["projected"])
        names = state.get("names")  # of states before 0.2.0, none
        if not (names is None or (isinstance(names, list) and all(type(n) is str for n in names))):
            raise ValueError("names: they are not those of parameters")
        self._end = None
        if names is not None:
            self._names, self._parameters = names, []

    # ── points ──────────────────────────────────────────────────────────────────────────────

    def _record(self, trainer: Trainer) -> None:
        if self._looks % self._stride == 0:
            point = self._point(trainer)
            self.steps.append(trainer.progress.step)
            self._points.append(point)
            if len(self._points) >= max(4, min(self.max_points, MOST_NUMBERS // point.numel())):
                self.steps, self._points = self.steps[::2], self._points[::2]
                self._stride *= 2
        self._looks += 1

    def _point(self, trainer: Trainer) -> Tensor:
        """The weights, [d] on the CPU: all of them, or their projections."""
        flat = Flat(self._followed(trainer))
        size = self.projections
        if size is None and len(flat) * FEWEST_POINTS > MOST_NUMBERS:
            size = PROJECTIONS
        self._is_projected = size is not None
        point = flat.joined().cpu()
        if point.dtype != torch.float64:
            point = point.float()
        return point if size is None else sketch(point, size, self.seed)

    def _followed(self, trainer: Trainer) -> list[Tensor]:
        """The same parameters at every point; what was taken from the optimizer stays where it is.

        After a resume they are found by their names: the optimizer of another phase holds others.
        """
        held = held_by(trainer)
        if not self._parameters:
            names = parameter_names(trainer)
            there = {name: parameter for parameter, name in names.items()}
            if self._names is not None and set(self._names) <= there.keys():
                self._parameters = [there[name] for name in self._names]
            else:
                self._parameters = held
                self._names = [names[p] for p in held] if set(held) <= names.keys() else None
        if not set(held) <= set(self._parameters) and not self._told:
            self._told = True
            logger.warning(
                "trajectory: the optimizer was given parameters after the first point; they are "
                "not among its weights"
            )
        return self._parameters


def sketch(vector: Tensor, size: int, seed: int) -> Tensor:
    """Sv, [size], of a vector [P]; see :class:`Trajectory`. S is drawn again, and never formed."""
    result = torch.zeros(size, dtype=vector.dtype, device="cpu")
    draw = torch.Generator().manual_seed(seed)
    for part in torch.split(vector, _DRAWN_AT_ONCE):
        codes = torch.randint(0, 2 * size, part.shape, generator=draw, device="cpu")
        result.index_add_(0, codes >> 1, part * (1 - 2 * (codes & 1)))
    return result
