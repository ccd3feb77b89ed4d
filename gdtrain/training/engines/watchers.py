"""Who looks at every update: methods that a subclass overrides, and hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

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


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody looks at ``optimizer.step``, or has put another in its place.

    Learning-rate schedulers wrap it, only to see that it is called.
    """
    own = vars(optimizer).get("step")
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or (own is not None and not hasattr(own, "_wrapped_by_lr_sched"))
    )


def has_layer_hooks(layer: nn.Module) -> bool:
    """Whether somebody looks at the layer's passes."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Tell learning-rate schedulers that an update was made without ``optimizer.step``."""
    optimizer._opt_called = True  # type: ignore[attr-defined]
