"""When a comparison looks at a run, and what it writes down there, outside of the run's clock."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from gdtrain.data.loaders.loader import Loader
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.trainer import Trainer

Unit = Literal["epochs", "samples", "updates", "seconds"]
FOREVER = 1_000_000_000  # epochs; the recorder ends the run
BURST = 1e6  # times the full loss at the start: a run at it won't come back
FEWEST_UPDATES = 100  # on which to judge a learning rate


@dataclass(frozen=True)
class Budget:
    """How long each form may train: ``amount`` of ``unit``.

    ``samples``: the update that reaches the number is the last one. ``seconds``: of updates alone;
    the safe point that reaches them is the last one.
    """

    unit: Unit
    amount: float

    def updates(self, loader: Loader) -> int | None:
        """The updates that it buys under this loader; None for a budget in seconds."""
        if self.unit == "seconds":
            return None
        if self.unit == "updates":
            return int(self.amount)
        if self.unit == "epochs":
            return loader.updates(int(self.amount))
        updates, left, epoch = 0, int(self.amount), 0
        while left > 0:
            plan = loader.outline(epoch)
            if left <= plan.num_samples:
                return updates + plan.batches_with(left)
            updates, left, epoch = updates + len(plan), left - plan.num_samples, epoch + 1
        return updates

    def epochs(self, loader: Loader) -> int:
        """Epochs that it takes, the last of which need not be whole."""
        if self.unit == "epochs":
            return int(self.amount)
        updates = self.updates(loader)
        if updates is None:
            return FOREVER
        enough = 1
        while loader.updates(enough) < updates:
            enough *= 2
        return bisect_left(range(enough), updates, lo=enough // 2, key=loader.updates)

    def short(self, loader: Loader) -> Budget:
        """A quarter of it, rounded up; all of it where that is under 100 updates, and so cheap."""
        amount = self.amount / 4 if self.unit == "seconds" else -(-self.amount // 4)
        quarter = Budget(self.unit, amount)
        updates = quarter.updates(loader)
        return self if updates is not None and updates < FEWEST_UPDATES else quarter

    def __str__(self) -> str:
        amount = f"{self.amount:,g}" if self.unit == "seconds" else f"{int(self.amount):,}"
        return f"{amount} {self.unit.removesuffix('s') if self.amount == 1 else self.unit}"


class LookSchedule:
    """The updates before and after which to look.

    Around each of ``looks`` updates, evenly spread over the run, so that every one of them can be
    judged by itself; besides, after 1, 2, 4, 8, … updates, since curves fall fastest at the start.

    updates: of the whole run; None if it ends after ``seconds``: then the distances
    follow the speed so far.
    """

    def __init__(self, updates: int | None, seconds: float, looks: int) -> None:
        self._seconds, self._looks = seconds, looks
        self._starts = {0}
        self._steps: list[int] = []
        if updates is not None:
            self._starts = {number * updates // looks for number in range(looks)}
            powers = {1 << power for power in range(updates.bit_length())}
            after = {start + 1 for start in self._starts}
            self._steps = sorted(self._starts | after | powers | {updates})

    def next(self, step: int, seconds: float) -> int:
        """The next number of updates to look after, of a run that has made ``step`` of them."""
        if self._steps:
            return self._steps[min(bisect_right(self._steps, step), len(self._steps) - 1)]
        if step in self._starts:
            return step + 1
        between = step / seconds * self._seconds / self._looks if seconds else 0
        following = max(step + 1, min(2 * step, step + int(between)))
        self._starts.add(following)
        return following

    def judges(self, step: int) -> bool:
        """Whether the update after ``step`` is one of those that are judged by themselves."""
        return step in self._starts


class ClosureCounter(Callback):
    """Counts the gradients of an optimizer that computes several in an update, as L-BFGS does."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def on_before_update(self, trainer: Trainer) -> None:
        self._calls += 1

    def take(self) -> int:
        """How many there were since the last call."""
        calls, self._calls = self._calls, 0
        return calls


