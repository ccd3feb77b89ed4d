"""What Python code reaches from a model and a loss: attributes, items, closures and globals."""

from __future__ import annotations

import argparse
import functools
import operator
import random
import sys
import types
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# Packages whose classes and functions keep nothing of their own that a step could depend on. An
# assertion that pytest has rewritten leads to all of its plugins, and to what garbage collection
# changes in them.
_TEST_RUNNERS = {"pytest", "_pytest", "pluggy", "hypothesis", "_hypothesis_pytestplugin"}
_PACKAGES = (
    sys.stdlib_module_names | _TEST_RUNNERS | {"torch", "numpy", "jax", "jaxlib", "gdtrain", "tqdm"}
)
_ATOMS = (
    *(type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis)),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
_CONTAINERS = (dict, list, set, deque, bytearray)
# Instances that are looked into although their class is of a known package.
_WITH_ATTRIBUTES = (nn.Module, types.SimpleNamespace, argparse.Namespace)
# The items of a longer container are compared, and not looked into; no more objects than these
# are looked at in all.
_LONG, _MOST = 1000, 100_000
_FLAT = ("_flat_weights", "_flat_weight_refs")  # of recurrent layers
_OF_EVERY_CLASS = {"__dict__", "__weakref__", "__doc__", "__annotations__", "__module__"}

Found = Iterator[tuple[str, Any]]


class Attribute(NamedTuple):
    """A place in the ``__dict__`` of an instance, and the name that messages give it."""

    name: str
    owner: Any
    key: str

    @property
    def tensor(self) -> Tensor:
        """What it holds."""
        tensor: Tensor = vars(self.owner)[self.key]
        return tensor

    def hold(self, tensor: Tensor) -> None:
        """Let it hold this."""
        vars(self.owner)[self.key] = tensor


