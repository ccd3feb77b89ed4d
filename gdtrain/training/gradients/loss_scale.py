"""The scale of the loss under precision fp16, whose gradients would else be too small for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# So many overflows in a row are no search for a scale, which has been halved that often.
MOST_IN_A_ROW = 20


class LossScale:
    """Scales losses before their backward pass, and gradients back after it.

    The scale s is that of torch.amp.GradScaler, with its defaults and its bits: 2^16 at first;
    halved after a gradient that overflows, whose update is skipped; doubled after 2,000 updates
    in a row (Micikevicius and others, 2018, "Mixed precision training").

    in_a_row: updates that were skipped since the last one that was made.
    """

    growth, backoff, interval = 2.0, 0.5, 2000

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), 65536.0, dtype=torch.float32, device=device)
        self._tracker = torch.zeros((), dtype=torch.int32, device=device)
        self.in_a_row = 0

    def of(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        return loss * self.scale

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide ``.grad`` of each by the scale; what has overflowed stays so."""
        inverse = self.scale.double().reciprocal().float()
        for parameter in parameters:
            if (gradient := parameter.grad) is None:
                continue
            values = gradient._values() if gradient.is_sparse else gradient
            flag = torch.zeros((), dtype=torch.float32, device=values.device)
            torch._amp_foreach_non_finite_check_and_unscale_(
                [values], flag, inverse.to(values.device)
            )

    def after(self, *, overflow: bool) -> None:
        """Move the scale on after an update, or one that was skipped."""
        self.in_a_row = self.in_a_row + 1 if overflow else 0
        found = torch.full_like(self.scale, float(overflow))
        torch._amp_update_scale_(
            self.scale, self._tracker, found, self.growth, self.backoff, self.interval
        )

    def state_dict(self) -> dict[str, Any]:
        """The scale, and what it counts, as plain numbers."""
        return {
            "scale": float(self.scale),
            "updates": int(self._tracker),
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.scale.fill_(state["scale"])
        self._tracker.fill_(state["updates"])
        self.in_a_row = state["in_a_row"]
