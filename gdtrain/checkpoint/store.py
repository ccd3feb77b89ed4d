"""Checkpoints on disk: directories that appear whole or not at all, verified before they count."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from gdtrain.checkpoint.format import read_state, write_state
from gdtrain.errors import CheckpointError

MANIFEST = "manifest.json"
_PREFIX = "step-"
_UNFINISHED = ".unfinished-"


class CheckpointStore:
    """The checkpoints of one run, in ``directory``, one sub-directory ``step-…`` each.

    keep_last: how many of the newest are kept.
    """

    def __init__(self, directory: Path, keep_last: int = 3) -> None:
        self.directory = directory
        self.keep_last = keep_last

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``state`` as the checkpoint after ``step`` updates; return its directory.

        It is written under another name, flushed to the disk, renamed, and read back and
        verified before older ones are removed. Raises CheckpointError if it can't be verified,
        OSError if it can't be written.
        """
        final = self.directory / f"{_PREFIX}{step:010d}"
        unfinished = self.directory / f"{_UNFINISHED}{step:010d}"
        self.directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        write_state(unfinished, state)
        digests = {path.name: _digest(path) for path in sorted(unfinished.iterdir())}
        (unfinished / MANIFEST).write_text(json.dumps(digests, indent=1) + "\n", "utf-8")
        for path in unfinished.iterdir():
            _sync(path)
        _sync(unfinished)
        replaced = self.directory / f"{_UNFINISHED}{step:010d}-replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():  # the same step, saved again as an epoch is closed or after a resume
            final.rename(replaced)
        unfinished.rename(final)
        _sync(self.directory)
        verify(final)
        shutil.rmtree(replaced, ignore_errors=True)
        self._prune(final)
        return final

    def load_newest(self) -> tuple[Path, dict[str, Any], list[str]]:
        """The newest checkpoint that verifies: its directory, its state, and what was skipped.

        Raises CheckpointError, naming each, if there is none.
        """
        skipped: list[str] = []
        for path in self._newest_first():
            try:
                verify(path)
                return path, read_state(path), skipped
            except CheckpointError as error:
                skipped.append(str(error))
        if skipped:
            raise CheckpointError("no checkpoint can be used: " + "; ".join(skipped))
        raise CheckpointError(f"{self.directory}: holds no checkpoint to resume from")

    def _newest_first(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        found = [p for p in self.directory.iterdir() if p.name.startswith(_PREFIX) and p.is_dir()]
        return sorted(found, key=lambda path: path.name, reverse=True)

    def _prune(self, saved: Path) -> None:
        """Remove what is too old, and later steps that a resume could not use and has undone."""
        found = self._newest_first()
        first = found.index(saved)
        for path in [*found[:first], *found[first + self.keep_last :]]:
            shutil.rmtree(path)


def verify(directory: Path) -> None:
    """Raise CheckpointError unless every file of a checkpoint has the digest of its manifest."""
    try:
        digests = json.loads((directory / MANIFEST).read_text("utf-8"))
        for name, expected in digests.items():
            if _digest(directory / name) != expected:
                raise CheckpointError(f"{directory}: {name} is damaged (its digest differs)")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{directory}: its {MANIFEST} can't be used; {error}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Make sure that a file, or the entries of a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
