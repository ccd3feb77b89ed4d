"""The models that a configuration can name, with their options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gdtrain.config.registry import Strict
from gdtrain.config.sections.bounds import Fraction, Positive, shorthand

Activation = Literal[
    "relu", "tanh", "sigmoid", "gelu", "silu", "elu", "leaky_relu", "softplus", "identity"
]
OutputActivation = Literal["none", "sigmoid", "tanh", "softplus", "softmax", "log_softmax"]


class Linear(Strict):
    """One affine map from the flattened inputs to the outputs."""

    name: Literal["linear"]
    bias: bool = True
    """Add a bias."""
    output_activation: OutputActivation = "none"
    """What the outputs go through, for losses that need it (nll: log_softmax, bce: sigmoid)."""


class Mlp(Strict):
    """A multi-layer perceptron on the flattened inputs."""

    name: Literal["mlp"]
    hidden: list[Positive] = Field([64])
    """Sizes of the hidden layers."""
    activation: Activation = "relu"
    """What follows each hidden layer."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit."""
    batch_norm: bool = False
    """Batch normalisation before each activation."""
    output_activation: OutputActivation = "none"
    """What the outputs go through, for losses that need it (nll: log_softmax, bce: sigmoid)."""


class Cnn(Strict):
    """A small convolutional network for inputs [channels, height, width]."""

    name: Literal["cnn"]
    channels: Annotated[list[Positive], Field(min_length=1)] = Field([16, 32])
    """Channels of the convolutions; each is followed by the activation and 2x2 max pooling."""
    kernel_size: Positive = 3
    """Side of the kernels, odd; the picture is padded to keep its size."""
    hidden: list[Positive] = Field([64])
    """Sizes of the hidden layers after the convolutions."""
    activation: Activation = "relu"
    """What follows each convolution and hidden layer."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit."""
    batch_norm: bool = False
    """Batch normalisation before each activation."""
    output_activation: OutputActivation = "none"
    """What the outputs go through, for losses that need it (nll: log_softmax, bce: sigmoid)."""

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, got {value}")
        return value


Model = Linear | Mlp | Cnn
ModelSection = Annotated[Model, Field(discriminator="name"), shorthand("name")]
