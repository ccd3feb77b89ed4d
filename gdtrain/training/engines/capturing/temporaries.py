"""Attributes that each pass binds before it reads them: no pass depends on the one before by these.

``torch.nn.utils.weight_norm`` leaves its product so in ``weight``, and a model what it wants to be
seen of it. They are no state, but whoever looks at them after an update finds that update's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gdtrain.training.engines.capturing.python_state import Attribute, root_package


class FirstUses:
    """Which of some attributes code binds before it reads, deletes or looks for them.

    attributes: those that are watched. bound: those that were bound first, so far.
    """

    def __init__(self, attributes: Iterable[Attribute] = ()) -> None:
        self.bound: list[Attribute] = []
        self._unused = {(id(found.owner), found.key): found for found in attributes}

    def note(self, owner: Any, key: str, *, binds: bool) -> None:
        """Note a use of an attribute."""
        found = self._unused.pop((id(owner), key), None)
        if found is not None and binds:
            self.bound.append(found)

    def note_all(self, owner: Any) -> None:
        """Note that all attributes of an object are read."""
        for found in list(self._unused.values()):
            if found.owner is owner:
                self.note(owner, found.key, binds=False)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the uses meanwhile, by classes that the owners have in the place of their own."""
        owners = {id(found.owner): found.owner for found in self._unused.values()}.values()
        kinds = [(owner, type(owner)) for owner in owners]
        try:
            for owner, kind in kinds:
                owner.__class__ = _noting(kind, self)
            yield
        finally:
            for owner, kind in kinds:
                owner.__class__ = kind


def _noting(kind: Any, uses: FirstUses) -> Any:
    """A class that does what ``kind`` does, and notes it."""

    def read(owner: Any, key: str) -> Any:
        # PyTorch and the project read all attributes to find the one that is asked for.
        if key == "__dict__" and not _is_known(sys._getframe(1).f_globals.get("__name__")):
            uses.note_all(owner)
        uses.note(owner, key, binds=False)
        return kind.__getattribute__(owner, key)

    def bind(owner: Any, key: str, value: Any) -> None:
        uses.note(owner, key, binds=True)
        kind.__setattr__(owner, key, value)

    def delete(owner: Any, key: str) -> None:
        uses.note(owner, key, binds=False)
        kind.__delattr__(owner, key)

    methods = {"__getattribute__": read, "__setattr__": bind, "__delattr__": delete}
    names = {"__slots__": (), "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind)(kind.__name__, (kind,), {**methods, **names})


def _is_known(module: Any) -> bool:
    return root_package(str(module)) in ("torch", "gdtrain")
