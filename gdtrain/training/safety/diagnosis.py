"""Why a run stopped: which tensor of a bad update was the first that is not finite, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gdtrain.data.batch import Batch, Block
from gdtrain.data.lazy_batch import LazyBatch
from gdtrain.data.tree import tensors_of
from gdtrain.errors import NonFiniteError
from gdtrain.training.gradients.microbatches import UNMEASURED_SIZE
from gdtrain.training.run import Run
from gdtrain.training.safety.finite_guard import first_bad, tensors_in
from gdtrain.training.state.keeper import unchanged

SHOWN_SAMPLES = 12
_DATA_REMEDY = "remove or mend that sample, or mask it in compute_loss"
_OVERFLOW_REMEDY = "try a smaller lr, or less weight_decay"
_REMEDY = "try a smaller lr, clip_grad_norm, or standardised inputs"


def non_finite(trainer: Run, block: Block, steps: int) -> NonFiniteError:
    """The error of a block whose update after ``steps`` was not made; the same on all ranks.

    Its batch is read and computed once more, without side effects, to find the first tensor
    that is not finite in the order in which they come to be: weights, buffers, inputs, targets,
    outputs of layers, loss, gradients. ``trainer`` is in the state before the update.
    """
    assert trainer.loader is not None
    trainer.engine.publish()
    plan, number = block.plan, block.start + steps
    if epochs := block.epoch(steps) - plan.epoch:
        number -= epochs * len(plan)
        plan = trainer.loader.plan(plan.epoch + epochs)
    batch = next(trainer.read(trainer.loader, plan, number))
    texts = trainer.world.gather_text("\n".join(_first(trainer, batch)))
    _, first, remedy = min(texts, key=lambda text: text[0]).split("\n")
    indices = plan.share(0, 1).batch_indices(number)
    shown = ", ".join(map(str, indices[:SHOWN_SAMPLES].tolist()))
    more = f", … ({len(indices)} in all)" if len(indices) > SHOWN_SAMPLES else ""
    number_of_step = trainer.progress.step + (not trainer.guard.broken_off)
    kept = "weights and optimizer are as they were before this update"
    if trainer.guard.broken_off:
        which = ", ".join(trainer.guard.stepped) or "the optimizer"
        kept = (
            f"{type(trainer).__name__}.train_step had stepped {which} before that was seen, "
            "and what the step changed is kept"
        )
    loss = trainer.guard.found[0]
    bad_loss = loss is not None and not math.isfinite(loss)
    return NonFiniteError(
        (f"loss is {loss}" if bad_loss else "gradient is not finite")
        + f" in epoch {plan.epoch + 1}, step {number_of_step}, with lr "
        f"{trainer.updater.param_groups[0]['lr']:g}, on sample{'s' * (len(indices) > 1)} "
        f"{shown}{more}; first tensor that is not finite: {first}; {kept}; {remedy}"
    )


def _first(trainer: Run, batch: Batch) -> tuple[str, str, str]:
    """The first tensor that is not finite on this rank, and what to do about it.

    Before them a digit, which is smaller the earlier it came to be: of all ranks, that of the
    smallest is the cause, and what others saw its effect.
    """
    model = trainer.model
    if name := first_bad(model.named_parameters()):
        return "0", f"{name}, which overflowed in an earlier update", _OVERFLOW_REMEDY
    if name := first_bad(model.named_buffers()):
        return "1", f"the buffer {name}", _REMEDY
    size = trainer.microbatches.size
    if size is None and isinstance(batch, LazyBatch):
        size = UNMEASURED_SIZE
    for part in batch.split(size or max(1, len(batch))):
        for what, tree in (("inputs", part.inputs), ("targets", part.targets)):
            if place := _first_row(tree, part):
                return "2", f"{what} of {place}", _DATA_REMEDY
    # An own train_step that does without compute_loss need not have one.
    repeatable = not trainer.has_own_step or "batch_gradient" in trainer.called_rungs
    if repeatable and not trainer.is_sharded and (found := _computed(trainer, batch, size)):
        return "3", found, _REMEDY
    loss, gradient = trainer.guard.found
    if loss is not None and not math.isfinite(loss):
        return "4", "the loss", _REMEDY
    return "4", "the gradient" + (f" of {gradient}" if gradient else ""), _REMEDY


def _computed(trainer: Run, batch: Batch, size: int | None) -> str | None:
    """The first that is not finite of what is computed from the batch."""
    try:
        return _pass_again(trainer, batch, size)
    except Exception:  # whatever the model's code raises: the stop itself is what is to be said
        return None


def _pass_again(trainer: Run, batch: Batch, size: int | None) -> str | None:
    model = trainer.model
    with unchanged(trainer), _outputs_watched(model) as seen:
        for part in batch.split(size or max(1, len(batch))):
            loss = trainer.batch_loss(part)
            if seen:
                return seen[0]
            if not bool(torch.isfinite(loss)):
                return "the loss, of outputs that are finite"
            loss.backward()  # type: ignore[no-untyped-call]
        name = first_bad((name, p.grad) for name, p in model.named_parameters())
        return None if name is None else f"the gradient of {name}"


@contextmanager
def _outputs_watched(model: nn.Module) -> Iterator[list[str]]:
    """Notes the layers, from the first on, whose outputs are not finite."""
    seen: list[str] = []

    def watch(name: str) -> Any:
        def look(layer: nn.Module, _inputs: Any, output: Any) -> None:
            if first_bad(("", t) for t in tensors_in([output])) is not None:
                seen.append(f"the output of layer {name or 'model'!r} ({type(layer).__name__})")

        return look

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in model.named_modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _first_row(tree: Any, part: Batch) -> str | None:
    """Where the first number of the inputs or targets that is not finite stands."""
    for tensor in tensors_of(tree):
        bad = (~torch.isfinite(tensor)).nonzero()
        if not len(bad):
            continue
        value = tensor[tuple(bad[0].tolist())].item()
        if not tensor.ndim:
            return f"a number that goes with all samples, which is {value}"
        row, *column = bad[0].tolist()
        where = f", column {', '.join(map(str, column))}," if column else ""
        of_samples = tensor.shape[0] == len(part)
        return f"{part.describe(row) if of_samples else f'row {row}'}{where} which is {value}"
    return None
