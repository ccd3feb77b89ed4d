"""From the model section to a model that fits the data and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.data import Dataset

from gdtrain.config import registry
from gdtrain.config.building.data import PreparedData
from gdtrain.config.building.memory import built_if_it_fits
from gdtrain.config.schema import Config
from gdtrain.errors import ConfigError, ModelError
from gdtrain.training import models

MODELS: dict[str, Callable[..., nn.Module]] = {
    "linear": models.linear,
    "mlp": models.mlp,
    "cnn": models.cnn,
}
# What the outputs must have gone through for a loss; all other losses take them as they are.
TAKES = {
    "nll": ("log_softmax",),
    "kl_div": ("log_softmax",),
    "bce": ("sigmoid", "softmax"),
    "cross_entropy": ("none",),
    "bce_with_logits": ("none",),
}


def sized_model(config: Config, data: PreparedData, smallest_batch: int) -> nn.Module:
    """The model for this data and this loss; smallest_batch: samples of the shortest batch."""
    _check_output_activation(config)
    shape, outputs = data.preprocessing.input_shape, data.preprocessing.num_outputs
    options = config.model
    if getattr(options, "batch_norm", False) and options.name == "mlp" and smallest_batch == 1:
        raise ConfigError.of(
            "batch_norm",
            "needs batches of at least 2 samples, and this loader gives one of 1; "
            "set it to false, or change loader.batch_size or loader.drop_last",
        )
    if options.name in MODELS and isinstance(data.training, Dataset) and not outputs:
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
    options = config.model.model_dump(exclude={"name"})
    if config.model.name in MODELS:
        build = partial(MODELS[config.model.name], input_shape, num_outputs, **options)
        extent = f"{math.prod(input_shape):,} inputs and {num_outputs:,} outputs"
        return built_if_it_fits(build, copies=2, extent=extent)  # beside the weights, a gradient
    supplied = {
        "in_features": int(torch.Size(input_shape).numel()),
        "input_shape": input_shape,
        "out_features": num_outputs,
    }
    for name, value in supplied.items():
        if name in options and options[name] is None:
            options[name] = value
    model = registry.models.parts[config.model.name](**options)
    if not isinstance(model, nn.Module):
        raise ConfigError.of(
            "name", f"{config.model.name!r} gave a {type(model).__name__}, not an nn.Module"
        )
    return model


def _check_output_activation(config: Config) -> None:
    activation = getattr(config.model, "output_activation", None)
    if config.model.name not in MODELS or config.loss.name not in TAKES:
        return
    wanted = TAKES[config.loss.name]
    if activation not in wanted:
        raise ConfigError.of(
            "output_activation",
            f"must be {' or '.join(wanted)} for the loss {config.loss.name}, got {activation}",
        )
