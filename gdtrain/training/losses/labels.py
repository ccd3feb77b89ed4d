"""Losses of torch.nn over classes, of which a target is the label of one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from gdtrain.registry import register_loss
from gdtrain.settings import LossSettings, Number, Targets, Weights

Label = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class LabelLoss(LossSettings):
    """A loss over classes."""

    targets = Targets(classes=True)
    metrics = ("accuracy",)
    per_output = ("weight",)


class CrossEntropy(LabelLoss):
    """Cross-entropy of class scores, against class labels."""

    output_activations = ("none",)
    weight: Weights | None = None
    """One weight per class."""
    ignore_index: Label = -100
    """A label to ignore."""
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the target probability that is spread evenly over all classes."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)


class Nll(LabelLoss):
    """Negative log-likelihood of log-probabilities, against class labels."""

    output_activations = ("log_softmax",)
    weight: Weights | None = None
    """One weight per class."""
    ignore_index: Label = -100
    """A label to ignore."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.exp()


class MultiMargin(LabelLoss):
    """Multi-class hinge loss of class scores, against class labels."""

    p: Literal[1, 2] = 1
    """Exponent."""
    margin: Number = 1.0
    """Margin."""
    weight: Weights | None = None
    """One weight per class."""


register_loss("cross_entropy", CrossEntropy)(nn.CrossEntropyLoss)
register_loss("nll", Nll)(nn.NLLLoss)
register_loss("multi_margin", MultiMargin)(nn.MultiMarginLoss)
