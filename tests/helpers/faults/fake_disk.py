"""A disk whose calls are recorded, cut short by a power failure, or made to fail, for tests.

The calls are the real ones of real saves: the functions of ``os`` that gdtrain writes with are
wrapped, and still do their work. What may be on a disk after a power cut is computed from the
record by the rules that a careful program may count on, and by no more:

* the content of a file is certain after an fsync of that file; until then it may be there, be
  missing, or be something else;
* a name (made, renamed or removed) is certain after an fsync of its directory; until then each
  such change may or may not have happened, whatever happened to the others;
* a rename happens in full or not at all.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITING = ("open", "write", "fsync", "close", "rename", "replace", "mkdir", "unlink", "rmdir")
READING = ("readv", "read", "fstat", "listdir", "lstat", "stat")
DATA = ("kept", "dropped", "garbage", "zeros")

# The content of a directory by names below it: bytes of a file, or None for a directory.
Tree = dict[str, bytes | None]


def fast_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory of its own, in memory where there is such a place."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


@contextmanager
def wrapped(wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put ``wrap(name, function)`` in the place of the functions of ``os`` that touch the disk."""
    real = {name: getattr(os, name) for name in WRITING + READING}
    for name, function in real.items():
        setattr(os, name, wrap(name, function))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


# ── calls that fail ──────────────────────────────────────────────────────────────────────────


