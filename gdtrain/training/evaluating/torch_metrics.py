"""Metrics of torchmetrics by name: of numbers, of classes, and of the scores of classes."""

from __future__ import annotations

import math
import warnings
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gdtrain.errors import ConfigError, DataError, MissingPackageError
from gdtrain.registry import register_metric
from gdtrain.settings import LossSettings, OptionsOnly
from gdtrain.training.evaluating.metrics import is_open, losses_of_errors

Average = Literal["macro", "micro", "weighted"]
IGNORED = -100


class Adapted:
    """A metric of torchmetrics that is given outputs and targets as losses take them.

    What it is made of is known when it has seen outputs: their number is that of the classes. Sums
    are kept in float64, where the device has it.

    names: of the values of ``compute``, where it gives several; None for one number.
    """

    def __init__(self) -> None:
        self._metric: Any = None

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Take in a part: output [B, …] and targets [B, …], as the loss takes them."""
        given = self.given(output, targets)
        if not len(given[1]):  # all are ignored
            return
        if self._metric is None:
            self._metric = self.made(*given).to(output.device).set_dtype(_wide(output))
        self._metric.update(*(tensor.contiguous() for tensor in given))
        self.note(*given)

    def compute(self) -> Any:
        """A number, or numbers by name; "" is the metric itself."""
        return math.nan if self._metric is None else self.result(self._metric.compute())

    def reset(self) -> None:
        """Begin again; the next outputs may be of other shapes."""
        self._metric = None

    def given(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What torchmetrics takes."""
        raise NotImplementedError

    def made(self, output: Tensor, targets: Tensor) -> Any:
        """The metric of torchmetrics for such outputs and targets."""
        raise NotImplementedError

    def note(self, output: Tensor, targets: Tensor) -> None:
        """What is to be known of each part besides."""

    def result(self, value: Tensor) -> Any:
        return float(value)


# ── of numbers ──────────────────────────────────────────────────────────────────────────────


