"""The exact gradient of a batch, whole, in microbatches of a memory's size, and over all ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gdtrain.data.batch import Batch
from gdtrain.errors import ConfigError, DataError
from gdtrain.training.descent import backward, zero_gradients
from gdtrain.training.gradients.accumulation import (
    Accumulator,
    Added,
    add_parts,
    scalar,
    trained,
)
from gdtrain.training.gradients.forward import forward
from gdtrain.training.gradients.loss_weights import (
    adds_up,
    has_own_loss,
    in_two_passes,
    says_weight,
    weights_of,
)
from gdtrain.training.gradients.separable import check_buffers, check_separable, with_own_buffers
from gdtrain.training.gradients.two_passes import add_two_passes
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.exchange import Exchange, exchange_gradients
from gdtrain.training.run import Run
from gdtrain.training.state.keeper import Keeper, unchanged

logger = logging.getLogger("gdtrain")


def whole_gradient(trainer: Run, batch: Batch) -> Tensor:
    """Add the gradient of the batch's loss to ``.grad``, in one pass; return the loss, detached."""
    loss = trainer.batch_loss(batch)
    if trainer.terms.passed:
        trainer.terms.add(1.0)
    if loss.ndim:
        scalar(loss)
    backward(loss if trainer.loss_scale is None else trainer.loss_scale.of(loss))
    return loss.detach()


@dataclass(eq=False)
class ExactGradient:
    """Sets ``.grad`` of what a trainer trains to the gradient of a batch's loss.

    A batch that is cut, into microbatches or over processes, goes through

    * in one pass, its parts weighted, if it is known what the loss is divided by: of a mean that
      PyTorch takes (:func:`gdtrain.training.losses.known_means.mean_of`), or by an own
      ``loss_weight``;
    * in two passes (:mod:`gdtrain.training.gradients.two_passes`), if it is any other loss over
      outputs.

    allowed: names of layers that mix samples and may be given parts of a batch. in_float64: add
    the parts' gradients up in float64.
    """

    trainer: Run
    allowed: Sequence[str]
    in_float64: bool
    _told: bool = False
    _checked: list[nn.Module] | None = None  # layers whose buffers were looked at

    @property
    def cut_by(self) -> str:
        """The setting that cuts batches, where they are cut."""
        return "microbatch_size" if self.trainer.microbatches else "several processes"

    def check(self) -> None:
        """Raise ModelError or ConfigError if batches, which are to be cut, can't be."""
        self._check(self.cut_by)
        self._checked = None

    def _check(self, cut_by: str) -> None:
        trainer = self.trainer
        if has_own_loss(trainer) and not says_weight(trainer):
            raise ConfigError.of(
                "loss_weight",
                f"missing: batches are cut ({cut_by}), and it is not known what the loss of "
                f"{type(trainer).__name__}.compute_loss is divided by; for a mean over samples, "
                "give the class `def loss_weight(self, batch): return len(batch)`",
            )
        check_separable(trainer.model, self.allowed, cut_by)
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
        trainer = self.trainer
        zero_gradients(trainer.updater)
        if trainer.outputs:
            trainer.outputs.clear()
        if trainer.terms.sums:
            trainer.terms.begin_gradient()
        size = trainer.microbatches
        if trainer.world.size == 1 and size.size is None and not size.is_auto:
            loss = whole_gradient(trainer, batch)
            if trainer.loss_scale is not None:
                trainer.loss_scale.unscale(trained(trainer.updater))
            return loss
        cut_by = self.cut_by
        self._check(cut_by)
        self._agree_on_cutting(batch)
        if (layers := with_own_buffers(trainer.model)) != self._checked:
            settled = check_buffers(trainer, batch, self.allowed, cut_by, self._pass)
            self._checked = layers if settled else None
        trainer.microbatches.settle(self._measured, batch)
        loss = self._in_parts(batch)
        if trainer.loss_scale is not None:
            trainer.loss_scale.unscale(trained(trainer.updater))
        return loss

    def _agree_on_cutting(self, batch: Batch) -> None:
        """Raise DataError on all ranks if one can't cut its share of a batch.

        Of what a collate function has made, that depends on the length of the share.
        """
        trainer = self.trainer
        if trainer.world.size == 1 or not trainer.microbatches:
            return
        if trainer.loader is not None and trainer.loader.samples.has_own_collate:
            with trainer.world.agreeing(DataError):
                next(batch.split(1), None)

    def _in_parts(self, batch: Batch) -> Tensor:
        """As :meth:`compute` of what is cut, in smaller parts where memory runs out."""
        trainer = self.trainer
        if not trainer.microbatches.is_auto:
            return self._of_parts(batch)
        before = Keeper(trainer, "buffers", "generators", "own")

        def undo() -> None:
            before.restore()
            zero_gradients(trainer.updater)
            trainer.terms.begin_again()
            if trainer.outputs:
                trainer.outputs.clear()

        return trainer.microbatches.retry(lambda: self._of_parts(batch), undo)

    def _measured(self, part: Batch) -> None:
        with unchanged(self.trainer):
            self._pass(part)

    def _pass(self, part: Batch) -> None:
        """A pass as the parts of a batch take it, on a copy: the batch is still to be used."""
        part = part.copy()
        if in_two_passes(self.trainer, part):
            forward(self.trainer, part.inputs)
        else:
            self.trainer.batch_loss(part)

    def _of_parts(self, batch: Batch) -> Tensor:
        trainer, size = self.trainer, self.trainer.microbatches.size
        parts = [batch] if len(batch) else []
        if size is not None and len(batch) > size:
            parts = list(batch.split(size))
        if trainer.is_sharded:
            return self._of_shards(parts)
        accumulator = Accumulator(trainer.updater) if self.in_float64 else None
        world, exchange = trainer.world, None
        # Where an attempt may fail in one process alone, nothing is sent before all have made it.
        if world.size > 1 and accumulator is None and not trainer.microbatches.is_auto:
            exchange = Exchange(world, trained(trainer.updater))
        added = add_gradient(trainer, batch, parts, world, accumulator, exchange)
        trainer.step_weights.note(added.weight)
        if accumulator is not None:
            accumulator.give_back()
        if world.size == 1:
            return added.loss
        held = trained(trainer.updater)
        loss = exchange_gradients(world, held, added.loss, exchange, has_graph=added.has_graph)
        trainer.guard.totals = exchange.totals if exchange and self._goes_to_guard() else ()
        return loss

    def _goes_to_guard(self) -> bool:
        """Whether nobody changes the gradient before the guard looks at it."""
        trainer = self.trainer
        rungs = "train_step", "batch_gradient", "finish_gradient"
        return not (trainer.callbacks or trainer.loss_scale or trainer.has_own(*rungs))

    def _of_shards(self, parts: list[Batch]) -> Tensor:
        """As above where FSDP adds the gradients up: it takes their mean over the ranks."""
        trainer, world = self.trainer, self.trainer.world
        if parts and in_two_passes(trainer, parts[0]):
            raise ConfigError.of(
                "loss_weight",
                "missing: strategy: shard cuts batches, and it is not known what the loss is "
                "divided by; for a mean over samples, give the trainer's class "
                "`def loss_weight(self, batch): return len(batch)`",
            )
        weights = weights_of(trainer, parts)
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
        total = 1.0 if adds_up(trainer) else world.sum_floats([sum(weights)])[0]
        trainer.step_weights.note(None if adds_up(trainer) else total)
        scale = world.size / total if total else math.nan
        own = 0.0
        for part, weight in zip(parts, weights, strict=True):
            if weight:
                value = scalar(trainer.batch_loss(part)) * (weight * scale)
                if trainer.terms.passed:
                    trainer.terms.add(weight / total)
            else:  # takes part in the pass and adds nothing; its mean loss may be 0/0
                value = trainer.forward(part.copy().inputs).sum() * 0.0
            backward(value if trainer.loss_scale is None else trainer.loss_scale.of(value))
            own += float(value.detach())
        if not total:  # no target counts, and the loss is 0/0, as in one pass
            own = math.nan
        dtype = torch.promote_types(torch.float32, trainer.dtype)
        loss = world.sum_floats([own])[0] / world.size
        return torch.tensor(loss, dtype=dtype, device=trainer.device)


