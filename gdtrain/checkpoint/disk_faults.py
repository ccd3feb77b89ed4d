"""What of a run could not be written, and what failed first; training goes on meanwhile."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from gdtrain.checkpoint.durable_files import storage_error
from gdtrain.errors import StorageError

logger = logging.getLogger("gdtrain")

Job = Callable[[], object]
# Writes something under a name, and says whether that worked.
Attempt = Callable[[str, Job], bool]

CHECKPOINTS = "checkpoints"
LOG = "the log"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFaults:
    """Keeps what could not be written of one run, each by a name, until it can be.

    make_room: called where the disk is full; says whether it has given some room back.
    """

    def __init__(self, make_room: Callable[[], bool] = lambda: False) -> None:
        self.make_room = make_room
        self._first: StorageError | None = None
        self._open: dict[str, StorageError] = {}

    def attempt(self, what: str, job: Job) -> bool:
        """Write ``what``: run the job, on a full disk again after room was made; note a fault."""
        try:
            with_room(job, self.make_room)
        except OSError as error:
            if what not in self._open:
                more = "; training goes on" if what == LOG else ""
                logger.warning("%s%s", storage_error(what, error), more)
            self.note(what, storage_error(what, error))
            return False
        self.clear(what)
        return True

    def note(self, what: str, error: StorageError) -> None:
        """Keep a fault; the first one since all was well is the one to be told in the end."""
        if not self._open:
            self._first = error
        self._open[what] = error

    def clear(self, what: str) -> None:
        """``what`` is written now."""
        if self._open.pop(what, None) is not None and what in (LOG, CHECKPOINTS):
            logger.warning("%s can be written again", what)

    def is_failing(self, what: str) -> bool:
        """Whether the last attempt to write it has failed."""
        return what in self._open

    @property
    def error(self) -> StorageError | None:
        """The first cause, and what else is not written; None if all is."""
        if not self._open:
            return None
        errors = (self._first, *self._open.values())
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
