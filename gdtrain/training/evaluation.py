"""Loss and metrics on a whole data set, and predictions, without side effects on the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.arrays import as_tensor
from gdtrain.data.batch import Plan
from gdtrain.data.loaders import Loader
from gdtrain.data.samples import TensorSamples, copies
from gdtrain.training.checks import check_loader
from gdtrain.training.device import autocast
from gdtrain.training.distributed import World
from gdtrain.training.gradient import is_sum, normaliser
from gdtrain.training.keeper import unchanged
from gdtrain.training.microbatches import UNMEASURED_SIZE

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer

Metric = Callable[[Tensor, Any], Tensor | float]


def evaluate(trainer: Trainer, loader: Loader) -> dict[str, float]:
    """The trainer's loss and metrics over all samples of ``loader``, each once.

    The loss is the mean over the whole set, its parts weighted by their normalisers; a metric
    is the mean over the samples of what ``metric(output, targets)`` gives for each part. Raises
    ModelError for anything but a loader.
    """
    check_loader("loader", loader)
    # A forward pass of a split model takes all ranks, so there each of them sees everything.
    shared = not trainer.is_sharded
    world = trainer.world if shared else World()
    plan = whole(loader.num_samples, trainer.microbatches.size)
    batches = trainer.read(loader, plan, shared=shared)
    metrics = trainer.metrics
    # samples, weights, weighted losses, and of each metric the sum over samples; float64, so
    # that neither the parts nor the ranks show in the result
    sums = np.zeros(3 + len(metrics))
    with torch.no_grad(), unchanged(trainer, training=False):
        for batch in batches:
            if not len(batch):
                continue
            loss, output = trainer.loss_and_output(batch)
            weight = normaliser(trainer.loss, batch)
            means = [float(metric(output, batch.targets)) for metric in metrics.values()]
            # with every target ignored, the part's mean would be 0/0
            weighted = float(loss) * weight if weight else 0.0
            sums += [len(batch), weight, weighted, *(mean * len(batch) for mean in means)]
    samples, weights, losses, *totals = world.sum_floats(sums.tolist())
    if is_sum(trainer.loss):
        weights = 1.0
    mean_loss = losses / weights if weights else math.nan
    means = [total / samples for total in totals]
    return {"loss": mean_loss, **dict(zip(metrics, means, strict=True))}


def predict(trainer: Trainer, inputs: Any) -> Tensor:
    """The model's outputs [n, …], on the CPU, for inputs [n, …] (or a tuple of such)."""
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    tensors = [as_tensor(part, "inputs") for part in parts]
    # Row numbers stand in for the targets, which predictions do not have.
    samples = trainer.placed(TensorSamples([*tensors, torch.arange(tensors[0].shape[0])]))
    batches = copies(samples.read(whole(len(samples), trainer.microbatches.size)))
    computing = autocast(trainer.precision, trainer.device)
    with torch.no_grad(), unchanged(trainer, training=False), computing:
        return torch.cat([trainer.forward(batch.inputs).cpu() for batch in batches])


def whole(num_samples: int, at_most: int | None = None) -> Plan:
    """The plan that reads every sample once, in sequence, in parts of moderate size."""
    return Plan(0, num_samples, min(num_samples, at_most or UNMEASURED_SIZE), None)


def accuracy(output: Tensor, targets: Tensor) -> Tensor:
    """Share of samples whose predicted class is the target.

    output: [B, C, …] scores with targets [B, …] class indices, or [B, …] logits of the class 1
    with targets of the same shape in 0..1, compared at one half.
    """
    if targets.shape == output.shape:
        return ((output > 0) == (targets > 0.5)).double().mean()
    return (output.argmax(dim=1) == targets).double().mean()


def probability_accuracy(output: Tensor, targets: Tensor) -> Tensor:
    """Share of samples on the right side of one half: output and targets [B, …] in 0..1."""
    return ((output > 0.5) == (targets > 0.5)).double().mean()


def mean_absolute_error(output: Tensor, targets: Tensor) -> Tensor:
    """mean |output - target|, in the units of the target."""
    return (output - targets).abs().mean()
