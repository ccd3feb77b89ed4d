"""Where samples come from: every data source with its options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from gdtrain.config.sections.bounds import FilePath, NonNegative, Number, Positive, shorthand
from gdtrain.config.sections.source import Data as Data
from gdtrain.config.sections.stream import Stream


class Digits(Data):
    """1,797 handwritten digits, 64 pixels 0 … 16, 10 classes (Alpaydin and Kaynak, 1998)."""

    source: Literal["digits"]


class Teaching(Data):
    """The teaching example: independent normal inputs and targets, nothing to learn."""

    source: Literal["teaching"]
    num_samples: Positive = 500
    """Rows."""
    num_features: Positive = 2
    """Input columns."""


class LinearRegression(Data):
    """y = Xw + b + noise, with X normal and w known."""

    source: Literal["linear_regression"]
    num_samples: Positive = 1000
    """Rows."""
    num_features: Positive = 10
    """Input columns; with weights, there must be as many of these."""
    weights: Annotated[list[Number], Field(min_length=1)] | None = None
    """w; drawn from a normal distribution if left out."""
    bias: Number = 0.0
    """b."""
    noise: NonNegative = 0.1
    """Standard deviation of the noise."""

    @field_validator("weights")
    @classmethod
    def _one_per_feature(cls, value: list[float] | None, info: ValidationInfo) -> Any:
        features = info.data.get("num_features")
        if value is not None and features is not None and len(value) != features:
            raise ValueError(f"must hold num_features = {features} numbers, got {len(value)}")
        return value


class TwoMoons(Data):
    """Two interleaved half circles, one for each of two classes."""

    source: Literal["two_moons"]
    num_samples: Annotated[int, Field(ge=2, lt=2**31)] = 1000
    """Rows."""
    noise: NonNegative = 0.1
    """Standard deviation of the noise on both coordinates."""


class Quadratic(Data):
    """Least squares whose mean squared error has a Hessian with the chosen eigenvalues."""

    source: Literal["quadratic"]
    spectrum: Annotated[list[NonNegative], Field(min_length=1, max_length=2048)] = Field(
        [1.0, 10.0]
    )
    """The eigenvalues; their number is the number of input columns."""
    num_samples: Positive | None = None
    """Rows, at least one per eigenvalue; as many if left out."""

    @field_validator("num_samples")
    @classmethod
    def _enough(cls, value: int | None, info: ValidationInfo) -> int | None:
        needed = len(info.data.get("spectrum", ()))
        if value is not None and value < needed:
            raise ValueError(f"must be >= {needed}, one per eigenvalue, got {value}")
        return value


class Csv(Data):
    """A CSV file with a header; numeric columns as they are, others one-hot by category."""

    source: Literal["csv"]
    path: FilePath
    """The file, relative to the working directory."""
    target: str | Annotated[list[str], Field(min_length=1)]
    """Name of the target column, or of several."""
    features: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the input columns; all but the targets if left out."""
    categorical: list[str] = Field([])
    """Columns of numbers that stand for categories."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """The character between fields."""


class Npz(Data):
    """Two arrays of a numpy .npz archive."""

    source: Literal["npz"]
    path: FilePath
    """The file, relative to the working directory."""
    inputs: str = "x"
    """Name of the array of inputs, [n, …]."""
    targets: str = "y"
    """Name of the array of targets, [n] or [n, …]."""


class Npy(Data):
    """Two numpy .npy files."""

    source: Literal["npy"]
    path: FilePath
    """The file with the inputs, [n, …], relative to the working directory."""
    targets: FilePath
    """The file with the targets, [n] or [n, …]."""


class Pt(Data):
    """A PyTorch .pt file with a dict of tensors, or a pair of them; never runs code."""

    source: Literal["pt"]
    path: FilePath
    """The file, relative to the working directory."""
    inputs: str = "x"
    """Key of the inputs, if the file holds a dict."""
    targets: str = "y"
    """Key of the targets, if the file holds a dict."""


class Safetensors(Data):
    """Two tensors of a safetensors file."""

    source: Literal["safetensors"]
    path: FilePath
    """The file, relative to the working directory."""
    inputs: str = "x"
    """Name of the inputs, [n, …]."""
    targets: str = "y"
    """Name of the targets, [n] or [n, …]."""


class Mapped(Data):
    """A folder that `python -m gdtrain convert` wrote, read as it is needed, at any size."""

    source: Literal["mapped"]
    path: FilePath
    """The folder, relative to the working directory."""


Source = (
    Digits
    | Teaching
    | LinearRegression
    | TwoMoons
    | Quadratic
    | Csv
    | Npz
    | Npy
    | Pt
    | Safetensors
    | Mapped
    | Stream
)
DataSection = Annotated[Source, Field(discriminator="source"), shorthand("source")]
