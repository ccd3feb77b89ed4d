"""Checkpoints: the callback that saves them at safe points, and the directory that keeps them."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.durable_files import (
    CHECKPOINTS,
    LOG,
    DiskFaults,
    Job,
    is_full,
    with_room,
)
from gdtrain.checkpoint.expected_tensors import share_of, tensor_check
from gdtrain.checkpoint.format import (
    Share,
    TensorCheck,
    read_state,
    verify,
    write_shard,
    write_state,
)
from gdtrain.errors import CheckpointError, OutputError, StorageError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.callbacks.monitored import Monitored
from gdtrain.training.callbacks.validation import EarlyStopping
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.sharding import Part, in_parts
from gdtrain.training.trainer import Trainer

logger = logging.getLogger("gdtrain")

State = dict[str, Any]

# Seconds after which a save that has failed is tried again at a safe point; then twice as many.
_FIRST_WAIT, _LAST_WAIT = 1.0, 60.0
# Faults of disks and networks that may be over soon.
_PASSING = (errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT)


class Checkpoints(Callback):
    """Saves the trainer's state every k steps, epochs or seconds, and at both ends of a fit.

    A run that is resumed from any of them ends with the same bits as an uninterrupted one. The
    state is copied at a safe point and written while training continues, one checkpoint at a time.
    Training waits if the disk is too slow, and for the checkpoint at the end of a fit. With several
    processes all have this callback, since each has a part of the state; rank 0 writes.

    store: the directory, created if it does not exist, for the ``keep_last`` newest checkpoints; or
    a CheckpointStore with its own rule. ``trainer.fit(100, resume=directory)`` continues from the
    newest one.
    keep_best: a metric of the epochs, such as ``val_loss``; the checkpoint of the epoch in which
    it was best is kept in addition to the last ones. mode: ``min`` or ``max``; if left out, the
    metric's name decides: max for an accuracy, r2, f1 and their like.
    settings: of the run, kept in every checkpoint together with ``best``: the best metric so far,
    with its sign reversed if higher is better, and infinite at first.

    marks: called at each safe point; returns what else to keep in a checkpoint.

    Raises OutputError when a fit starts if the directory has checkpoints of another run, after more
    updates than this one has made. A failed save is logged, and training continues with the older
    checkpoints in place. On a full disk, the oldest ones are removed, except one good one;
    otherwise the save is tried again soon, then at growing intervals. At the end of a fit a failed
    save raises StorageError or CheckpointError; with ``faults``, which collects them, nothing is
    raised. A fit ends early if log and checkpoints have failed for as long as the interval between
    checkpoints.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Checkpoints, Trainer
    >>> data = torch.ones(4, 1), torch.ones(4, 1)
    >>> def make():
    ...     model, kept = nn.Linear(1, 1), Checkpoints("kept", every_n_epochs=5)
    ...     return Trainer(model, "mse", "adam", BatchLoader(data), callbacks=[kept])
    >>> history = make().fit(7)
    >>> make().fit(10, resume="kept").epochs[:7] == history.epochs
    True
    """

    def __init__(
        self,
        store: CheckpointStore | str | Path,
        *,
        keep_last: int = 3,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_seconds: float | None = None,
        keep_best: str | None = None,
        mode: Literal["min", "max"] | None = None,
        settings: State | None = None,
        marks: Callable[[], State] = dict,
        faults: DiskFaults | None = None,
        retry_seconds: Sequence[float] = (0.2, 1.0),
    ) -> None:
        super().__init__(
            every_n_steps=every_n_steps,
            every_n_epochs=every_n_epochs if keep_best is None else 1,
            every_seconds=every_seconds,
        )
        if not isinstance(store, CheckpointStore):
            store = CheckpointStore(Path(store), keep_last)
        self.store = store
        self.epochs_between = every_n_epochs
        self.keep_best = keep_best
        by_none = keep_best is None and mode is None
        self._metric = None if by_none else Monitored(keep_best or "", mode)
        self.settings = settings or {}
        self.marks = marks
        self.faults = DiskFaults() if faults is None else faults
        self.gave_up = False  # since neither log nor checkpoints could be written
        self._raises = faults is None
        self._retry_seconds = tuple(retry_seconds)  # between attempts at the end
        self._retry_at: float | None = None  # in wall-clock time
        self._wait = _FIRST_WAIT
        self._failing_from: tuple[int, int, float] | None = None
        self.saved_at: tuple[int, int] | None = None  # epochs and steps of the newest on disk
        self._is_refused = False  # since another run's checkpoints are there
        self.wanted = False
        self.best = math.inf
        self._end_of_epoch: State | None = None
        self._background = Background(self._tell)

    @classmethod
    def take_up(cls, trainer: Trainer, directory: str | Path) -> None:
        """Put a trainer into the state of the newest checkpoint that can be used.

        directory: of checkpoints, or of a run, which has them in ``checkpoints``. Raises
        CheckpointError if there is none, or if it is of another model, data or optimizer.
        """
        directory = Path(directory)
        inner = directory / "checkpoints"
        store = CheckpointStore((inner if inner.is_dir() else directory).absolute())
        path, state, skipped = store.load_newest(tensor_check(trainer), share=share_of(trainer))
        for reason in skipped:
            logger.warning("skipped a checkpoint: %s", reason)
        settings = state.pop("settings", None) or {}
        trainer.load_state_dict(state)
        for callback in trainer.callbacks:
            if isinstance(callback, EarlyStopping):
                callback.is_taken_up = True
            if isinstance(callback, cls) and callback.store.directory.absolute() == path.parent:
                callback.best = float(settings.get("best", math.inf))
                callback.saved_at = (trainer.progress.epoch, trainer.progress.step)

    def save_soon(self) -> None:
        """Save at the next safe point, of whatever rank asked for it."""
        self.wanted = True

    def save_now(self, trainer: Trainer) -> None:
        """Save unless the newest checkpoint is of this moment, and wait until it is written.

        Raises StorageError or CheckpointError if that fails, after some attempts where the fault
        may pass.
        """
        now = (trainer.progress.epoch, trainer.progress.step)
        if trainer.world.any(now != self.saved_at):  # rank 0 alone knows of a save that failed
            self._submit(trainer, state := self._take(trainer))
            for pause in self._retry_seconds:
                if not trainer.world.any(self._has_passing_fault()):
                    break
                time.sleep(pause)
                self._submit(trainer, state)
        try:
            self._background.wait()
        except OSError as error:
            message = f"the checkpoint of step {now[1]} could not be saved: {error}"
            raise StorageError(f"{message}; what was saved before it stays") from error

    def listens_to(self, event: str) -> bool:
        # Whoever listens to the ends of epochs has blocks end with them.
        if event == "on_epoch_end" and self.every_n_epochs is None:
            return False
        return super().listens_to(event)

    def is_due(self, step: int) -> bool:
        """At every safe point; ``on_safe_point`` decides, since it may be due for two reasons."""
        return True

    def on_fit_start(self, trainer: Trainer) -> None:
        self._is_refused = True
        with trainer.world.agreeing(OutputError):  # the first save would remove another run's work
            there = None
            if trainer.world.rank == 0 and self.saved_at is None:
                there = self.store.foreign(trainer.progress.step)
            if there is not None:
                raise OutputError(
                    f"{there} is of another run, and would be removed; to continue that run, "
                    f"fit with resume={str(self.store.directory)!r}, else give Checkpoints an "
                    "empty directory"
                )
        self._is_refused = False
        self._last_call = time.monotonic()
        if self._metric is not None:
            self._metric.begin()
        if trainer.world.any(self.saved_at is None):  # rank 0 alone knows of one that failed
            self._submit(trainer, self._take(trainer))

    def on_safe_point(self, trainer: Trainer) -> None:
        progress, plan = trainer.progress, trainer.plan
        by_steps = self.every_n_steps is not None and progress.step % self.every_n_steps == 0
        epoch_done = plan is not None and plan.is_over(progress.step_in_epoch)
        by_epochs = (
            self.epochs_between is not None
            and epoch_done
            and (progress.epoch + 1) % self.epochs_between == 0
        )
        due = self.every_seconds is not None and super().is_due(progress.step)
        again = self._retry_at is not None and time.monotonic() >= self._retry_at
        # Clocks differ: that of the first process counts.
        by_seconds, asked = trainer.world.first_and_any(due, self.wanted or again)
        candidate = epoch_done and self.keep_best is not None
        if by_steps or by_epochs or by_seconds or asked or candidate:
            self.wanted, self._retry_at = False, None
            state = self._take(trainer)
            if candidate:
                self._end_of_epoch = state
            if by_steps or by_epochs or by_seconds or asked:
                self._submit(trainer, state)
            if asked and not again and trainer.world.rank == 0:
                logger.warning("saving the checkpoint of step %d, as asked", progress.step)
        if CHECKPOINTS in self.faults.open:
            self._watch_disk(trainer)
        else:
            self._failing_from = None

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if self._metric is None:
            return
        value = self._metric.cost(record)
        if value < self.best:
            self.best = value
            step, state = trainer.progress.step, self._end_of_epoch
            if trainer.is_sharded and state is not None:
                self._has_passing_fault()  # waits: is it there?
                if trainer.world.any(trainer.world.rank == 0 and self.store.newest(step) is None):
                    self._submit(trainer, state)
                state = None
            if trainer.world.rank == 0:
                self._background.submit(
                    partial(self._save_best, step, state, self._metric.sign * value)
                )
        self._end_of_epoch = None

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._is_refused:
            return
        if self.keep_best is not None and self._metric is not None:
            self._metric.tell_if_missed("keep_best", "no checkpoint was kept as the best")
        try:
            self.save_now(trainer)
        except Exception:  # which faults keeps
            if self._raises:
                raise
        finally:
            self._background.end()

    def _take(self, trainer: Trainer) -> State:
        settings = {**self.settings, **self.marks(), "best": self.best}
        with in_parts():
            return {**trainer.state_dict(), "settings": settings}

    def _submit(self, trainer: Trainer, state: State) -> None:
        self.saved_at = (trainer.progress.epoch, trainer.progress.step)
        step = trainer.progress.step
        write: Callable[[], object] = partial(self.store.save, step, state)
        if trainer.is_sharded:
            write = self._written_by_all(trainer, state)
        if trainer.world.rank == 0:
            self._background.submit(partial(self._save, step, state, write))

    def _written_by_all(self, trainer: Trainer, state: State) -> Callable[[], object]:
        """Have each process write its rows; what is left to do for the first one.

        Training waits for it, since all processes must agree on how it went.
        """
        world, place, digest, failed = trainer.world, "", "", None
        try:
            if world.rank == 0:
                self._has_passing_fault()  # waits for the one before
                place = str(self.store.begin(trainer.progress.step))
        except OSError as error:
            failed = error
        place = world.gather_text(place)[0]
        try:
            if place:
                digest = write_shard(Path(place), world.rank, state)
        except OSError as error:
            failed = error
        digests = world.gather_text(digest)
        faults = world.gather_text("" if failed is None else f"{failed.errno or 0} {failed}")
        for rank, fault in enumerate(faults):
            if fault:
                number, _, text = fault.partition(" ")
                if world.rank == 0 and is_full(OSError(int(number), text)):
                    self.store.make_room()  # for the next one
                return partial(_fail, f"rank {rank}: {text}")
        return partial(self.store.commit, Path(place), state, digests)

    def _save(self, step: int, state: State, write: Callable[[], object]) -> None:
        try:
            with_room(write, self.store.make_room)
        except Exception as error:
            self.faults.note(CHECKPOINTS, _told(step, error, state))
            raise
        self.faults.clear(CHECKPOINTS)
        self._wait = _FIRST_WAIT

    def _save_best(self, step: int, state: State | None, metric: float) -> None:
        path = self.store.newest(step)
        if path is None and state is None:
            return  # it could not be saved, as was told
        # A run that was resumed at the end of an epoch has no state of it, but a checkpoint.
        path = path or self.store.save(step, state or {})
        self.store.mark_best(path, metric)

    def _tell(self, error: Exception) -> None:
        self.saved_at = None  # or the end of the fit would count on it
        self._retry_at = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, _LAST_WAIT)
        logger.warning("a checkpoint could not be saved, older ones stay: %s", error)

    def _has_passing_fault(self) -> bool:
        """Whether the last save, which is waited for, failed by what may be over soon."""
        try:
            self._background.wait(keep=True)
        except OSError as error:  # perhaps read back as something else than was written
            return isinstance(error, StorageError) or error.errno in _PASSING
        except Exception:
            return False
        return False

    def _watch_disk(self, trainer: Trainer) -> None:
        """End the fit if neither log nor checkpoints could be written since the one before last."""
        progress = trainer.progress
        if LOG not in self.faults.open:
            self._failing_from = None
            return
        now = (progress.step, progress.epoch, time.monotonic())
        self._failing_from = self._failing_from or now
        between = (self.every_n_steps, self.epochs_between, self.every_seconds)
        if any(
            apart is not None and at - begun >= apart
            for apart, at, begun in zip(between, now, self._failing_from, strict=True)
        ):
            self.gave_up = True
            trainer.stop("neither log nor checkpoints can be written")


def _told(step: int, error: Exception, state: State) -> StorageError:
    """What is said of a save that has failed, with what there would have to be room for."""
    message = f"the checkpoint of step {step} could not be saved: {error}"
    if isinstance(error, OSError) and is_full(error):
        message += f"; it takes {_nbytes(state):,} bytes"
    return StorageError(message)


def _fail(message: str) -> None:
    """Raise what kept a process from writing its part."""
    raise StorageError(message)


def _nbytes(value: Any) -> int:
    """Bytes of all tensors in a state, of split ones of this process's rows."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Part):
        return value.rows.nbytes
    parts = value.values() if isinstance(value, dict) else value
    return sum(map(_nbytes, parts)) if isinstance(value, dict | list | tuple) else 0


