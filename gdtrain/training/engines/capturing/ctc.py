"""CTC's loss as one operator of a captured graph, whatever the lengths are.

PyTorch's own reads lengths in Python's place, and so has no form that depends on none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("gdtrain::ctc_loss", mutates_args=())
def ctc_loss(
    log_probs: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor, blank: int
) -> Tensor:
    """-log p(targets) of each sample, [B] (Graves et al. 2006, equation 8).

    log_probs: [T, B, C]. targets: [B, S] int64. lengths, target_lengths: [B] int64.
    """
    return _by_pytorch(log_probs, targets, lengths, target_lengths, blank)[0]


@torch.library.custom_op("gdtrain::ctc_loss_backward", mutates_args=())
def ctc_loss_backward(
    gradient: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
) -> Tensor:
    """What PyTorch gives for ∂loss/∂log_probs, [T, B, C]: p - the share of the alignments there.

    That is ∂loss/∂x for log_probs = log_softmax(x). gradient: of the losses, [B].
    """
    given = log_probs, targets, lengths, target_lengths
    made = _by_pytorch(*given, blank)
    found: Tensor = torch.ops.aten._ctc_loss_backward.Tensor(gradient, *given, *made, blank)
    return found


def _by_pytorch(
    log_probs: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """The losses, and log α."""
    made: tuple[Tensor, Tensor] = torch.ops.aten._ctc_loss.Tensor(
        log_probs, targets, lengths, target_lengths, blank
    )
    return made


@ctc_loss.register_fake
def _(log_probs: Tensor, *_: Any) -> Tensor:
    return log_probs.new_empty(log_probs.shape[1])


@ctc_loss_backward.register_fake
def _(*given: Any) -> Tensor:
    return torch.empty_like(given[1])


def _keep(ctx: Any, inputs: Sequence[Any], **_: Any) -> None:
    *tensors, ctx.blank = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    of_log_probs = ctc_loss_backward(gradient, *ctx.saved_tensors, ctx.blank)
    return of_log_probs, None, None, None, None


ctc_loss.register_autograd(_backward, setup_context=_keep)


def captured_ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """As ``torch.nn.functional.ctc_loss``, by :func:`ctc_loss`."""
    is_batched = log_probs.dim() == 3
    if not is_batched:
        log_probs = log_probs.unsqueeze(1)
    lengths, sizes = (
        torch.as_tensor(given, dtype=torch.int64, device=log_probs.device).reshape(-1)
        for given in (input_lengths, target_lengths)
    )
    if targets.dim() == 1:
        targets = _by_sample(targets, sizes) if is_batched else targets.unsqueeze(0)
    loss: Tensor = ctc_loss(log_probs, targets.long(), lengths, sizes, blank)
    if zero_infinity:
        loss = torch.where(loss == torch.inf, 0, loss)
    if reduction == "mean":
        return (loss / sizes.clamp(min=1)).mean()
    if reduction == "sum":
        return loss.sum()
    return loss if is_batched else loss.squeeze(0)


def _by_sample(targets: Tensor, sizes: Tensor) -> Tensor:
    """Targets that stand one after the other, [ΣS], as rows; what is behind a sample's is any."""
    starts = (sizes.cumsum(0) - sizes).unsqueeze(1)
    places = starts + torch.arange(len(targets), device=targets.device)
    return targets[places.clamp(max=max(len(targets) - 1, 0))]
