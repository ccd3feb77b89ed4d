"""The train command: build, train, and leave behind what is to be read of a run."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

import numpy as np
import torch

from gdtrain.analysis.monitors.trajectory import Trajectory
from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.checkpoints import Checkpoints, CheckpointStore
from gdtrain.checkpoint.durable_files import DiskFaults
from gdtrain.checkpoint.format import write_weights
from gdtrain.cli.runs.resume import take_up
from gdtrain.config.baseline import baseline
from gdtrain.config.build import BuiltRun, build, stage
from gdtrain.config.data import SharedSources
from gdtrain.config.load import dump
from gdtrain.config.schema import Config, LogSection
from gdtrain.config.yaml_source import Document, key_path
from gdtrain.data.batch import Batch, Block
from gdtrain.data.lazy_batch import LazyBatch
from gdtrain.data.tables.preparation import Column
from gdtrain.errors import ConfigError, MissingPackageError, NonFiniteError, OutputError
from gdtrain.output import run_directory
from gdtrain.output.console import ProgressBar
from gdtrain.output.metrics_csv import MetricsCsv
from gdtrain.output.metrics_log import MetricsLog
from gdtrain.output.plots import curves
from gdtrain.output.plots.curves import RunLog, labels
from gdtrain.output.run_directory import broken_of, finite, read_metrics
from gdtrain.output.tensorboard import TensorBoard, require_tensorboard
from gdtrain.output.terminal import printable, say
from gdtrain.training.callbacks.averaging import Averaging
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.callbacks.validation import EarlyStopping
from gdtrain.training.gradients.microbatches import UNMEASURED_SIZE
from gdtrain.training.placement import distributed
from gdtrain.training.placement.distributed import World
from gdtrain.training.safety import diagnosis
from gdtrain.training.safety.signals import SignalDesk
from gdtrain.training.state import snapshot
from gdtrain.training.state.keeper import unchanged
from gdtrain.training.trainer import Trainer
from gdtrain.version import __version__
from gdtrain.wording import counted

logger = logging.getLogger("gdtrain")

EXIT_NON_FINITE = 3
_ENDED = ("done", "stopped")  # of a run at its end


@dataclass
class TrainJob:
    """One run of the train command.

    document: where each setting stands, for messages. name: of the configuration, for the
    default output directory. signals: takes them from the start of the program on. quiet: say
    nothing but what went wrong. results: where the summary goes as JSON, if that is asked for.
    texts: files of the run that are known before it trains, by their names.
    """

    config: Config
    document: Document
    name: str
    signals: SignalDesk
    output_dir: Path | None = None
    resume: bool = False
    verify_data: bool = False
    quiet: bool = False
    results: TextIO | None = None
    sources: SharedSources | None = None
    texts: dict[str, str] = field(default_factory=dict)

    def run(self) -> int:
        """Train and write everything, rank 0 for all ranks; return the exit code."""
        world = distributed.join(self.config.device, self.config.process_timeout)
        code = self._train(world)
        distributed.leave()
        return code

    def _train(self, world: World) -> int:
        run, leads = self._built(), world.rank == 0
        # The files that are known before training; config.yaml comes last.
        self.texts[run_directory.PREPROCESSING] = run.preprocessing.text()
        self.texts[run_directory.CONFIG] = dump(self.config)
        trainer = run.trainer
        directory = self._directory(leads)
        console = ProgressBar()
        log, checkpoints = self._writers(directory)
        faults = log.faults
        written = callbacks_of(self.config.log, log, trainer, directory)
        shown = [console] if leads and not self.quiet else []
        stops = _Stops(self.signals)
        trainer.callbacks += [*(written if leads else []), checkpoints, *shown, stops]
        self.signals.watch(
            lambda signum: trainer.stop(signal.Signals(signum).name), checkpoints.save_soon
        )
        with notices(self.quiet), run_directory.locked(directory if leads else None):
            self._start(run, directory, checkpoints, log)
            if self.resume:
                stops.reason = _reason(trainer)
                stops.begin = partial(self._renew_texts, directory, faults) if leads else None
            status, interrupted, tested, validated = "failed", 0, None, None
            to_beat = None if run.validation is None else baseline(run)
            try:
                status, interrupted = self._fit(trainer, checkpoints, directory)
                if run.test is not None and status in _ENDED:
                    tested = trainer.evaluate(run.test)
                if run.validation is not None and status in _ENDED and not _is_validated(trainer):
                    validated = trainer.evaluate(run.validation)
            finally:
                console.close()
                columns = run.preprocessing.columns
                summary = summary_of(trainer, status, to_beat, columns, tested, validated)
                if leads and stops.has_begun:
                    self._leave_files(directory, faults)
                    write = partial(write_summary, directory, summary)
                    faults.attempt(run_directory.SUMMARY, write)
            picture = self._leave_results(trainer, directory, faults, status)
            if leads:
                self._result({"directory": str(directory)} | summary)
            if status == "non_finite":
                if faults.error is not None:
                    say(f"gdtrain: {faults.error}")
                return EXIT_NON_FINITE
            if world.any(bool(faults.open)):  # rank 0 alone knows; all leave together
                if faults.error is not None:
                    say(f"gdtrain: {' '.join(str(faults.error).splitlines())}")
                return 1
            if leads and interrupted:
                way = f"the same command with --output-dir {quote(str(directory))} --resume"
                say(f"interrupted; to go on, give {way}")
            elif leads:
                self._tell(_closing_line(summary, directory))
                self._tell(picture)
            return 128 + interrupted if interrupted else 0

    def _built(self, *, settles: bool = True) -> BuiltRun:
        """What the configuration names, tried on its first batch, with the engine of the run.

        settles: whether there will be a run, so that its engine is chosen.
        """
        with faults_placed(self.document), notices(self.quiet):
            if self.config.log.tensorboard:
                try:
                    require_tensorboard()
                except MissingPackageError as error:
                    raise ConfigError.of("log.tensorboard", f"{error}, or remove it") from error
            run = build(self.config, sources=self.sources)
            self._check_first_batch(run)
            if settles:
                with stage(""):
                    run.trainer.choice.settle(self.config.epochs)
        return run

    def _fit(self, trainer: Trainer, checkpoints: Checkpoints, directory: Path) -> tuple[str, int]:
        """Train; how it ended, and the signal that ended it early, if one did."""
        try:
            trainer.fit(self.config.epochs)
        except NonFiniteError as error:
            if trainer.world.rank == 0:
                say(f"gdtrain: {error}")
                say(_replay_hint(directory, trainer.progress.step + 1))
            return "non_finite", 0
        # A signal may have come to any rank, and rank 0 alone knows of a disk that fails.
        signum = max(max(seen) for seen in trainer.world.gather([self.signals.stopped_by]))
        if trainer.world.any(checkpoints.gave_up):
            return "failed", 0
        if signum and trainer.progress.epoch < self.config.epochs:
            return "interrupted", signum
        return "stopped" if trainer.should_stop and not signum else "done", 0

    def _leave_results(
        self, trainer: Trainer, directory: Path, faults: DiskFaults, status: str
    ) -> str:
        """Write the weights of a finished run, and its picture; where that is."""
        leads = trainer.world.rank == 0
        if status in _ENDED:  # all ranks have a part in the weights
            files = {run_directory.WEIGHTS: snapshot.weights(trainer)}
            averaging = [c for c in trainer.callbacks if isinstance(c, Averaging) and c.count]
            for callback in averaging[:1]:
                files[run_directory.AVERAGED] = callback.weights(trainer)
            for name, weights in files.items() if leads else ():
                faults.attempt(name, partial(write_weights, directory / name, weights))
        if leads and status != "interrupted":
            return draw_loss(self.config, directory, is_broken=status == "non_finite")
        return ""

    def _tell(self, text: str) -> None:
        """Say what goes on, unless nobody wants to know."""
        if text and not self.quiet:
            say(text)

    def _result(self, summary: dict[str, Any]) -> None:
        """Print the summary as JSON, if that was asked for."""
        if self.results is not None:
            print(json.dumps(finite(summary)), file=self.results, flush=True)

    def _leave_files(self, directory: Path, faults: DiskFaults) -> None:
        """Write again what somebody has removed or replaced in mid-run, and say so."""
        for name, text in self.texts.items():
            path = directory / name
            if not os.path.isfile(path) or os.path.islink(path):  # noqa: PTH113, PTH114 - no error
                faults.attempt(name, partial(_write_again, path, text))
            elif name in faults.open:  # what is there is of the run before it was resumed
                faults.attempt(name, partial(disk.replace_file, path, text.encode()))

    def _renew_texts(self, directory: Path, faults: DiskFaults) -> None:
        """The same of a run that goes on, as settings may be new; that can wait for a full disk."""
        for name, text in self.texts.items():
            faults.attempt(name, partial(disk.replace_file, directory / name, text.encode()))

    def dry_run(self) -> int:
        """Build everything, make one update, evaluate one validation batch, write nothing."""
        run = self._built(settles=False)
        for note in run.notes:
            self._tell(note)
        trainer, plan = run.trainer, run.loader.plan(0)
        with faults_placed(self.document), stage("data"):  # of a stream, it may come only now
            batch = next(trainer.read(run.loader, plan))
        block = Block(plan, 0, 1, [batch])
        with faults_placed(self.document), stage(""):
            losses = trainer.engine.run(block)
        if not len(losses):
            say(f"gdtrain: {diagnosis.non_finite(trainer, block, 0)}")
        found: dict[str, Any] = {"status": "dry_run", "device": str(trainer.device)}
        found |= {"parameters": sum(p.numel() for p in trainer.model.parameters())}
        found |= {"samples": len(batch), "loss": float(losses[0]) if len(losses) else math.nan}
        if len(losses) and run.validation is not None:
            batch = _first_part(next(trainer.read(run.validation)))
            with torch.no_grad(), unchanged(trainer, training=False):
                loss = float(trainer.batch_loss(batch))
            found |= {"validation_samples": len(batch), "validation_loss": loss}
        if self.results is None and len(losses) and not self.quiet:
            print(_dry_run_line(found))
        self._result(found)
        numbers = (found["loss"], found.get("validation_loss", 0.0))
        return 0 if all(map(math.isfinite, numbers)) else EXIT_NON_FINITE

    def _check_first_batch(self, run: BuiltRun) -> None:
        """Find what does not fit before anything is written: forward passes, then undone.

        Of the first batch of the first epoch and of its last one, which may be shorter, and
        likewise of the phase with the shortest batch; of a stream, of the first if it is there.
        """
        trainer = run.trainer
        turns = run.loader.turns(self.config.epochs)
        shortest = min(turns[1:], key=lambda e: run.loader.outline(e).smallest_batch, default=0)
        for epoch in sorted({0, shortest}):
            plan = run.loader.plan(epoch)
            with stage("data"):
                numbers = plan.ends()
            with stage(""), torch.no_grad(), unchanged(trainer):
                for number in numbers:
                    trainer.batch_loss(_first_part(next(trainer.read(run.loader, plan, number))))

    def _directory(self, leads: bool) -> Path:
        """The run's directory: the one to go on with, or a new one, which rank 0 makes."""
        if not self.resume and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
            # torchrun has started this process again, after one of its group had died.
            self.resume = run_directory.has_begun(self.output_dir, self.name)
        if self.resume:
            return run_directory.latest_directory(self.output_dir, self.name)
        if leads:
            return run_directory.new_directory(self.output_dir, self.name)
        return self.output_dir or Path()  # where this rank writes nothing

    def _writers(self, directory: Path) -> tuple[MetricsLog, Checkpoints]:
        """The log, and the checkpoints, which all ranks have: each holds a part of the state."""
        metrics, section = directory / run_directory.METRICS, self.config.checkpoint
        store = CheckpointStore(
            directory / run_directory.CHECKPOINTS,
            section.keep_last,
            sync_first=[metrics],
            keep_every_n_steps=section.keep_every_n_steps,
        )
        faults = DiskFaults(store.make_room)
        log = MetricsLog(metrics, self.config.log.every_n_steps, faults=faults)
        return log, Checkpoints(
            store,
            every_n_steps=section.every_n_steps,
            every_n_epochs=section.every_n_epochs,
            every_seconds=section.every_seconds,
            keep_best=section.keep_best,
            settings={"config": self.texts[run_directory.CONFIG]},
            marks=lambda: {"log_bytes": log.state.size if log.state else 0},
            faults=faults,
        )

    def _start(
        self, run: BuiltRun, directory: Path, checkpoints: Checkpoints, log: MetricsLog
    ) -> None:
        """Take up the run that is to go on, or write what is known before training.

        config.yaml comes last: a run has begun, and can be resumed, once it is there.
        """
        leads = run.trainer.world.rank == 0
        if self.resume:
            log.least_bytes = take_up(run, directory, checkpoints, self.verify_data, self._tell)
            run.trainer.choice.settle(self.config.epochs)  # that of the run
        else:
            checkpoints.save_now(run.trainer)
        if not leads:
            return
        for name, text in ({} if self.resume else self.texts).items():
            try:
                disk.replace_file(directory / name, text.encode())
            except OSError as error:
                text = f"{directory / name} can't be written: {error.strerror}; choose another"
                raise OutputError(text) from error
        processes = run.trainer.world.size
        for note in run.notes:
            self._tell(note)
        self._tell(
            f"training on {run.trainer.device} with engine {run.trainer.engine.name}"
            + (f" in {processes} processes" if processes > 1 else "")
            + f", {run.loader.extent}; "
            f"results go to {directory}"
        )


