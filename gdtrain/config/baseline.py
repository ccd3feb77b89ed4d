"""What a model has to beat: one that gives every sample the same, whatever its inputs are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.config.build import BuiltRun, evaluated
from gdtrain.data.tree import tensors_of
from gdtrain.settings import LossSettings

_FEWEST = 0.5  # samples that a class counts as which has none, for a loss that is finite


def baseline(run: BuiltRun) -> dict[str, Any] | None:
    """Loss and metrics on the validation part of the best constant outputs, as in its summary.

    ``prediction`` says which: the ``most frequent class`` of the training part, by the shares of
    its classes as probabilities, or the ``mean`` of its targets. None without a validation part,
    for targets that are not in memory, and for a loss or trainer of which such outputs are not
    known. Changes nothing.
    """
    config, samples = run.config, run.loader.samples
    if run.validation is None or config.trainer is not None or samples.targets is None:
        return None
    found = _constant(config.loss, samples.targets, run.preprocessing.num_outputs)
    if found is None:
        return None
    name, outputs = found
    model = _Constant(outputs.to(run.trainer.dtype))
    measured = evaluated(config, model, run.preprocessing, run.validation)
    return {"prediction": name} | {k: v for k, v in measured.items() if k != "samples"}


def _constant(loss: LossSettings, targets: Tensor, outputs: int) -> tuple[str, Tensor] | None:
    """The best outputs of all samples alike, [k], and what they are."""
    about = loss.targets
    likely = loss.probabilities(torch.zeros(1, 1, device="cpu"))
    if about.classes and targets.ndim == 1 and likely is not None:
        counted = targets[(targets >= 0) & (targets < outputs)]
        counts = torch.bincount(counted, minlength=outputs).double().clamp(min=_FEWEST)
        return "most frequent class", (counts / counts.sum()).log()
    if about.unit and targets.shape[1:].numel() == outputs:
        return "mean", targets.double().mean(0)
    if "accuracy" in loss.metrics and targets.shape[1:].numel() == outputs:
        mean = targets.double().mean(0)
        mean = mean.clamp(_FEWEST / len(targets), 1 - _FEWEST / len(targets))
        return "most frequent class", mean if "sigmoid" in loss.output_activations else mean.logit()
    return None


class _Constant(nn.Module):
    """Gives every sample the same outputs [k]."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, *inputs: Any) -> Tensor:
        count = len(next(iter(tensors_of(inputs))))
        return self.outputs.detach().expand(count, *self.outputs.shape)
