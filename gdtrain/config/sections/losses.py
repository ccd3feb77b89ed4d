"""The losses that a configuration can name: torch.nn's, by snake_case name, with arguments."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gdtrain.config.registry import Strict
from gdtrain.config.sections.bounds import NonNegative, Number, PositiveFloat, Weights, shorthand

Label = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class L1(Strict):
    """Mean absolute error."""

    name: Literal["l1"]


class Mse(Strict):
    """Mean squared error."""

    name: Literal["mse"]


class SmoothL1(Strict):
    """Squared below beta, absolute above."""

    name: Literal["smooth_l1"]
    beta: NonNegative = 1.0
    """Where the two meet."""


class Huber(Strict):
    """Squared below delta, delta times the absolute error above."""

    name: Literal["huber"]
    delta: PositiveFloat = 1.0
    """Where the two meet."""


class CrossEntropy(Strict):
    """Cross-entropy of class scores, against class labels."""

    name: Literal["cross_entropy"]
    weight: Weights | None = None
    """One weight per class."""
    ignore_index: Label = -100
    """A label that does not count."""
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the target that is spread over all classes."""


class Nll(Strict):
    """Negative log-likelihood of log-probabilities, against class labels."""

    name: Literal["nll"]
    weight: Weights | None = None
    """One weight per class."""
    ignore_index: Label = -100
    """A label that does not count."""


class MultiMargin(Strict):
    """Multi-class hinge loss of class scores, against class labels."""

    name: Literal["multi_margin"]
    p: Literal[1, 2] = 1
    """Exponent."""
    margin: Number = 1.0
    """Margin."""
    weight: Weights | None = None
    """One weight per class."""


class Bce(Strict):
    """Binary cross-entropy of probabilities, against targets in 0 … 1."""

    name: Literal["bce"]
    weight: Weights | None = None
    """One weight per output."""


class BceWithLogits(Strict):
    """Binary cross-entropy of logits, against targets in 0 … 1."""

    name: Literal["bce_with_logits"]
    weight: Weights | None = None
    """One weight per output."""
    pos_weight: Weights | None = None
    """One weight of the positive targets per output."""


class PoissonNll(Strict):
    """Negative log-likelihood of counts under a Poisson distribution."""

    name: Literal["poisson_nll"]
    log_input: bool = True
    """The outputs are logarithms of the rate."""
    full: bool = False
    """Add Stirling's approximation of the target's term."""
    eps: PositiveFloat = 1e-8
    """Keeps log(0) away when log_input is false."""


class KlDiv(Strict):
    """Kullback-Leibler divergence of log-probabilities, against probabilities."""

    name: Literal["kl_div"]
    log_target: bool = False
    """The targets are logarithms too."""
    reduction: Literal["mean", "batchmean"] = "batchmean"
    """Mean over samples (batchmean, the divergence itself) or over every number (mean)."""


class HingeEmbedding(Strict):
    """Hinge loss of distances, against targets -1 and 1."""

    name: Literal["hinge_embedding"]
    margin: Number = 1.0
    """Margin."""


class SoftMargin(Strict):
    """Logistic loss of scores, against targets -1 and 1."""

    name: Literal["soft_margin"]


class MultiLabelMargin(Strict):
    """Multi-label hinge loss, against rows of labels that end with -1."""

    name: Literal["multi_label_margin"]


class MultiLabelSoftMargin(Strict):
    """Multi-label logistic loss of scores, against targets 0 and 1."""

    name: Literal["multi_label_soft_margin"]
    weight: Weights | None = None
    """One weight per class."""


# Their targets are class labels; all others take numbers.
CLASS_LABEL_LOSSES = (CrossEntropy, Nll, MultiMargin)

Loss = (
    Mse
    | CrossEntropy
    | L1
    | SmoothL1
    | Huber
    | Nll
    | MultiMargin
    | Bce
    | BceWithLogits
    | PoissonNll
    | KlDiv
    | HingeEmbedding
    | SoftMargin
    | MultiLabelMargin
    | MultiLabelSoftMargin
)
LossSection = Annotated[Loss, Field(discriminator="name"), shorthand("name")]