@dataclass(eq=False, repr=False)
class _Stops(Callback):
    """Stops a fit for a signal that came before it had begun, and was told to nobody then.

    reason: why the run that is resumed had stopped by itself: it ends with the same bits. begin: to
    be done when all others have begun; until then, a resume that is refused has changed no file.
    """

    signals: SignalDesk
    reason: str | None = None
    begin: Callable[[], None] | None = None
    has_begun: bool = False

    def on_fit_start(self, trainer: Trainer) -> None:
        self.has_begun = True
        if self.begin is not None:
            self.begin()
        if self.reason is not None:
            trainer.stop(self.reason)
        if self.signals.stopped_by:
            trainer.stop(signal.Signals(self.signals.stopped_by).name)


def _write_again(path: Path, text: str) -> None:
    disk.make_anew(path.parent)
    what = "replaced" if disk.is_there(path) else "missing"
    disk.replace_file(path, text.encode())
    logger.warning("%s was %s, and is written again", path, what)


def _reason(trainer: Trainer) -> str | None:
    """Why early stopping has ended the run, if it has."""
    stopping = [one for one in trainer.callbacks if isinstance(one, EarlyStopping)]
    return next((one.reason for one in stopping if one.reason is not None), None)


def _is_validated(trainer: Trainer) -> bool:
    """Whether the last epoch was one of those after which validation is due."""
    record = trainer.history.epochs[-1] if trainer.history.epochs else {}
    return "val_loss" in record


