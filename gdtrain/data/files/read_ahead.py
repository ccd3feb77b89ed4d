"""Read ahead of the compute: items made by a thread while the ones before them are used."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")


def read_ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """What ``items`` gives, at most ``depth`` items made before they are asked for.

    The thread starts with the first item that is asked for, and ends with the last one, or when
    the iterator is closed or dropped, or when the process exits. What ``items`` raises is raised
    where the item would have been.
    """
    reader = _Reader(items, depth)
    try:
        while True:
            item = reader.queue.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item  # or it would stay until the next is there
    finally:
        reader.close()


@dataclass
class _End:
    error: BaseException | None = None


class _Reader:
    """A running thread, the queue it fills, and the way to end it."""

    def __init__(self, items: Iterator[Any], depth: int) -> None:
        self.queue: Queue[Any] = Queue(depth)
        self._stop = Event()
        # A daemon, so that a process that exits does not wait for it before _close_all can run.
        self._thread = Thread(
            target=_fill,
            args=(items, self.queue, self._stop),
            name="gdtrain-read-ahead",
            daemon=True,
        )
        _open.add(self)
        self._thread.start()

    def close(self) -> None:
        """End the thread: it looks at ``stop`` after each put, and the emptied queue takes one."""
        self._stop.set()
        try:
            while True:
                self.queue.get_nowait()
        except Empty:
            self._thread.join()
        _open.discard(self)


def _fill(items: Iterator[Any], queue: Queue[Any], stop: Event) -> None:
    try:
        for item in items:
            queue.put(item)
            if stop.is_set():
                return
        queue.put(_End())
    except BaseException as error:  # it is the consumer's, whatever it is
        queue.put(_End(error))


_open: WeakSet[_Reader] = WeakSet()


@atexit.register
def _close_all() -> None:
    for reader in list(_open):
        reader.close()
