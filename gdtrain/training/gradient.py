"""The exact gradient of a batch, in one pass or summed over microbatches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch
from gdtrain.errors import ModelError

# Losses whose mean runs over the weights of the targets' classes, not over the samples.
_CLASS_WEIGHTED = (nn.CrossEntropyLoss, nn.NLLLoss)

# Layers that, in training mode, make one sample's output depend on the others of its batch.
_MIXES_SAMPLES = (nn.modules.batchnorm._BatchNorm,)


def normaliser(loss: Any, batch: Batch) -> float:
    """What the batch's loss is divided by, so that parts of a batch can be weighted exactly.

    For J = (1/N) Σ l_i over a batch cut into parts p, J = Σ_p (N_p / N) J_p. N is

    * the number of samples, for losses that average over samples;
    * Σ w[y_i] over the targets that are not ignored, for cross-entropy and NLL with class
      indices (``weight`` and ``ignore_index`` of torch.nn);
    * 1 for every part, for losses with ``reduction="sum"``, whose parts simply add.
    """
    if getattr(loss, "reduction", "mean") == "sum":
        return 1.0
    if isinstance(loss, _CLASS_WEIGHTED) and isinstance(batch.targets, Tensor):
        targets = batch.targets
        if not targets.is_floating_point():  # probabilities are averaged over samples
            counted = targets != loss.ignore_index
            if loss.weight is None:
                return float(counted.sum())
            return float(loss.weight.double()[targets[counted]].sum())
    return float(len(batch))


def batch_gradient(
    compute_loss: Callable[[Batch], Tensor],
    batch: Batch,
    loss: Any = None,
    microbatch_size: int | None = None,
) -> Tensor:
    """Add the gradient of the batch's loss to the parameters' ``.grad``.

    With ``microbatch_size`` the batch goes through in slices of that many samples, the last one
    shorter, each weighted by its share of the batch's normaliser: the same gradient with the
    memory of a slice.

    compute_loss: batch -> loss, shape []. loss: the object that :func:`normaliser` looks at.
    Returns the batch's loss, shape [], detached.
    """
    if microbatch_size is None or len(batch) <= microbatch_size:
        value = compute_loss(batch)
        if value.ndim:
            raise _not_a_scalar(value)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()
    parts = [(part, normaliser(loss, part)) for part in batch.split(microbatch_size)]
    is_sum = getattr(loss, "reduction", "mean") == "sum"
    total = 1.0 if is_sum else sum(weight for _, weight in parts)
    result = torch.zeros(())
    for part, weight in parts:
        if weight == 0.0:  # every target ignored: its mean would be 0/0
            continue
        value = compute_loss(part)
        if value.ndim:
            raise _not_a_scalar(value)
        value = value * (weight / total)
        value.backward()  # type: ignore[no-untyped-call]
        result = result.to(value) + value.detach()
    return result


def clip(parameters: Iterable[Tensor], norm: float | None, value: float | None) -> None:
    """Bound each element of ``.grad`` to ±value, then the 2-norm of all of it to ``norm``."""
    held = list(parameters)
    if value is not None:
        nn.utils.clip_grad_value_(held, value)
    if norm is not None:
        nn.utils.clip_grad_norm_(held, norm)


def check_separable(model: nn.Module) -> None:
    """Raise ModelError if a layer mixes the samples of a batch, so that it can't be cut."""
    for name, layer in model.named_modules():
        if isinstance(layer, _MIXES_SAMPLES) and layer.training:
            raise ModelError(
                f"microbatch_size: layer {name or 'model'!r} ({type(layer).__name__}) computes its "
                "statistics over the batch in training mode, so the gradient of a batch is not "
                "the sum of its microbatches' gradients; use GroupNorm or LayerNorm, put the "
                "layer in eval mode, or leave microbatch_size out"
            )


def _not_a_scalar(value: Tensor) -> ModelError:
    return ModelError(
        f"loss: must be one number per batch, got shape {list(value.shape)}; "
        "use a loss with reduction='mean'"
    )
