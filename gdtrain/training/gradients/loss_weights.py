"""What a run's losses are divided by: of a batch, of its parts, and of the updates of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.batch import Batch, Block, Plan
from gdtrain.data.samples import Samples
from gdtrain.training.losses.known_means import OVER_SAMPLES, MeanOfTargets, mean_of, of_torch
from gdtrain.training.losses.of_model import LossOfModel
from gdtrain.training.run import Run


@dataclass(eq=False)
class StepWeights:
    """What the loss of each update's batch counts for in the mean over an epoch.

    Nothing is looked up that is known: where all samples count alike, it is their number.

    computed: that of the update's first gradient, where computing that has found it out. Further
    ones, such as the full gradient of SVRG, may be of other batches. is_noted: whether there was
    one.
    """

    trainer: Run
    computed: float | Tensor | None = None
    is_noted: bool = False
    # The targets that were looked at, at which version and for which label; and the answer.
    _targets: Tensor | None = None
    _at: tuple[int, int] | None = None
    _none_ignored: bool = False

    def note(self, weight: float | Tensor | None) -> None:
        """Take what the loss of a gradient is divided by, if that is the first of the update."""
        if not self.is_noted:
            self.computed, self.is_noted = weight, True

    def of(self, batch: Batch, size: int) -> float | Tensor:
        """For a batch of the trainer's loader, of which ``size`` samples are on all processes."""
        trainer = self.trainer
        if trainer.has_own_weight:
            return trainer.loss_weight(batch)
        if trainer.loss is None or type(trainer.loss) in OVER_SAMPLES:
            return size
        mean = mean_of(trainer.loss, batch)
        if not isinstance(mean, MeanOfTargets):
            return size
        return size * batch.targets[0].numel() if self._counts_all(mean) else mean.weight(batch)

    def planned(self, block: Block) -> list[Any]:
        """For each batch of a block whose updates were made at once; empty if it is the samples."""
        trainer = self.trainer
        assert trainer.loader is not None
        if trainer.has_own_weight:
            return [trainer.loss_weight(batch) for batch in _batches(trainer, block)]
        samples = trainer.loader.samples
        mean, targets = mean_of(trainer.loss, samples), samples.targets
        if targets is None or not isinstance(mean, MeanOfTargets) or self._counts_all(mean):
            return []
        if targets.is_floating_point():
            return []
        counts = mean.each(targets)
        return [
            part.sum()
            for plan, start, stop in _epochs(trainer, block)
            for part in torch.split(
                counts[_places(plan, start, stop).to(targets.device)], plan.batch_sizes(start, stop)
            )
        ]

    def _counts_all(self, mean: MeanOfTargets) -> bool:
        """Whether no target of the data set is left out, nor weighted, as they are now."""
        loader = self.trainer.loader
        targets = None if loader is None else loader.samples.targets
        if targets is None or mean.weights is not None:
            return False
        now = (targets._version, mean.ignore_index)
        if self._targets is not targets or self._at != now:
            self._targets, self._at = targets, now
            ignores = not targets.is_floating_point() and bool((targets == mean.ignore_index).any())
            self._none_ignored = not ignores
        return self._none_ignored


def _epochs(trainer: Run, block: Block) -> Iterator[tuple[Plan, int, int]]:
    """Of each epoch that a block has batches of, its plan, the first batch and the one after."""
    plan, start, stop, loader = block.plan, block.start, block.stop, trainer.loader
    while plan.num_batches is not None and stop > plan.num_batches:
        yield plan, start, plan.num_batches
        start, stop = 0, stop - plan.num_batches
        assert loader is not None
        plan = loader.plan(plan.epoch + 1)
    yield plan, start, stop


def _batches(trainer: Run, block: Block) -> Iterator[Batch]:
    assert trainer.loader is not None
    for plan, start, stop in _epochs(trainer, block):
        yield from islice(trainer.read(trainer.loader, plan, start), stop - start)


def _places(plan: Plan, start: int, stop: int) -> Tensor:
    """The samples of the batches ``start`` … ``stop - 1``."""
    first = plan.first_draw(start)
    return plan.take(first, first + sum(plan.batch_sizes(start, stop)))


def has_own_loss(trainer: Run) -> bool:
    """Whether the trainer's loss is more than ``loss(model(inputs), targets)``."""
    return trainer.has_own("compute_loss", "batch_loss") or isinstance(trainer.loss, LossOfModel)


def says_weight(trainer: Run) -> bool:
    """Whether somebody's own ``loss_weight`` says what a batch's loss is divided by."""
    return trainer.has_own_weight


def weight_of(trainer: Run, batch: Batch) -> float:
    """What the batch's loss is divided by, so that parts of a batch can be weighted."""
    return float(trainer.loss_weight(batch))


def weights_of(trainer: Run, parts: Sequence[Batch]) -> list[float]:
    """Those of parts whose losses come later, which don't see what an own ``loss_weight`` writes.

    Nor do the data; a part that is read when it is touched is read again for its loss.
    """
    own = says_weight(trainer)
    return [weight_of(trainer, p.copy() if own and not p.is_lazy else p) for p in parts]


def adds_up(trainer: Run) -> bool:
    """Whether the loss is a sum over samples, known to be one, whose parts simply add."""
    if trainer.loss is None or getattr(trainer.loss, "reduction", None) == "mean":  # as mostly
        return False
    if trainer.has_own_weight or has_own_loss(trainer):  # which is a mean, as far as is known
        return False
    known = of_torch(trainer.loss)
    return known is not None and known.setting("reduction", "mean") == "sum"


def has_known_mean(trainer: Run, data: Batch | Samples) -> bool:
    """Whether it is known what the loss is divided by, so that parts give that of the whole."""
    if says_weight(trainer):
        return True
    return not has_own_loss(trainer) and mean_of(trainer.loss, data) is not None


def in_two_passes(trainer: Run, data: Batch | Samples) -> bool:
    """Whether it takes the outputs of a whole batch, or data set, to know its loss."""
    if has_own_loss(trainer) or says_weight(trainer):
        return False
    return mean_of(trainer.loss, data) is None
