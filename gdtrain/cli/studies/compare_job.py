"""The compare command: build the forms, measure them, and leave the report behind."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from gdtrain.analysis.comparison.compare import compare
from gdtrain.analysis.comparison.recorder import FOREVER, Budget, Unit
from gdtrain.analysis.comparison.result import REPORT, Comparison
from gdtrain.cli.runs.train_job import faults_placed, notices
from gdtrain.config.build import BuiltRun, build
from gdtrain.config.comparison import FormConfig
from gdtrain.config.load import dump
from gdtrain.config.schema import Config
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError, Fault, OutputError
from gdtrain.output import run_directory
from gdtrain.output.terminal import printable, say
from gdtrain.settings import Settings
from gdtrain.training.callbacks.validation import Validation
from gdtrain.training.safety.signals import SignalDesk
from gdtrain.training.trainer import Trainer
from gdtrain.wording import counted


@dataclass
class CompareJob:
    """One run of the compare command.

    budget: unit -> amount, one of them given, or none for the configurations' epochs.
    signals: takes them from the start of the program on. seeds: how many, from the
    configuration's on; None for one run of each form. quiet: say nothing but
    what went wrong. results: where the comparison goes as JSON, if that is asked for.
    """

    forms: list[FormConfig]
    budget: dict[str, float | None]
    target_loss: float | None
    lr_grid: Sequence[float]
    looks: int
    theory: bool
    signals: SignalDesk
    seeds: int | None = None
    output_dir: Path | None = None
    quiet: bool = False
    results: TextIO | None = None
    _progress: _Progress = field(default_factory=lambda: _Progress())

    def run(self) -> int:
        """Measure every form and write everything; return the exit code."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            message = "compare measures one process; start it without torchrun"
            raise ConfigError([Fault("WORLD_SIZE", message, "environment")])
        budget = self._budget()
        with notices(self.quiet):
            runs = [self._build(form, budget) for form in self.forms]  # before anything is written
            validation = runs[0].validation
            of_seed = self._validation if self.seeds is not None and validation else validation
            directory = self._directory()
            self._open(runs[0], budget, directory)
            del runs
            self.signals.watch(lambda _: None, lambda: None)  # looked at between blocks
            comparison = self._compare(budget, of_seed)
        self._progress.close()
        comparison.result |= self._origin()
        comparison.save(directory)
        if self.results is not None:
            found = {"directory": str(directory)} | comparison.result
            print(json.dumps(found, allow_nan=False), file=self.results)
        elif not self.quiet:
            print(printable(str(comparison)))
        self._tell(f"look at {directory / REPORT}")
        if comparison.interrupted:
            say("interrupted; what was done is written")
            return 128 + self.signals.stopped_by
        return 0

    def _tell(self, line: str) -> None:
        """Say what goes on, unless nobody wants to know."""
        if not self.quiet:
            self._progress.tell(line)

    def _validation(self, seed: int) -> Loader:
        """The validation part of a seed, which splits the data too."""
        config = self.forms[0].config.model_copy(update={"seed": seed, "monitors": None})
        found = build(config).validation
        assert found is not None
        return found

    def _compare(
        self, budget: Budget, validation: Loader | Callable[[int], Loader] | None
    ) -> Comparison:
        makers: dict[str, Callable[..., Trainer]] = {
            form.name: partial(self._trainer, form, budget=budget) for form in self.forms
        }
        given: dict[str, Any] = {budget.unit: budget.amount}
        first = self.forms[0].config.seed
        seeds = None if self.seeds is None else range(first, first + self.seeds)
        return compare(
            makers,
            **given,
            target_loss=self.target_loss,
            lr_grid=self.lr_grid,
            looks=self.looks,
            theory=self.theory,
            seeds=seeds,
            validation=validation,
            should_stop=lambda: bool(self.signals.stopped_by),
            tell=self._tell,
            on_look=(lambda *_: None) if self.quiet else self._progress.show,
        )

    def _budget(self) -> Budget:
        """The budget. Raises ConfigError if the configurations' own ones differ."""
        units: tuple[Unit, ...] = ("epochs", "samples", "updates", "seconds")
        for unit in units:
            amount = self.budget[unit]
            if amount is not None:
                return Budget(unit, amount)
        first = self.forms[0]
        faults = [
            form.document.fault(
                ("epochs",),
                f"must be {first.config.epochs} as in {first.document.path}, got "
                f"{form.config.epochs}; or give all the same budget, such as --epochs 20",
            )
            for form in self.forms
            if form.config.epochs != first.config.epochs
        ]
        if faults:
            raise ConfigError(faults)
        return Budget("epochs", first.config.epochs)

    def _trainer(
        self,
        form: FormConfig,
        *,
        budget: Budget,
        lr: float | None = None,
        seed: int | None = None,
    ) -> Trainer:
        trainer = self._build(form, budget, lr, seed).trainer
        # Looks evaluate the validation part too; more often would only take longer.
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, Validation)]
        return trainer

    def _build(
        self, form: FormConfig, budget: Budget, lr: float | None = None, seed: int | None = None
    ) -> BuiltRun:
        """A form's objects, its schedule as long as the budget, if that is known."""
        config = form.config.model_copy(update={"early_stopping": None, "monitors": None})
        if seed is not None:
            config = config.model_copy(update={"seed": seed})
        if lr is not None:
            assert isinstance(config.optimizer, Settings)
            rate = config.optimizer.model_copy(update={"lr": lr})
            config = config.model_copy(update={"optimizer": rate})
        with faults_placed(form.document):
            run = build(config)
            epochs = budget.epochs(run.loader)
            if epochs not in (config.epochs, FOREVER) and config.scheduler is not None:
                run = build(config.model_copy(update={"epochs": epochs}))
        return run

    def _directory(self) -> Path:
        """A new directory for the results. Raises OutputError if there can be none."""
        wanted = self.output_dir
        if wanted is not None and wanted.is_dir() and any(wanted.iterdir()):
            raise OutputError(f"{wanted} is not empty; choose another --output-dir")
        return run_directory.new_directory(wanted, "compare")

    def _open(self, run: BuiltRun, budget: Budget, directory: Path) -> None:
        names = ", ".join(form.name for form in self.forms)
        rates = f" at {len(self.lr_grid)} learning rates" if self.lr_grid else ""
        rates += f" with {counted(self.seeds, 'seed')}" if self.seeds is not None else ""
        self._tell(
            f"comparing {names} for {budget} each{rates}, on "
            f"{counted(run.loader.num_samples, 'sample')} and {run.trainer.device}; "
            f"results go to {directory}"
        )
        if budget.unit == "seconds" and any(form.config.scheduler for form in self.forms):
            self._tell(
                "note: schedules are those of the configured epochs, whatever the seconds allow"
            )

    def _origin(self) -> dict[str, Any]:
        """What to run to get this again."""
        return {
            "command": "python -m gdtrain " + shlex.join(sys.argv[1:]),
            "problem": _problem(self.forms[0].config),
            "configs": {form.name: dump(form.config) for form in self.forms},
        }


class _Progress:
    """Lines on standard error; on a terminal, below them, a bar for the form that is at work."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def show(self, name: str, spent: float) -> None:
        """Move the bar."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}"
            self._bar = tqdm(total=1.0, leave=False, dynamic_ncols=True, bar_format=form)
        self._bar.set_description(name, refresh=False)
        self._bar.n = spent
        self._bar.refresh()

    def tell(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self.close()
        say(line)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _problem(config: Config) -> dict[str, str]:
    """Data, model and loss in a few words."""
    model = " ".join(
        f"{key} {value}" for key, value in config.model if key != "name" and value is not None
    )
    return {
        "data": str(getattr(config.data, "source", "")),
        "model": f"{getattr(config.model, 'name', '')} ({model})" if model else config.model.name,
        "loss": str(getattr(config.loss, "name", "")),
    }