class Recorder(Callback):
    """Writes down a run at the moments of a :class:`LookSchedule`, and ends it with its budget.

    rows: at each look ``updates``, ``samples``, ``gradient_evaluations`` (of single samples),
    ``seconds`` (``progress.seconds``: of updates alone, so that looking takes none), ``full_loss``
    with the weights as they stand, ``batch_loss`` (the mean of the updates' own losses since the
    last look), ``lr``, and ``val_loss``, ``val_<metric>`` if there is a ``validation`` loader.
    judged, raised: updates looked at by themselves, and how many of them raised the full loss by
    more than rounding. burst: the full loss was at a look over a million times that at the start,
    and the run was ended for it.
    should_stop: asked at each safe point; the run ends there if it says so. on_look: called for
    each look, with the share of the budget that is spent.
    """

    def __init__(
        self,
        budget: Budget,
        loader: Loader,
        validation: Loader | None,
        looks: int,
        should_stop: Callable[[], bool],
        on_look: Callable[[float], None],
    ) -> None:
        super().__init__()
        self.budget = budget
        self.updates = budget.updates(loader)
        self.validation = validation
        self.should_stop = should_stop
        self.on_look = on_look
        self.closures: ClosureCounter | None = None
        self.rows: list[dict[str, float]] = []
        self.judged = 0
        self.raised = 0
        self.interrupted = False
        self.burst = False
        self._schedule = LookSchedule(self.updates, budget.amount, looks)
        self._evaluations = 0
        self._newest: float | None = None  # the last update's own loss
        # Of the losses since the last look: how many, their sum, successive pairs, Σ (difference)²;
        # and the last two of these at each look.
        self._open = np.zeros(4)
        self._pairs: list[tuple[float, float]] = []

    def is_due(self, step: int) -> bool:
        """At every safe point; ``every_n_steps`` says only where a block has to end."""
        return True

    def on_fit_start(self, trainer: Trainer) -> None:
        self._look(trainer)

    def on_safe_point(self, trainer: Trainer) -> None:
        progress = trainer.progress
        self._read_losses(progress.losses)
        self._count_evaluations(progress.sizes)
        spent = self.updates is not None and progress.step >= self.updates
        if self.updates is None:
            spent = progress.seconds >= self.budget.amount
        if progress.step == self.every_n_steps or spent:
            self._look(trainer)
        losses = [row["full_loss"] for row in self.rows]
        if losses[-1] > BURST * losses[0] > 0:
            self.burst = True
            trainer.stop("the full loss has burst")
        elif self.should_stop():
            self.interrupted = True
            trainer.stop("interrupted")
        elif spent and self.budget.unit != "epochs":
            trainer.stop(f"the budget of {self.budget} is spent")

    def on_fit_end(self, trainer: Trainer) -> None:
        if self.rows[-1]["updates"] != trainer.progress.step:
            self._look(trainer)

    def loss_variance(self) -> float | None:
        """Variance of the updates' own losses about their trend, over the run's last third.

        By mean square successive differences, s² = Σ (l_{t+1} - l_t)² / 2(m - 1), which a slow
        trend does not enter (von Neumann, Kent, Bellinson and Hart, 1941). A third is rounded to
        the looks. None of fewer than two updates.
        """
        end = self.rows[-1]["updates"]
        looks = zip(self.rows, self._pairs, strict=True)
        late = [sums for row, sums in looks if row["updates"] > end * 2 / 3]
        pairs = sum(count for count, _ in late)
        return sum(squares for _, squares in late) / (2 * pairs) if pairs else None

    def curve(self) -> dict[str, list[float | None]]:
        """The rows as columns, with None for numbers that are not finite."""
        names = list(self.rows[-1])
        return {n: [_finite(row.get(n)) for row in self.rows] for n in names}

    def _read_losses(self, losses: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        """Add the losses of a block to the sums since the last look."""
        known = losses if self._newest is None else np.concatenate([[self._newest], losses])
        steps = np.diff(known)
        self._open += (len(losses), losses.sum(), len(steps), np.square(steps).sum())
        self._newest = float(losses[-1])

    def _count_evaluations(self, sizes: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Add a block's evaluations of single samples' gradients.

        A closure's calls are shared out evenly over the block's updates.
        """
        calls = len(sizes) if self.closures is None else self.closures.take()
        self._evaluations += int(sizes.sum()) * calls // len(sizes)

    def _look(self, trainer: Trainer) -> None:
        assert trainer.loader is not None
        progress = trainer.progress
        count, total, pairs, squares = self._open.tolist()
        row = {
            "updates": progress.step,
            "samples": progress.samples,
            "gradient_evaluations": self._evaluations + _extra_gradients(trainer),
            "seconds": progress.seconds,
            "full_loss": trainer.evaluate(trainer.loader)["loss"],
            "batch_loss": total / count if count else math.nan,
            "lr": float(trainer.progress.lr),
        }
        if self.validation is not None:
            found = trainer.evaluate(self.validation)
            row |= {f"val_{name}": value for name, value in found.items()}
        self._judge(trainer, row)
        self.rows.append(row)
        self._pairs.append((pairs, squares))
        self._open[:] = 0
        self.every_n_steps = self._schedule.next(progress.step, progress.seconds)
        by_clock = progress.seconds / self.budget.amount
        self.on_look(min(1.0, progress.step / self.updates if self.updates else by_clock))

    def _judge(self, trainer: Trainer, row: dict[str, float]) -> None:
        """Count the update that lies between the last look and this one, if it is just one."""
        if not self.rows or row["updates"] != self.rows[-1]["updates"] + 1:
            return
        if self._schedule.judges(int(self.rows[-1]["updates"])):
            before, after = self.rows[-1]["full_loss"], row["full_loss"]
            rounding = 8 * torch.finfo(trainer.dtype).eps * abs(before)
            self.judged += 1
            self.raised += not after <= before + rounding


def _extra_gradients(trainer: Trainer) -> int:
    """Gradients that corrections such as SVRG have computed besides those of the batches."""
    return sum(getattr(callback, "extra_gradients", 0) for callback in trainer.callbacks)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
