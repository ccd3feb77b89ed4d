"""Where a configuration comes from: a file, a text, and settings on the command line."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gdtrain.config.places import Document, KeyPath, Place, dotted
from gdtrain.config.yaml_reader import Reader
from gdtrain.errors import ConfigError, Fault

# With the bounds of the reader: reading takes a tenth of a second at most, whatever the text.
MAX_BYTES = 1 << 16

_OVERRIDE_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def read_files(paths: Sequence[str | Path]) -> Document:
    """Read configuration files, of which later ones win; ``-`` is standard input.

    Sections are merged key by key, unless a later file names another form: then that takes the
    section's place. Lists are replaced. Raises ConfigError if one is not a readable mapping.
    """
    first, *others = [read_file(path) for path in paths]
    for other in others:
        _merge(first, other, ())
        first.faults += other.faults
    return first


def _merge(document: Document, other: Document, path: KeyPath) -> None:
    """Put the settings that stand below ``path`` in the other document into the document."""
    target, given = document.at(path), other.at(path)
    for key, value in given.items():
        below = (*path, key)
        merges = isinstance(value, dict) and isinstance(_as_section(path, key, target), dict)
        if merges and not _is_another_form(_as_section(path, key, target), value):
            target[key] = _as_section(path, key, target)
            _merge(document, other, below)
            continue
        document.forget(below)
        target[key] = value
        for places, there in ((document.values, other.values), (document.keys, other.keys)):
            places |= {
                place: found for place, found in there.items() if place[: len(below)] == below
            }


def _as_section(path: KeyPath, key: str, settings: dict[str, Any]) -> Any:
    """``loss: mse`` as the section that it stands for."""
    value = settings.get(key)
    is_name = isinstance(value, str) and not path
    return {"source" if key == "data" else "name": value} if is_name else value


def _is_another_form(section: dict[str, Any], later: dict[str, Any]) -> bool:
    return any(tag in later and later[tag] != section.get(tag) for tag in ("source", "name"))


def read_file(path: str | Path) -> Document:
    """Read a configuration file. Raises ConfigError if it is not a readable mapping."""
    name = "standard input" if str(path) == "-" else str(path)

    def broken(message: str, line: int = 1, column: int = 1) -> ConfigError:
        return ConfigError([Fault("", message, name, line, column)])

    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(path, "rb", opener=_without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise broken("is a pipe or a device; save the configuration in a file")
                raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise broken("file not found; check the path") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise broken(f"can't be read: {reason}; give a readable YAML file") from None
    if len(raw) > MAX_BYTES:
        raise broken(f"is over {MAX_BYTES // 1024} KiB; a configuration is small")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise broken("is not UTF-8 text; save it as UTF-8", line, column) from None
    return read_text(text, name)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file, but don't wait for somebody to write into a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(text: str, name: str) -> Document:
    """Read a configuration from a string; ``name`` stands for the file in messages.

    Faults that leave the rest readable go into the document. Raises ConfigError for others.
    """
    reader = Reader(Document(name))
    data = reader.read(text)
    if data is None and not reader.faults:
        reader.add((), "is empty; it needs data, model, loss, loader, optimizer and epochs")
    elif not isinstance(data, dict) and not reader.faults:
        reader.add((), "must be a mapping of settings, such as 'epochs: 20'")
    if not isinstance(data, dict):
        raise ConfigError(reader.faults)
    reader.document.data = data
    reader.document.faults = reader.faults
    return reader.document


def apply_overrides(document: Document, overrides: list[str], first: int = 1) -> None:
    """Put ``section.key=value`` settings into the document, in order; ``null`` removes a key.

    Values are YAML, with the same rules as in a file. A place on the command line is given as
    (number of the override, column in it). first: the number of the first one. Faults go into the
    document.
    """
    for number, text in enumerate(overrides, start=first):
        key, equals, value = text.partition("=")
        place = Place("command line", number, 1)
        if not equals or not _OVERRIDE_KEY.fullmatch(key):
            message = f"{text!r} is not a setting; write section.key=value"
            document.faults.append(Fault("", message, place.path, number, 1))
            continue
        at = (number, len(key) + 2)
        reader = Reader(Document("command line"), at, tuple(key.split(".")))
        # A dash alone is an empty list's item to YAML, and standard input to everybody else.
        parsed = reader.read('"-"' if value == "-" else value)
        document.faults += reader.faults
        if not reader.faults:
            _set(document, reader, parsed, place)


def _set(document: Document, reader: Reader, value: Any, place: Place) -> None:
    path = reader.prefix
    target = document.data
    for depth, part in enumerate(path[:-1], start=1):
        below = target.get(str(part))
        if isinstance(below, str):  # `loss: mse` stands for `loss: {name: mse}`
            below = {"source" if part == "data" else "name": below}
        if isinstance(below, list):
            message = f"is part of a list; give all of {dotted(path[:depth])}"
            document.faults.append(Fault(dotted(path), message, place.path, place.line, 1))
            return
        if not isinstance(below, dict):
            if value is None and below is None:
                return  # nothing there to take out
            below = {}
            document.values[path[:depth]] = document.keys[path[:depth]] = place
        target[str(part)] = below
        target = below
    document.forget(path)
    if value is None:
        target.pop(str(path[-1]), None)
        return
    target[str(path[-1])] = value
    document.values |= reader.document.values
    document.keys |= reader.document.keys | {path: place}
