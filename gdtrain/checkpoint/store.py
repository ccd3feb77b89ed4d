"""Checkpoints on disk: directories that appear whole or not at all, verified before they count."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.format import read_state, verify, write_state
from gdtrain.checkpoint.safetensors_header import TensorCheck
from gdtrain.errors import CheckpointError, OutputError

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
    sync_first: files that a checkpoint presumes, flushed before it appears; such as a log, whose
    lines up to the checkpoint must outlive a power cut that the checkpoint outlives.
    """

    def __init__(
        self, directory: Path, keep_last: int = 3, sync_first: Iterable[Path] = ()
    ) -> None:
        self.directory = directory
        self.keep_last = keep_last
        self.sync_first = tuple(sync_first)
        self._prepared = False
        self._synced: set[Path] = set()  # of those, whose names are on the disk

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``state`` as the checkpoint after ``step`` updates; return its directory.

        It is written under another name, flushed to the disk, renamed, and read back and
        verified before older ones are removed. At any moment, a crash included, the old ones
        are there or the new one is. Raises CheckpointError if it can't be verified, OSError if
        it can't be written.
        """
        self._prepare()
        number = 1 + max((s.revision for s in self._found() if s.step == step), default=-1)
        name = f"step-{step:010d}" + (f"-{number}" if number else "")
        unfinished, final = self.directory / f"{disk.UNFINISHED}{name}", self.directory / name
        with disk.cleaned_up(unfinished):
            os.mkdir(unfinished)
            write_state(unfinished, state)
            self._sync_first()
            os.rename(unfinished, final)
        disk.sync_directory(self.directory)
        verify(final)
        self._prune(Saved(step, number, final))
        return final

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
        self, check: TensorCheck | None = None, before: int | None = None
    ) -> tuple[Path, dict[str, Any], list[str]]:
        """The newest checkpoint that verifies: its directory, its state, and what was skipped.

        check: see :func:`gdtrain.checkpoint.format.read_state`. before: of those after fewer
        than so many steps only. Raises CheckpointError, naming each, if there is none.
        """
        skipped: list[str] = []
        try:
            found = self._found()
        except OSError as error:
            raise CheckpointError(f"{self.directory}: {error.strerror}") from error
        for saved in found:
            if before is not None and saved.step >= before:
                continue
            try:
                return saved.path, read_state(saved.path, check), skipped
            except CheckpointError as error:
                skipped.append(str(error))
        if skipped:
            raise CheckpointError("no checkpoint can be used: " + "; ".join(skipped))
        raise CheckpointError(f"{self.directory}: holds no checkpoint to resume from")

    def newest(self, step: int) -> Path | None:
        """The newest checkpoint after ``step`` updates, if there is one."""
        return next((saved.path for saved in self._found() if saved.step == step), None)

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
        """Remove what a crash has left; raises StorageError if the disk does not let it."""
        with disk.needed(f"order in {self.directory}"):
            disk.remove_unfinished(self.directory)

    def _prepare(self) -> None:
        """Make the directory, and remove what a crash has left in it."""
        if not self._prepared:
            disk.make_directory(self.directory)
            self._prepared = True
        disk.remove_unfinished(self.directory)

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
        named = [(match, name) for name in names if (match := _NAME.fullmatch(name))]
        found = [Saved(int(m[1]), int(m[2] or 0), self.directory / name) for m, name in named]
        return sorted(found, reverse=True)

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
        removed = (*later, *same, *rest[self.keep_last - 1 :], *begun)
        aside = [disk.put_aside(other.path) for other in removed]
        if aside:  # only then their files, or half a checkpoint could bear a whole one's name
            disk.sync_directory(self.directory)
        for path in aside:
            disk.remove(path)


def _signed(content: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}).encode() + b"\n"