def _first_part(batch: Batch) -> Batch:
    """Of a batch that is read as it is used, as much as may be in memory; else all of it."""
    return next(batch.split(UNMEASURED_SIZE)) if isinstance(batch, LazyBatch) else batch


def _replay_hint(directory: Path, step: int) -> str:
    return (
        f"look at that update with: python -m gdtrain replay --step {step} {quote(str(directory))}"
    )


@contextmanager
def faults_placed(document: Document) -> Iterator[None]:
    """Give the faults that building found their places in the configuration."""
    try:
        yield
    except ConfigError as error:
        placed = [document.fault(key_path(f.key), f.message) for f in error.faults]
        raise ConfigError(placed) from error


@contextmanager
def notices(quiet: bool = False) -> Iterator[None]:
    """Show what the library has to say about the settings, once and in one line each; or not."""
    leads = os.environ.get("RANK", "0") == "0"  # of processes started by torchrun
    shown = leads and not quiet
    handler = logging.StreamHandler(sys.stderr) if shown else logging.NullHandler()
    handler.setFormatter(_Printable("note: %(message)s"))
    logger = logging.getLogger("gdtrain")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Printable(logging.Formatter):
    """Writes control characters as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _dry_run_line(found: dict[str, Any]) -> str:
    line = (
        f"dry run on {found['device']}: {counted(found['parameters'], 'parameter')}; "
        f"one update of {counted(found['samples'], 'sample')}: loss {found['loss']:.4g}"
    )
    if "validation_loss" in found:
        held_out, loss = found["validation_samples"], found["validation_loss"]
        line += f"; one validation batch of {held_out:,}: loss {loss:.4g}"
    return f"{line}; nothing written"


def _closing_line(summary: dict[str, Any], directory: Path) -> str:
    shown = [f"train_loss {summary['train']['loss']:.4g}"] if summary["train"] else []
    for part, found in (("val", summary["validation"]), ("test", summary.get("test", {}))):
        for name, value in found.items():
            number = f"{value:.2%}" if "accuracy" in name else f"{value:.4g}"
            shown.append(f"{part}_{name} {number}")
    ended = summary["status"] if summary["reason"] is None else f"stopped ({summary['reason']})"
    return (
        f"{ended}: {counted(summary['epochs'], 'epoch')}, {counted(summary['steps'], 'update')} in "
        f"{summary['seconds']:.1f} s; {', '.join(shown)}; see {directory}"
    )


# ── what a run leaves to be read, besides metrics.jsonl ─────────────────────────────────────────


# Reading more would make the end of a run wait; the command plot takes its time.
_MOST_BYTES = 16 << 20


def callbacks_of(
    section: LogSection, log: MetricsLog, trainer: Trainer, directory: Path
) -> list[Callback]:
    """The callbacks that write a run's numbers into its directory, for rank 0; log: the first."""
    attempt = log.faults.attempt
    for callback in trainer.callbacks:
        if isinstance(callback, Trajectory):
            callback.path, callback.attempt = directory / run_directory.TRAJECTORY, attempt
    kept: list[Callback] = [log]
    if section.tensorboard:
        events = directory / run_directory.TENSORBOARD
        kept.append(TensorBoard(events, section.every_n_steps, attempt))
    if section.csv:
        kept.append(MetricsCsv(log.path, directory / run_directory.CSV, attempt))
    return kept


