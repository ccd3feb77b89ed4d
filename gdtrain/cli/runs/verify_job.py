"""The verify command: on this configuration's model, loss and data, is it what PyTorch gives."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TextIO

from gdtrain.analysis.verify.gradients import verify
from gdtrain.analysis.verify.side_by_side import SideBySide, side_by_side
from gdtrain.cli.runs.train_job import faults_placed, notices
from gdtrain.config.build import build, stage
from gdtrain.config.schema import Config
from gdtrain.config.yaml_source import Document
from gdtrain.data.batch import Batch, Plan
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.streams.stream import StreamPlan
from gdtrain.output.run_directory import finite
from gdtrain.output.terminal import printable

EXIT_BROKEN = 1


@dataclass
class VerifyJob:
    """One run of the verify command; it writes nothing.

    document: where each setting stands, for messages. num_samples: how many to compare on, or
    all of them if there are fewer. num_updates: how many to compare with a plain loop. results:
    where what was found goes as JSON, if that is asked for.
    """

    config: Config
    document: Document
    num_samples: int
    num_updates: int
    results: TextIO | None = None

    def run(self) -> int:
        """Print what both comparisons found; return 0 if everything holds, else 1."""
        with faults_placed(self.document), notices():
            run = build(self.config)
            with stage(""):
                report = verify(run.trainer, first_samples(run.loader, self.num_samples))
        if self.results is None:
            print(printable(str(report)))
        del run
        compared = self._side_by_side() if self.num_updates else None
        holds = report.holds and (compared is None or compared.holds)
        if self.results is not None:
            of_loop = None if compared is None else asdict(compared)
            found = {"holds": holds, "gradient": asdict(report), "plain_loop": of_loop}
            print(json.dumps(finite(found)), file=self.results)
        elif compared is not None:
            print(printable(f"\n{compared}"))
        return 0 if holds else EXIT_BROKEN

    def _side_by_side(self) -> SideBySide:
        with faults_placed(self.document):
            return side_by_side(
                lambda: build(self.config).trainer, self.num_updates, self.config.epochs
            )


def first_samples(loader: Loader, count: int) -> Batch:
    """The first samples of the first epoch, or of a stream, at most ``count``, as they come."""
    plan = loader.plan(0)
    if isinstance(plan, StreamPlan):
        return next(replace(plan, batch_size=count, drop_last=False).each_batch())
    rows = plan.take(0, min(count, plan.num_samples))
    return next(loader.samples.read(Plan(0, len(rows), len(rows), rows)))
