"""What was read from a configuration file, and the place of everything in it, for messages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from gdtrain.errors import Fault

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