def draw_loss(config: Config, directory: Path, *, is_broken: bool) -> str:
    """Leave loss.png in the directory of a run that is over; say where it is, or why there is none.

    is_broken: whether a number that was not finite has ended it. Whatever goes wrong is a note:
    the run is done.
    """
    if not config.log.picture:
        return ""
    try:
        curves.require_matplotlib()
    except MissingPackageError as error:
        return f"no {run_directory.PICTURE}: {error}"
    metrics = directory / run_directory.METRICS
    try:
        if metrics.stat().st_size > _MOST_BYTES:
            logger.warning(
                "%s was not drawn, since the log is long; python -m gdtrain plot %s draws it",
                *(run_directory.PICTURE, directory),
            )
            return ""
        with _in_haste():
            (label,) = labels([directory])
            broken = broken_of(directory) if is_broken else None
            standardized = config.data.standardize_targets
            log = RunLog.of(label, read_metrics(metrics), config.loss.name, broken, standardized)
            if log.steps or log.epochs:
                picture = directory / run_directory.PICTURE
                curves.save(curves.picture([log]), picture)
                return f"drawn: {picture}"
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        logger.warning("%s was not drawn: %s", run_directory.PICTURE, message)
    return ""


@contextmanager
def _in_haste() -> Iterator[None]:
    """Import and draw without looking for garbage, a quarter of the time, and without remarks."""
    collecting, remarks = gc.isenabled(), logging.getLogger("matplotlib")
    level = remarks.level
    gc.disable()
    remarks.setLevel(logging.ERROR)  # such as that it builds its cache of fonts
    try:
        yield
    finally:
        remarks.setLevel(level)
        if collecting:
            gc.enable()


