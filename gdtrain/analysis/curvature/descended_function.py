"""Which function of the weights it is that descent goes down, where there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from gdtrain.analysis.curvature.full_loss import Objective, check_trainer, is_one_batch
from gdtrain.data.batch import Batch
from gdtrain.data.loaders.loader import Loader
from gdtrain.training.evaluating.evaluation import WithoutGraph, whole
from gdtrain.training.gradients.accumulation import scalar
from gdtrain.training.gradients.loss_weights import adds_up, weight_of
from gdtrain.training.gradients.separable import described, draws, mixes
from gdtrain.training.state.keeper import Keeper, as_in_fit, named_modules, unchanged
from gdtrain.training.trainer import Trainer

# By how many units of rounding two sums of the same numbers may differ.
_ROUNDING = 64


@dataclass(frozen=True)
class Descended:
    """A function J(θ), and what it has to do with descent.

    why_not: why full-batch descent does not go down J, in words; None if it does.
    """

    objective: Objective
    why_not: str | None


def descended(trainer: Trainer, loader: Loader | None = None) -> Descended:
    """The J that full-batch descent goes down, or else J in eval mode and why that is not it.

    * Of a model and loss that are the same function in training and in eval mode, and in parts:
      J in eval mode, over the trainer's data, whatever its batches.
    * Else, where each batch is all samples and is computed in one pass: J in training mode.
    * Else there is none. A mini-batch's BatchNorm has statistics of its own, and dropout draws a
      function in every pass.

    It is tried on the samples of a batch. loader: of other samples than the trainer's; these
    nobody descends.
    """
    check_trainer(trainer)
    if loader is not None and loader is not trainer.loader:
        return Descended(Objective(trainer, loader), "the samples are not those of training")
    return trainer.microbatches.look(lambda: _descended(trainer))


def _descended(trainer: Trainer) -> Descended:
    objective, in_one = Objective(trainer), is_one_batch(trainer)
    why_not = _difference(trainer, objective, in_one)
    if trainer.world.size > 1:
        texts = trainer.world.gather_text(why_not or "")
        why_not = next(filter(None, texts), None)
    if why_not is not None and in_one and not _draws(trainer, _batch(trainer, in_one)):
        return Descended(Objective(trainer, training=True), None)
    return Descended(objective, why_not)


def _difference(trainer: Trainer, objective: Objective, in_one: bool) -> str | None:
    """Why J in eval mode is not what the batches of training add up to, in words."""
    with unchanged(trainer):
        as_in_fit(trainer)
        for layer, name in named_modules(trainer).items():
            if draws(layer):
                return f"layer {described(name, layer)} draws random numbers in training mode"
            if mixes(layer):
                return f"layer {described(name, layer)} is another function in training mode"
    batch = _batch(trainer, in_one)
    in_training = _losses(trainer, [batch], None)[0]
    at_once = len(batch) < 2 or (in_one and objective.in_one)
    parts = [batch] if at_once else list(batch.split(-(-len(batch) // 2)))
    weights = [weight_of(trainer, part) for part in parts]
    if not any(weights):  # no target counts
        return None
    values = _losses(trainer, parts, False)
    in_eval = sum(w * v for w, v in zip(weights, values, strict=True) if w)
    in_eval /= 1.0 if adds_up(trainer) else sum(weights)
    rounding = _ROUNDING * torch.finfo(trainer.dtype).eps
    if math.isclose(in_training, in_eval, rel_tol=rounding, abs_tol=rounding * 1e-3):
        return None
    of_halves = "" if at_once else ", as the mean of its halves"
    return (
        f"the loss of {len(batch):,} samples is {in_training:.6g} in training mode, and "
        f"{in_eval:.6g} in eval mode{of_halves}"
    )


def _batch(trainer: Trainer, in_one: bool) -> Batch:
    """Samples of the size of a batch: as many as one pass of training takes at once."""
    loader, size = trainer.loader, trainer.microbatches.size
    assert loader is not None
    if in_one:
        return next(trainer.read(loader, loader.plan(trainer.progress.epoch), shared=False))
    outline = loader.outline(trainer.progress.epoch)
    count = min(outline.batch_size, size or outline.batch_size, loader.num_samples)
    return next(trainer.read(loader, whole(count, count), shared=False))


def _draws(trainer: Trainer, batch: Batch) -> bool:
    """Whether two passes in training mode, from the same buffers, give two losses."""
    first, second = _losses(trainer, [batch, batch], None)
    return first != second


def _losses(trainer: Trainer, batches: Sequence[Batch], training: bool | None) -> list[float]:
    """The losses of the batches, each computed from the present buffers."""
    with unchanged(trainer, training=training):
        if training is None:
            as_in_fit(trainer)
        start, without_graph = Keeper(trainer, "buffers", "own", whole=True), WithoutGraph()
        values = []
        for batch in batches:  # in copies: a model may work in place
            loss = without_graph(partial(trainer.compute_loss, batch.copy()))
            values.append(float(scalar(loss)))
            start.restore()
        return values
