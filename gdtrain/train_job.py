"""The train command: build, train, and leave a run's results behind."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gdtrain.checkpoint.checkpoints import Checkpoints
from gdtrain.checkpoint.format import write_tensors
from gdtrain.checkpoint.store import CheckpointStore
from gdtrain.config.build import Run, build, stage
from gdtrain.config.document import Document, key_path
from gdtrain.config.load import check, dump, load_config
from gdtrain.config.schema import Config
from gdtrain.config.yaml_source import read_text
from gdtrain.data.batch import Batch, Block
from gdtrain.data.lazy_batch import LazyBatch
from gdtrain.errors import CheckpointError, ConfigError, NonFiniteError
from gdtrain.monitoring import run_directory
from gdtrain.monitoring.console import Console
from gdtrain.monitoring.metrics_log import MetricsLog
from gdtrain.training import diagnosis, distributed, evaluation, state
from gdtrain.training.callbacks import Callback
from gdtrain.training.distributed import World
from gdtrain.training.microbatches import UNMEASURED_SIZE
from gdtrain.training.signals import on_signal

EXIT_NON_FINITE = 3

# What must be the same for a resumed run to end with the bits of one that was left alone.
_MUST_MATCH = (
    *("seed", "data", "model", "loss", "loader", "optimizer", "scheduler"),
    *("clip_grad_norm", "clip_grad_value", "microbatch_size", "memory_limit", "accumulate_in"),
    *("microbatch_allow", "precision", "early_stopping"),
    "trainer",
)


# What of a data source only decides how the run goes on from here.
_MAY_DIFFER = {"stream": ("follow", "on_bad_line", "window")}


@dataclass
class TrainJob:
    """One run of the train command.

    document: where each setting stands, for messages. name: of the configuration, for the
    default output directory.
    """

    config: Config
    document: Document
    name: str
    output_dir: Path | None = None
    resume: bool = False

    def run(self) -> int:
        """Train and write everything, rank 0 for all ranks; return the exit code."""
        world = distributed.join(self.config.device, self.config.process_timeout)
        code = self._train(world)
        distributed.leave()
        return code

    def _train(self, world: World) -> int:
        with faults_placed(self.document), notices():
            run = build(self.config)
            self._check_first_batch(run)
        trainer, leads = run.trainer, world.rank == 0
        directory = self._directory() if leads or self.resume else None
        console = Console()
        trainer.callbacks += self._watchers(directory if leads else None, console)
        self._start(run, directory, leads)
        signals: list[int] = []

        def stop(signum: int) -> None:
            signals.append(signum)
            trainer.stop(signal.Signals(signum).name)

        status = "failed"
        try:
            with notices(), on_signal([signal.SIGINT, signal.SIGTERM], stop):
                trainer.fit(self.config.epochs)
            interrupted = max(max(seen) for seen in world.gather([*signals[:1], 0][:1]))
            status = "interrupted" if interrupted else "stopped" if trainer.should_stop else "done"
        except NonFiniteError as error:
            status = "non_finite"
            if leads:
                print(f"gdtrain: {error}", file=sys.stderr)
        finally:
            console.close()
            if leads and directory is not None:
                summary = run_directory.write_summary(directory, trainer, status)
        if status == "non_finite":
            return EXIT_NON_FINITE
        if interrupted and leads:
            print(f"interrupted; go on with --output-dir {directory} --resume", file=sys.stderr)
        if interrupted:
            return 128 + interrupted
        weights = state.weights(trainer)
        if leads and directory is not None:
            write_tensors(directory / run_directory.WEIGHTS, weights)
            print(_closing_line(summary, directory), file=sys.stderr)
        return 0

    def dry_run(self) -> int:
        """Build everything, make one update, evaluate one validation batch, write nothing."""
        with faults_placed(self.document), notices():
            run = build(self.config)
            self._check_first_batch(run)
        trainer, plan = run.trainer, run.loader.plan(0)
        with faults_placed(self.document), stage("data"):  # of a stream, it may come only now
            batch = next(trainer.read(run.loader, plan))
        block = Block(plan, 0, 1, [batch])
        with faults_placed(self.document), stage(""):
            losses = trainer.engine.run(block)
        if not len(losses):
            print(f"gdtrain: {diagnosis.non_finite(trainer, block, 0)}", file=sys.stderr)
            return EXIT_NON_FINITE
        said = f"one update of {len(batch)} samples: loss {float(losses[0]):.4g}"
        if run.validation is not None:
            batch = _first_part(next(trainer.read(run.validation)))
            with torch.no_grad(), evaluation.preserved(trainer.model, trainer.device):
                trainer.model.eval()
                loss, _ = trainer.loss_and_output(batch)
            said += f"; one validation batch of {len(batch)}: loss {float(loss):.4g}"
        parameters = sum(p.numel() for p in trainer.model.parameters())
        print(f"dry run on {trainer.device}: {parameters:,} parameters; {said}; nothing written")
        return 0

    def _check_first_batch(self, run: Run) -> None:
        """Find what does not fit before anything is written: forward passes, then undone.

        Of the first batch of the first epoch and of its last one, which may be shorter; of a
        stream, of the first one if it is there.
        """
        trainer, plan = run.trainer, run.loader.plan(0)
        with stage("data"):
            numbers = plan.ends()
        with stage(""), torch.no_grad(), evaluation.preserved(trainer.model, trainer.device):
            for number in numbers:
                trainer.batch_loss(_first_part(next(trainer.read(run.loader, plan, number))))

    def _directory(self) -> Path:
        choose = run_directory.latest_directory if self.resume else run_directory.new_directory
        return choose(self.output_dir, self.name)

    def _watchers(self, directory: Path | None, console: Console) -> list[Callback]:
        """What logs, saves and shows: on rank 0, but for checkpoints, which take all ranks."""
        section = self.config.checkpoint
        checkpoints = Checkpoints(
            CheckpointStore((directory or Path()) / run_directory.CHECKPOINTS, section.keep_last),
            every_n_steps=section.every_n_steps,
            every_n_epochs=section.every_n_epochs,
            every_seconds=section.every_seconds,
        )
        if directory is None:
            return [checkpoints]
        log = MetricsLog(directory / run_directory.METRICS, self.config.log.every_n_steps)
        return [log, checkpoints, console]

    def _start(self, run: Run, directory: Path | None, leads: bool) -> None:
        """Take up the run that is to go on, and write what is known before training."""
        if self.resume:
            assert directory is not None
            self._take_up(run, directory, leads)
        if not leads or directory is None:
            return
        run_directory.write_text(directory / run_directory.CONFIG, dump(self.config))
        run.preprocessing.save(directory / run_directory.PREPROCESSING)
        processes = run.trainer.world.size
        print(
            f"training on {run.trainer.device}"
            + (f" in {processes} processes" if processes > 1 else "")
            + f", {run.loader.extent}; "
            f"results go to {directory}",
            file=sys.stderr,
        )

    def _take_up(self, run: Run, directory: Path, leads: bool) -> None:
        """Put the trainer into the state of the newest checkpoint that can be used."""
        self._check_same_run(directory)
        store = CheckpointStore(directory / run_directory.CHECKPOINTS)
        path, kept, skipped = store.load_newest()
        try:
            run.trainer.load_state_dict(kept)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: is not of this model; {reason}") from error
        if leads:
            for reason in skipped:
                print(f"skipped a checkpoint: {reason}", file=sys.stderr)
            print(f"going on from {path}", file=sys.stderr)

    def _check_same_run(self, directory: Path) -> None:
        there = load_config(directory / run_directory.CONFIG)[0].model_dump()
        # As it will be read the next time: a tuple among a registered model's options is a list.
        here = check(read_text(dump(self.config), "")).model_dump()
        for settings in (there, here):
            for key in _MAY_DIFFER.get(settings["data"]["source"], ()):
                del settings["data"][key]
        # Only a cosine schedule depends on how many epochs there are in all.
        decisive = (*_MUST_MATCH, "epochs") if _is_cosine(self.config) else _MUST_MATCH
        differing = [
            f"{key}: the run has {there[key]}, this configuration {here[key]}"
            for key in decisive
            if there[key] != here[key]
        ]
        if differing:
            raise CheckpointError(
                f"{directory} is a run with other settings, so it can't be resumed; "
                + "; ".join(differing)
            )


def _first_part(batch: Batch) -> Batch:
    """Of a batch that is read as it is used, as much as may be in memory; else all of it."""
    return next(batch.split(UNMEASURED_SIZE)) if isinstance(batch, LazyBatch) else batch


def _is_cosine(config: Config) -> bool:
    return config.scheduler is not None and config.scheduler.name == "cosine"


@contextmanager
def faults_placed(document: Document) -> Iterator[None]:
    """Give the faults that building found their places in the configuration."""
    try:
        yield
    except ConfigError as error:
        placed = [document.fault(key_path(f.key), f.message) for f in error.faults]
        raise ConfigError(placed) from error


@contextmanager
def notices() -> Iterator[None]:
    """Show what the library has to say about the settings, once and in one line each."""
    leads = os.environ.get("RANK", "0") == "0"  # of processes started by torchrun
    handler = logging.StreamHandler(sys.stderr) if leads else logging.NullHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    logger = logging.getLogger("gdtrain")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _closing_line(summary: dict[str, Any], directory: Path) -> str:
    shown = [f"train_loss {summary['train']['loss']:.4g}"] if summary["train"] else []
    for name, value in summary["validation"].items():
        shown.append(f"val_{name} {value:.2%}" if name == "accuracy" else f"val_{name} {value:.4g}")
    ended = summary["status"] if summary["reason"] is None else f"stopped ({summary['reason']})"
    return (
        f"{ended}: {summary['epochs']} epochs, {summary['steps']:,} updates in "
        f"{summary['seconds']:.1f} s; {', '.join(shown)}; see {directory}"
    )