# ── writing while training goes on ──────────────────────────────────────────────────────────

# Seconds without a job after which the thread ends; starting one costs as much as a small save.
_IDLE = 5.0


@dataclass(eq=False)
class Background:
    """Runs jobs in a thread, at most one at once, while at most one more waits.

    failed: called with what a job has raised.
    """

    failed: Callable[[Exception], None]
    _state: threading.Condition = field(default_factory=threading.Condition)
    _waiting: Job | None = None
    _running: bool = False  # a job, not the thread
    _thread: threading.Thread | None = None
    _ends: bool = False
    _error: Exception | None = None

    def submit(self, job: Job) -> None:
        """Run ``job`` after those before it; wait here only while another one waits already."""
        with self._state:
            self._state.wait_for(lambda: self._waiting is None)
            self._waiting, self._running = job, True
            self._state.notify_all()
            self._ends = False
            if self._thread is None:
                name = "gdtrain-checkpoints"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()

    def wait(self, keep: bool = False) -> None:
        """Until nothing runs or waits. Raises what the last job raised, if it did.

        keep: raise it again the next time.
        """
        with self._state:
            self._state.wait_for(lambda: not self._running)
            error = self._error
            self._error = error if keep else None
        if error is not None:
            raise error

    def end(self) -> None:
        """End the thread, which holds what its jobs hold, and wait for that if none runs."""
        with self._state:
            thread, self._ends = None if self._running else self._thread, True
            self._state.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._error = None
            try:
                job()
            except Exception as error:  # told now, and raised where the training waits for it
                self._error = error
                self.failed(error)
            del job  # and the state that it holds

    def _next(self) -> Job | None:
        """The job that waits, or None if there was none for a while, or will be none."""
        with self._state:
            if self._waiting is None:
                self._running = False
                self._state.notify_all()
                self._state.wait_for(lambda: self._waiting is not None or self._ends, _IDLE)
            if self._waiting is None:
                self._thread = None
                return None
            job, self._waiting = self._waiting, None
            self._state.notify_all()
            return job


