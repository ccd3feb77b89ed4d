"""Relative errors, and the derivative of a loss by finite differences."""

from __future__ import annotations

import torch
from torch import Tensor

from gdtrain.analysis.verify.float64_copy import Float64Copy
from gdtrain.data.batch import Batch

TOLERANCE = 1e-6
EPSILON = torch.finfo(torch.float64).eps
# Rounding errs by ε|J| / h and the cut Taylor series by h²: together least near h = ε^(1/3).
STEP = EPSILON ** (1 / 3)
# Where a kink (of ReLU, say) lies between the two points, it does not for a smaller step.
STEPS = (4 * STEP, STEP, STEP / 4)
# A loss is a long sum: it carries some units of rounding.
ROUNDING = 16 * EPSILON


def relative_error(got: Tensor, expected: Tensor) -> float:
    """‖got - expected‖ / max(‖got‖, ‖expected‖), and 0 if both are 0."""
    scale = max(float(got.norm()), float(expected.norm()))
    return float((got - expected).norm()) / scale if scale else 0.0


def differences_error(
    copied: Float64Copy, batch: Batch, gradient: Tensor, direction: Tensor
) -> float:
    """|D - g·v| with D = (J(θ + hv) - J(θ - hv)) / 2h, relative to ‖g‖ or |D|; best of three h.

    gradient: g, [P]. direction: v, [P], of length 1. Where g is so small that rounding hides
    it in D, the error is relative to what can be seen.
    """
    theta = copied.flat(dict(copied.trained))
    slope = float(gradient @ direction)
    errors = []
    for h in STEPS:
        above, below = (copied.at(theta + s * h * direction, batch) for s in (1.0, -1.0))
        difference = (above - below) / (2 * h)
        seen = ROUNDING * max(abs(above), abs(below)) / h / TOLERANCE
        scale = max(float(gradient.norm()), abs(difference), seen)
        errors.append(abs(difference - slope) / scale if scale else 0.0)
    return min(errors)


def half_random(gradient: Tensor, draw: torch.Generator) -> Tensor:
    """A direction of length 1, along the gradient but for a random half as long as that.

    One at random alone would see only 1/√P of a gradient with P components.
    """
    chosen = torch.randn(gradient.shape, generator=draw, dtype=torch.float64, device="cpu")
    along = gradient / gradient.norm() if gradient.any() else gradient
    direction: Tensor = along + chosen / (2 * chosen.norm())
    return direction / float(direction.norm())
