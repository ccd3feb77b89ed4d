"""From the sections of model and loss to a model that fits the data, and a loss that fits both."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from gdtrain import registry
from gdtrain.config.building.stages import REMEDIES, out_of_memory
from gdtrain.config.schema import Config
from gdtrain.data.free_memory import ALWAYS_THERE, free_memory
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.tables.preparation import PreparedData
from gdtrain.errors import ConfigError, ModelError


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
        extent = f"{math.prod(input_shape):,} inputs and {num_outputs:,} outputs"
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