def add_gradient(
    trainer: Run,
    share: Batch,
    parts: Sequence[Batch],
    world: World,
    accumulator: Accumulator | None = None,
    exchange: Exchange | None = None,
) -> Added:
    """Add this process's share of a batch's gradient to ``.grad``.

    share, parts: of the batch, whole and cut; no part if the share is empty. The shares of all
    processes add up to the batch's. exchange: may begin while the gradient is computed.
    """
    if world.size == 1 and len(parts) == 1:
        return Added(whole_gradient(trainer, share))
    if in_two_passes(trainer, share):
        return add_two_passes(trainer, share, parts, world, accumulator)
    return add_parts(trainer, parts, world, accumulator, exchange)


def closure_step(trainer: Run, batch: Batch) -> Tensor:
    """One update of an optimizer that evaluates loss and gradient as often as it likes (L-BFGS).

    Returns the loss of its first evaluation, which is the one before the update, detached. Raises
    NotFinite if that is not finite, or if the update ends at weights that are not; on the way
    there a line search may try steps that are too long. Callbacks are called with each gradient.
    """
    losses: list[Tensor] = []

    def closure() -> float:
        losses.append(trainer.batch_gradient(batch))
        trainer.emit("on_gradient", batch, losses[-1])
        trainer.finish_gradient()
        if len(losses) == 1:
            trainer.guard.check(losses[0])
        loss = float(losses[-1])
        return math.inf if math.isnan(loss) else loss  # torch's search can't compare a NaN

    trainer.guard.protect(lambda: trainer.updater.step(closure))
    return losses[0]
