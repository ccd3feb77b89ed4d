"""From the model section to a model that fits the data and the loss."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from gdtrain import registry
from gdtrain.config.building.memory import built_if_it_fits
from gdtrain.config.schema import Config
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.tables.preparation import PreparedData
from gdtrain.errors import ConfigError, ModelError


def sized_model(config: Config, data: PreparedData, loader: Loader) -> nn.Module:
    """The model for this data and this loss, trained on the loader's batches."""
    _check_output_activation(config)
    shape, outputs = data.preprocessing.input_shape, data.preprocessing.num_outputs
    options = config.model
    normalised = options.name == "mlp" and getattr(options, "batch_norm", False)
    if normalised and loader.smallest_batch(config.epochs) == 1:
        raise ConfigError.of(
            "batch_norm",
            "needs batches of at least 2 samples, and this loader gives one of 1; "
            "set it to false, or change loader.batch_size or loader.drop_last",
        )
    if is_built_in(config) and isinstance(data.training, Dataset) and not outputs:
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
        extent = f"{math.prod(input_shape):,} inputs and {num_outputs:,} outputs"
        return built_if_it_fits(build, copies=2, extent=extent)  # beside the weights, a gradient
    model = build()
    if not isinstance(model, nn.Module):
        raise ConfigError.of(
            "name", f"{config.model.name!r} gave a {type(model).__name__}, not an nn.Module"
        )
    return model


def is_built_in(config: Config) -> bool:
    """Whether the model is one of the package's, which take numbers and give what a loss needs."""
    return registry.find("model", config.model.name).is_built_in


def _check_output_activation(config: Config) -> None:
    activation = getattr(config.model, "output_activation", None)
    wanted = config.loss.output_activations
    if is_built_in(config) and wanted and activation not in wanted:
        raise ConfigError.of(
            "output_activation",
            f"must be {' or '.join(wanted)} for the loss {config.loss.name}, got {activation}",
        )
