"""Lowerings to jax of losses that PyTorch does not decompose, or not well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _reduced(per_sample: Any, reduction: int) -> Any:
    """reduction: 0 none, 1 mean, 2 sum."""
    return (lambda x: x, jnp.mean, jnp.sum)[reduction](per_sample)


class _Labels:
    """The classes that labels name, and what each sample counts: operands of nll_loss.

    x: [N, C, …] or [C]. PyTorch's decomposition gathers and scatters, which is slow for a few
    classes, and can't be merged with what comes before and after.
    """

    def __init__(self, x: Any, target: Any, weight: Any, ignore_index: int) -> None:
        self.axis = 0 if x.ndim == 1 else 1
        along = [-1 if axis == self.axis else 1 for axis in range(x.ndim)]
        labels, classes = jnp.expand_dims(target, self.axis), x.shape[self.axis]
        counted = labels != ignore_index
        self.named = (labels == jnp.arange(classes).reshape(along)) & counted  # like x
        self.weight = jnp.ones((), x.dtype) if weight is None else weight.reshape(along)
        self.total = jnp.where(self.named, self.weight, 0).sum()
        # PyTorch raises an error for others, and so must a program that can't.
        self.known = jnp.squeeze(~counted | ((labels >= 0) & (labels < classes)), self.axis)


def _nll(x: Any, target: Any, weight: Any, reduction: int, ignore_index: int) -> tuple[Any, Any]:
    labels = _Labels(x, target, weight, ignore_index)
    per_sample = jnp.where(labels.named, -labels.weight * x, 0).sum(labels.axis)
    per_sample = jnp.where(labels.known, per_sample, jnp.nan)
    if reduction == 0:
        return per_sample, jnp.zeros((), x.dtype)
    total = per_sample.sum()
    return total / labels.total if reduction == 1 else total, labels.total


def _nll_backward(
    gradient: Any,
    x: Any,
    target: Any,
    weight: Any,
    reduction: int,
    ignore_index: int,
    total: Any,
) -> Any:
    labels = _Labels(x, target, weight, ignore_index)
    if reduction == 1:
        gradient = gradient / total
    elif reduction == 0:
        gradient = jnp.expand_dims(gradient, labels.axis)
    return jnp.where(labels.named, -labels.weight * gradient, 0)


def _positive(x: Any) -> Any:
    return jnp.where(x > 0, x, 0)  # whose slope at 0 is 0, as PyTorch has it


def _multi_margin(x: Any, target: Any, p: float, margin: float, weight: Any, reduction: int) -> Any:
    rows, labels = jnp.atleast_2d(x), jnp.atleast_1d(target)
    right = jnp.take_along_axis(rows, labels[:, None], axis=1)
    over = _positive(margin - right + rows) ** p
    over = over if weight is None else over * weight[labels][:, None]
    others = jnp.arange(rows.shape[1]) != labels[:, None]
    return _reduced(jnp.where(others, over, 0).sum(1) / rows.shape[1], reduction)


def _multi_label_margin(x: Any, target: Any, reduction: int) -> Any:
    rows, labels = jnp.atleast_2d(x), jnp.atleast_2d(target)
    listed = jnp.cumprod(labels >= 0, axis=1).astype(bool)  # labels end with the first -1
    classes = jnp.arange(rows.shape[1])
    is_target = ((labels[:, :, None] == classes) & listed[:, :, None]).any(1)
    right = jnp.take_along_axis(rows, jnp.maximum(labels, 0), axis=1)
    over = _positive(1 - right[:, :, None] + rows[:, None, :])
    counted = listed[:, :, None] & ~is_target[:, None, :]
    return _reduced(jnp.where(counted, over, 0).sum((1, 2)) / rows.shape[1], reduction)


def _multi_margin_backward(
    gradient: Any,
    x: Any,
    target: Any,
    p: float,
    margin: float,
    weight: Any = None,
    reduction: int = 1,
) -> Any:
    _, pull_back = jax.vjp(lambda x: _multi_margin(x, target, p, margin, weight, reduction), x)
    return pull_back(gradient)[0]


def _multi_label_margin_forward(x: Any, target: Any, reduction: int) -> tuple[Any, Any]:
    """The loss, and where the targets are, which only the backward pass of PyTorch asks for.

    PyTorch 2.13's own decomposition counts classes that are not listed.
    """
    return _multi_label_margin(x, target, reduction), jnp.zeros_like(x)


def _multi_label_margin_backward(gradient: Any, x: Any, target: Any, reduction: int, _: Any) -> Any:
    _, pull_back = jax.vjp(lambda x: _multi_label_margin(x, target, reduction), x)
    return pull_back(gradient)[0]


# ── over all alignments ─────────────────────────────────────────────────────────────────────


_IMPOSSIBLE = -1e30  # stands for log 0, where the gradient of -∞ would be NaN


def _ctc(log_probs: Any, targets: Any, lengths: Any, target_lengths: Any, blank: int) -> Any:
    """-log Σ p(alignment), by the forward variables α of Graves et al. 2006, equation 6.

    Between labels, and around them, there may be blanks; only these may be left out, and not
    between two labels that are alike. Before the first step all are at the first blank.
    """
    batch, count = targets.shape
    labels = jnp.full((batch, 2 * count + 1), blank, targets.dtype).at[:, 1::2].set(targets)
    emitted = jnp.take_along_axis(log_probs, labels[None], axis=2, mode="clip")
    skips = (labels != blank) & (labels != _behind(labels, 2, blank))

    def step(before: Any, of_step: Any) -> tuple[Any, None]:
        number, emits = of_step
        skipped = jnp.where(skips, _behind(before, 2, _IMPOSSIBLE), _IMPOSSIBLE)
        ways = jnp.stack([before, _behind(before, 1, _IMPOSSIBLE), skipped])
        after = jax.nn.logsumexp(ways, axis=0) + emits
        return jnp.where(number < lengths[:, None], after, before), None

    start = jnp.full(labels.shape, _IMPOSSIBLE, log_probs.dtype).at[:, 0].set(0)
    end, _ = lax.scan(step, start, (jnp.arange(len(log_probs)), emitted))
    last = jnp.stack([2 * target_lengths, jnp.maximum(2 * target_lengths - 1, 0)], axis=1)
    chosen = jnp.take_along_axis(end, last, axis=1)
    is_other = jnp.stack([jnp.ones(batch, bool), target_lengths > 0], axis=1)
    total = jax.nn.logsumexp(jnp.where(is_other, chosen, _IMPOSSIBLE), axis=1)
    return jnp.where(total > _IMPOSSIBLE / 2, -total, jnp.inf)


def _behind(x: Any, steps: int, fill: float) -> Any:
    """x [B, S] moved on along its columns."""
    return jnp.pad(x, ((0, 0), (steps, 0)), constant_values=fill)[:, : x.shape[1]]


def _ctc_backward(
    gradient: Any, log_probs: Any, targets: Any, lengths: Any, target_lengths: Any, blank: int
) -> Any:
    """PyTorch adds p, as the gradient of log_softmax, behind which it stands, leaves of it none."""
    loss, pull_back = jax.vjp(lambda x: _ctc(x, targets, lengths, target_lengths, blank), log_probs)
    per_sample = gradient[None, :, None]
    is_read = jnp.arange(len(log_probs))[:, None, None] < lengths[None, :, None]
    found = pull_back(gradient)[0] + jnp.where(is_read, jnp.exp(log_probs) * per_sample, 0)
    unknown = jnp.where(per_sample == 0, 0, jnp.nan)
    return jnp.where((loss == jnp.inf)[None, :, None], unknown, found)


LOSSES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), _nll),
    **dict.fromkeys(("nll_loss_backward", "nll_loss2d_backward"), _nll_backward),
    "multi_margin_loss_backward": _multi_margin_backward,
    "multilabel_margin_loss_forward": _multi_label_margin_forward,
    "multilabel_margin_loss_backward": _multi_label_margin_backward,
    "gdtrain.ctc_loss": _ctc,
    "gdtrain.ctc_loss_backward": _ctc_backward,
}
