"""The data source ``stream``: records read as they arrive, and what can't be had beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from gdtrain.data.streams.csv_records import CsvRecords
from gdtrain.data.streams.lines import Lines
from gdtrain.data.streams.record_feed import RecordFeed
from gdtrain.data.streams.records import Array, JsonRecords, Records
from gdtrain.data.streams.stream import StreamSamples
from gdtrain.data.tables.preparation import Column, PreparedData, Preprocessing
from gdtrain.errors import ConfigError, DataError
from gdtrain.registry import find, register_source
from gdtrain.settings import FilePath, LossSettings, Positive, SourceSettings, Targets

# Settings of every source that a stream refuses, and why.
NOT_OF_A_STREAM = {
    "validation_fraction": "can't be kept from a stream, whose end nobody knows; remove it",
    "standardize": "needs all samples before the first, which a stream does not have; rescale the "
    "numbers before they are streamed, or give the model a layer that does",
    "standardize_targets": "needs all samples before the first, which a stream does not have; "
    "rescale the targets before they are streamed",
}


class Stream(SourceSettings):
    """Records as they arrive, one per line, each read once: a file, a pipe or standard input."""

    format: Literal["csv", "jsonl"]
    """csv: numbers below a header; jsonl: an object with numbers on each line."""
    path: FilePath
    """A file or a named pipe, relative to the working directory, or - for standard input."""
    target: str | Annotated[list[str], Field(min_length=1)]
    """Name of the target column or field, or of several."""
    features: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the inputs; all but the targets if left out."""
    classes: Annotated[list[str | int], Field(min_length=1)] | None = None
    """The labels of the classes 0, 1, …, for classification losses."""
    num_classes: Positive | None = None
    """The number of classes, if their labels are 0, 1, …"""
    follow: bool = False
    """At the end of the file, wait for more lines, like tail -f."""
    on_bad_line: Literal["fail", "skip"] = "fail"
    """What to do if a line can't be read: save the state and end the run (fail), or report and
    count it (skip)."""
    window: Positive = 1000
    """Number of newest samples for the prequential loss and accuracy."""

    @field_validator(*NOT_OF_A_STREAM)
    @classmethod
    def _not_of_the_whole(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.field_name is not None:
            raise ValueError(NOT_OF_A_STREAM[info.field_name])
        return value

    @field_validator("classes")
    @classmethod
    def _differ(cls, value: list[str | int] | None) -> list[str | int] | None:
        if value is not None and len({str(label) for label in value}) < len(value):
            raise ValueError("must be different labels; one of them occurs twice")
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

    def refuses(self, key: str, value: Any) -> str | None:
        if key == "loader":
            return _unfit_loader(value)
        if key == "phases" and value is not None:
            return "have no effect on a stream, which is one epoch; name one optimizer"
        if key == "scheduler" and value is not None:
            return _unfit_schedule(value)
        if key == "epochs" and value != 1:
            return f"must be 1 on a stream, which is read once, got {value}"
        if key == "early_stopping" and value is not None:
            return "has no effect on a stream, which is one epoch; remove it"
        if key == "averaging" and value is not None and (value.start_epoch or 1) > 1:
            return "start_epoch has no effect on a stream, which is one epoch"
        if key == "variance_reduction" and value is not None:
            return "needs every sample again and again, and a stream gives each once; remove it"
        return _unfit_monitors(value) if key == "monitors" and value else None


def _unfit_schedule(schedule: Any) -> str | None:
    """Why the rates of an optimizer, or of several by name, can't go by a schedule, if so."""
    for one in schedule.values() if isinstance(schedule, dict) else [schedule]:
        if find("schedule", one.name).takes("total"):
            text = "needs the number of updates, which a stream does not have; use another"
            return f"{one.name} {text}"
    return None


def _unfit_loader(loader: Any) -> str | None:
    """Why a stream can't be read by a loader, if so."""
    if isinstance(loader, list):
        return "must be one loader on a stream, which is one epoch"
    if not isinstance(getattr(loader, "batch_size", 1), int):
        return "batch_size must be one number on a stream, which is one epoch"
    if loader.name == "batch":
        return (
            "batch needs every sample for one update, and a stream has no last one; "
            "use minibatch or sample"
        )
    if getattr(loader, "order", "sequential") != "sequential":
        return "order has no effect on a stream, which comes in its own; remove it"
    return None


def _unfit_monitors(monitors: dict[str, Any]) -> str | None:
    """Which monitors would look at a stream's samples again, if some do."""
    apart = ("update_ratio", "trajectory")
    named = ", ".join(name for name in monitors if name not in apart)
    message = "would look at samples again, and a stream's are read once; "
    return f"{named} {message}only {' and '.join(apart)} can be had" if named else None


@register_source("stream", Stream)
def stream(
    path: str,
    target: str | list[str],
    *,
    format: str,
    features: list[str] | None = None,
    classes: list[str | int] | None = None,
    num_classes: int | None = None,
    follow: bool = False,
    on_bad_line: str = "fail",
    shape: list[int] | None = None,
    loss: LossSettings,
    in_float32: bool = True,
    **_: Any,
) -> PreparedData:
    """Open the stream, and read its header or look at its first record; waits for that line.

    loss: says what the targets must be. Other settings are not about reading.
    """
    targets = [target] if isinstance(target, str) else target
    count = _number_of_classes(loss, classes, num_classes, targets)
    lines = Lines(path, follow)
    of_csv = format == "csv"
    first = lines.first(keep=not of_csv).decode("utf-8", errors="backslashreplace")
    if not first:
        text = "is empty; its first line must name the columns" if of_csv else "has no records"
        raise DataError(f"{lines.name}: {text}")
    names = None if classes is None else [str(label) for label in classes]
    kind = CsvRecords if of_csv else JsonRecords
    records: Records = kind(
        lines.name,
        first,
        features,
        targets,
        classes=names,
        allowed=_allowed(loss, count),
        in_float32=in_float32,
    )
    width = len(records.features)
    shape = shape or [width]
    if (held := math.prod(shape)) != width:
        raise DataError(f"shape {shape} holds {held} numbers, but a sample has {width} inputs")
    whole = count is not None or loss.targets.whole

    def finish(rows: Array) -> tuple[Array, Array]:
        inputs = rows[:, :width].reshape(-1, *shape)
        after = rows[:, width] if count is not None else rows[:, width:]
        return inputs, after.astype("int64") if whole else after.copy()

    feed = RecordFeed(
        lines,
        records,
        header_lines=1 if of_csv else 0,
        skip=on_bad_line == "skip",
        finish=finish,
    )
    columns = [Column(name) for name in records.features]
    done = Preprocessing(shape, count or len(targets), names, columns)
    return PreparedData(StreamSamples(feed), None, done)


def _number_of_classes(
    loss: LossSettings, classes: list[str | int] | None, num_classes: int | None, targets: list[str]
) -> int | None:
    """How many classes there are; None for a loss that takes numbers."""
    given = len(classes) if classes else num_classes
    key = "classes" if classes else "num_classes"
    if not loss.targets.classes:
        if given is not None:
            raise ConfigError.of(key, f"has no effect under {loss.name}; remove it")
        return None
    if given is None:
        raise ConfigError.of(
            key,
            f"missing; {loss.name} needs to know the classes before the stream has shown "
            "them: set classes to their labels, or num_classes",
        )
    if len(targets) > 1:
        raise ConfigError.of("target", f"must be one column under {loss.name}")
    return given


def _allowed(loss: LossSettings, classes: int | None) -> Targets:
    """What a line's targets must be."""
    if classes is not None:
        ignored = getattr(loss, "ignore_index", None)
        return Targets(
            must_be=f"0 … {classes - 1}",
            holds=lambda t: (t == ignored) | ((t == t.round()) & (t >= 0) & (t < classes)),
        )
    allowed: Targets = loss.targets
    return replace(allowed, must_be=f"{allowed.must_be} under {loss.name}")
