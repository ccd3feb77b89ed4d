"""The lr-range command: build what a configuration names, test, print and draw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from gdtrain.analysis.lr_range import LrRange, check_gradient, lr_range
from gdtrain.cli.runs.train_job import faults_placed, notices
from gdtrain.cli.trained.plot_job import write
from gdtrain.config.build import build, stage
from gdtrain.config.comparison import single_optimizer_faults
from gdtrain.config.schema import Config
from gdtrain.config.yaml_source import Document
from gdtrain.errors import ConfigError, MissingPackageError
from gdtrain.output.plots import curves
from gdtrain.output.plots.curves import loss_label
from gdtrain.output.run_directory import finite
from gdtrain.output.terminal import printable
from gdtrain.training.placement import distributed
from gdtrain.training.placement.distributed import World


@dataclass
class LrRangeJob:
    """One run of the lr-range command.

    document: where each setting stands, for messages. name: of the configuration. start, stop,
    updates, every, limit, epochs: as :func:`~gdtrain.analysis.lr_range.lr_range` has them. out: the
    picture; ``lr-range-<name>.png`` if left out and matplotlib is there. results: where what was
    found goes as JSON, if that is asked for.
    """

    config: Config
    document: Document
    name: str
    start: float
    stop: float
    updates: int
    every: int
    limit: bool
    epochs: int | None
    out: Path | None
    results: TextIO | None = None

    def run(self) -> int:
        """Test, print, draw; return the exit code. Nothing is written if anything is wrong."""
        out = self._checked_out()
        world = distributed.join(self.config.device, self.config.process_timeout)
        found = self._test(world)
        if world.rank == 0:
            if self.results is not None:
                print(json.dumps(finite(found.as_dict())), file=self.results)
            else:
                print(printable(str(found)))
            if out is not None:
                standardized = self.config.data.standardize_targets
                label = f"full loss: {loss_label(self.config.loss.name, standardized)}"
                write(found.draw(label, self.name), out)
        distributed.leave()
        return 0

    def _checked_out(self) -> Path | None:
        try:
            curves.require_matplotlib()
        except MissingPackageError:
            if self.out is None:
                return None
            raise
        out = self.out or Path(f"lr-range-{self.name}.png")
        curves.check_out(out)
        return out

    def _test(self, world: World) -> LrRange:
        if self.config.data.source == "stream":
            raise ConfigError([self.document.fault(("data",), _NO_STREAM)])
        if faults := single_optimizer_faults(self.config, self.document):
            raise ConfigError(faults)
        with faults_placed(self.document), notices():
            trainer = build(self.config.model_copy(update={"monitors": None})).trainer
            with stage(""):
                check_gradient(trainer)
        shown = None if world.rank == 0 else True
        with notices(), tqdm(total=self.updates, unit="update", leave=False, disable=shown) as bar:
            try:
                return lr_range(
                    trainer,
                    start=self.start,
                    stop=self.stop,
                    updates=self.updates,
                    every=self.every,
                    limit=self.limit,
                    epochs=self.epochs,
                    advance=bar.update,
                )
            finally:
                bar.close()


_NO_STREAM = (
    "a stream's samples are read once, and the test looks at all of them again; give a data "
    "set, such as source: csv"
)
