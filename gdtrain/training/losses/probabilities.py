"""Losses of torch.nn over targets that are probabilities, signs, or several labels a sample."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from gdtrain.registry import register_loss
from gdtrain.settings import LossSettings, Number, Targets, Weights
from gdtrain.training.losses.known_means import same_loss_as

FRACTIONS = Targets(must_be="in 0 … 1", holds=lambda t: (t >= 0) & (t <= 1), binary=True)
SIGNS = Targets(must_be="-1 or 1", holds=lambda t: (t == -1) | (t == 1))
TRUTHS = Targets(must_be="0 or 1", holds=lambda t: (t == 0) | (t == 1), binary=True)
COLUMNS = Targets(
    must_be="-1 or the number of a target column, from 0",
    holds=lambda t: (t == t.round()) & (t >= -1) & (t < t.shape[1]),
    whole=True,
)


class Bce(LossSettings):
    """Binary cross-entropy of probabilities, against targets in 0 … 1."""

    targets = FRACTIONS
    output_activations = ("sigmoid", "softmax")
    metrics = ("accuracy",)
    per_output = ("weight",)
    weight: Weights | None = None
    """One weight per output."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs


class BceWithLogits(LossSettings):
    """Binary cross-entropy of logits, against targets in 0 … 1."""

    targets = FRACTIONS
    output_activations = ("none",)
    metrics = ("accuracy",)
    per_output = ("weight", "pos_weight")
    weight: Weights | None = None
    """One weight per output."""
    pos_weight: Weights | None = None
    """One weight of the positive targets per output."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()


class KlDiv(LossSettings):
    """Kullback-Leibler divergence of log-probabilities, against probabilities."""

    output_activations = ("log_softmax",)
    log_target: bool = False
    """The targets are logarithms too."""
    reduction: Literal["mean", "batchmean"] = "batchmean"
    """Mean over samples (batchmean, the divergence itself) or over every number (mean)."""

    @property
    def targets(self) -> Targets:
        return Targets() if self.log_target else Targets(must_be=">= 0", holds=lambda t: t >= 0)


class HingeEmbedding(LossSettings):
    """Hinge loss of distances, against targets -1 and 1."""

    targets = SIGNS
    margin: Number = 1.0
    """Margin."""


class SoftMargin(LossSettings):
    """Logistic loss of scores, against targets -1 and 1."""

    targets = SIGNS


class MultiLabelMargin(LossSettings):
    """Multi-label hinge loss, against rows of labels that end with -1."""

    targets = COLUMNS


class MultiLabelSoftMargin(LossSettings):
    """Multi-label logistic loss of scores, against targets 0 and 1."""

    targets = TRUTHS
    per_output = ("weight",)
    weight: Weights | None = None
    """One weight per class."""


@register_loss("bce", Bce)
@same_loss_as(nn.BCELoss)
class BCELoss(nn.BCELoss):
    """torch.nn's, but of outputs that are NaN it is NaN.

    torch's raises an error there, and on a GPU ends the process's use of the device. Elsewhere
    the two have the same bits.
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        bad = output.detach().isnan()
        loss = super().forward(output.masked_fill(bad, 0.5), target)
        return loss.masked_fill(bad.any(), float("nan"))


@same_loss_as(nn.KLDivLoss)
class MeanKLDivLoss(nn.KLDivLoss):
    """torch.nn's with reduction mean, without its advice to take another one at each use."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        each = nn.functional.kl_div(output, target, reduction="none", log_target=self.log_target)
        return each.mean()


@register_loss("kl_div", KlDiv)
class KLDivLoss:
    """Makes torch.nn's, or with reduction mean ours."""

    def __new__(cls, **options: Any) -> Any:
        return (MeanKLDivLoss if options["reduction"] == "mean" else nn.KLDivLoss)(**options)


register_loss("bce_with_logits", BceWithLogits)(nn.BCEWithLogitsLoss)
register_loss("hinge_embedding", HingeEmbedding)(nn.HingeEmbeddingLoss)
register_loss("soft_margin", SoftMargin)(nn.SoftMarginLoss)
register_loss("multi_label_margin", MultiLabelMargin)(nn.MultiLabelMarginLoss)
register_loss("multi_label_soft_margin", MultiLabelSoftMargin)(nn.MultiLabelSoftMarginLoss)
