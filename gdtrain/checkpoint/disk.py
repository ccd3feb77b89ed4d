"""Files and directories that are on the disk when a call returns, and never half of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gdtrain.errors import OutputError

# A name that nobody takes for finished; whatever bears it after a crash may be removed.
UNFINISHED = ".unfinished-"
_REMOVED = f"{UNFINISHED}removed-"


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file that is not there yet, one part after the other, and flush it to the disk.

    Raises OSError if it can't be written in full, and FileExistsError if something bears its
    name, be it a link to somewhere else.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with _closing(handle):
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:
                rest = rest[os.write(handle, rest) :]
        os.fsync(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in the place of what may be there; after a crash it is the old or the new one."""
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    with suppress(FileNotFoundError):
        os.unlink(unfinished)
    write_file(unfinished, [content])
    os.rename(unfinished, path)
    sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, and see to it that a crash does not lose them."""
    missing = [] if path.is_dir() or not path.exists() else [path]  # a file: mkdir says so
    while not path.exists():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        os.mkdir(directory)
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make sure that the names in a directory are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with _closing(handle):
        os.fsync(handle)


def remove(directory: Path) -> None:
    """Remove a directory with the files in it, under a name that nobody takes for finished."""
    aside = directory.with_name(f"{_REMOVED}{directory.name.removeprefix(UNFINISHED)}")
    if aside != directory:
        if aside.exists():
            remove(aside)
        os.rename(directory, aside)
    for entry in os.listdir(aside):
        os.unlink(aside / entry)
    os.rmdir(aside)


def remove_unfinished(directory: Path) -> None:
    """Remove what a crash has left behind in ``directory``."""
    for name in os.listdir(directory):
        path = directory / name
        if name.startswith(UNFINISHED):
            if path.is_dir() and not path.is_symlink():
                remove(path)
            else:
                os.unlink(path)


def open_file(path: Path, at_most: int) -> int:
    """A handle for reading a regular file of at most so many bytes, which is no link.

    Raises OutputError if it is anything else, OSError if it can't be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_size <= at_most:
        return handle
    os.close(handle)
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{path} is not a regular file; remove it")
    raise OutputError(f"{path} has {found.st_size:,} bytes; at most {at_most:,} are expected")


def read_file(path: Path, at_most: int) -> bytes:
    """The bytes of a regular file that is no link. Raises as :func:`open_file` does."""
    handle = open_file(path, at_most)
    with _closing(handle):
        parts = []
        while part := os.read(handle, 1 << 20):
            parts.append(part)
    return b"".join(parts)


def check_inside(directory: Path, names: Iterable[str]) -> None:
    """Raise OutputError if one of the names in ``directory`` is a link, and so leads elsewhere."""
    for name in names:
        path = directory / name
        if path.is_symlink():
            raise OutputError(
                f"{path} is a symbolic link, which can lead out of the directory; "
                "replace it by what it points to"
            )


@contextmanager
def _closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)
