"""Who looks at every update: methods that a subclass overrides, and hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


def overridden(trainer: Trainer, methods: Iterable[str]) -> list[str]:
    """Those of the trainer's methods that are somebody's own."""
    from gdtrain.training.trainer import Trainer as Base

    return [
        name
        for name in methods
        if getattr(type(trainer), name) is not getattr(Base, name) or name in vars(trainer)
    ]


def has_layer_hooks(layer: nn.Module) -> bool:
    """Whether somebody looks at the layer's passes."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


def has_global_hooks() -> bool:
    """Whether somebody looks at the passes of all layers there are."""
    return bool(
        _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    )


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Tell learning-rate schedulers that an update was made without ``optimizer.step``."""
    optimizer._opt_called = True  # type: ignore[attr-defined]
