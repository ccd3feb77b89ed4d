"""Configurations from files, texts and the command line: YAML as pure data, with all places."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gdtrain.errors import ConfigError, Fault
from gdtrain.wording import nearest

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where something stands: a file (or the command line), a line and a column, both from 1."""

    path: str
    line: int
    column: int


@dataclass
class Document:
    """A mapping read from YAML, the places of its keys and values, and what is wrong in it.

    faults: those that leave the rest readable, so that all can be reported together.
    """

    path: str
    data: dict[str, Any] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: KeyPath, *, of_key: bool = False) -> Place:
        """The place of the value (or key) at ``path``, or of the nearest thing around it."""
        if of_key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Place(self.path, 1, 1))

    def at(self, path: KeyPath) -> Any:
        """What stands at ``path``."""
        found: Any = self.data
        for part in path:
            found = found[part]
        return found

    def forget(self, path: KeyPath) -> None:
        """Forget the places of what stands at ``path`` and below."""
        for known in [place for place in self.values if place[: len(path)] == path]:
            del self.values[known]

    def fault(self, path: KeyPath, message: str, *, of_key: bool = False) -> Fault:
        """A fault of the setting at ``path``, with its place."""
        place = self.place(path, of_key=of_key)
        return Fault(dotted(path), message, place.path, place.line, place.column)


def dotted(path: KeyPath) -> str:
    """``("model", "hidden", 0)`` as ``model.hidden[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def key_path(key: str) -> KeyPath:
    """The path that :func:`dotted` wrote as ``key``."""
    parts = re.findall(r"\[(\d+)\]|([^.\[\]]+)", key)
    return tuple(int(index) if index else word for index, word in parts)


# With the bounds below: reading takes a tenth of a second at most, whatever the text.
MAX_BYTES = 1 << 16
MAX_VALUES = 3000  # and keys
MAX_DEPTH = 20
# How many faults in YAML are told together.
MAX_FAULTS = 20

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
        raise broken(f"file not found; {_like(Path(path))}") from None
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


def _like(path: Path) -> str:
    """What to do about a file that is not there: a configuration beside it may be meant."""
    try:
        there = {p.stem: p for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")}
    except (OSError, ValueError):  # ValueError: a NUL in the path
        there = {}
    near = nearest(path.stem, there)
    return f"did you mean {there[near]}?" if near else "check the path"


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
            is_run = Path(text).is_dir()
            hint = f"; of a run, write --output-dir {text}" if is_run else ""
            message = f"{text!r} is not a setting; write section.key=value{hint}"
            document.faults.append(Fault("", message, place.path, number, 1))
            continue
        at = (number, len(key) + 2)
        reader = Reader(Document("command line"), at, tuple(key.split(".")))
        parsed = reader.read(_quoted(value) if _is_mark(value) else value)
        document.faults += reader.faults
        if not reader.faults:
            _set(document, reader, parsed, place)


def _is_mark(value: str) -> bool:
    """Whether a value is a mark that means itself, as in data.comment=# and data.decimal=,

    To YAML these would begin a comment, which is no value, or a list or a quoted text, which no
    single character is.
    """
    return value in _MARKS or value.startswith("#")


_MARKS = tuple(",;:|#%&*?!@>`'\"-\t")


def _quoted(mark: str) -> str:
    return json.dumps(mark, ensure_ascii=False)


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


# ── the reader ──────────────────────────────────────────────────────────────────────────────

# The scalars of YAML 1.2's core schema, so that 1e-3 is a number and `on` is a word.
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,40}")
_ENDLESS = re.compile(r"[-+]?[0-9]{309,}")  # over the largest float64, or close to it
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]{1,39}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def plain_scalar(text: str) -> Any:
    """The value of a word without quotes: null, a truth value, a number or the word itself."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if special := _SPECIAL.fullmatch(text):
        return float((special[1] or "") + (special[2] or special[3]).lower())
    return text


