"""Bounds and shorthands that the sections of a configuration share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

# What float32 holds, in which most is computed: torch raises an error for more, and takes less
# for 0.
LARGEST, SMALLEST = 1e38, 1e-38


def _not_too_small(value: float) -> float:
    if value < SMALLEST:
        raise ValueError(f"must be >= {SMALLEST:g}, got {value:g}")
    return value


Positive = Annotated[int, Field(ge=1, lt=2**31)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST), AfterValidator(_not_too_small)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Weights = Annotated[list[NonNegative], Field(min_length=1)]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character; give a path")
    return text


FilePath = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]


def instead_of(other: str) -> Any:
    """Refuse a setting beside ``other``, which is declared before it."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get(other) is not None:
            raise ValueError(f"can't be set together with {other}; remove one of the two")
        return value

    return AfterValidator(check)


def shorthand(tag: str) -> Any:
    """Take ``loss: mse`` for ``loss: {name: mse}``."""
    return BeforeValidator(lambda value: {tag: value} if isinstance(value, str) else value)
