"""Who looks at every update: methods that a subclass overrides, and hooks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from gdtrain.training.run import Run


def overridden(trainer: Run, methods: Iterable[str]) -> list[str]:
    """Those of the trainer's methods that are somebody's own."""
    return [name for name in methods if trainer.has_own(name)]


def has_foreign_hooks(layer: nn.Module) -> bool:
    """Whether code that is not PyTorch's looks at the layer's passes.

    ``torch.nn.utils`` has hooks of its own, which compute a weight from others in each pass.
    """
    before = layer._forward_pre_hooks.values()
    return (
        any(not type(hook).__module__.startswith("torch.nn.utils.") for hook in before)
        or bool(layer._forward_hooks)
        or bool(layer._backward_hooks or layer._backward_pre_hooks)
    )


def has_global_hooks() -> bool:
    """Whether somebody looks at the passes of all layers there are."""
    return bool(
        _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    )


def is_in_a_mode() -> bool:
    """Whether a mode sees PyTorch's calls, other than the one that sets the default device."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    seen = any(not isinstance(mode, DeviceContext) for mode in modes)
    return seen or torch._C._len_torch_dispatch_stack() > 0


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Tell learning-rate schedulers that an update was made without ``optimizer.step``."""
    optimizer._opt_called = True  # type: ignore[attr-defined]
