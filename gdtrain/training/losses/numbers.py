"""Losses of torch.nn over numbers: errors, and counts."""

from __future__ import annotations

from torch import nn

from gdtrain.registry import register_loss
from gdtrain.settings import LossSettings, NonNegative, PositiveFloat, Targets


class ErrorLoss(LossSettings):
    """A loss of errors, in the unit of the targets."""

    targets = Targets(unit=True)


class L1(ErrorLoss):
    """Mean absolute error."""


class Mse(ErrorLoss):
    """Mean squared error."""


class SmoothL1(ErrorLoss):
    """Squared below beta, absolute above."""

    beta: NonNegative = 1.0
    """The error at which the two parts meet."""


class Huber(ErrorLoss):
    """Squared below delta, delta times the absolute error above."""

    delta: PositiveFloat = 1.0
    """The error at which the two parts meet."""


class PoissonNll(LossSettings):
    """Negative log-likelihood of counts under a Poisson distribution."""

    targets = Targets(must_be=">= 0", holds=lambda t: t >= 0)
    log_input: bool = True
    """The outputs are logarithms of the rate."""
    full: bool = False
    """Add Stirling's approximation of the target's term."""
    eps: PositiveFloat = 1e-8
    """Added inside the logarithm when log_input is false, to avoid log(0)."""


register_loss("mse", Mse)(nn.MSELoss)
register_loss("l1", L1)(nn.L1Loss)
register_loss("smooth_l1", SmoothL1)(nn.SmoothL1Loss)
register_loss("huber", Huber)(nn.HuberLoss)
register_loss("poisson_nll", PoissonNll)(nn.PoissonNLLLoss)
