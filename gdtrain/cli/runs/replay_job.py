"""The replay command: rebuild the state before one update of a run, and look at that update."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from gdtrain.analysis.monitors.monitor import Monitor
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.cli.runs.train_job import faults_placed, notices
from gdtrain.config.build import BuiltRun, build
from gdtrain.config.load import load_config
from gdtrain.data.batch import Block, Plan
from gdtrain.errors import CheckpointError, ConfigError, Fault, NonFiniteError
from gdtrain.output import run_directory
from gdtrain.output.run_directory import finite
from gdtrain.output.terminal import printable
from gdtrain.training.blocks import present_plan
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.safety import diagnosis
from gdtrain.training.safety.finite_guard import NotFinite
from gdtrain.training.state.keeper import as_in_fit, unchanged
from gdtrain.training.trainer import Trainer


@dataclass(frozen=True)
class Update:
    """One update of a run, looked at before it is made.

    step: its number, from 1, in all epochs. epoch: from 1. batch: its number in the epoch, from 1.
    rebuilt_from: the checkpoint, or None if the run was made again from its start; replayed: how
    many updates were made again. indices: of its samples. loss: the batch mean. lr: of the update.
    gradient_norm: the 2-norm of the gradient before clipping; gradient_norms: of each parameter.
    problem: what is not finite, in words, or None.
    """

    step: int
    epoch: int
    batch: int
    rebuilt_from: str | None
    replayed: int
    indices: list[int]
    loss: float
    lr: float
    gradient_norm: float
    gradient_norms: dict[str, float]
    problem: str | None


@dataclass
class ReplayJob:
    """One run of the replay command.

    directory: of the run. step: from 1. results: where the update goes as JSON, if asked for.
    """

    directory: Path
    step: int
    results: TextIO | None = None

    def run(self) -> int:
        """Rebuild, compute the update's gradient, print it; return the exit code."""
        update = self.update()
        if self.results is not None:
            print(json.dumps(finite(asdict(update))), file=self.results)
        else:
            print(printable(_described(update)))
        return 0

    def update(self) -> Update:
        """The update of step ``self.step``. Raises ConfigError if the run has no such step."""
        run_directory.latest_directory(self.directory, "", "give the directory of a run")
        config, document = load_config(self.directory / run_directory.CONFIG)
        with faults_placed(document), notices():
            run = build(config)
            source = self._rebuild(run)
        trainer = run.trainer
        # They look and change nothing, and would do so for a run of another length.
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, Monitor)]
        start = trainer.progress.step
        trainer.choice.settle(config.epochs)  # the engine of the whole run
        try:
            epoch = self._epoch(trainer, config.epochs)
            trainer.fit(epoch)  # all before it, so that what ends an epoch has been done
            if trainer.progress.step < self.step - 1:
                trainer.callbacks.append(_StopAfter(self.step - 1))
                trainer.fit(epoch + 1)
        except NonFiniteError as error:
            raise self._no_step(f"the run stopped before it: {error}") from error
        if trainer.progress.step != self.step - 1:
            raise self._no_step(f"the run ends with step {trainer.progress.step}")
        return self._look(trainer, source, trainer.progress.step - start)

    def _epoch(self, trainer: Trainer, epochs: int) -> int:
        """The epoch, from 0, in which the step falls."""
        assert trainer.loader is not None
        progress = trainer.progress
        epoch, last = progress.epoch, progress.step - progress.step_in_epoch
        while epoch < epochs:
            batches = trainer.loader.outline(epoch).num_batches
            if batches is None or self.step <= last + batches:
                return epoch
            epoch, last = epoch + 1, last + batches
        raise self._no_step(f"the run ends with step {last}")

    def _rebuild(self, run: BuiltRun) -> str | None:
        """Take up the nearest checkpoint before the step, if there is one; its name."""
        store = CheckpointStore(self.directory / run_directory.CHECKPOINTS)
        try:
            path, state, _ = store.load_newest(tensor_check(run.trainer), before=self.step)
        except CheckpointError:
            return None  # then from the start, which is the same bits
        state.pop("settings", None)
        run.trainer.load_state_dict(state)
        return path.name

    def _look(self, trainer: Trainer, source: str | None, replayed: int) -> Update:
        assert trainer.loader is not None
        epoch, number = trainer.progress.epoch, trainer.progress.step_in_epoch
        plan = present_plan(trainer)
        plan.seek(number, trainer.progress.position)
        batch = next(trainer.read(trainer.loader, plan, number))
        with unchanged(trainer):
            as_in_fit(trainer)
            loss = trainer.batch_gradient(batch)
            norms = {
                name: float(parameter.grad.norm())
                for name, parameter in trainer.model.named_parameters()
                if parameter.grad is not None
            }
            bad = not _is_finite(trainer, loss)
        return Update(
            step=self.step,
            epoch=epoch + 1,
            batch=number + 1,
            rebuilt_from=source,
            replayed=replayed,
            indices=batch.indices.tolist(),
            loss=float(loss),
            lr=trainer.updater.param_groups[0]["lr"],
            gradient_norm=math.hypot(*norms.values()),
            gradient_norms=norms,
            problem=_problem(trainer, plan, number) if bad else None,
        )

    def _no_step(self, reason: str) -> ConfigError:
        return ConfigError(
            [Fault("--step", f"{self.step} can't be replayed; {reason}", "command line")]
        )


class _StopAfter(Callback):
    """Ends a fit after exactly ``step`` updates."""

    def __init__(self, step: int) -> None:
        super().__init__(every_n_steps=step)
        self.step = step

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.step:
            trainer.stop("replayed")


def _is_finite(trainer: Trainer, loss: Any) -> bool:
    try:
        trainer.guard.check(loss)
    except NotFinite:
        return False
    return True


def _problem(trainer: Trainer, plan: Plan, number: int) -> str:
    return str(diagnosis.non_finite(trainer, Block(plan, number, number + 1, ()), 0))


def _described(update: Update) -> str:
    came = "the start of the run" if update.rebuilt_from is None else update.rebuilt_from
    lines = [
        f"step {update.step}: epoch {update.epoch}, batch {update.batch}; rebuilt from {came} and "
        f"{update.replayed} update{'' if update.replayed == 1 else 's'}",
        f"samples ({len(update.indices)}): {', '.join(map(str, update.indices))}",
        f"loss {update.loss:.9g}, lr {update.lr:.9g}",
        f"gradient norm {update.gradient_norm:.6g}, before clipping; by parameter:",
    ]
    width = max(map(len, update.gradient_norms), default=0)
    lines += [f"  {name:<{width}}  {norm:.6g}" for name, norm in update.gradient_norms.items()]
    if update.problem is not None:
        lines.append(update.problem)
    return "\n".join(lines)