class PythonState:
    """All that code which starts from some objects can read, apart from values of tensors.

    roots: the objects, by the names that messages give them. placed: tensors whose values are
    followed by others, such as parameters and buffers; of these, ``requires_grad``, dtype and
    shape count. Of other tensors, which of them it is, and whether it was written to. opened: an
    object that is looked into although its class is of a known package.
    """

    def __init__(
        self, roots: Mapping[str, Any], placed: Iterable[Tensor] = (), opened: Any = None
    ) -> None:
        self._kept: list[_Kept] = []
        self._opened = opened
        self._placed = {id(tensor) for tensor in placed}
        self._seen: dict[int, Any] = {}  # which keeps them alive, so that an id stays theirs
        waiting = deque(roots.items())
        while waiting and len(self._seen) < _MOST:
            path, found = waiting.popleft()
            if not isinstance(found, _ATOMS) and id(found) not in self._seen:
                self._seen[id(found)] = found
                waiting.extend(self._look(path, found))

    def changes(self) -> list[str]:
        """The names of what is not as it was."""
        return list(dict.fromkeys(name for kept in self._kept for name in kept.changes()))

    def rebound(self) -> list[Attribute]:
        """The attributes that hold another object than before, a tensor."""
        own = [kept for kept in self._kept if isinstance(kept, _OwnAttributes)]
        return [attribute for kept in own for attribute in kept.rebound()]

    @property
    def reached(self) -> list[Any]:
        """Every object that was found."""
        return list(self._seen.values())

    def restore(self) -> None:
        """Put back attributes, items, closures and globals; leave tensors and generators alone."""
        for kept in self._kept:
            if kept.changes() or isinstance(kept, _FlatWeights):
                kept.restore()

    def _look(self, path: str, found: Any) -> Found:
        """Keep what may change of an object; yield what it leads to."""
        for kinds, look in _LOOKS:
            if isinstance(found, kinds):
                yield from look(self, path, found)
                return
        is_known = not is_foreign(type(found)) and not isinstance(found, _WITH_ATTRIBUTES)
        if not is_known or found is self._opened:
            yield from self._instance(path, found)
        elif isinstance(found, Iterator):
            self._kept.append(_Value(path, found, _position))

    def _tensor(self, path: str, found: Tensor) -> Found:
        value_of = _flags if id(found) in self._placed else _writes
        self._kept.append(_Tensor(path, found, value_of))
        yield from ()

    def _value(self, path: str, found: Any, value_of: Callable[[Any], Any]) -> Found:
        self._kept.append(_Value(path, found, value_of))
        yield from ()

    def _container(self, path: str, found: Any) -> Found:
        self._kept.append(_Items(path, found))
        if len(found) <= _LONG and not isinstance(found, bytearray):
            yield from _items(path, found)

    def _function(self, path: str, found: types.FunctionType) -> Found:
        if not is_foreign(found):
            return
        code, cells = found.__code__, found.__closure__ or ()
        yield from zip(code.co_freevars, cells, strict=True)
        yield from ((path, found.__defaults__), (path, found.__kwdefaults__))
        yield from self._names(found.__module__, found.__globals__, set(names_in(code)))

    def _cell(self, path: str, found: types.CellType) -> Found:
        self._kept.append(_Cell(path, found))
        yield path, content(found)

    def _names(self, path: str, values: dict[str, Any], names: set[str]) -> Found:
        """The globals that code may mean by its names, in its module and those that it uses."""
        self._kept.append(_Attributes(path, values, names=names))
        for name in sorted(names):
            # A name that is no global may be imported where it is used.
            value = values[name] if name in values else sys.modules.get(name)
            if not isinstance(value, types.ModuleType):
                yield f"{path}.{name}", value
            elif root_package(value.__name__) not in _PACKAGES and id(value) not in self._seen:
                self._seen[id(value)] = value
                yield from self._names(value.__name__, vars(value), names)

    def _class(self, path: str, found: type) -> Found:
        if not is_foreign(found):
            return
        own = vars(found)
        self._kept.append(_Attributes(found.__name__, own, found, ignored=_OF_EVERY_CLASS))
        for name in sorted(own.keys() - _OF_EVERY_CLASS):
            yield f"{found.__name__}.{name}", own[name]
        yield path, found.__bases__

    def _instance(self, path: str, found: Any) -> Found:
        yield path, type(found)
        own = getattr(found, "__dict__", {})
        if isinstance(found, nn.Module):
            self._kept.append(_Keys(path, found._buffers))  # others may be bound
            own = {**own, "_buffers": None, **found._buffers}
            for held in (found._parameters, found._modules):
                self._kept.append(_Attributes(path, held))
                own = {**own, **held}
            self._seen |= {id(held): held for held in (found._parameters, found._modules)}
        if isinstance(found, nn.RNNBase):
            own = {name: value for name, value in own.items() if name not in _FLAT}
        if own:
            self._kept.append(_OwnAttributes(path, found))
        if isinstance(found, nn.RNNBase):
            self._kept.append(_FlatWeights(found))
        yield from ((f"{path}.{name}", value) for name, value in own.items())
        for name in _slots(type(found)):
            self._kept.append(_Value(f"{path}.{name}", found, _attribute(name)))
            yield f"{path}.{name}", getattr(found, name, None)


# ── what is kept of each ────────────────────────────────────────────────────────────────────


class _Kept:
    """Something that may change."""

    def changes(self) -> list[str]:
        """The names of what has changed."""
        raise NotImplementedError

    def restore(self) -> None:
        """Put it back, where that can be done."""


class _Value(_Kept):
    """What a function says of an object."""

    def __init__(self, path: str, found: Any, value_of: Callable[[Any], Any]) -> None:
        self._path, self._found, self._value_of = path, found, value_of
        self._then = value_of(found)

    def changes(self) -> list[str]:
        return [] if _same(self._value_of(self._found), self._then) else [self._path]