# ── summary.json ────────────────────────────────────────────────────────────────────────────


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, with null for numbers that are not finite."""
    text = json.dumps(finite(summary), indent=1) + "\n"
    disk.replace_file(directory / run_directory.SUMMARY, text.encode())


def summary_of(
    trainer: Trainer,
    status: str,
    baseline: dict[str, Any] | None = None,
    columns: Sequence[Column] | None = None,
    test: dict[str, float] | None = None,
    validation: dict[str, float] | None = None,
) -> dict[str, Any]:
    """How a run has ended, in numbers: the content of summary.json.

    status: ``done``, ``stopped`` (early), ``interrupted``, ``non_finite`` or ``failed``. baseline:
    loss and metrics of a constant prediction on the validation part. columns: of the table that was
    trained on, if it was one. test: loss and metrics on the test part, if there is one. validation:
    those on the validation part, where the last epoch's record has none.
    """
    record = trainer.history.epochs[-1] if trainer.history.epochs else {}
    recorded = {k.removeprefix("val_"): v for k, v in record.items() if k.startswith("val_")}
    return {
        "status": status,
        "reason": trainer.stop_reason,
        "epochs": trainer.progress.epoch,
        "steps": trainer.progress.step,
        "samples": trainer.progress.samples,
        "seconds": round(trainer.progress.seconds, 3),
        "train": {"loss": record["train_loss"]} if record else {},
        "validation": recorded if validation is None else validation,
        **({} if test is None else {"test": test}),
        **({} if baseline is None else {"baseline": baseline}),
        **({} if columns is None else {"columns": _counts(columns)}),
        "device": str(trainer.device),
        "engine": trainer.engine.name,
        "versions": {
            "gdtrain": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _counts(columns: Sequence[Column]) -> dict[str, int]:
    """How many columns of each kind a table has, and how many inputs they make."""
    kinds = [column.kind for column in columns]
    return {
        "numbers": kinds.count("number"),
        "dates": kinds.count("date"),
        "categories": kinds.count("category"),
        "inputs": sum(column.width for column in columns),
    }
