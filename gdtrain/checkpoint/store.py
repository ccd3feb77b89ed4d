"""Checkpoints on disk: directories that appear whole or not at all, verified before they count."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.format import read_state, verify, write_state
from gdtrain.checkpoint.safetensors_header import TensorCheck
from gdtrain.checkpoint.tensor_files import Share
from gdtrain.errors import CheckpointError, OutputError, StorageError
from gdtrain.training.placement.distributed import World

logger = logging.getLogger("gdtrain")

BEST = "best.json"
_NAME = re.compile(r"step-([0-9]{10,18})(?:-([0-9]{1,9}))?")
_MAX_BEST_BYTES = 4096


class Saved(NamedTuple):
    """A checkpoint by its name: after which step, and which one of that step, from 0."""

    step: int
    revision: int
    path: Path


class CheckpointStore:
    """The checkpoints of one run, in ``directory``, one sub-directory ``step-…`` each.

    keep_last: how many of the newest are kept, besides the best one, if one was marked.
    keep_every_n_steps: those after a multiple of so many steps are kept too.
    sync_first: files that a checkpoint presumes, flushed before it appears; such as a log, whose
    lines up to the checkpoint must outlive a power cut that the checkpoint outlives.
    """

    def __init__(
        self,
        directory: Path,
        keep_last: int = 3,
        sync_first: Iterable[Path] = (),
        keep_every_n_steps: int | None = None,
    ) -> None:
        self.directory = directory
        self.keep_last = keep_last
        self.keep_every_n_steps = keep_every_n_steps
        self.sync_first = tuple(sync_first)
        self._lock = threading.RLock()  # saving goes on in another thread than making room
        self._prepared = False
        self._known: set[Path] = set()  # checkpoints that were saved here and not removed
        self._told: set[Path] = set()  # what can't be removed
        self._synced: set[Path] = set()  # of those, whose names are on the disk

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``state`` as the checkpoint after ``step`` updates; return its directory.

        It is written under another name, flushed to the disk, renamed, and read back and
        verified before older ones are removed. At any moment, a crash included, the old ones
        are there or the new one is. An old one that can't be removed is told in the log of notes.
        Raises OSError if it can't be written, StorageError if it can't be verified then.
        """
        with self._lock:
            return self.commit(self.begin(step), state)

    def begin(self, step: int) -> Path:
        """Make the directory in which a checkpoint is written, for processes that all write.

        It is one only after :meth:`commit`; the next ``begin`` removes what is left of it.
        """
        with self._lock:
            self._prepare()
            number = 1 + max((s.revision for s in self._found() if s.step == step), default=-1)
            name = f"step-{step:010d}" + (f"-{number}" if number else "")
            unfinished = self.directory / f"{disk.UNFINISHED}{name}"
            os.mkdir(unfinished)
            return unfinished

    def commit(self, unfinished: Path, state: dict[str, Any], shards: Sequence[str] = ()) -> Path:
        """Complete what :meth:`begin` began, as :meth:`save` does.

        shards: the SHA-256 of the file that each process has written into it.
        """
        final = self.directory / unfinished.name.removeprefix(disk.UNFINISHED)
        with self._lock:
            with disk.cleaned_up(unfinished):
                write_state(unfinished, state, shards)
                self._sync_first()
                os.rename(unfinished, final)
            disk.sync_directory(self.directory)
            try:
                verify(final)
            except CheckpointError as error:  # the disk does not give back what it was given
                raise StorageError(str(error)) from error
            self._known.add(final)
            (saved,) = (saved for saved in self._found() if saved.path == final)
            self._prune(saved)
        return final

    def make_room(self) -> bool:
        """Remove the oldest checkpoint but for one good one and the best; say whether one was."""
        with self._lock:
            try:
                good = self._newest_good()
                kept = (good, self.best())
                rest = [saved for saved in self._found() if saved.path not in kept]
                if good is None or not rest:
                    return False
                self._remove([rest[-1]])
                if disk.is_there(rest[-1].path):
                    return False
            except (OSError, CheckpointError):
                return False
        logger.warning("the disk is full: %s was removed to make room", rest[-1].path)
        return True

    def _newest_good(self) -> Path | None:
        for saved in self._found():
            try:
                verify(saved.path)
            except CheckpointError:
                continue
            return saved.path
        return None

    def mark_best(self, path: Path, metric: float) -> None:
        """Keep ``path`` until another is marked, whatever its age; ``metric`` is kept beside it."""
        content = {"checkpoint": path.name, "metric": metric}
        disk.replace_file(self.directory / BEST, _signed(content))

    def best(self) -> Path | None:
        """The checkpoint that was marked as the best, if one was and it is still there.

        Raises CheckpointError if the mark is damaged, OSError if it can't be read.
        """
        path = self.directory / BEST
        try:
            content = disk.read_file(path, _MAX_BEST_BYTES)
        except FileNotFoundError:
            return None
        except OutputError as error:
            raise CheckpointError(str(error)) from error
        try:
            held = json.loads(content)
            name = held["checkpoint"]
            whole = content == _signed({"checkpoint": name, "metric": held["metric"]})
        except (ValueError, LookupError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise CheckpointError(f"{path} is damaged (its digest differs)")
        return next((saved.path for saved in self._found() if saved.path.name == name), None)

    def load_newest(
        self,
        check: TensorCheck | None = None,
        before: int | None = None,
        share: Share | None = None,
    ) -> tuple[Path, dict[str, Any], list[str]]:
        """The newest checkpoint that verifies: its directory, its state, and what was skipped.

        check, share: see :func:`gdtrain.checkpoint.format.read_state`; with a share, all its
        processes take the same one. before: of those after fewer than so many steps only.
        Raises CheckpointError, naming each, if there is none.
        """
        skipped: list[str] = []
        world = World() if share is None else share.world
        with world.agreeing(CheckpointError):
            try:
                names = [saved.path.name for saved in self._found()]
            except OSError as error:
                raise CheckpointError(f"{self.directory}: {error.strerror}") from error
        for saved in _named(self.directory, world.gather_text("\n".join(names))[0].splitlines()):
            if before is not None and saved.step >= before:
                continue
            try:
                with world.agreeing(CheckpointError):
                    state = read_state(saved.path, check, share)
                return saved.path, state, skipped
            except CheckpointError as error:
                skipped.append(str(error))
        if skipped:
            raise CheckpointError("no checkpoint can be used: " + "; ".join(skipped))
        raise CheckpointError(f"{self.directory}: holds no checkpoint to resume from")

    def newest(self, step: int) -> Path | None:
        """The newest checkpoint after ``step`` updates, if there is one."""
        return next((saved.path for saved in self._found() if saved.step == step), None)

    def foreign(self, step: int) -> Path | None:
        """The newest checkpoint after more than ``step`` updates that was not saved here.

        :meth:`save` after ``step`` updates removes it. Raises OutputError if the directory's name
        is a file's; what can't be read is told, and taken for empty.
        """
        try:
            found = self._found()
        except NotADirectoryError as error:
            message = f"{self.directory} is no directory, as checkpoints need; give another name"
            raise OutputError(message) from error
        except OSError as error:
            logger.warning("%s can't be read: %s", self.directory, error)
            return None
        return next((s.path for s in found if s.step > step and s.path not in self._known), None)

    def is_empty(self) -> bool:
        """Whether there is no whole checkpoint, though perhaps the remains of one."""
        return not self._found()

    def holds_only_the_first(self) -> bool:
        """Whether there is nothing but the checkpoint before the first update, or parts of it."""
        return all(
            path.name == f"step-{0:010d}" or path.name.startswith(disk.UNFINISHED)
            for path in self.directory.iterdir()
        )

    def clear(self) -> None:
        """Remove all checkpoints and the directory."""
        for saved in self._found():
            disk.remove(disk.put_aside(saved.path))
        disk.remove_unfinished(self.directory)
        os.rmdir(self.directory)

    def remove_remains(self) -> None:
        """Remove what a crash has left; what can't be removed is told, and stays."""
        with disk.needed(f"order in {self.directory}"):
            names = os.listdir(self.directory)
        for name in names:
            if name.startswith(disk.UNFINISHED):
                self._removed(self.directory / name, disk.remove)

    def _prepare(self) -> None:
        """Make the directory, and remove what a crash has left in it."""
        if not self._prepared:
            disk.make_directory(self.directory)
            self._prepared = True
        disk.make_anew(self.directory)
        disk.check_no_link(self.directory)
        self.remove_remains()
        there = {saved.path for saved in self._found()}
        for path in sorted(self._known - there):
            logger.warning("%s is missing: somebody else has removed it", path)
        self._known &= there

    def _sync_first(self) -> None:
        for path in self.sync_first:
            if disk.sync_file(path) and path not in self._synced:
                disk.sync_directory(path.parent)
                self._synced.add(path)

    def _found(self) -> list[Saved]:
        """All checkpoints by their names, the newest first."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return _named(self.directory, names)

    def _prune(self, saved: Saved) -> None:
        """Remove what is too old, earlier ones of the same step, the start's, and later steps.

        That of the start stands in until there is another one; later steps are those that a
        resume could not use and has undone. Nothing is removed while the best one is unknown.
        """
        try:
            best = self.best()
        except CheckpointError as error:
            logger.warning("no older checkpoint is removed until one is the best again: %s", error)
            return
        others = [other for other in self._found() if other.path not in (saved.path, best)]
        later = [other for other in others if other > saved]
        older = [other for other in others if other < saved]
        same = [other for other in older if other.step == saved.step]
        begun = [other for other in older if other.step == 0 < saved.step]
        rest = [other for other in older if 0 < other.step < saved.step]
        old = [other for other in rest[self.keep_last - 1 :] if not self._is_kept(other.step)]
        self._remove([*later, *same, *old, *begun])

    def _is_kept(self, step: int) -> bool:
        return self.keep_every_n_steps is not None and step % self.keep_every_n_steps == 0

    def _remove(self, saved: Iterable[Saved]) -> None:
        """Remove checkpoints; what can't be removed is told, and stays."""
        aside = [self._removed(one.path, disk.put_aside) for one in saved]
        gone = [path for path in aside if path is not None]
        if gone:  # only then their files, or half a checkpoint could bear a whole one's name
            try:
                disk.sync_directory(self.directory)
            except OSError as error:
                logger.warning("old checkpoints were not removed: %s", error)
                return
        for path in gone:
            self._removed(path, disk.remove)

    def _removed(self, path: Path, how: Callable[[Path], Path | None]) -> Path | None:
        """What ``how`` makes of it, or None if the disk does not let it, which is told once."""
        try:
            made = how(path)
        except OSError as error:
            if path not in self._told:
                logger.warning("%s can't be removed, and stays: %s", path, error)
            self._told.add(path)
            return None
        self._known.discard(path)
        return made


def _named(directory: Path, names: Iterable[str]) -> list[Saved]:
    """The checkpoints among the names in a directory, the newest first."""
    named = [(match, name) for name in names if (match := _NAME.fullmatch(name))]
    found = [Saved(int(m[1]), int(m[2] or 0), directory / name) for m, name in named]
    return sorted(found, reverse=True)


def _signed(content: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}).encode() + b"\n"
