"""The optimizers of torch.optim that a configuration can name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, optim

from gdtrain.registry import register_optimizer
from gdtrain.settings import NonNegative, OptimizerSettings, Positive, PositiveFloat

Momentum = Annotated[float, Field(ge=0, lt=1)]


class Sgd(OptimizerSettings):
    """torch.optim.SGD."""

    lr: PositiveFloat
    """Learning rate."""
    momentum: Momentum = 0.0
    """Momentum coefficient β."""
    dampening: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Dampening of the gradient in the momentum buffer; needs momentum."""
    weight_decay: NonNegative = 0.0
    """L2 penalty added to the gradient, as weight_decay · θ."""
    nesterov: bool = False
    """Nesterov's momentum; needs momentum and no dampening."""

    @field_validator("dampening", "nesterov")
    @classmethod
    def _needs_momentum(cls, value: float, info: ValidationInfo) -> float:
        if value and not info.data.get("momentum", 1):
            raise ValueError("has no effect without momentum; set momentum, or remove it")
        if info.field_name == "nesterov" and value and info.data.get("dampening"):
            raise ValueError("needs dampening 0; remove one of the two")
        return value


class Adam(OptimizerSettings):
    """torch.optim.Adam."""

    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegative = 0.0
    """L2 penalty added to the gradient."""


class AdamW(OptimizerSettings):
    """torch.optim.AdamW."""

    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""


class Lbfgs(OptimizerSettings):
    """torch.optim.LBFGS, for the batch loader: it needs the same loss at each evaluation."""

    lr: PositiveFloat = 1.0
    """Learning rate, the length of the first step tried."""
    max_iter: Positive = 20
    """Largest number of iterations in one update."""
    history_size: Positive = 100
    """Number of past steps kept to approximate the curvature."""
    line_search: bool = True
    """Choose each step's length by a line search (strong Wolfe conditions)."""

    def refuses(self, key: str, value: Any) -> str | None:
        if key == "variance_reduction" and value is not None:
            return "corrects one gradient per update, and lbfgs evaluates several; remove it"
        return None


@register_optimizer("lbfgs", Lbfgs)
def lbfgs(parameters: Iterable[Tensor], *, line_search: bool, **options: Any) -> optim.LBFGS:
    """torch's, with or without its line search."""
    search = "strong_wolfe" if line_search else None
    return optim.LBFGS(parameters, line_search_fn=search, **options)


register_optimizer("sgd", Sgd)(optim.SGD)
register_optimizer("adam", Adam)(optim.Adam)
register_optimizer("adamw", AdamW)(optim.AdamW)
