"""The small models that a configuration can name: linear, mlp and cnn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator
from torch import nn

from gdtrain.errors import ModelError
from gdtrain.registry import register_model
from gdtrain.settings import Fraction, NamedSettings, Positive

Activation = Literal[
    "relu", "tanh", "sigmoid", "gelu", "silu", "elu", "leaky_relu", "softplus", "identity"
]
OutputActivation = Literal["none", "sigmoid", "tanh", "softplus", "softmax", "log_softmax"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


class Linear(NamedSettings):
    """One affine map from the flattened inputs to the outputs."""

    bias: bool = True
    """Add a bias."""
    output_activation: OutputActivation = "none"
    """Applied to the outputs, for losses that need it (nll: log_softmax, bce: sigmoid)."""


@register_model("linear", Linear)
def linear(
    input_shape: Sequence[int],
    out_features: int,
    *,
    bias: bool = True,
    output_activation: str = "none",
) -> nn.Sequential:
    """One affine map: [B, *input_shape] -> [B, out_features]."""
    layers = [*_flatten(input_shape), nn.Linear(math.prod(input_shape), out_features, bias=bias)]
    return nn.Sequential(*layers, *_output(output_activation))


class Mlp(NamedSettings):
    """A multi-layer perceptron on the flattened inputs."""

    hidden: list[Positive] = Field([64])
    """Sizes of the hidden layers."""
    activation: Activation = "relu"
    """The activation after each hidden layer."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit."""
    batch_norm: bool = False
    """Batch normalisation before each activation."""
    output_activation: OutputActivation = "none"
    """Applied to the outputs, for losses that need it (nll: log_softmax, bce: sigmoid)."""


@register_model("mlp", Mlp)
def mlp(
    input_shape: Sequence[int],
    out_features: int,
    *,
    hidden: Sequence[int] = (64,),
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    output_activation: str = "none",
) -> nn.Sequential:
    """A multi-layer perceptron: [B, *input_shape] -> [B, out_features]."""
    layers = _flatten(input_shape)
    size = math.prod(input_shape)
    for width in hidden:
        layers.append(nn.Linear(size, width))
        layers += _after(nn.BatchNorm1d(width) if batch_norm else None, activation, dropout)
        size = width
    return nn.Sequential(*layers, nn.Linear(size, out_features), *_output(output_activation))


class Cnn(NamedSettings):
    """A small convolutional network for inputs [channels, height, width]."""

    channels: Annotated[list[Positive], Field(min_length=1)] = Field([16, 32])
    """Channels of the convolutions; each is followed by the activation and 2x2 max pooling."""
    kernel_size: Positive = 3
    """Width and height of the kernels, odd; the image is padded to keep its size."""
    hidden: list[Positive] = Field([64])
    """Sizes of the hidden layers after the convolutions."""
    activation: Activation = "relu"
    """The activation after each convolution and hidden layer."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit."""
    batch_norm: bool = False
    """Batch normalisation before each activation."""
    output_activation: OutputActivation = "none"
    """Applied to the outputs, for losses that need it (nll: log_softmax, bce: sigmoid)."""

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, got {value}")
        return value


@register_model("cnn", Cnn)
def cnn(
    input_shape: Sequence[int],
    out_features: int,
    *,
    channels: Sequence[int] = (16, 32),
    kernel_size: int = 3,
    hidden: Sequence[int] = (64,),
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    output_activation: str = "none",
) -> nn.Sequential:
    """Convolutions with 2x2 max pooling, then an MLP: [B, C, H, W] -> [B, out_features].

    Raises ModelError for inputs that are not [C, H, W], or too small for that many poolings.
    """
    if len(input_shape) != 3:
        raise ModelError(
            f"cnn needs inputs [channels, height, width], got {list(input_shape)}; set data.shape"
        )
    size, height, width = input_shape
    needed = 2 ** len(channels)
    if min(height, width) < needed:
        raise ModelError(
            f"a cnn with {len(channels)} poolings needs pictures of at least {needed}x{needed}, "
            f"got {height}x{width}; use fewer channels"
        )
    layers: list[nn.Module] = []
    for wide in channels:
        layers.append(nn.Conv2d(size, wide, kernel_size, padding=kernel_size // 2))
        layers += _after(nn.BatchNorm2d(wide) if batch_norm else None, activation, 0.0)
        layers.append(nn.MaxPool2d(2))
        size, height, width = wide, height // 2, width // 2
    head = mlp(
        [size, height, width],
        out_features,
        hidden=hidden,
        activation=activation,
        dropout=dropout,
        output_activation=output_activation,
    )
    return nn.Sequential(*layers, *head)


def _flatten(input_shape: Sequence[int]) -> list[nn.Module]:
    return [nn.Flatten()] if len(input_shape) > 1 else []


def _after(norm: nn.Module | None, activation: str, dropout: float) -> list[nn.Module]:
    """What follows a layer: normalisation, activation and dropout, as far as they are wanted."""
    layers = [] if norm is None else [norm]
    layers.append(ACTIVATIONS[activation]())
    return [*layers, nn.Dropout(dropout)] if dropout else layers


def _output(activation: str) -> list[nn.Module]:
    if activation == "none":
        return []
    if activation in ("softmax", "log_softmax"):
        return [nn.Softmax(dim=1) if activation == "softmax" else nn.LogSoftmax(dim=1)]
    return [ACTIVATIONS[activation]()]
