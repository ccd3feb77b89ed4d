"""The verify command: on this configuration's model, loss and data, is it what PyTorch gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gdtrain.analysis.verify.gradients import verify
from gdtrain.analysis.verify.side_by_side import side_by_side
from gdtrain.cli.jobs.train import faults_placed, notices
from gdtrain.config.build import build, stage
from gdtrain.config.places import Document
from gdtrain.config.schema import Config
from gdtrain.data.batch import Batch, Plan
from gdtrain.data.loaders.loader import Loader
from gdtrain.data.streams.stream import StreamPlan
from gdtrain.output.terminal import printable

EXIT_BROKEN = 1


@dataclass
class VerifyJob:
    """One run of the verify command; it writes nothing.

    document: where each setting stands, for messages. num_samples: how many to compare on, or
    all of them if there are fewer. num_updates: how many to compare with a plain loop.
    """

    config: Config
    document: Document
    num_samples: int
    num_updates: int

    def run(self) -> int:
        """Print what both comparisons found; return 0 if everything holds, else 1."""
        with faults_placed(self.document), notices():
            run = build(self.config)
            with stage(""):
                report = verify(run.trainer, first_samples(run.loader, self.num_samples))
        print(printable(str(report)))
        if not self.num_updates:
            return 0 if report.holds else EXIT_BROKEN
        del run
        with faults_placed(self.document):
            compared = side_by_side(
                lambda: build(self.config).trainer, self.num_updates, self.config.epochs
            )
        print(printable(f"\n{compared}"))
        return 0 if report.holds and compared.holds else EXIT_BROKEN


def first_samples(loader: Loader, count: int) -> Batch:
    """The first samples of the first epoch, or of a stream, at most ``count``, as they come."""
    plan = loader.plan(0)
    if isinstance(plan, StreamPlan):
        return next(replace(plan, batch_size=count, drop_last=False).each_batch())
    rows = plan.take(0, min(count, plan.num_samples))
    return next(loader.samples.read(Plan(0, len(rows), len(rows), rows)))
