"""The engine that runs every model: one update after the other, each as soon as asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gdtrain.data.batch import Batch, Block
from gdtrain.errors import GdtrainError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.engines.known_update import KnownUpdates
from gdtrain.training.gradients.loss_scale import MOST_IN_A_ROW
from gdtrain.training.run import Run
from gdtrain.training.safety.finite_guard import NotFinite


@dataclass(eq=False)
class EagerEngine:
    """Runs blocks step by step, with the bits of the hand-written PyTorch loop."""

    trainer: Run
    name = "eager"
    max_block_steps = 4096
    known: KnownUpdates = field(default_factory=KnownUpdates)

    def run(self, block: Block) -> Tensor:
        """Make the block's updates; return their losses, still on the device.

        [len(block)], or fewer: then the next update's loss or gradient is not finite, it was
        not made, and everything is as it was before it. ``block.losses`` has them as they come,
        also when an update or the data raise an error.
        """
        trainer, guard = self.trainer, self.trainer.guard
        guard.broken_off = False
        start = guard.snapshot() if guard.deferred else None
        if self._steps(block, block.batches):
            block.stop = block.start + len(block.made)
        if start is None:
            return stacked(block.losses)
        sound = guard.sound_steps(block.losses)
        if sound < len(block.losses):
            start.restore()
            trainer.updater.zero_grad()
            for kept in (block.losses, block.weights, block.made, block.rates, block.terms):
                kept.clear()
            assert trainer.loader is not None
            again = trainer.read(trainer.loader, block.plan, block.start)
            self._steps(block, islice(again, sound))
        return stacked(block.losses)

    @property
    def reaches_over_epochs(self) -> bool:
        """Where each update is looked at before it is made, and none has to be made again."""
        return not self.trainer.guard.deferred

    def publish(self, looker: Callback | None = None) -> None:
        """Every update is made where everybody can see it."""

    def _steps(self, block: Block, batches: Iterable[Batch]) -> bool:
        """Make the updates, until somebody has to look; whether all of them are finite."""
        trainer, guard = self.trainer, self.trainer.guard
        alone = trainer.world.size == 1
        if (update := self.known.of(trainer, len(block))) is not None:
            return self._known_steps(block, batches, update)
        try:
            for batch in batches:
                size = len(batch) if alone else self._size_on_all(batch)
                callbacks = list(trainer.callbacks)
                if not self._step(block, batch, size):
                    return False
                if trainer.callbacks != callbacks:  # one that is new may be due at once
                    break
                if trainer.should_stop and alone:
                    break
            return True
        finally:
            guard.unwatch()

    def _known_steps(
        self, block: Block, batches: Iterable[Batch], update: Callable[[Batch], Tensor]
    ) -> bool:
        """As :meth:`_steps`, where nobody else's code runs in between.

        Nodes of autograd's graph may have hooks that nobody can see, and these may add others: then
        the block ends.
        """
        hooks_so_far, block.is_undisturbed = RemovableHandle.next_id, True
        trainer, weight, note_rate = self.trainer, self.trainer.step_weights.of, block.note_rate
        for batch in batches:
            size = batch.indices.shape[0]
            try:
                loss = update(batch)
            except BaseException as error:
                return self._goes_on_after(error, block, size, made=False)
            block.note(loss, weight(batch, size), size)
            trainer.after_update()
            note_rate(trainer.progress.lr)
            if trainer.should_stop or RemovableHandle.next_id != hooks_so_far:
                break
        return True

    def _size_on_all(self, batch: Batch) -> int:
        """The samples that all processes have of a batch; a collate function may drop some."""
        trainer, number = self.trainer, self.trainer.progress.step_in_epoch
        if trainer.loader is not None and trainer.loader.samples.has_own_collate:
            return int(trainer.world.sum_floats([len(batch)])[0])
        assert trainer.plan is not None
        return trainer.plan.batch_sizes(number, number + 1)[0]

    def _step(self, block: Block, batch: Batch, size: int) -> bool:
        """Make one update, and count it in the moment at which it is made; whether all is finite.

        size: samples of the batch on all ranks.
        """
        trainer, guard, progress = self.trainer, self.trainer.guard, self.trainer.progress
        own_step = trainer.has_own_step
        guard.before_step(own_step)
        if batch.is_view and (own_step or self._is_shown()):
            batch = batch.copy()
        before, terms, weights = progress.step, trainer.terms, trainer.step_weights
        progress.begin(size)
        weights.computed, weights.is_noted = None, False
        terms.under_way = True
        try:
            loss = trainer.train_step(batch)
            if own_step:
                guard.check_rungs()
            if progress.step == before:  # unless that was told as it was made
                progress.made()
            if own_step:
                guard.check_made(loss)
        except BaseException as error:
            terms.take()
            # It may have been made, by a train_step that goes on after its update.
            return self._goes_on_after(error, block, size, made=progress.step > before)
        finally:
            terms.under_way = False
        if terms.first or terms.sums or terms.passed or terms.logged:
            block.terms[len(block.made)] = terms.take()
        weight = weights.of(batch, size) if weights.computed is None else weights.computed
        block.note(loss, weight, size)
        if trainer.loss_scale is not None:
            trainer.loss_scale.after(overflow=False)
        trainer.after_update()
        block.note_rate(progress.lr)
        return True

    def _is_shown(self) -> bool:
        """Whether somebody sees the batch itself, and not what ``batch_loss`` makes of it.

        An own ``loss_weight`` sees what ``compute_loss`` has made of the batch; where batches are
        cut, it is given copies of the parts.
        """
        trainer = self.trainer
        if trainer.has_own("batch_gradient") or trainer.listeners.see_updates:
            return True
        return trainer.has_own_weight and not (trainer.microbatches or trainer.world.size > 1)

    def _goes_on_after(self, error: BaseException, block: Block, size: int, *, made: bool) -> bool:
        """Undo an update of which the error came, or raise that; whether the block goes on.

        made: whether the weights have moved all the same.
        """
        guard = self.trainer.guard
        if made:
            block.note(torch.tensor(math.nan, device="cpu"), 0, size)
        if not isinstance(error, NotFinite):
            if isinstance(error, GdtrainError) and not (made or guard.deferred):
                guard.take_back()
            raise error
        guard.broken_off = made
        if not made and self._skips(block):
            return True
        if not made:
            guard.undo()
        return False

    def _skips(self, block: Block) -> bool:
        """Whether the scale of the loss was too large, and the next batch is tried with less.

        What the pass has changed stays, as in the plain loop; the block counts on without it.
        """
        trainer, scale = self.trainer, self.trainer.loss_scale
        if scale is None or scale.in_a_row + 1 >= MOST_IN_A_ROW:
            return False
        scale.after(overflow=True)
        trainer.updater.zero_grad()
        trainer.progress.skip()
        block.start += 1
        return True


def stacked(losses: list[Tensor]) -> Tensor:
    """The losses [] of updates as one tensor, [updates]."""
    if len(losses) == 1:
        return losses[0].reshape(1)
    return torch.stack(losses) if losses else torch.empty(0, device="cpu")
