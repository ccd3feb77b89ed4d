"""The settings of a sweep: which values each of them takes, from the command line and files."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gdtrain.config.load import check
from gdtrain.config.yaml_source import Document, apply_overrides, read_files
from gdtrain.errors import ConfigError, Fault

SECTION = "sweep"  # of a file: setting -> list of values, or a range
MOST = 100_000  # values of a range

DEFAULT_BATCH_SIZE = 64  # of minibatch, where the configuration has another loader
_FORM = re.compile(r"[A-Za-z_]\w*(:\d+)?")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


@dataclass(frozen=True)
class SweepConfig:
    """A sweep as configured.

    document: what all runs have in common. grid: of each setting its values, each as it would
    be written on the command line: ``optimizer.lr`` -> ``["0.01", "0.1"]``. numbers: which word
    of the command line each of them is, for messages.
    """

    document: Document
    grid: dict[str, list[str]]
    numbers: dict[str, int]

    def check(self, points: Sequence[Mapping[str, str]]) -> None:
        """Raise ConfigError with the faults of all runs, each once, by keys, types and bounds."""
        faults: dict[str, Fault] = {}
        for point in points:
            try:
                check(run_document(self.document, point, self.numbers), by_index=True)
            except ConfigError as error:
                faults |= {str(fault): fault for fault in error.faults}
        if faults:
            raise ConfigError(list(faults.values()))


def load_sweep(paths: Sequence[str], settings: Sequence[str]) -> SweepConfig:
    """Read the files and ``section.key=a,b,c``; a setting with one value is not swept.

    Values are separated by commas outside of brackets and quotes; ``0..9`` are ten whole numbers.
    A file's section ``sweep`` has them as lists. Raises ConfigError with every fault.
    """
    document = read_files(list(paths))
    grid = _of_section(document)
    numbers: dict[str, int] = {}
    for number, text in enumerate(settings, 1):
        key, equals, value = text.partition("=")
        values = _values(value, Fault(key, "", "command line", number, len(key) + 2))
        if equals and len(values) > 1:
            grid[key], numbers[key] = values, number
        else:
            grid.pop(key, None)
            setting = {key: values[0]} if equals else {text: None}
            _apply(document, setting, number)
    if not grid:
        message = "nothing to sweep over; give a setting several values, such as seed=0..4"
        raise ConfigError([*document.faults, Fault("", message, "command line")])
    return SweepConfig(document, grid, numbers)


def run_document(
    document: Document, point: Mapping[str, str], numbers: Mapping[str, int] | None = None
) -> Document:
    """The document with the settings of a point; numbers: which word each is, for messages."""
    own = copy.deepcopy(document)
    for place, (key, value) in enumerate(point.items(), 1):
        _apply(own, {key: value}, (numbers or {}).get(key, place))
    return own


def _apply(document: Document, setting: Mapping[str, str | None], number: int) -> None:
    """Put a setting into the document; the loader may be a form, such as ``minibatch:32``."""
    ((key, value),) = setting.items()
    texts = [key if value is None else f"{key}={value}"]
    if key == "loader" and value is not None and _FORM.fullmatch(value):
        section = document.data.get("loader")
        name = section.get("name") if isinstance(section, dict) else section
        texts = loader_settings(value, name if isinstance(name, str) else None)
    for text in texts:
        apply_overrides(document, [text], number)


def loader_settings(form: str, own: str | None) -> list[str]:
    """``batch``, ``minibatch`` or ``minibatch:32`` as settings on the command line.

    own: the loader that the configuration names; that keeps its settings.
    """
    name, _, size = form.partition(":")
    if name == own:
        return [f"loader.batch_size={size}"] if size else []
    size = size or (str(DEFAULT_BATCH_SIZE) if name == "minibatch" else "")
    return [f"loader={{name: {name}, batch_size: {size}}}" if size else f"loader={name}"]


def plain(value: str) -> Any:
    """A value as the rows have it: a number, or the text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _of_section(document: Document) -> dict[str, list[str]]:
    section = document.data.pop(SECTION, None)
    if section is None:
        return {}
    if not isinstance(section, dict):
        message = "must map settings to lists of values, such as {optimizer.lr: [0.01, 0.1]}"
        raise ConfigError([document.fault((SECTION,), message)])
    grid, faults = {}, []
    for key, given in section.items():
        place = document.fault((SECTION, key), "")
        if isinstance(given, str):
            grid[key] = _values(given, place)
        elif isinstance(given, list) and given:
            grid[key] = [v if isinstance(v, str) else json.dumps(v) for v in given]
        else:
            message = f"must be a list of values, or a range such as 0..4, got {given!r}"
            faults.append(document.fault((SECTION, key), message))
    if faults:
        raise ConfigError(faults)
    return grid


def _values(text: str, place: Fault) -> list[str]:
    """``a,b,c`` and ``0..9`` as a list; what is in brackets or quotes is one value."""
    values: list[str] = []
    for part in _parts(text):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            values.append(part.strip())
            continue
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + MOST:
            message = f"must be a range such as 0..9, of at most {MOST:,} numbers, got {part!r}"
            raise ConfigError([Fault(place.key, message, place.path, place.line, place.column)])
        values += map(str, range(first, last + 1))
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        message = f"holds {twice} twice; give each value once"
        raise ConfigError([Fault(place.key, message, place.path, place.line, place.column)])
    return values


def _parts(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts
