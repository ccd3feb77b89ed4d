"""Files that are on the disk when a call returns, never half of them; and what was not written."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gdtrain.errors import OutputError, StorageError

logger = logging.getLogger("gdtrain")

Job = Callable[[], object]
# Writes something under a name, and says whether that worked.
Attempt = Callable[[str, Job], bool]

# Names of what can be told to be written again.
CHECKPOINTS = "checkpoints"
LOG = "the log"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# A name that nobody takes for finished; whatever bears it after a crash may be removed.
UNFINISHED = ".unfinished-"
_REMOVED = f"{UNFINISHED}removed-"
_AT_ONCE = 1 << 30  # a system call moves less than 2 GiB


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file that is not there yet, one part after the other, and flush it to the disk.

    Raises OSError if it can't be written in full, and FileExistsError if something bears its
    name, be it a link to somewhere else.
    """
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) as handle:
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:
                rest = rest[os.write(handle, rest) :]
        os.fsync(handle)


def replace_file(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Put a file in the place of what may be there; after a crash it is the old or the new one.

    content: of the file, or of its parts, one after another.
    """
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    with suppress(FileNotFoundError):
        os.unlink(unfinished)
    with cleaned_up(unfinished):
        write_file(unfinished, [content] if isinstance(content, bytes) else content)
        os.rename(unfinished, path)
    sync_directory(path.parent)


def append(path: Path, content: bytearray, state: FileState | None) -> FileState:
    """Add bytes to the end of a file; of ``content`` stays what could not be written.

    state: how the last call has left the file. Raises DisturbedError if it is otherwise now, before
    anything is written; OSError if it can't be written in full.
    """
    # Of a pipe in its place, nobody might ever read.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with opened(path, flags) as handle:
        found = FileState.of(handle)
        if state is not None and found != state:
            raise DisturbedError(found)
        while content:
            del content[: os.write(handle, content[:_AT_ONCE])]
        return FileState.of(handle)


class FileState(NamedTuple):
    """Which file it is, and how many bytes it has."""

    device: int
    inode: int
    size: int

    @classmethod
    def of(cls, handle: int) -> FileState:
        """Raises OSError if it is a pipe, a device or a directory that was opened."""
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file by now")
        return cls(found.st_dev, found.st_ino, found.st_size)


class DisturbedError(Exception):
    """Somebody else has cut, replaced or removed a file that is only added to."""

    def __init__(self, state: FileState) -> None:
        super().__init__()
        self.state = state


def make_anew(path: Path, *, was_made: bool = True) -> None:
    """Make a directory that is not there, and say so if it was made before."""
    if is_there(path):
        return
    make_directory(path)
    if was_made:
        logger.warning("%s was removed, with all its files; it is created again", path)


def check_no_link(path: Path) -> None:
    """Raise OSError if a directory is a link by now, and so leads to somebody else's place."""
    if stat.S_ISLNK(os.lstat(path).st_mode):
        raise OSError(errno.ELOOP, "is a symbolic link by now", str(path))


def make_directory(path: Path) -> None:
    """Make a directory and those above it, and see to it that a crash does not lose them.

    Raises OSError if that fails, or if something else bears one of their names.
    """
    missing = []
    while not is_there(path):
        missing.append(path)
        path = path.parent
    if not path.is_dir():
        code = errno.ENOTDIR if missing else errno.EEXIST
        raise OSError(code, os.strerror(code), str(path))
    # Whoever made it may have died before its name was on the disk; but not in a directory that
    # may not be read, such as the one above a home.
    if os.access(path.parent, os.R_OK):
        sync_directory(path.parent)
    for directory in reversed(missing):
        try:
            os.mkdir(directory)
        except FileExistsError:  # another thread or process was faster
            if not directory.is_dir():
                raise
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make sure that the names in a directory are on the disk."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as handle:
        os.fsync(handle)


def sync_file(path: Path) -> bool:
    """Make sure that what is in a file is on the disk; return whether there is such a file."""
    try:
        with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as handle:
            os.fsync(handle)
    except FileNotFoundError:
        return False
    return True


def is_there(path: Path) -> bool:
    """Whether something bears that name, be it a link to nowhere. Raises OSError if unknown."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def put_aside(path: Path) -> Path:
    """Give ``path`` a name that nobody takes for finished, and return it."""
    aside = path.with_name(f"{_REMOVED}{path.name}")
    if is_there(aside):
        remove(aside)
    os.rename(path, aside)
    return aside


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it; of a link, the link alone."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    for name in os.listdir(path):
        remove(path / name)
    os.rmdir(path)


def remove_unfinished(directory: Path) -> None:
    """Remove what a crash has left behind in ``directory``."""
    for name in os.listdir(directory):
        if name.startswith(UNFINISHED):
            remove(directory / name)


@contextmanager
def cleaned_up(path: Path) -> Iterator[None]:
    """Remove what is at ``path`` if what follows fails, so that a full disk gets its room back."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what failed before is what is to be told
            remove(path)
        raise


@contextmanager
def reading(path: Path, at_most: int) -> Iterator[int]:
    """A handle for reading a regular file of at most so many bytes, which is no link.

    Raises OutputError if it is anything else, OSError if it can't be opened.
    """
    try:
        with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as handle:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise OutputError(f"{path} is not a regular file; remove it")
            if found.st_size > at_most:
                message = f"{path} has {found.st_size:,} bytes; at most {at_most:,} are expected"
                raise OutputError(message)
            yield handle
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OutputError(f"{path} is a symbolic link, not a regular file") from error
        raise


def read_file(path: Path, at_most: int) -> bytes:
    """The bytes of a regular file that is no link. Raises as :func:`reading` does."""
    with reading(path, at_most) as handle:
        content = bytearray(os.fstat(handle).st_size)
        read_into(handle, path, memoryview(content))
    return bytes(content)


def read_into(handle: int, path: Path, place: memoryview) -> None:
    """Fill ``place`` from a file. Raises OutputError if the file ends before that."""
    while place:
        count = os.readv(handle, [place[:_AT_ONCE]])
        if not count:
            raise OutputError(f"{path} is shorter than it is said to be")
        place = place[count:]


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
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file, close it on leaving, and name it in errors of calls that know the handle."""
    handle = os.open(path, flags, 0o666)
    try:
        yield handle
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(handle)


@contextmanager
def needed(what: str) -> Iterator[None]:
    """Raise StorageError if ``what``, which a run can't do without, can't be written."""
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error


def storage_error(what: str, error: OSError) -> StorageError:
    """The message of a failed disk: what was to be written, the system's words and the file."""
    if isinstance(error, StorageError):
        return error
    told = StorageError(f"{what} could not be written: {error}")
    told.__cause__ = error
    return told


def required(what: str, job: Callable[[], object]) -> bool:
    """Write something. Raises StorageError if that can't be done."""
    with needed(what):
        job()
    return True


# ── what of a run could not be written ──────────────────────────────────────────────────────


@dataclass(eq=False)
class DiskFaults:
    """Keeps what could not be written of one run, each by a name, until it can be.

    make_room: called where the disk is full; says whether it has given some room back.
    open: what the last attempt to write has failed of, by its name.
    """

    make_room: Callable[[], bool] = lambda: False
    open: dict[str, StorageError] = field(init=False, default_factory=dict)
    _first: StorageError | None = field(init=False, default=None)

    def attempt(self, what: str, job: Job) -> bool:
        """Write ``what``: run the job, on a full disk again after room was made; note a fault."""
        try:
            with_room(job, self.make_room)
        except OSError as error:
            if what not in self.open:
                more = "; training goes on" if what == LOG else ""
                logger.warning("%s%s", storage_error(what, error), more)
            self.note(what, storage_error(what, error))
            return False
        if what in self.open:
            self.clear(what)
        return True

    def note(self, what: str, error: StorageError) -> None:
        """Keep a fault; the first one since all was well is the one to be told in the end."""
        if not self.open:
            self._first = error
        self.open[what] = error

    def clear(self, what: str) -> None:
        """``what`` is written now."""
        if self.open.pop(what, None) is not None and what in (LOG, CHECKPOINTS):
            logger.warning("%s can be written again", what)

    @property
    def error(self) -> StorageError | None:
        """The first cause, and what else is not written; None if all is."""
        if not self.open:
            return None
        errors = (self._first, *self.open.values())
        first, *others = (str(error).partition(" could not be ")[0] for error in errors)
        also = ", ".join(other for other in others if other != first)
        return StorageError(f"{self._first}" + (f" (nor could be written: {also})" if also else ""))


def with_room(job: Job, make_room: Callable[[], bool]) -> None:
    """Run a job that writes; while the disk is full, give some room back and run it again."""
    while True:
        try:
            job()
            return
        except OSError as error:
            if not is_full(error) or not make_room():
                raise


def is_full(error: OSError) -> bool:
    """Whether there was no room on the disk."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    return isinstance(cause, OSError) and cause.errno in _FULL
