"""What is logged of a run; metrics.jsonl: one JSON object a line, only ever added to."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.durable_files import LOG, DiskFaults, FileState
from gdtrain.errors import StorageError
from gdtrain.output.run_directory import finite, records_of
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.trainer import Trainer
from gdtrain.wording import counted

logger = logging.getLogger("gdtrain")

# Lines that wait for a disk take no more memory than this.
MAX_KEPT_BYTES = 16 << 20


class StepLog(Callback):
    """Logs every k-th update, and those at which a monitor has looked.

    Losses and rates are read from the blocks that have run, which may be long: a block ends with
    a k-th update only where a callback has something to report of that moment.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self._every = every_n_steps
        self._trainer: Trainer | None = None
        self._logged = 0  # updates of which it is known whether they are to be logged

    def is_due(self, step: int) -> bool:
        """At every safe point: there may be updates to be logged anywhere in the block."""
        return True

    def next_records(self, until: int) -> Iterator[dict[str, Any]]:
        """What there is to log of the updates after those before, up to number ``until``."""
        if self._trainer is None or self._trainer.progress.last is None:
            return
        first = self._trainer.progress.step - self._trainer.progress.last[1].shape[0] + 1
        new = range(max(first, self._logged + 1), until + 1)
        reported = {one.reported_at or 0 for one in self._trainer.callbacks}
        regular = range(-(-new.start // self._every) * self._every, new.stop, self._every)
        for step in sorted({step for step in reported if step in new}.union(regular)):
            yield self._record(self._trainer, step, step - first)
        self._logged = until

    def watch(self, trainer: Trainer, *, starts: bool = False) -> None:
        """See what there is to log: when a fit starts, and at each safe point."""
        if starts or self._trainer is not trainer:  # the latter: added in mid-run
            self._logged = trainer.progress.step - (not starts)
        self._trainer = trainer
        of_moment = any(
            one.reported_at is None
            and (type(one).report is not Callback.report or "report" in vars(one))
            for one in trainer.callbacks
        )
        # A compiled block knows the rate of its last update alone.
        ends = of_moment or not trainer.engine.reaches_over_epochs
        self.every_n_steps = self._every if ends else None

    def _record(self, trainer: Trainer, step: int, place: int) -> dict[str, Any]:
        """Step, epoch (from 1), loss, lr, seconds, and what other callbacks report of this step.

        place: of the step in the last block, whose updates are taken to be alike long.
        """
        progress = trainer.progress
        assert progress.last is not None
        block, losses = progress.last
        reported: dict[str, Any] = {}
        for callback in trainer.callbacks:
            at = progress.step if callback.reported_at is None else callback.reported_at
            if at == step:
                reported |= callback.report()
        return {
            "step": step,
            "epoch": block.epoch(place) + 1,
            "loss": float(losses[place]),
            "lr": block.rate(place) if block.rates else float(progress.lr),
            "seconds": round(self._seconds(trainer, step, step - place - 1), 6),
            **block.terms_of(place),
            **reported,
        }

    @staticmethod
    def _seconds(trainer: Trainer, step: int, before: int) -> float:
        """When the update was made, between the moments that are known.

        before: updates made before the last block.
        """
        progress, known = trainer.progress, [(before, trainer.progress.began)]
        for record in reversed(trainer.history.epochs):
            if record["step"] <= before:
                break
            known.insert(1, (record["step"], record["seconds"]))
        steps, seconds = zip(*known, (progress.step, progress.seconds), strict=True)
        return float(np.interp(step, steps, seconds))


class MetricsLog(StepLog):
    """Writes three kinds of lines:

    * ``{"kind": "step", "step", "epoch", "loss", "lr", "seconds"}`` every k updates, and after
      those at which a monitor has measured, with what other callbacks report for that step;
    * ``{"kind": "epoch", "epoch", "step", "samples", "train_loss", …, "lr", "seconds"}``;
    * ``{"kind": "resume", "epoch", "step"}`` where a run was resumed from a checkpoint: updates
      after that step that are logged above this line are logged again below it.

    Numbers that are not finite are written as null. With several processes, rank 0 writes.
    :func:`read_metrics` reads the file back.

    Lines that can't be written are kept, up to :data:`MAX_KEPT_BYTES`, and tried again with the
    next line and at the end of the fit; if that fails too, StorageError is raised, or kept by
    ``faults``. If somebody truncates, replaces or removes the file, or it was shorter at a resume
    than at the checkpoint, this is reported, and missing lines of epochs are written again.

    least_bytes: length of the file when the state was saved from which the next fit continues.
    state: which file it was when it was written to last, and how long; None before.

    >>> import json
    >>> import torch
    >>> from pathlib import Path
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, MetricsLog, Trainer
    >>> data = torch.ones(4, 1), torch.ones(4, 1)
    >>> log = MetricsLog("metrics.jsonl", every_n_steps=2)
    >>> history = Trainer(nn.Linear(1, 1), "mse", "adam", BatchLoader(data), callbacks=[log]).fit(3)
    >>> [json.loads(line)["kind"] for line in Path("metrics.jsonl").read_text().splitlines()]
    ['epoch', 'step', 'epoch', 'epoch']
    """

    def __init__(
        self,
        path: str | Path,
        every_n_steps: int = 50,
        *,
        faults: DiskFaults | None = None,
    ) -> None:
        super().__init__(every_n_steps)
        self.path = Path(path)
        self.least_bytes = 0
        self.faults = DiskFaults() if faults is None else faults
        self._raises = faults is None
        self._leads = True  # of several processes, rank 0 writes
        self._waiting = bytearray()
        self._lost = 0  # lines for which there was no room in memory either
        self.state: FileState | None = None
        self._made_directory = False

    def on_fit_start(self, trainer: Trainer) -> None:
        self.watch(trainer, starts=True)
        self._leads = trainer.world.rank == 0
        if not self._leads:
            return
        progress, least = trainer.progress, self.least_bytes
        with disk.needed(LOG):
            size = self._end_line()
        if size is not None or least:
            self._add("resume", {"epoch": progress.epoch, "step": progress.step})
        if least:
            short = "is missing" if size is None else "was cut" if size < least else None
            due = trainer.told_of_end is not None  # the line of the last epoch is still to come
            self._restore(trainer.history.epochs[: -1 if due else None], short)
        self.least_bytes = 0
        self.faults.attempt(LOG, self._write)  # a run that fails at once has a log too

    def on_safe_point(self, trainer: Trainer) -> None:
        self.watch(trainer)
        for record in self.next_records(trainer.progress.step):
            self._add("step", record)
        if self._waiting:
            self.faults.attempt(LOG, self._write)

    def on_records(self, records: list[dict[str, Any]]) -> None:
        for epoch in records:
            for step in self.next_records(epoch["step"]):
                self._add("step", step)
            self._add("epoch", epoch)
        if self._leads and self._trainer is not None:
            self.faults.attempt(LOG, self._write)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._waiting:
            self.faults.attempt(LOG, self._write)
        if self._lost:
            message = f"{LOG} could not be written: {self._lost:,} lines of {self.path} are lost"
            self.faults.note(LOG, StorageError(message))
        if self._raises and self.faults.error is not None:
            raise self.faults.error

    def _add(self, kind: str, record: dict[str, Any]) -> None:
        if not self._leads:
            return
        told = {"kind": kind, **record}
        if kind == "epoch":
            told["seconds"] = round(record["seconds"], 6)
        line = json.dumps(finite(told)).encode() + b"\n"
        if len(self._waiting) + len(line) > MAX_KEPT_BYTES:
            self._lost += 1
        else:
            self._waiting += line

    def _write(self) -> None:
        """Write what waits."""
        was_made, self._made_directory = self._made_directory, True
        try:
            try:
                self.state = disk.append(self.path, self._waiting, self.state)
            except FileNotFoundError:
                disk.make_anew(self.path.parent, was_made=was_made)
                self.state = disk.append(self.path, self._waiting, self.state)
        except disk.DisturbedError:
            self._write_anew()
        except OSError:
            now = _state_of(self.path)
            if now is not None and self.state is not None and now[:2] == self.state[:2]:
                self.state = now  # the same file, in which a part may have been written
            raise

    def _write_anew(self) -> None:
        """Write to a file that is not as it was left, and before it what that lacks of epochs."""
        assert self._trainer is not None
        self._end_line()
        waiting, self._waiting = self._waiting, bytearray()
        try:
            self._restore(self._trainer.history.epochs, "was cut, replaced or removed", waiting)
        finally:
            self._waiting += waiting
        try:
            self.state = disk.append(self.path, self._waiting, None)
        except OSError:
            self.state = _state_of(self.path) or self.state
            raise

    def _restore(
        self, epochs: list[dict[str, Any]], why: str | None, waiting: bytes | bytearray = b""
    ) -> None:
        """Add the lines of epochs that the file lacks, and say so; why: None if it seems whole."""
        lines = self._content().splitlines()
        records = records_of([*lines, *waiting.splitlines()])
        there = {record["epoch"] for record in records if record["kind"] == "epoch"}
        lacking = [record for record in epochs if record["epoch"] not in there]
        if why is None and lacking:
            why = "lacks epochs"
        if why is not None:
            logger.warning(
                "%s %s: lines of steps are lost; those of %s are written again",
                *(self.path, why, counted(len(lacking), "epoch")),
            )
        for record in lacking:
            self._add("epoch", record)

    def _content(self) -> bytes:
        if not disk.is_there(self.path):
            return b""
        with self._opened(os.O_RDONLY) as file:
            return file.read()

    @contextmanager
    def _opened(self, flags: int) -> Iterator[IO[bytes]]:
        """The file, which others may have replaced. Raises OSError if it is no regular one."""
        with disk.opened(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK) as handle:
            FileState.of(handle)
            mode = "rb+" if flags == os.O_RDWR else "rb"
            with os.fdopen(handle, mode, closefd=False) as file:
                yield file

    def _end_line(self) -> int | None:
        """Close a line that a crash cut short, so that nothing is written behind it.

        Returns how long the file is, or None if there is none.
        """
        if not disk.is_there(self.path):
            return None
        with self._opened(os.O_RDWR) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.write(b"\n")
        return size


def _state_of(path: Path) -> FileState | None:
    """How a write that failed has left the file; None if there is no file of that name."""
    try:
        with disk.opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as handle:
            return FileState.of(handle)
    except OSError:
        return None