class _Tensor(_Value):
    """A tensor; of what may change, its ``requires_grad`` is put back."""

    def restore(self) -> None:
        if self._found.is_leaf:
            self._found.requires_grad_(self._then[0])


class _Cell(_Value):
    """A variable of an enclosing function."""

    def __init__(self, path: str, found: types.CellType) -> None:
        super().__init__(path, found, content)

    def restore(self) -> None:
        if self._then is not _NOTHING:
            self._found.cell_contents = self._then


class _Items(_Kept):
    """The items of a container."""

    def __init__(self, path: str, found: Any) -> None:
        self._path, self._found, self._then = path, found, found.copy()

    def changes(self) -> list[str]:
        now, then = self._found, self._then
        is_same = len(now) == len(then)
        if not now and is_same:  # as most hooks are
            return []
        if is_same and isinstance(now, set):
            is_same = bool(now == then)
        elif is_same and isinstance(now, dict):
            is_same = all(map(_same, now, then)) and all(map(_same, now.values(), then.values()))
        elif is_same:
            is_same = all(map(_same, now, then))
        return [] if is_same else [self._path]

    def restore(self) -> None:
        found = self._found
        if isinstance(found, list | bytearray):
            found[:] = self._then
            return
        found.clear()
        (found.extend if isinstance(found, deque) else found.update)(self._then)


class _Attributes(_Kept):
    """Values by name: those of some names, there or not, or all but a few.

    owner: what has them as attributes; None for a dictionary.
    """

    def __init__(
        self,
        path: str,
        values: Mapping[str, Any],
        owner: type | None = None,
        *,
        names: Iterable[str] | None = None,
        ignored: Iterable[str] = (),
    ) -> None:
        self._path, self._values, self._owner = path, values, owner
        self._names, self._ignored = names, set(ignored)
        self._then = self._now()

    def _now(self) -> dict[str, Any]:
        values = self._values
        if self._names is None:
            return {name: v for name, v in values.items() if name not in self._ignored}
        return {name: values.get(name, _NOTHING) for name in self._names}

    def _other(self) -> list[tuple[str, Any]]:
        now, then = self._now(), self._then
        names = [name for name, value in now.items() if not _same(value, then.get(name, _NOTHING))]
        names += [name for name in then if name not in now]
        return [(name, then.get(name, _NOTHING)) for name in names]

    def changes(self) -> list[str]:
        now, then = self._values, self._then
        if len(now) == len(then) and all(map(operator.is_, now.values(), then.values())):
            return []  # as mostly, and in the same order
        return [f"{self._path}.{name}" for name, _ in self._other()]

    def restore(self) -> None:
        for name, value in self._other():
            if self._owner is not None:
                delattr(self._owner, name) if value is _NOTHING else setattr(
                    self._owner, name, value
                )
            elif isinstance(self._values, dict):
                if value is _NOTHING:
                    del self._values[name]
                else:
                    self._values[name] = value


class _OwnAttributes(_Attributes):
    """What an instance has in its ``__dict__``."""

    def __init__(self, path: str, found: Any) -> None:
        ignored = _FLAT if isinstance(found, nn.RNNBase) else ()
        super().__init__(path, vars(found), ignored=ignored)
        self._found = found

    def rebound(self) -> list[Attribute]:
        names = [name for name, _ in self._other() if isinstance(self._values.get(name), Tensor)]
        return [Attribute(f"{self._path}.{name}", self._found, name) for name in names]


class _FlatWeights(_Kept):
    """The list that a recurrent layer keeps of its weights, and brings up to date in each pass."""

    def __init__(self, found: nn.RNNBase) -> None:
        self._found = found

    def changes(self) -> list[str]:
        return []

    def restore(self) -> None:
        self._found._update_flat_weights()


