"""The exact gradient of a batch, whole, in microbatches of a memory's size, and over all ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch
from gdtrain.errors import DataError
from gdtrain.training.descent import zero_gradients
from gdtrain.training.distributed import GradientExchange, World
from gdtrain.training.gradient import (
    Accumulator,
    batch_gradient,
    check_separable,
    is_sum,
    normaliser,
    share_gradient,
)
from gdtrain.training.keeper import unchanged
from gdtrain.training.microbatches import MicrobatchSize
from gdtrain.training.sharding import is_sharded

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


logger = logging.getLogger("gdtrain")


class ExactGradient:
    """Sets ``.grad`` of what a trainer trains to the gradient of a batch's mean loss.

    microbatches: how a rank's share of a batch is cut. allowed: names of layers that mix
    samples and may be given parts of a batch. in_float64: add the parts' gradients up in float64.
    """

    def __init__(
        self,
        trainer: Trainer,
        microbatches: MicrobatchSize,
        allowed: Sequence[str],
        in_float64: bool,
    ) -> None:
        self.trainer = trainer
        self.microbatches = microbatches
        self.allowed = tuple(allowed)
        self.world = World.current()
        trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        self._accumulator = Accumulator(trained) if in_float64 else None
        self._sharded = is_sharded(trainer.model)
        self._told = False
        replicated = self.world.size > 1 and not self._sharded
        self._exchange = GradientExchange(trained, self.world) if replicated else None

    def check_separable(self) -> None:
        """Raise ModelError if batches are cut although a layer mixes their samples."""
        if self.microbatches or self.world.size > 1:
            cut_by = "microbatch_size" if self.microbatches else "several processes"
            check_separable(self.trainer.model, self.allowed, cut_by)
            self._tell_of_dropout(cut_by)

    def _tell_of_dropout(self, cut_by: str) -> None:
        dropping = (
            isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0
            for layer in self.trainer.model.modules()
        )
        if not self._told and any(dropping):
            logger.warning(
                "%s: dropout draws its masks for each part of a batch: "
                "as good a draw as that of the whole batch, but another one",
                cut_by,
            )
            self._told = True

    def compute(self, batch: Batch) -> Tensor:
        """Set ``.grad``; return the loss of the whole batch, shape [], detached.

        batch: this rank's share, which may be empty if there are several.
        """
        if not self.microbatches:
            return self._compute(batch)

        def measured(part: Batch) -> None:
            with unchanged(self.trainer):
                self.trainer.batch_loss(part)

        return self.microbatches.run(lambda: self._compute(batch), measured, batch)

    def _compute(self, batch: Batch) -> Tensor:
        """From a clean start, so that it can be repeated when memory ran out."""
        trainer, size = self.trainer, self.microbatches.size
        zero_gradients(trainer.optimizer)
        if trainer.outputs:
            trainer.outputs.clear()
        if self._sharded:
            return self._of_shards(batch, size)
        if self._exchange is None:
            return batch_gradient(trainer.batch_loss, batch, trainer.loss, size, self._accumulator)
        loss_sum, weight = share_gradient(
            trainer.batch_loss, batch, trainer.loss, size, self._accumulator
        )
        return self._exchange.run(loss_sum, weight, divide=not is_sum(trainer.loss))

    def _of_shards(self, batch: Batch, size: int | None) -> Tensor:
        """As above where FSDP adds the gradients up: it takes their mean over the ranks."""
        trainer, world = self.trainer, self.world
        parts = list(batch.split(size or max(1, len(batch))))
        weights = [normaliser(trainer.loss, part) for part in parts]
        # Every backward pass is a common one, so all ranks make as many, some with weight 0.
        counts = [count for (count,) in world.gather([len(parts)])]
        missing = max(counts) - len(parts)
        if not min(counts):
            raise DataError(
                "strategy: shard gives every process a share of each batch, and this batch has "
                f"fewer samples than the {world.size} processes; use strategy: replicate, a "
                "larger batch_size, or drop_last"
            )
        parts, weights = [*parts, *parts[:1] * missing], [*weights, *[0.0] * missing]
        total = 1.0 if is_sum(trainer.loss) else world.sum_floats([sum(weights)])[0]
        scale = world.size / total if total else 0.0
        own = 0.0
        for part, weight in zip(parts, weights, strict=True):
            if weight:
                value = trainer.batch_loss(part) * (weight * scale)
            else:  # takes part in the pass and adds nothing; its mean loss may be 0/0
                value = trainer.forward(part.inputs).sum() * 0.0
            value.backward()  # type: ignore[no-untyped-call]
            own += float(value.detach())
        return torch.tensor(world.sum_floats([own])[0] / world.size, device=trainer.device)


def closure_step(trainer: Trainer, batch: Batch) -> Tensor:
    """One update of an optimizer that evaluates loss and gradient as often as it likes (L-BFGS).

    Returns the loss of its first evaluation, which is the one before the update, detached. Raises
    NotFinite if that is not finite, or if the update ends at weights that are not; on the way
    there a line search may try steps that are too long.
    """
    losses: list[Tensor] = []

    def closure() -> float:
        losses.append(trainer.batch_gradient(batch))
        trainer.finish_gradient()
        if len(losses) == 1:
            trainer.guard.check(losses[0])
        loss = float(losses[-1])
        return math.inf if math.isnan(loss) else loss  # torch's search can't compare a NaN

    trainer.guard.protect(lambda: trainer.optimizer.step(closure))
    return losses[0]