# ── checkpoints on the disk ─────────────────────────────────────────────────────────────────────


BEST = "best.json"
_NAME = re.compile(r"step-([0-9]{10,18})(?:-([0-9]{1,9}))?")
_MAX_BEST_BYTES = 4096


class Saved(NamedTuple):
    """A checkpoint by its name: after which step, and which one of that step, from 0."""

    step: int
    revision: int
    path: Path


@dataclass(eq=False)
class CheckpointStore:
    """The checkpoints of one run, in ``directory``, one sub-directory ``step-…`` each.

    keep_last: how many of the newest are kept, besides the best one, if one was marked.
    keep_every_n_steps: those after a multiple of so many steps are kept too.
    sync_first: files that a checkpoint presumes, flushed before it appears; such as a log, whose
    lines up to the checkpoint must outlive a power cut that the checkpoint outlives.
    """

    directory: Path
    keep_last: int = 3
    sync_first: Sequence[Path] = ()
    keep_every_n_steps: int | None = None
    # Saving goes on in another thread than making room.
    _lock: threading.RLock = field(init=False, default_factory=threading.RLock)
    _prepared: bool = field(init=False, default=False)
    # Checkpoints that were saved here and not removed; those of them whose names are on the disk.
    _known: set[Path] = field(init=False, default_factory=set)
    _synced: set[Path] = field(init=False, default_factory=set)
    _told: set[Path] = field(init=False, default_factory=set)  # what can't be removed

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
