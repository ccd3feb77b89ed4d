"""The exact gradient of a batch, in one pass or summed over microbatches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch
from gdtrain.errors import ModelError
from gdtrain.training.descent import backward

# Losses whose mean runs over the weights of the targets' classes, not over the samples.
_CLASS_WEIGHTED = (nn.CrossEntropyLoss, nn.NLLLoss)

# Layers that, in training mode, make one sample's output depend on the others of its batch.
_MIXES_SAMPLES = (nn.modules.batchnorm._BatchNorm,)  # SyncBatchNorm and lazy ones included


def normaliser(loss: Any, batch: Batch) -> float:
    """What the batch's loss is divided by, so that parts of a batch can be weighted exactly.

    For J = (1/N) Σ l_i over a batch cut into parts p, J = Σ_p (N_p / N) J_p. N is

    * the number of samples, for losses that average over samples;
    * Σ w[y_i] over the targets that are not ignored, for cross-entropy and NLL with class
      indices (``weight`` and ``ignore_index`` of torch.nn);
    * 1 for every part, for losses with ``reduction="sum"``, whose parts simply add.
    """
    if is_sum(loss):
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
    accumulator: Accumulator | None = None,
) -> Tensor:
    """Add the gradient of the batch's loss to the parameters' ``.grad``.

    With ``microbatch_size`` the batch goes through in slices of that many samples, the last one
    shorter, each weighted by its share of the batch's normaliser: the same gradient with the
    memory of a slice.

    compute_loss: batch -> loss, shape []. loss: the object that :func:`normaliser` looks at.
    Returns the batch's loss, shape [], detached.
    """
    if microbatch_size is None or len(batch) <= microbatch_size:
        value = scalar(compute_loss(batch))
        backward(value)
        return value.detach()
    parts = [(part, normaliser(loss, part)) for part in batch.split(microbatch_size)]
    total = 1.0 if is_sum(loss) else sum(weight for _, weight in parts)
    return _add_parts(compute_loss, parts, 1.0 / total if total else 0.0, accumulator)


def share_gradient(
    compute_loss: Callable[[Batch], Tensor],
    share: Batch,
    loss: Any = None,
    microbatch_size: int | None = None,
    accumulator: Accumulator | None = None,
) -> tuple[Tensor, float]:
    """Add one rank's contribution to a batch's gradient, Σ_p N_p ∂J_p, to ``.grad``.

    share: the rank's part of the batch, which may be empty. The batch's gradient is the sum of
    all ranks' contributions over the sum of their weights.
    Returns Σ_p N_p J_p, shape [], detached, and the weight Σ_p N_p.
    """
    cut = [] if not len(share) else [share]
    if cut and microbatch_size is not None:
        cut = list(share.split(microbatch_size))
    parts = [(part, normaliser(loss, part)) for part in cut]
    return _add_parts(compute_loss, parts, 1.0, accumulator), sum(w for _, w in parts)


class Accumulator:
    """Sums the gradients of microbatches in float64, then gives them back as ``.grad``."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self._sums: list[Tensor | None] = [None] * len(self.parameters)

    def take(self) -> None:
        """Move ``.grad`` of every parameter into the sums."""
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                gradient = parameter.grad.double()
                held = self._sums[i]
                self._sums[i] = gradient if held is None else held.add_(gradient)
                parameter.grad = None

    def give_back(self) -> None:
        """Set ``.grad`` to the sums, and forget them."""
        for i, (parameter, held) in enumerate(zip(self.parameters, self._sums, strict=True)):
            parameter.grad = None if held is None else held.to(parameter.dtype)
            self._sums[i] = None


def _add_parts(
    compute_loss: Callable[[Batch], Tensor],
    parts: Sequence[tuple[Batch, float]],
    scale: float,
    accumulator: Accumulator | None,
) -> Tensor:
    """Add Σ_p scale · N_p ∂J_p to ``.grad``; return Σ_p scale · N_p J_p, detached."""
    result = torch.zeros(())
    for part, weight in parts:
        if weight == 0.0:  # every target ignored: its mean would be 0/0
            continue
        value = scalar(compute_loss(part)) * (weight * scale)
        value.backward()  # type: ignore[no-untyped-call]
        result = result.to(value) + value.detach()
        if accumulator is not None:
            accumulator.take()
    if accumulator is not None:
        accumulator.give_back()
    return result


def clip(parameters: Iterable[Tensor], norm: float | None, value: float | None) -> None:
    """Bound each element of ``.grad`` to ±value, then the 2-norm of all of it to ``norm``."""
    held = list(parameters)
    if value is not None:
        nn.utils.clip_grad_value_(held, value)
    if norm is not None:
        nn.utils.clip_grad_norm_(held, norm)


def check_separable(model: nn.Module, allowed: Iterable[str], cut_by: str) -> None:
    """Raise ModelError if a layer mixes the samples of a batch, so that it can't be cut.

    allowed: names of layers to pass over. cut_by: the setting that cuts the batch.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _MIXES_SAMPLES) and layer.training and name not in allowed:
            raise ModelError(
                f"{cut_by}: layer {name or 'model'!r} ({type(layer).__name__}) computes its "
                "statistics over the batch in training mode, so the gradient of a batch is not "
                "the sum of its parts' gradients; use GroupNorm or LayerNorm, put the layer in "
                "eval mode, or name it in microbatch_allow to accept statistics of the parts"
            )


def is_sum(loss: Any) -> bool:
    """Whether the loss adds its samples up instead of averaging them."""
    return getattr(loss, "reduction", "mean") == "sum"


def scalar(value: Tensor) -> Tensor:
    """A batch's loss. Raises ModelError if it is not one number."""
    if value.ndim:
        raise ModelError(
            f"loss: must be one number per batch, got shape {list(value.shape)}; "
            "use a loss with reduction='mean'"
        )
    return value
