"""The plot command: from the directories of runs to one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gdtrain.config.yaml_source import read_file
from gdtrain.data.checks import whole_number
from gdtrain.errors import ConfigError, DataError, Fault
from gdtrain.output.plots import curves
from gdtrain.output.plots.curves import RunLog, labels
from gdtrain.output.run_directory import (
    CONFIG,
    METRICS,
    broken_of,
    newest_inside,
    no_run,
    read_metrics,
)
from gdtrain.output.terminal import say

if TYPE_CHECKING:
    from gdtrain.output.plots.picture import Picture


@dataclass
class PlotJob:
    """One run of the plot command.

    runs: directories. out: the picture; in the first of them if left out. axis, metrics, smooth:
    as :func:`curves.picture` has them.
    """

    runs: Sequence[Path]
    out: Path | None = None
    axis: str | None = None
    metrics: Sequence[str] = field(default_factory=list)
    smooth: int | None = None

    def run(self) -> int:
        """Draw and write; return the exit code. Raises ConfigError before anything is written."""
        curves.require_matplotlib()
        if self.smooth is not None:
            whole_number("smooth", self.smooth, minimum=1)
            if self.metrics:
                message = "has no effect with --metric, which is drawn as it was recorded"
                raise ConfigError.of("smooth", message)
        logs = read_runs(self.runs)
        try:
            figure = curves.picture(logs, axis=self.axis, metrics=self.metrics, smooth=self.smooth)
        except DataError as error:
            raise bad_run(str(error)) from error
        write(figure, self.out or self.runs[0] / self._name())
        return 0

    def _name(self) -> str:
        if self.metrics:
            kept = (c if c.isalnum() or c in "_-" else "_" for c in "-".join(self.metrics))
            return "".join(kept)[:100] + ".png"
        return "loss.png" if len(self.runs) == 1 else "losses.png"


def write(figure: Picture, out: Path) -> None:
    """Write a picture and say where. Raises ConfigError of ``out`` if that can't be done."""
    try:
        curves.save(figure, out)
    except OSError as error:
        message = f"{out} can't be written: {error.strerror}; choose another file"
        raise ConfigError.of("out", message) from error
    say(f"drawn: {out}")


def read_runs(directories: Sequence[Path]) -> list[RunLog]:
    """What each run has recorded so far. Raises ConfigError for those that are no runs."""
    faults: list[Fault] = []
    logs = []
    for directory, label in zip(directories, labels(directories), strict=True):
        path = directory / METRICS
        try:
            if path.exists() and not path.is_file():  # a pipe would make us wait
                raise DataError("no regular file")
            records = read_metrics(path)
            loss, standardized = loss_of(directory)
            logs.append(RunLog.of(label, records, loss, broken_of(directory), standardized))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            near = newest_inside(directory) or "; give the directory of a run"
            message = f"{directory} holds no run: {METRICS}: {reason}{near}"
            if not directory.is_dir():
                message = no_run(directory, "")
            faults += bad_run(message).faults
    if faults:
        raise ConfigError(faults)
    return logs


def bad_run(message: str) -> ConfigError:
    """The error of a run that can't be used."""
    return ConfigError([Fault("RUN", message, "command line")])


def loss_of(directory: Path) -> tuple[str | None, bool]:
    """The name of the run's loss, None if it can't be read; whether targets are standardised."""
    try:
        settings = read_file(directory / CONFIG).data
    except ConfigError:
        return None, False
    section, data = settings.get("loss"), settings.get("data")
    name = section.get("name") if isinstance(section, dict) else section
    standardized = isinstance(data, dict) and data.get("standardize_targets") is True
    return name if isinstance(name, str) else None, standardized
