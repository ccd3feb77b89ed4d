"""The landscape command: rebuild the models of runs, and draw the loss that they descended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gdtrain.analysis.landscape import landscape
from gdtrain.analysis.monitors.trajectory import WeightPath
from gdtrain.checkpoint.expected_tensors import load_weights
from gdtrain.cli.runs.train_job import faults_placed, notices
from gdtrain.cli.trained.plot_job import bad_run, write
from gdtrain.config.build import build
from gdtrain.config.load import load_config
from gdtrain.config.schema import Config
from gdtrain.config.yaml_source import Document
from gdtrain.data.checks import whole_number
from gdtrain.errors import ConfigError, DataError, Fault
from gdtrain.output import run_directory
from gdtrain.output.plots import curves
from gdtrain.output.plots.curves import labels, loss_label
from gdtrain.training.trainer import Trainer

# What decides the loss as a function of the weights; the seed decides which samples are held out.
_MUST_MATCH = ("seed", "data", "model", "loss", "precision")


@dataclass
class LandscapeJob:
    """One run of the landscape command.

    runs: directories. out: the picture; landscape.png in the first of them if left out.
    resolution: points on each side of the slice.
    """

    runs: Sequence[Path]
    out: Path | None
    resolution: int

    def run(self) -> int:
        """Draw and write; return the exit code. Raises ConfigError before anything is written."""
        curves.require_matplotlib()
        whole_number("resolution", self.resolution, minimum=2)
        config, document, paths = self._read()
        out = self.out or self.runs[0] / "landscape.png"
        curves.check_out(out)
        with faults_placed(document), notices():
            trainer = build(config.model_copy(update={"monitors": None})).trainer
        self._take_buffers(trainer)
        try:
            with notices():
                hill = landscape(trainer, paths, labels(self.runs), resolution=self.resolution)
        except DataError as error:
            raise bad_run(str(error)) from error
        label = loss_label(config.loss.name, config.data.standardize_targets)
        write(hill.draw(f"full loss: {label}"), out)
        return 0

    def _read(self) -> tuple[Config, Document, list[WeightPath]]:
        """The first run's configuration, and the trajectories of all."""
        faults: list[Fault] = []
        paths, held = [], []
        for directory in self.runs:
            try:
                path = directory / run_directory.TRAJECTORY
                if not path.exists():
                    train = "; train with monitors=trajectory, and to the end"
                    near = run_directory.newest_inside(directory) or train
                    if not directory.is_dir():
                        raise DataError(run_directory.no_run(directory, ""))
                    raise DataError(f"{directory} has no {path.name}{near}")
                paths.append(WeightPath.load(path))
                held.append(load_config(directory / run_directory.CONFIG))
                self._compare(held[0][0], held[-1][0], directory)
            except (DataError, ValueError) as error:
                if isinstance(error, ConfigError):
                    raise
                faults += bad_run(str(error)).faults
        if faults:
            raise ConfigError(faults)
        return *held[0], paths

    def _compare(self, first: Config, other: Config, directory: Path) -> None:
        held, theirs = first.model_dump(), other.model_dump()
        differing = [key for key in _MUST_MATCH if held[key] != theirs[key]]
        if differing:
            raise DataError(
                f"{directory} differs from {self.runs[0]} in {', '.join(differing)}, so that its "
                "loss is not the same function of the weights; give runs that agree in these"
            )

    def _take_buffers(self, trainer: Trainer) -> None:
        """The first run's last weights: for what is no parameter, such as running statistics."""
        weights = self.runs[0] / run_directory.WEIGHTS
        if weights.is_file():
            load_weights(trainer.model, weights)
        elif any(True for _ in trainer.model.buffers()):
            raise bad_run(f"{self.runs[0]} has not finished, and its model's buffers are not there")