class _Keys(_Kept):
    """The names in a dictionary, whatever they stand for."""

    def __init__(self, path: str, values: dict[str, Any]) -> None:
        self._path, self._values, self._then = path, values, list(values)

    def changes(self) -> list[str]:
        if list(self._values) == self._then:
            return []
        return [f"{self._path}.{name}" for name in self._values.keys() ^ set(self._then)]


_NOTHING = object()


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one object, or atoms that can't be told apart."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float):  # 0.0 is not -0.0, and NaN is NaN
        return repr(one) == repr(other)
    return isinstance(one, _ATOMS) and bool(one == other)


# ── values of objects ───────────────────────────────────────────────────────────────────────


def _flags(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.requires_grad, tensor.dtype, tuple(tensor.shape)


def _writes(tensor: Tensor) -> tuple[Any, ...]:
    pointer = tensor.data_ptr() if tensor.layout is torch.strided else None
    return (*_flags(tensor), pointer, None if tensor.is_inference() else tensor._version)


def _digest(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    content = b"" if array.dtype.hasobject else np.ascontiguousarray(array).data
    return array.shape, str(array.dtype), zlib.crc32(content)


def _bits(generator: np.random.Generator) -> Any:
    return _plain(generator.bit_generator.state)


def _old_bits(generator: np.random.RandomState) -> Any:
    return _plain(generator.get_state(legacy=False))


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return tuple((name, _plain(value)) for name, value in state.items())
    return state.tobytes() if isinstance(state, np.ndarray) else state


def _position(iterator: Iterator[Any]) -> tuple[Any, ...]:
    """How far an iterator has come, where it says so."""
    if isinstance(iterator, types.GeneratorType):
        return (iterator.gi_frame.f_lasti if iterator.gi_frame else None,)
    return operator.length_hint(iterator, -1), repr(iterator)


def content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return _NOTHING


def _attribute(name: str) -> Callable[[Any], Any]:
    return lambda found: getattr(found, name, _NOTHING)


def root_package(module: str) -> str:
    """The package that a module belongs to."""
    return module.partition(".")[0]


def is_foreign(found: Any) -> bool:
    """Whether a class or function is not of a package that is known."""
    return root_package(str(getattr(found, "__module__", ""))) not in _PACKAGES


def names_in(code: types.CodeType) -> Iterator[str]:
    """Attributes, globals and modules that code names, that of its inner functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def _slots(found: type) -> list[str]:
    held = [vars(base).get("__slots__", ()) for base in found.__mro__ if is_foreign(base)]
    names = [name for slots in held for name in ([slots] if isinstance(slots, str) else slots)]
    return [name for name in names if name not in _OF_EVERY_CLASS]


def _items(path: str, found: Any) -> Found:
    if isinstance(found, dict):
        return ((f"{path}[{key!r}]", value) for key, value in found.items())
    return ((f"{path}[{number}]", value) for number, value in enumerate(found))


def _by(value_of: Callable[[Any], Any]) -> Callable[..., Found]:
    return lambda state, path, found: state._value(path, found, value_of)


def _parts(*names: str) -> Callable[..., Found]:
    return lambda _, path, found: ((f"{path}.{name}", getattr(found, name)) for name in names)


_LOOKS: list[tuple[Any, Callable[..., Found]]] = [
    (Tensor, PythonState._tensor),
    (_CONTAINERS, PythonState._container),
    (tuple | frozenset, lambda _, path, found: _items(path, found)),
    (types.FunctionType, PythonState._function),
    (types.CellType, PythonState._cell),
    (types.ModuleType, lambda *_: iter(())),
    (types.MethodType, _parts("__self__", "__func__")),
    (functools.partial, _parts("func", "args", "keywords")),
    (staticmethod | classmethod, _parts("__func__")),
    (property, _parts("fget")),
    (type, PythonState._class),
    (np.ndarray, _by(_digest)),
    (random.Random, _by(random.Random.getstate)),
    (np.random.Generator, _by(_bits)),
    (np.random.RandomState, _by(_old_bits)),
]
