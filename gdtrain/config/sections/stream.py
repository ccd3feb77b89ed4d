"""The stream source, and what the rest of a configuration can't be on a stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from gdtrain.config.sections.bounds import FilePath, Positive
from gdtrain.config.sections.source import Data

_OF_THE_WHOLE = {
    "validation_fraction": "can't be kept from a stream, whose end nobody knows; remove it",
    "standardize": "needs all samples before the first, which a stream does not have; rescale the "
    "numbers before they are streamed, or give the model a layer that does",
    "standardize_targets": "needs all samples before the first, which a stream does not have; "
    "rescale the targets before they are streamed",
}


class Stream(Data):
    """Records as they arrive, one a line, each read once: a file, a pipe or standard input."""

    source: Literal["stream"]
    format: Literal["csv", "jsonl"]
    """csv: numbers below a header; jsonl: an object with numbers on each line."""
    path: FilePath
    """A file or a named pipe, relative to the working directory, or - for standard input."""
    target: str | Annotated[list[str], Field(min_length=1)]
    """Name of the target column or field, or of several."""
    features: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the inputs; all but the targets if left out."""
    classes: Annotated[list[str | int], Field(min_length=1)] | None = None
    """The labels of the classes 0, 1, …, for losses over classes."""
    num_classes: Positive | None = None
    """How many classes there are, where their labels are 0, 1, …"""
    follow: bool = False
    """At the end of the file, wait for more, as tail -f does."""
    on_bad_line: Literal["fail", "skip"] = "fail"
    """What a line that can't be read does: end the run, its state saved, or be told and counted."""
    window: Positive = 1000
    """Samples of the prequential loss and accuracy."""

    @field_validator(*_OF_THE_WHOLE)
    @classmethod
    def _not_of_the_whole(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.field_name is not None:
            raise ValueError(_OF_THE_WHOLE[info.field_name])
        return value

    @field_validator("classes")
    @classmethod
    def _differ(cls, value: list[str | int] | None) -> list[str | int] | None:
        if value is not None and len({str(label) for label in value}) < len(value):
            raise ValueError("must be different labels; one of them stands there twice")
        return value

    @field_validator("num_classes")
    @classmethod
    def _one_of_two(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("classes") is not None:
            raise ValueError("has no effect beside classes; remove one of the two")
        return value

    @field_validator("follow")
    @classmethod
    def _of_a_file(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("path") == "-":
            raise ValueError("has no effect on standard input, which is waited for anyway")
        return value


def in_its_order(loader: Any) -> Any:
    """A loader section as written, with a stream's own order where it names none."""
    if isinstance(loader, str):
        loader = {"name": loader}
    return {"order": "sequential", **loader} if isinstance(loader, dict) else loader


def misfit(key: str | None, value: Any) -> str | None:
    """Why a setting can't be had on a stream, if so."""
    if key == "loader" and isinstance(value, list):
        return "must be one loader on a stream, which is one epoch"
    if key == "loader" and not isinstance(getattr(value, "batch_size", 1), int):
        return "batch_size must be one number on a stream, which is one epoch"
    if key == "loader" and value.name == "batch":
        return (
            "batch needs every sample for one update, and a stream has no last one; "
            "use minibatch or sample"
        )
    if key == "loader" and value.order != "sequential":
        return "order has no effect on a stream, which comes in its own; remove it"
    if key == "scheduler" and value is not None and value.name == "cosine":
        return "cosine needs the number of updates, which a stream does not have; use another"
    if key == "epochs" and value != 1:
        return f"must be 1 on a stream, which is read once, got {value}"
    if key == "early_stopping" and value is not None:
        return "has no effect on a stream, which is one epoch; remove it"
    return None
