"""Read YAML as pure data, with the line and column of everything, and refuse what is not data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from gdtrain.config.places import Document, KeyPath, Place, dotted
from gdtrain.errors import Fault

MAX_VALUES = 3000  # and keys
MAX_DEPTH = 20
# How many faults in YAML are told together.
MAX_FAULTS = 20

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
        loader: Any = None
        try:
            loader = _ShallowLoader(text)
            self._events = iter(loader.get_event, None)
            return self._read_stream()
        except yaml.MarkedYAMLError as error:
            message = " ".join(filter(None, (error.context, error.problem)))
            self.add((), f"is not valid YAML: {message}", error.problem_mark or error.context_mark)
        except yaml.reader.ReaderError as error:
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
        except (ValueError, OverflowError):  # a version, or a character written by its number
            self.add((), "is not valid YAML: a number in it is out of range", loader.get_mark())
        except _TooDeepError as deep:
            message = f"is nested over {MAX_DEPTH} levels deep; a configuration is flat"
            self.add((), message, deep.mark)
        except _EnoughError:
            pass
        return None

    def _read_stream(self) -> Any:
        next(self._events)  # stream start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self._node(next(self._events), self.prefix, 0)
        next(self._events)  # document end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self.add((), "holds several documents; one file is one configuration", event.start_mark)
        return value

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
        text = self._text(event.value, where, mark)
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
            key = self._text(event.value, path[len(self.prefix) :], mark)
            where = (*path, key)
            if key in mapping:
                first = self.document.keys[where]
                message = f"duplicate key; it is already set at line {first.line}"
                self.add(where[len(self.prefix) :], message, mark)
            else:
                self.document.keys[where] = self._place(mark)
            mapping[key] = self._node(next(self._events), where, depth + 1)
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