@dataclass
class Failing:
    """Makes the n-th call (from 0) fail, and with ``forever`` all after it.

    code: the errno; or 0 for a write that writes less than it was given, which is no failure.
    below: only calls on this directory count.
    """

    below: Path
    nth: int = -1
    code: int = 0
    forever: bool = False
    reading: bool = False
    count: int = 0
    failed: list[str] = field(default_factory=list)
    _handles: dict[int, str] = field(default_factory=dict)

    @contextmanager
    def active(self) -> Iterator[Failing]:
        with wrapped(self._wrap):
            yield self

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            path = self._handles.get(target) if isinstance(target, int) else os.fspath(target)
            counts = name in WRITING or self.reading
            if path is None or not counts or not _is_below(path, self.below):
                return function(target, *arguments, **options)
            number, self.count = self.count, self.count + 1
            if number == self.nth or (self.forever and number > self.nth >= 0):
                if self.code:
                    self.failed.append(f"{name} {path}")
                    if name == "close":  # the handle is gone all the same
                        function(target)
                        del self._handles[target]
                    raise OSError(self.code, os.strerror(self.code), str(path))
                if name == "write" and len(arguments[0]) > 1:
                    self.failed.append(f"short {name} {path}")
                    return function(target, arguments[0][: len(arguments[0]) // 2])
            result = function(target, *arguments, **options)
            if name == "open":
                self._handles[result] = str(path)
            if name == "close":
                self._handles.pop(target, None)
            return result

        return call


ERRORS = {code: errno.errorcode[code] for code in (errno.ENOSPC, errno.EIO, errno.EACCES)} | {
    errno.EROFS: "EROFS"
}


def _is_below(path: str, directory: Path) -> bool:
    whole, top = os.path.abspath(path), os.path.abspath(directory)  # noqa: PTH100
    return whole == top or whole.startswith(f"{top}/")


# ── calls that are recorded, and what a power cut makes of them ──────────────────────────────


@dataclass
class Promise:
    """That ``what`` is ``label`` once the calls start … stop - 1 have been made."""

    what: str
    label: Any
    start: int
    stop: int = -1


class Recorder:
    """Records the calls below ``root``, which may hold what an earlier program has left.

    Files that are written without the functions of ``os`` are noticed where they are flushed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[Any, ...]] = []
        self.promises: list[Promise] = []
        self.start = tree_of(root)
        self._handles: dict[int, str] = {}

    @contextmanager
    def active(self) -> Iterator[Recorder]:
        with wrapped(self._wrap):
            yield self

    @contextmanager
    def promising(self, what: str, label: Any) -> Iterator[None]:
        """What follows, once it has returned, promises that ``what`` is ``label``."""
        promise = Promise(what, label, len(self.calls))
        self.promises.append(promise)
        yield
        promise.stop = len(self.calls)

    def allowed(self, what: str, cut: int, at_first: Any = None) -> list[Any]:
        """What ``what`` may be when the power fails before call number ``cut``."""
        allowed = [at_first]
        for promise in self.promises:
            if promise.what == what and promise.start < cut:
                done = 0 <= promise.stop <= cut
                allowed = [promise.label] if done else [*allowed, promise.label]
        return allowed

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            path = self._handles.get(target) if isinstance(target, int) else os.fspath(target)
            made = name == "open" and path is not None and not os.path.lexists(path)
            result = function(target, *arguments, **options)
            if path is None or not _is_below(str(path), self.root) or name in READING:
                return result
            here = os.path.relpath(path, self.root)
            if name == "open":
                self._handles[result] = str(path)
                if made:
                    self.calls.append(("create", here))
                elif arguments and arguments[0] & os.O_TRUNC:
                    raise AssertionError(f"{here} is overwritten in its place")
            elif name == "write":
                self.calls.append(("write", here, bytes(arguments[0][:result])))
            elif name == "fsync":
                is_directory = Path(path).is_dir()
                self.calls.append(("sync", here, None if is_directory else Path(path).read_bytes()))
            elif name == "close":
                del self._handles[target]
            elif name in ("rename", "replace"):
                to = os.path.relpath(arguments[0], self.root)
                self.calls.append(("rename", here, to))
            else:
                self.calls.append((name, here))
            return result

        return call


def tree_of(root: Path) -> Tree:
    """What is in a real directory."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def make_tree(root: Path, tree: Tree) -> None:
    """Make a real directory of a tree, parents first."""
    root.mkdir()
    for name in sorted(tree):
        content = tree[name]
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)


@dataclass
class _File:
    live: bytes = b""
    durable: bytes = b""

    def after_cut(self, data: str, rng: random.Random) -> bytes:
        if data == "kept" or self.live == self.durable:
            return self.live
        if data == "dropped":
            return self.durable
        appended = self.live.startswith(self.durable)
        kept = self.durable if appended else b""
        rest = len(self.live) - len(kept)
        return kept + (bytes(rest) if data == "zeros" else rng.randbytes(rest))


_Node = int
# Of one directory: names that go, and names that come.
_Change = tuple[_Node, list[str], dict[str, _Node]]


class _Model:
    """Files and directories as they are in memory, and what of that is certain on the disk."""

    def __init__(self, start: Tree) -> None:
        self.files: dict[_Node, _File] = {}
        self.live: dict[_Node, dict[str, _Node]] = {0: {}}
        self.durable: dict[_Node, dict[str, _Node]] = {0: {}}
        self.pending: list[_Change] = []
        self._next = itertools.count(1)
        for name in sorted(start):
            content = start[name]
            node = self._add(name, content is None)
            if content is not None:
                self.files[node] = _File(content, content)
        self.durable = {node: dict(names) for node, names in self.live.items()}
        self.pending.clear()

    def apply(self, call: tuple[Any, ...]) -> None:
        kind, path = call[0], call[1]
        if kind in ("create", "mkdir"):
            self._add(path, kind == "mkdir")
        elif kind == "write":
            self.files[self._find(path)].live += call[2]
        elif kind == "sync" and call[2] is None:
            self._sync_directory(self._find(path))
        elif kind == "sync":
            file = self.files[self._find(path)]
            file.live = file.durable = call[2]
        elif kind == "rename":
            (from_, old), (to, new) = self._place(path), self._place(call[2])
            assert from_ == to, "a rename from one directory to another"
            self._change(from_, [old], {new: self.live[from_][old]})
        else:
            parent, name = self._place(path)
            self._change(parent, [name], {})

    def trees(self, subsets: int, data: tuple[str, ...], rng: random.Random) -> Iterator[Tree]:
        """What may be on the disk: at most so many choices of the pending changes × the data."""
        for chosen in _choices(self.pending, subsets, rng):
            names = {node: dict(held) for node, held in self.durable.items()}
            for node, gone, come in chosen:
                for name in gone:
                    names[node].pop(name, None)
                names[node] |= come
            for mode in data:
                yield self._tree(0, "", names, mode, rng)

    def _tree(
        self,
        node: _Node,
        path: str,
        names: dict[_Node, dict[str, _Node]],
        mode: str,
        rng: random.Random,
    ) -> Tree:
        tree: Tree = {}
        for name, below in names[node].items():
            here = f"{path}{name}"
            if below in self.files:
                tree[here] = self.files[below].after_cut(mode, rng)
            else:
                tree[here] = None
                tree |= self._tree(below, f"{here}/", names, mode, rng)
        return tree

    def _add(self, path: str, is_directory: bool) -> _Node:
        parent, name = self._place(path)
        node = next(self._next)
        if is_directory:
            self.live[node], self.durable[node] = {}, {}
        else:
            self.files[node] = _File()
        self._change(parent, [], {name: node})
        return node

    def _change(self, parent: _Node, gone: list[str], come: dict[str, _Node]) -> None:
        for name in gone:
            del self.live[parent][name]
        self.live[parent] |= come
        self.pending.append((parent, gone, come))

    def _sync_directory(self, node: _Node) -> None:
        self.durable[node] = dict(self.live[node])
        self.pending = [change for change in self.pending if change[0] != node]

    def _find(self, path: str) -> _Node:
        node = 0
        for part in Path(path).parts:
            node = self.live[node][part]
        return node

    def _place(self, path: str) -> tuple[_Node, str]:
        return self._find(str(Path(path).parent)), Path(path).name


def _choices(
    pending: list[_Change], most: int, rng: random.Random
) -> Iterator[tuple[_Change, ...]]:
    """Which changes have reached the disk: every choice, or the telling ones and some at random."""
    count = len(pending)
    if 2**count <= most:
        for flags in itertools.product((False, True), repeat=count):
            yield tuple(itertools.compress(pending, flags))
        return
    directories = {change[0] for change in pending}
    told: list[list[bool]] = [[i < k for i in range(count)] for k in range(count + 1)]
    told += [[i != k for i in range(count)] for k in range(count)]
    told += [[i == k for i in range(count)] for k in range(count)]
    told += [[change[0] == d for change in pending] for d in directories]
    told += [[change[0] != d for change in pending] for d in directories]
    while len(told) < most:
        told.append([rng.random() < 0.5 for _ in range(count)])
    for choice in told[:most]:
        yield tuple(itertools.compress(pending, choice))


def after_cuts(
    recorder: Recorder, subsets: int = 64, seed: int = 0, data: tuple[str, ...] = DATA
) -> Iterator[tuple[int, Tree]]:
    """Every state that a power cut can leave, once for each prefix of the recorded calls."""
    rng = random.Random(seed)
    model = _Model(recorder.start)
    for cut in range(len(recorder.calls) + 1):
        seen = set()
        for tree in model.trees(subsets, data, rng):
            key = frozenset(tree.items())
            if key not in seen:
                seen.add(key)
                yield cut, tree
        if cut < len(recorder.calls):
            model.apply(recorder.calls[cut])