@dataclass
class Reader:
    """Turns YAML events into Python values, noting places and faults.

    document: what has been read. first: line and column of the text's first character in the file.
    prefix: where the value that is read stands.
    """

    document: Document
    first: tuple[int, int] = (1, 1)
    prefix: KeyPath = ()
    faults: list[Fault] = field(default_factory=list)
    _count: int = 0
    _events: Iterator[yaml.Event] = field(default_factory=lambda: iter(()))

    def add(self, path: KeyPath, message: str, mark: Any = None) -> None:
        if len(self.faults) == MAX_FAULTS:
            path, message = (), f"has more faults than these {MAX_FAULTS}; correct them first"
        place = self._place(mark)
        self.faults.append(
            Fault(dotted(self.prefix + path), message, place.path, place.line, place.column)
        )
        if len(self.faults) > MAX_FAULTS:
            raise _EnoughError

    def read(self, text: str) -> Any:
        """The value that a text stands for; None if it has none, or faults that hide it."""
        loader: Any = None
        try:
            loader = _ShallowLoader(text)
            self._events = iter(loader.get_event, None)
            next(self._events)  # stream start
            event = next(self._events)
            if isinstance(event, yaml.StreamEndEvent):
                return None
            value = self._node(next(self._events), self.prefix, 0)
            next(self._events)  # document end
            event = next(self._events)
            if not isinstance(event, yaml.StreamEndEvent):
                message = "holds several documents; one file is one configuration"
                self.add((), message, event.start_mark)
            return value
        except (ValueError, OverflowError):  # a version, or a character written by its number
            self.add((), "is not valid YAML: a number in it is out of range", loader.get_mark())
        except yaml.YAMLError as error:
            self._add_error(error, text)
        except _TooDeepError as deep:
            message = f"is nested over {MAX_DEPTH} levels deep; a configuration is flat"
            self.add((), message, deep.mark)
        except _EnoughError:
            pass
        return None

    def _add_error(self, error: yaml.YAMLError, text: str) -> None:
        """Say what is wrong with a text that is no YAML."""
        if isinstance(error, yaml.MarkedYAMLError):
            self.add(*_in_words(error, text))
            return
        assert isinstance(error, yaml.reader.ReaderError)
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        if line == 1:
            column += self.first[1] - 1
        message = f"has a character that YAML forbids: U+{error.character:04X}"
        self.faults.append(
            Fault(
                dotted(self.prefix),
                f"{message}; write it as an escape in double quotes",
                self.document.path,
                line + self.first[0] - 1,
                column,
            )
        )

    def _node(self, event: yaml.Event, path: KeyPath, depth: int) -> Any:
        mark = event.start_mark
        if depth > MAX_DEPTH:
            raise _TooDeepError(mark)
        self._count_one(mark)
        self.document.values[path] = self._place(mark)
        where = path[len(self.prefix) :]
        if isinstance(event, yaml.AliasEvent):
            self.add(where, f"alias *{event.anchor} is not allowed; write the value out", mark)
            return None
        assert isinstance(event, yaml.NodeEvent)
        if event.anchor is not None:
            self.add(where, f"anchor &{event.anchor} is not allowed; remove it", mark)
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.add(where, f"tag {tag} is not allowed; a configuration is pure data", mark)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, where)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(event, (*path, len(items)), depth + 1))
            return items
        return self._mapping(path, depth)

    def _scalar(self, event: yaml.ScalarEvent, where: KeyPath) -> Any:
        mark = event.start_mark
        text = event.value
        if not text.isascii():
            text = self._text(text, where, mark)
        if event.style:
            return text
        if _LEADING_ZERO.fullmatch(text):
            plain = text.lstrip("+-0") or "0"
            words = f"{text[:40]} has a leading zero, and so is octal to some and decimal to others"
            self.add(where, f'{words}; write {plain[:40]}, or "{text[:40]}" for text', mark)
        elif _ENDLESS.fullmatch(text):
            digits = len(text.lstrip("+-"))
            self.add(where, f"is a number of {digits:,} digits; none is over 1.8e308", mark)
        return plain_scalar(text)

    def _text(self, text: str, where: KeyPath, mark: Any) -> str:
        """A text as it is; where an escape makes half of a character, with ? in its place."""
        half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
        if half is None:
            return text
        self.add(where, f"holds {ascii(half)[1:-1]}, half of a character; write it whole", mark)
        return text.encode(errors="replace").decode()

    def _mapping(self, path: KeyPath, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            mark = event.start_mark
            self._count_one(mark)
            if not isinstance(event, yaml.ScalarEvent):
                self.add(path[len(self.prefix) :], "a key must be a word", mark)
                self._node(event, (*path, "?"), depth + 1)
                self._node(next(self._events), (*path, "?"), depth + 1)
                continue
            key = event.value
            if not key.isascii():
                key = self._text(key, path[len(self.prefix) :], mark)
            where = (*path, key)
            if key in mapping:
                first = self.document.keys[where]
                message = f"duplicate key; it is already set at line {first.line}"
                self.add(where[len(self.prefix) :], message, mark)
            else:
                self.document.keys[where] = self._place(mark)
            mapping[key] = self._node(next(self._events), where, depth + 1)
            if mapping[key] is None and ":" in key and not event.style:
                name, _, value = key.partition(":")
                message = f"lacks a blank after the colon; write {name}: {value}"
                self.add(where[len(self.prefix) :], message, mark)
        return mapping

    def _count_one(self, mark: Any) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            self.add(
                (), f"holds over {MAX_VALUES:,} keys and values; a configuration is small", mark
            )
            raise _EnoughError

    def _place(self, mark: Any) -> Place:
        line, column = self.first
        if mark is None:
            return Place(self.document.path, line, column)
        if mark.line == 0:
            return Place(self.document.path, line, column + mark.column)
        return Place(self.document.path, line + mark.line, mark.column + 1)


def _in_words(error: yaml.MarkedYAMLError, text: str) -> tuple[KeyPath, str, Any]:
    """What is wrong with a text that is no YAML, and where: ``Reader.add``'s arguments."""
    problem, mark = str(error.problem), error.problem_mark or error.context_mark
    if "found character '\\t'" in problem:
        return (), "has a tab before a setting; indent with blanks", mark
    if problem == "could not find expected ':'" and error.context_mark is not None:
        line = text.splitlines()[error.context_mark.line].strip()
        key, colon, value = line.partition(":")
        if colon and value:
            message = f"{line!r} lacks a blank after the colon; write {key}: {value}"
            return (), message, error.context_mark
        first = line.partition(" ")[0]
        message = f"{line!r} lacks a colon; write {first}:{line.removeprefix(first)}"
        return (), message, error.context_mark
    message = " ".join(filter(None, (error.context, problem)))
    return (), f"is not valid YAML: {message}", mark


class _ShallowLoader(yaml.SafeLoader):
    """Notices brackets nested too deep as they are scanned, far ahead of the events of each."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise _TooDeepError(self.get_mark())
        super().fetch_flow_collection_start(token)


class _TooDeepError(Exception):
    def __init__(self, mark: Any) -> None:
        self.mark = mark


class _EnoughError(Exception):
    """What has been read shows that the rest is not worth reading; the faults say why."""
