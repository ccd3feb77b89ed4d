"""Loss and metrics on a whole data set, and predictions, without side effects on the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch, Plan
from gdtrain.training.device import autocast
from gdtrain.training.gradient import normaliser
from gdtrain.training.seeding import RngState

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer

Metric = Callable[[Tensor, Any], Tensor | float]

# Samples per forward pass of an evaluation; a number of passes only, never of a result.
EVALUATION_BATCH = 1024


@contextmanager
def preserved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put back what a look at the model may change: modes, buffers, gradients and all RNGs."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    rng = RngState.take(device)
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                module._buffers[name] = buffer.copy_(content)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        rng.restore(device)


def evaluate(trainer: Trainer, batches: Iterator[Batch]) -> dict[str, float]:
    """The trainer's loss and metrics over all samples of ``batches``.

    The loss is the mean over the whole set, its parts weighted by their normalisers; a metric
    is the mean over the samples of what ``metric(output, targets)`` gives for each part.
    """
    samples, loss_sum, weight_sum = 0, 0.0, 0.0
    metric_sums = dict.fromkeys(trainer.metrics, 0.0)
    with torch.no_grad(), preserved(trainer.model, trainer.device):
        trainer.model.eval()
        for batch in batches:
            samples += len(batch)
            loss, output = trainer.loss_and_output(batch)
            weight = normaliser(trainer.loss, batch)
            if weight:  # with every target ignored, the part's mean would be 0/0
                loss_sum += float(loss) * weight
                weight_sum += weight
            for name, metric in trainer.metrics.items():
                metric_sums[name] += float(metric(output, batch.targets)) * len(batch)
    if getattr(trainer.loss, "reduction", "mean") == "sum":
        weight_sum = 1.0
    mean = loss_sum / weight_sum if weight_sum else math.nan
    return {"loss": mean} | {name: total / samples for name, total in metric_sums.items()}


def predict(trainer: Trainer, batches: Iterator[Batch]) -> Tensor:
    """The model's outputs [n, …] for the batches' inputs, on the CPU."""
    with torch.no_grad(), preserved(trainer.model, trainer.device):
        trainer.model.eval()
        with autocast(trainer.precision, trainer.device):
            return torch.cat([trainer.forward(batch.inputs).cpu() for batch in batches])


def whole(num_samples: int) -> Plan:
    """The plan that reads every sample once, in sequence, in parts of moderate size."""
    return Plan(0, num_samples, min(num_samples, EVALUATION_BATCH), None)


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
