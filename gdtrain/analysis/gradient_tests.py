"""Whether a batch's gradient can be trusted: tests of its samples' gradients, and step sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gdtrain.analysis.curvature.full_loss import undisturbed
from gdtrain.analysis.sample_gradients import PerSample
from gdtrain.data.batch import Batch
from gdtrain.training.trainer import Trainer

_STABILISER = 1e-5  # of the signal-to-noise ratio, as Cockpit has it
_NO_VARIANCE = 1e-10  # what stands for a variance of 0


@dataclass(frozen=True)
class GradientTests:
    """Tests of a batch's gradient g = (1/B) Σ g_i by those of its B samples.

    norm: the least θ for which the norm test holds (Byrd, Chin, Nocedal and Wu, 2012, eq. 3.9),
    θ² = (1/(B (B - 1))) (Σ |g_i|² / |g|² - B).
    inner_product: the least θ for which the inner-product test holds (Bollapragada, Byrd and
    Nocedal, 2018), θ² = (1/(B (B - 1))) (Σ (g_iᵀ g)² / |g|⁴ - B).
    orthogonality: the least ν for which the orthogonality test holds (the same authors),
    ν² = (1/(B (B - 1))) Σ |g_i / |g| - (g_iᵀ g / |g|³) g|², which is the difference of the two.
    signal_to_noise: the mean over parameters j of g_j² / ((1/B) Σ g_ij² - g_j² + 1e-5) (Liu and
    others, 2020; Schneider, Dangel and Hennig, 2021, "Cockpit").
    NaN of a single sample, and, but for the last, where g is 0.
    """

    norm: float
    inner_product: float
    orthogonality: float
    signal_to_noise: float


def gradient_tests(trainer: Trainer, batch: Batch) -> GradientTests:
    """The tests of a batch at the present weights, in eval mode.

    batch: as the trainer reads it, on its device. Nothing of the trainer is changed. Raises
    ModelError for a loss that is not a mean over samples.
    """
    with undisturbed(trainer):
        each = PerSample(trainer)
        mean, squares, total = _moments(each, batch)
        length = float(mean.norm())
        along = torch.cat([flat @ mean for flat, _ in _rows(each, batch)])
    count = len(batch)
    noise = (squares - mean.square()).clamp(min=0)
    ratio = float((mean.square() / (noise + _STABILISER)).mean())
    if count < 2 or not length:
        return GradientTests(math.nan, math.nan, math.nan, math.nan if count < 2 else ratio)
    pairs = count * (count - 1)
    inner = float((along / length**2 - 1).square().sum()) / pairs
    whole = max(inner, (total / length**2 - count) / pairs)
    return GradientTests(math.sqrt(whole), math.sqrt(inner), math.sqrt(whole - inner), ratio)


def _moments(each: PerSample, batch: Batch) -> tuple[Tensor, Tensor, float]:
    """The mean gradient [P], the mean of its squares [P], and Σ |g_i|²."""
    mean, squares, total = torch.zeros((), device="cpu"), torch.zeros((), device="cpu"), 0.0
    for flat, _ in _rows(each, batch):
        mean, squares = mean.to(flat) + flat.sum(0), squares.to(flat) + flat.square().sum(0)
        total += float(flat.square().sum())
    return mean / len(batch), squares / len(batch), total


def _rows(each: PerSample, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples' gradients [b, P] and losses [b] in float64, in chunks."""
    for gradients, losses in each.with_losses(batch):
        yield torch.cat([g.flatten(1) for g in gradients], dim=1).double(), losses.double()


@dataclass(frozen=True)
class AlongUpdate:
    """What a batch's samples say of the loss at one end of an update.

    loss, slope: the mean over the samples of f_i, and of ∂f_i/∂θ along the update, for each unit of
    length. loss_variance, slope_variance: over the samples; NaN of a single one.
    """

    loss: float
    slope: float
    loss_variance: float
    slope_variance: float


def along_update(trainer: Trainer, batch: Batch, direction: Tensor) -> AlongUpdate:
    """A batch's loss and slope at the present weights, in eval mode.

    direction: [P] of length 1, in the order of the optimizer's parameters.
    """
    with undisturbed(trainer):
        pairs = [(flat @ direction.to(flat), f) for flat, f in _rows(PerSample(trainer), batch)]
    slopes, losses = torch.cat([s for s, _ in pairs]), torch.cat([f for _, f in pairs])
    alone = len(batch) < 2
    variances = [math.nan if alone else float(values.var()) for values in (losses, slopes)]
    return AlongUpdate(float(losses.mean()), float(slopes.mean()), *variances)


def step_size_alpha(length: float, start: AlongUpdate, end: AlongUpdate) -> float:
    """α, where on a parabola along the update it ended: -1 at its start, 0 at its lowest point, 1
    as high on the other side (Schneider, Dangel and Hennig, 2021, "Cockpit", section 3.2).

    The parabola w_0 + w_1 τ + w_2 τ² is the fit to loss and slope at τ = 0 and τ = ``length``, by
    least squares weighted by the inverses of their variances over samples, where these are known.
    α = -2 w_2 · length / w_1 - 1; -1 where the fit curves downward, or the update is none.
    """
    if not length:
        return -1.0
    # In units of the update's length, in which it goes from 0 to 1.
    rows = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 2]])
    units = np.array([1, 1, length, length])
    seen = units * [start.loss, end.loss, start.slope, end.slope]
    variances = np.array(
        [start.loss_variance, end.loss_variance, start.slope_variance, end.slope_variance]
    )
    known = np.where(variances == 0, _NO_VARIANCE, variances)
    weigh = np.ones(4) if np.isnan(known).any() else 1 / (units * np.sqrt(known))
    if not np.isfinite([*seen, *weigh]).all():
        return math.nan
    _, slope, bend = np.linalg.lstsq(rows * weigh[:, None], seen * weigh, rcond=None)[0]
    if bend < 0:
        return -1.0
    return float(-2 * bend / slope - 1) if slope else math.inf


def cosine(one: Tensor, two: Tensor) -> float:
    """The cosine of the angle between two vectors; NaN where one is 0."""
    lengths = float(one.norm()) * float(two.norm())
    return float(one @ two) / lengths if lengths else math.nan