class _OfNumbers(Adapted):
    def __init__(self, name: str, loss: LossSettings | None) -> None:
        super().__init__()
        if loss is not None and not (is_open(loss) or loss.targets.unit):
            names = ", ".join(losses_of_errors())
            raise ConfigError.of("metrics", f"{name} needs a loss of {names}")
        require_torchmetrics(name)

    def given(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if output.shape != targets.shape:
            raise DataError(
                f"metrics: outputs {list(output.shape)} and targets {list(targets.shape)} must "
                "have the same shape"
            )
        pair = (output.reshape(len(output), -1), targets.reshape(len(targets), -1))
        return pair[0].to(_wide(output)), pair[1].to(_wide(output))


class R2Settings(OptionsOnly):
    """Coefficient of determination, 1 - Σ (y - f)² / Σ (y - ȳ)²; the mean over several targets."""


@register_metric("r2", R2Settings)
class R2(_OfNumbers):
    """R² of outputs [B, …] and targets of the same shape: 1 is exact, 0 as good as their mean."""

    def __init__(self, loss: LossSettings | None = None) -> None:
        super().__init__("r2", loss)

    def made(self, output: Tensor, targets: Tensor) -> Any:
        from torchmetrics import R2Score

        return R2Score()

    def compute(self) -> Any:
        few = self._metric is None or int(self._metric.total) < 2  # which have no variance
        return math.nan if few else super().compute()


class RmseSettings(OptionsOnly):
    """Root mean squared error, in the unit of the targets."""

    has_unit: ClassVar[bool] = True


@register_metric("rmse", RmseSettings)
class Rmse(_OfNumbers):
    """The root of the mean squared error of outputs [B, …] and targets of the same shape."""

    def __init__(self, loss: LossSettings | None = None) -> None:
        super().__init__("rmse", loss)

    def made(self, output: Tensor, targets: Tensor) -> Any:
        from torchmetrics import MeanSquaredError

        return MeanSquaredError(squared=False)


# ── of classes ──────────────────────────────────────────────────────────────────────────────


class _OfClasses(Adapted):
    """Of class indices [B, …] beside scores [B, C, …], or 0 and 1 beside logits of their shape.

    Scores become probabilities by softmax, which leaves log-probabilities what they are; logits by
    the logistic function, unless the loss takes probabilities. Targets that the loss ignores, -100
    if it says of none, are left out.
    """

    kind = ""  # as torchmetrics' classes are called: "F1Score" of MulticlassF1Score

    def __init__(self, name: str, loss: LossSettings | None, **options: Any) -> None:
        super().__init__()
        if loss is not None and not (is_open(loss) or "accuracy" in loss.metrics):
            raise ConfigError.of("metrics", f"{name} is not defined for {loss.name}")
        require_torchmetrics(name)
        self._options = options
        self._is_probability = loss is not None and "sigmoid" in loss.output_activations
        self._ignored = int(getattr(loss, "ignore_index", IGNORED))

    def given(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if output.shape == targets.shape:
            flat = output.reshape(len(output), -1)
            scores = flat if self._is_probability else flat.sigmoid()
            labels = (targets.reshape(len(targets), -1) > 0.5).long()
            return (scores, labels) if flat.shape[1] > 1 else (scores[:, 0], labels[:, 0])
        if output.ndim < 2 or output[:, 0].shape != targets.shape:
            raise DataError(
                f"metrics: outputs {list(output.shape)} and targets {list(targets.shape)} do not "
                "fit; they take [B, C, …] scores with [B, …] class indices, or two of one shape"
            )
        scores = output.movedim(1, -1).flatten(0, -2).softmax(1)
        labels = targets.flatten()
        counted = labels != self._ignored
        return scores[counted], labels[counted].long()

    def made(self, output: Tensor, targets: Tensor) -> Any:
        from torchmetrics import classification as of

        options = {"validate_args": False, **self._options}
        if output.shape != targets.shape:
            return getattr(of, f"Multiclass{self.kind}")(num_classes=output.shape[1], **options)
        if output.ndim == 1:
            options.pop("average", None)
            return getattr(of, f"Binary{self.kind}")(**options)
        return getattr(of, f"Multilabel{self.kind}")(num_labels=output.shape[1], **options)


class _Averaged(_OfClasses):
    """One number over all classes; and of each class, if that is asked for."""

    name = ""  # in messages

    def __init__(
        self,
        loss: LossSettings | None = None,
        average: Average = "macro",
        per_class: bool = False,
    ) -> None:
        super().__init__(self.name, loss, average=average)
        self._each = _OfEach(self.kind, self.name, loss) if per_class else None

    def update(self, output: Tensor, targets: Tensor) -> None:
        super().update(output, targets)
        if self._each is not None:
            self._each.update(output, targets)

    def reset(self) -> None:
        super().reset()
        if self._each is not None:
            self._each.reset()

    def compute(self) -> Any:
        mean = super().compute()
        return mean if self._each is None else {"": mean} | self._each.compute()


class _OfScores(_OfClasses):
    """An area for each class against the rest, and their mean over the classes that have one.

    A class has none without a sample of it, or, where it takes both, of another.
    """

    name, takes_both = "", True

    def __init__(
        self,
        loss: LossSettings | None = None,
        average: Average = "macro",
        per_class: bool = False,
    ) -> None:
        super().__init__(self.name, loss, average=None)
        self._average, self._per_class = average, per_class
        self._samples, self._positive = 0, torch.zeros(1, device="cpu")

    def note(self, output: Tensor, targets: Tensor) -> None:
        if output.shape == targets.shape:
            positive = targets.reshape(len(targets), -1).sum(0)
        else:
            positive = torch.bincount(targets, minlength=output.shape[1])
        self._positive = self._positive + positive.cpu()
        self._samples += len(targets)

    def reset(self) -> None:
        super().reset()
        self._samples, self._positive = 0, torch.zeros(1, device="cpu")

    def compute(self) -> Any:
        with warnings.catch_warnings():  # of classes without samples, which have no area here
            warnings.simplefilter("ignore", UserWarning)
            return super().compute()

    def result(self, value: Tensor) -> Any:
        has_one = self._positive > 0
        if self.takes_both:
            has_one &= self._positive < self._samples
        areas = value.reshape(-1).double().cpu()
        weights = self._positive if self._average == "weighted" else torch.ones_like(areas)
        weights = torch.where(has_one, weights.double(), 0.0)
        mean = float((torch.where(has_one, areas, 0.0) * weights).sum() / weights.sum())
        each = torch.where(has_one, areas, math.nan).tolist()
        return {"": mean} | {str(n): a for n, a in enumerate(each)} if self._per_class else mean


class _OfEach(_OfClasses):
    """A number for each class."""

    def __init__(self, kind: str, name: str, loss: LossSettings | None) -> None:
        self.kind = kind
        super().__init__(name, loss, average=None)

    def result(self, value: Tensor) -> Any:
        return {str(number): each for number, each in enumerate(value.reshape(-1).tolist())}


class AveragedSettings(OptionsOnly):
    """What a metric over classes takes."""

    average: Average = "macro"
    """Average over classes with equal weights (macro) or weighted by their samples (weighted); or
    over samples (micro)."""
    per_class: bool = False
    """For each class too, as <name>_0, <name>_1, …; two classes with one logit have no average."""


class ScoresSettings(OptionsOnly):
    """What a metric of the scores of classes takes."""

    average: Literal["macro", "weighted"] = "macro"
    """Average over classes, each against the rest, with equal weights (macro) or weighted by their
    samples (weighted)."""
    per_class: bool = False
    """For each class too, as <name>_0, <name>_1, …; two classes with one logit have no average."""


class F1Settings(AveragedSettings):
    """F1, the harmonic mean of precision and recall."""


@register_metric("f1", F1Settings)
class F1(_Averaged):
    """F1 of class indices; of 0 and 1 beside one logit, that of class 1."""

    name, kind = "f1", "F1Score"


class PrecisionSettings(AveragedSettings):
    """Precision, the share of the samples predicted to be of a class that belong to it."""


@register_metric("precision", PrecisionSettings)
class Precision(_Averaged):
    """Precision of class indices; of 0 and 1 beside one logit, that of class 1."""

    name, kind = "precision", "Precision"


class RecallSettings(AveragedSettings):
    """Recall, the share of a class's samples that are predicted to be of it."""


@register_metric("recall", RecallSettings)
class Recall(_Averaged):
    """Recall of class indices; of 0 and 1 beside one logit, that of class 1."""

    name, kind = "recall", "Recall"


class AurocSettings(ScoresSettings):
    """Area under the ROC curve; 1/2 is chance."""


@register_metric("auroc", AurocSettings)
class Auroc(_OfScores):
    """Area under the ROC curve of the classes' probabilities, each class against the rest."""

    name, kind = "auroc", "AUROC"


class AveragePrecisionSettings(ScoresSettings):
    """Average precision, the area under the precision-recall curve."""


@register_metric("average_precision", AveragePrecisionSettings)
class AveragePrecision(_OfScores):
    """Average precision of the classes' probabilities, each class against the rest."""

    name, kind, takes_both = "average_precision", "AveragePrecision", False


class ConfusionMatrixSettings(OptionsOnly):
    """Number of samples for each class and prediction, as <name>_<class>_as_<prediction>."""


@register_metric("confusion_matrix", ConfusionMatrixSettings)
class ConfusionMatrix(_OfClasses):
    """Counts by class and prediction, ``0_as_1`` of samples of class 0 that are taken for 1."""

    kind = "ConfusionMatrix"

    def __init__(self, loss: LossSettings | None = None) -> None:
        super().__init__("confusion_matrix", loss)

    def given(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores, labels = super().given(output, targets)
        if scores.shape == labels.shape and scores.ndim > 1:
            raise ConfigError.of("metrics", "confusion_matrix is not defined for several labels")
        return scores, labels

    def result(self, value: Tensor) -> Any:
        rows = enumerate(value.tolist())
        return {f"{i}_as_{j}": count for i, row in rows for j, count in enumerate(row)}


def require_torchmetrics(name: str) -> None:
    """Raise MissingPackageError, naming the metric, unless torchmetrics is there."""
    if find_spec("torchmetrics") is None:
        raise MissingPackageError(
            f"metrics: {name} needs torchmetrics, which is not installed; "
            "pip install 'gdtrain[metrics]'"
        )


def _wide(output: Tensor) -> torch.dtype:
    return torch.float32 if output.device.type == "mps" else torch.float64
