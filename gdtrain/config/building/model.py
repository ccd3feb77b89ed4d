"""From the sections of model, loss and metrics to a model that fits the data, and what fits it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gdtrain import registry
from gdtrain.config.building.stages import REMEDIES, out_of_memory
from gdtrain.config.schema import Config
from gdtrain.data.checks import ALWAYS_THERE, free_memory
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.tables.preparation import PreparedData, Preprocessing
from gdtrain.data.wording import counted
from gdtrain.errors import ConfigError, ModelError
from gdtrain.training.evaluating.metrics import MeanOverSamples, Metric, Streaming


def sized_model(config: Config, data: PreparedData, loader: Loader) -> nn.Module:
    """The model for this data and this loss, trained on the loader's batches."""
    shape, outputs = data.preprocessing.input_shape, data.preprocessing.num_outputs
    options, built_in = config.model, is_built_in(config)
    activation = getattr(options, "output_activation", None)
    wanted = config.loss.output_activations
    if built_in and wanted and activation not in wanted:
        raise ConfigError.of(
            "output_activation",
            f"must be {' or '.join(wanted)} for the loss {config.loss.name}, got {activation}",
        )
    normalised = options.name == "mlp" and getattr(options, "batch_norm", False)
    if normalised and loader.smallest_batch(config.epochs) == 1:
        raise ConfigError.of(
            "batch_norm",
            "needs batches of at least 2 samples, and this loader gives one of 1; "
            "set it to false, or change loader.batch_size or loader.drop_last",
        )
    if built_in and isinstance(data.training, Dataset) and not outputs:
        raise ConfigError.of(
            "name", "can't be sized for a Dataset of class labels; register a model of your own"
        )
    model = build_model(config, shape, outputs)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("has no parameters to train; give it at least one with requires_grad=True")
    return model


def build_model(config: Config, input_shape: list[int], num_outputs: int | None) -> nn.Module:
    """The model of a configuration, with fresh weights.

    A registered one is called with its options and, where its signature has them and the
    configuration does not set them, ``in_features``, ``input_shape`` and ``out_features``.
    """
    sizes: dict[str, Any] = {
        "in_features": int(torch.Size(input_shape).numel()),
        "input_shape": input_shape,
        "out_features": num_outputs,
    }
    build = partial(registry.make, "model", config.model, **sizes)
    if is_built_in(config):
        assert num_outputs is not None
        extent = f"{counted(math.prod(input_shape), 'input')} and {counted(num_outputs, 'output')}"
        return _built_if_it_fits(build, copies=2, extent=extent)  # beside the weights, a gradient
    model = build()
    if not isinstance(model, nn.Module):
        raise ConfigError.of(
            "name", f"{config.model.name!r} gave a {type(model).__name__}, not an nn.Module"
        )
    return model


def is_built_in(config: Config) -> bool:
    """Whether the model is one of the package's, which take numbers and give what a loss needs."""
    return registry.find("model", config.model.name).is_built_in


def _built_if_it_fits(build: Callable[[], nn.Module], copies: int, extent: str) -> nn.Module:
    """``build()``, after a look at what ``copies`` of its parameters take, without allocating.

    extent: how large it is, in words. Raises ConfigError if less memory is free.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (RuntimeError, TypeError) as error:
        if out_of_memory(error, "model") is None:
            raise
        message = f"needs more memory than there is for {extent}; {REMEDIES['model']}"
        raise ConfigError.of("", message) from error
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    needed = copies * sum(tensor.nbytes for tensor in tensors)
    there = free_memory() if needed > ALWAYS_THERE else None
    if there is not None and needed > there:
        raise ConfigError.of(
            "",
            f"needs {_said(needed)} of memory for {extent}, and {_said(there)} are free; "
            f"{REMEDIES['model']}",
        )
    return build()


def _said(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def build_loss(config: Config, num_outputs: int) -> Any:
    """The loss of a configuration, ``(output, targets) -> loss``.

    Raises ConfigError for weights that are not one for each of the ``num_outputs`` outputs.
    """
    options = config.loss.model_dump(exclude={"name"})
    for key in config.loss.per_output:
        if options[key] is not None:
            if len(options[key]) != num_outputs:
                raise ConfigError.of(
                    key,
                    f"must hold one number for each of the {num_outputs} outputs, "
                    f"got {len(options[key])}",
                )
            options[key] = torch.tensor(options[key])
    return registry.find("loss", config.loss.name).call(options)


# ── metrics ─────────────────────────────────────────────────────────────────────────────────

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
