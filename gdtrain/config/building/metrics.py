"""From the metrics section to metrics, also in the targets' own units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gdtrain import registry
from gdtrain.config.schema import Config
from gdtrain.data.tables.preparation import Preprocessing
from gdtrain.training.evaluating.metrics import MeanOverSamples, Metric, Streaming

Metrics = dict[str, Metric]


def build_metrics(config: Config) -> Metrics:
    """The metrics of a configuration, or those that go with its loss. Reads no data.

    Raises ConfigError for one that does not go with the loss, and MissingPackageError.
    """
    chosen = config.metrics
    if chosen is None:
        chosen = {name: registry.find("metric", name).settings() for name in config.loss.metrics}
    return {
        name: registry.find("metric", name).make(options, loss=config.loss)
        for name, options in chosen.items()
    }


def in_original_units(config: Config, preprocessing: Preprocessing) -> Metrics:
    """The metrics that have a unit, in that of targets which are standardised.

    ``mae_original_units`` beside ``mae``, of which a standardised target has deviation 1.
    """
    # Others than the ones that are evaluated already: a metric that streams has a state.
    again = {n: m for n, m in build_metrics(config).items() if _has_unit(n)}
    return {f"{name}_original_units": _restored(m, preprocessing) for name, m in again.items()}


def _has_unit(name: str) -> bool:
    return getattr(registry.find("metric", name).settings, "has_unit", False)


def _restored(metric: Metric, preprocessing: Preprocessing) -> Metric:
    if isinstance(metric, MeanOverSamples):
        return _RestoredMean(metric, preprocessing)
    if isinstance(metric, Streaming):
        return _RestoredStream(metric, preprocessing)
    return _Restored(metric, preprocessing)


class _Restored:
    """A function of outputs and targets, of which it is given those in the targets' units."""

    def __init__(self, function: Callable[[Any, Any], Any], preprocessing: Preprocessing) -> None:
        self.function, self.preprocessing = function, preprocessing

    def __call__(self, output: Tensor, targets: Tensor) -> Any:
        # In float64: a mean may be large beside the errors.
        wide = [t if t.device.type == "mps" else t.double() for t in (output, targets)]
        return self.function(*map(self.preprocessing.restore_targets, wide))


class _RestoredMean(MeanOverSamples):
    """The same of a mean over samples."""

    def __init__(self, metric: MeanOverSamples, preprocessing: Preprocessing) -> None:
        super().__init__(metric.function)
        self.function = _Restored(metric.function, preprocessing)

    def __reduce__(self) -> Any:
        restored: Any = self.function
        return type(self), (MeanOverSamples(restored.function), restored.preprocessing)


class _RestoredStream:
    """The same of a metric that streams."""

    def __init__(self, metric: Streaming, preprocessing: Preprocessing) -> None:
        self.metric = metric
        self.update = _Restored(metric.update, preprocessing)

    def compute(self) -> Any:
        return self.metric.compute()

    def reset(self) -> None:
        self.metric.reset()
