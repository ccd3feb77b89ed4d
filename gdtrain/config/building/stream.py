"""From a stream section to samples that are read as they arrive."""

from __future__ import annotations

import math

from gdtrain.config.building.data import TARGET_RANGES, PreparedData
from gdtrain.config.schema import Config
from gdtrain.config.sections.losses import CLASS_LABEL_LOSSES
from gdtrain.config.sections.stream import Stream
from gdtrain.data.streams.lines import Lines
from gdtrain.data.streams.record_feed import RecordFeed
from gdtrain.data.streams.records import Array, JsonRecords, Records, TargetRange
from gdtrain.data.streams.stream import StreamSamples
from gdtrain.data.tables.csv_records import CsvRecords
from gdtrain.data.tables.preparation import Column, Preprocessing
from gdtrain.errors import ConfigError, DataError


def prepare_stream(config: Config) -> PreparedData:
    """Open the stream, and read its header or look at its first record; waits for that line."""
    section = config.data
    assert isinstance(section, Stream)
    targets = [section.target] if isinstance(section.target, str) else section.target
    classes = _classes(config, section, targets)
    lines = Lines(section.path, section.follow)
    of_csv = section.format == "csv"
    first = lines.first(keep=not of_csv).decode("utf-8", errors="backslashreplace")
    if not first:
        said = "no header in its first line; it must name the columns" if of_csv else "no records"
        raise DataError(f"{lines.name}: has {said}")
    names = None if section.classes is None else [str(label) for label in section.classes]
    allowed = _allowed(config, classes)
    kind = CsvRecords if of_csv else JsonRecords
    records: Records = kind(
        lines.name,
        first,
        section.features,
        targets,
        classes=names,
        allowed=allowed,
        in_float32=config.precision != "fp64",
    )
    width = len(records.features)
    shape = section.shape or [width]
    if (held := math.prod(shape)) != width:
        raise DataError(f"shape {shape} holds {held} numbers, but a sample has {width} inputs")
    whole = classes is not None or config.loss.name == "multi_label_margin"

    def finish(rows: Array) -> tuple[Array, Array]:
        inputs = rows[:, :width].reshape(-1, *shape)
        after = rows[:, width] if classes is not None else rows[:, width:]
        return inputs, after.astype("int64") if whole else after.copy()

    feed = RecordFeed(
        lines,
        records,
        header_lines=1 if of_csv else 0,
        skip=section.on_bad_line == "skip",
        finish=finish,
    )
    columns = [Column(name) for name in records.features]
    done = Preprocessing(shape, classes or len(targets), names, columns)
    return PreparedData(StreamSamples(feed), None, done)


def _classes(config: Config, section: Stream, targets: list[str]) -> int | None:
    """How many classes there are; None for a loss that takes numbers."""
    given = len(section.classes) if section.classes else section.num_classes
    key = "classes" if section.classes else "num_classes"
    if not isinstance(config.loss, CLASS_LABEL_LOSSES):
        if given is not None:
            raise ConfigError.of(key, f"has no effect under {config.loss.name}; remove it")
        return None
    if given is None:
        raise ConfigError.of(
            key,
            f"missing; {config.loss.name} needs to know the classes before the stream has shown "
            "them: set classes to their labels, or num_classes",
        )
    if len(targets) > 1:
        raise ConfigError.of("target", f"must be one column under {config.loss.name}")
    return given


def _allowed(config: Config, classes: int | None) -> TargetRange | None:
    """What a line's targets must be."""
    if classes is not None:
        ignored = getattr(config.loss, "ignore_index", None)
        return TargetRange(
            f"0 … {classes - 1}",
            lambda t: (t == ignored) | ((t == t.round()) & (t >= 0) & (t < classes)),
        )
    if config.loss.name not in TARGET_RANGES or getattr(config.loss, "log_target", False):
        return None
    said, holds = TARGET_RANGES[config.loss.name]
    return TargetRange(f"{said} under {config.loss.name}", holds)
