"""Checkpoints on disk: directories that appear whole or not at all, verified before they count."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gdtrain.checkpoint import disk
from gdtrain.checkpoint.format import TensorCheck, read_state, verify, write_state
from gdtrain.errors import CheckpointError, OutputError

BEST = "best.json"
_NAME = re.compile(r"step-(\d{10,18})(?:-(\d{1,9}))?")


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

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``state`` as the checkpoint after ``step`` updates; return its directory.

        It is written under another name, flushed to the disk, renamed, and read back and
        verified before older ones are removed. At any moment, a crash included, the old ones
        are there or the new one is. Raises CheckpointError if it can't be verified, OSError if
        it can't be written.
        """
        disk.make_directory(self.directory)
        disk.remove_unfinished(self.directory)
        number = 1 + max((s.revision for s in self._found() if s.step == step), default=-1)
        name = f"step-{step:010d}" + (f"-{number}" if number else "")
        unfinished, final = self.directory / f"{disk.UNFINISHED}{name}", self.directory / name
        os.mkdir(unfinished)
        write_state(unfinished, state)
        for path in self.sync_first:
            _sync_file(path)
        os.rename(unfinished, final)
        disk.sync_directory(self.directory)
        verify(final)
        self._prune(Saved(step, number, final))
        return final

    def mark_best(self, path: Path, metric: float) -> None:
        """Keep ``path`` until another is marked, whatever its age; ``metric`` is kept beside it."""
        content = {"checkpoint": path.name, "metric": metric}
        disk.replace_file(self.directory / BEST, (json.dumps(content) + "\n").encode())

    def best(self) -> Path | None:
        """The checkpoint that was marked as the best, if it is still there."""
        try:
            name = json.loads(disk.read_file(self.directory / BEST, 4096))["checkpoint"]
        except (OSError, OutputError, ValueError, LookupError, TypeError):
            return None
        found = {saved.path.name: saved.path for saved in self._found()}
        return found.get(name) if isinstance(name, str) else None

    def load_newest(
        self, check: TensorCheck | None = None, before: int | None = None
    ) -> tuple[Path, dict[str, Any], list[str]]:
        """The newest checkpoint that verifies: its directory, its state, and what was skipped.

        check: see :func:`gdtrain.checkpoint.format.read_state`. before: of those after fewer
        than so many steps only. Raises CheckpointError, naming each, if there is none.
        """
        skipped: list[str] = []
        for saved in self._found():
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
            disk.remove(saved.path)
        disk.remove_unfinished(self.directory)
        os.rmdir(self.directory)

    def _found(self) -> list[Saved]:
        """All checkpoints, the newest first."""
        if not self.directory.is_dir():
            return []
        named = [
            (match, path)
            for path in self.directory.iterdir()
            if (match := _NAME.fullmatch(path.name))
        ]
        found = [Saved(int(match[1]), int(match[2] or 0), path) for match, path in named]
        return sorted(found, reverse=True)

    def _prune(self, saved: Saved) -> None:
        """Remove what is too old, earlier ones of the same step, the start's, and later steps.

        That of the start stands in until there is another one; later steps are those that a
        resume could not use and has undone.
        """
        best = self.best()
        others = [other for other in self._found() if other.path not in (saved.path, best)]
        later = [other for other in others if other > saved]
        older = [other for other in others if other < saved]
        same = [other for other in older if other.step == saved.step]
        begun = [other for other in older if other.step == 0 < saved.step]
        rest = [other for other in older if 0 < other.step < saved.step]
        old = [*rest[self.keep_last - 1 :], *begun]
        for other in (*later, *same, *old):
            disk.remove(other.path)
        if later or same or old:
            disk.sync_directory(self.directory)


def _sync_file(path: Path) -> None:
    if path.exists():
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
