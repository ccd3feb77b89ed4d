"""The learning-rate range test: what the full loss does as the learning rate rises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gdtrain.analysis.curvature.full_loss import check_trainer, rereadable
from gdtrain.analysis.lr_trials import Trial, best_rate
from gdtrain.analysis.theory import agreement, theory, tried_rates
from gdtrain.analysis.trial_updates import trial_updates
from gdtrain.data.batch import Batch, Block, Plan
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError, ModelError
from gdtrain.output.plots.curves import smoothed
from gdtrain.training.blocks import known_plan
from gdtrain.training.trainer import Trainer
from gdtrain.wording import counted, html_table

if TYPE_CHECKING:
    from gdtrain.output.plots.picture import Picture

SPAN = 5  # of the smoothing: β = 0.8
DIVERGED = 4.0  # times the loss before the first update


# What to do for a rate that is good until the end.
_FOR_A_BUDGET = "for a whole training, pass --epochs N (in Python, epochs=N)"


@dataclass(frozen=True)
class LrRange:
    """What a range test has found.

    lrs, losses, smoothed: at each look, the learning rate of the last update, the full loss after
    it, and that smoothed. first_loss: before the first update. updates: that were made.
    diverged: whether the test ended early for it.
    steepest: the learning rate at which the smoothed loss fell fastest. lowest: where it was
    lowest. suggestion: half of ``largest_rate`` or of ``lowest``, whichever is smaller. All None if
    it never fell; without a ``largest_rate`` there is no suggestion either.
    sharpness: λ, the largest eigenvalue of the Hessian of the loss that is descended, at the
    weights before the test; see :func:`~gdtrain.analysis.sharpness.largest_eigenvalue`.
    stability_limit: the learning rate above which full-batch descent, with the momentum in use,
    can't settle in its direction; 2/λ without momentum. None where it can't be computed, or
    there is none, for ``no_limit``, a reason in words.
    gradient_evaluations: what λ cost, in gradients of the full loss.
    noise_scale, critical_batch_size: of the samples' gradients there. largest_rate: what theory
    leaves to the batches in use, or None for ``no_rate``, a reason
    (:func:`~gdtrain.analysis.theory.theory`).
    epochs: the budget for which rates were tried out, if one was given; trials: these runs.
    ``suggestion`` is then the best of them, or None if none of them descends.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    first_loss: float
    updates: int
    diverged: bool
    steepest: float | None
    lowest: float | None
    suggestion: float | None
    sharpness: float | None = None
    stability_limit: float | None = None
    no_limit: str | None = None
    gradient_evaluations: float = 0.0
    noise_scale: float | None = None
    critical_batch_size: float | None = None
    largest_rate: float | None = None
    no_rate: str | None = None
    epochs: int | None = None
    trials: list[Trial] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All of it in plain values."""
        return asdict(self)

    def __repr__(self) -> str:
        suggestion = _said(self.suggestion, "none")
        limit = _said(self.stability_limit, "none")
        updates = counted(self.updates, "update")
        return f"LrRange(suggestion {suggestion}, stability limit {limit}, {updates})"

    def __str__(self) -> str:
        """A short table."""
        width = max(len(name) for name, _ in self._rows())
        return "\n".join(f"{name:<{width}}  {message}" for name, message in self._rows())

    def _repr_html_(self) -> str:
        return html_table([], self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        updates = counted(self.updates, "update")
        ended = "loss diverged" if self.diverged else "loss did not diverge"
        rows = [
            (
                "tested",
                f"{self.lrs[0]:.3g} to {self.lrs[-1]:.3g}, {updates}; {ended}",
            )
            if self.lrs
            else ("tested", f"{updates}; {ended} at once"),
            ("full loss before", f"{self.first_loss:.4g}"),
            ("steepest descent at", _said(self.steepest)),
            ("lowest loss at", _said(self.lowest)),
            ("stability limit", _said(self.stability_limit, self.no_limit or "not asked for")),
            ("suggestion", self._suggested()),
        ]
        return [*rows[:5], *self._theory(), *rows[5:]]

    def _theory(self) -> Iterator[tuple[str, str]]:
        """What theory says, beside the rates that were tried."""
        if self.sharpness is not None:
            message = f"{self.sharpness:.4g}, {self.gradient_evaluations:g} gradient evaluations"
            yield "sharpness λ", message
        if self.noise_scale is not None:
            critical = f"critical batch size {self.critical_batch_size:,.0f}"
            yield "noise scale", f"{self.noise_scale:.4g}, {critical}"
        if self.largest_rate is not None:
            tried = [
                (t.learning_rate, t.full_loss is not None and t.full_loss < self.first_loss)
                for t in self.trials
            ]
            agrees = agreement(self.largest_rate, *tried_rates(tried))
            yield "largest rate in theory", f"{self.largest_rate:.3g}{agrees and f'; {agrees}'}"
        elif self.stability_limit is not None and self.no_rate is not None:
            yield "largest rate in theory", f"none: {self.no_rate}"

    def _suggested(self) -> str:
        """The suggestion, and what it promises."""
        if self.epochs is None:
            if self.suggestion is not None:
                return f"{self.suggestion:.3g} for the first updates; {_FOR_A_BUDGET}"
            if self.lowest is None:
                return "none: the full loss never fell"
            return f"none: this test alone is inconclusive; {_FOR_A_BUDGET}"
        length = counted(self.epochs, "epoch")
        if self.suggestion is None:
            return f"none: no rate that was tried descends over {length}, on two orders"
        updates = max(trial.updates for trial in self.trials)
        finals = [trial for trial in self.trials if trial.updates == updates]
        at = next(t.full_loss for t in finals if t.learning_rate == self.suggestion)
        return f"{self.suggestion:.3g}: full loss {at:.4g} after {length} at that rate"

    def draw(self, loss_label: str = "full loss", name: str = "") -> Picture:
        """Its picture. Raises MissingPackageError without matplotlib."""
        from gdtrain.output.plots.curves import Curve, Mark, draw

        marks = []
        for label, at, style in (
            ("suggestion", self.suggestion, 2),
            ("stability limit of full-batch descent", self.stability_limit, 6),
        ):
            if at is not None:
                marks.append(Mark(f"{label}: {at:.2g}", at, style))
        label = f"full loss, smoothed over {SPAN} (thin: each)"
        curves = [Curve(label, self.lrs, self.smoothed, raw=self.losses)]
        return draw(
            curves,
            title="Learning-rate range test" + (f": {name}" if name else ""),
            x_label="learning rate α of the update",
            y_label=loss_label,
            log_x=True,
            marks=[*marks, Mark("before the first update", self.first_loss, 3, level=True)],
        )


def lr_range(
    trainer: Trainer,
    *,
    start: float = 1e-6,
    stop: float = 10.0,
    updates: int = 100,
    every: int = 1,
    limit: bool = True,
    loader: Loader | None = None,
    epochs: int | None = None,
    advance: Callable[[int], object] | None = None,
) -> LrRange:
    """The learning-rate range test (Smith, 2017; Smith and Topin, 2018), on the full loss.

    Makes ``updates`` updates from the trainer's loader, update i = 0, 1, … with the learning rate
    start · (stop / start)^(i / (updates - 1)), and evaluates the loss over all samples of
    ``loader`` (the trainer's if left out) after each ``every``-th. Smith uses the loss
    of the batch, which for one sample is mostly noise; this test uses the full loss J. Groups of
    parameters keep the ratios of their learning rates; lr is that of the first.

    J is smoothed by the exponential moving average with β = 0.8, corrected for its bias
    (:func:`~gdtrain.output.plots.curves.smoothed`). The test ends early, as diverged, where a loss,
    gradient or J is not finite, or J > J_0 + 3 max(|J_0|, J_0 - min J): four times the J_0 before
    the first update, if that is positive. ``suggestion`` is half of the largest
    rate in theory (:func:`~gdtrain.analysis.theory.largest_rate`), at which the steepest direction
    is descended fastest, and at most half of the lr at which smoothed J was lowest. It is for
    the first updates: a long training may allow more, and a loss with much noise at its minimum
    needs less. On 12 problems in three forms it was within a factor of 4 of the best of 25 rates in
    30 of 36, and never diverged; the usual rules of thumb (where J falls fastest, a tenth of
    where it is lowest) diverged in 19. Without a theoretical rate, there is no suggestion.

    epochs: the length of the training, which the ramp does not know. With it, rates a factor of 2
    apart are tried out from the same weights, the best of them for all of the epochs, and
    ``suggestion`` is the one with the lowest full loss
    (:func:`~gdtrain.analysis.lr_trials.best_rate`). This takes four to six times as long as the
    training itself, with a constant rate, whatever the schedule.
    limit: compute the theoretical limit (:func:`~gdtrain.analysis.theory.theory`) at the weights
    before the test, for the training samples. advance: called with the number of
    updates just made.

    Weights, buffers, optimizer, schedule, gradients, modes and all random number generators are
    restored bit for bit, however the test ends; no callback is called. Raises DataError for a
    stream, ConfigError for an invalid range, ModelError as ``fit`` does, and if a callback
    changes the batch's gradient (SVRG, SAGA).

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Trainer, lr_range
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), device="cpu")
    >>> round(lr_range(trainer, updates=50).stability_limit, 3)  # 2 / λ, and λ = 2
    1.0
    """
    check_trainer(trainer)
    _check(start, stop, updates, every)
    if epochs is not None:
        whole_number("epochs", epochs, minimum=1)
    check_gradient(trainer)
    rereadable(trainer)
    judged = rereadable(trainer, loader)
    limits = theory(trainer).as_dict() if limit else {}
    with trial_updates(trainer):
        ramp = _Ramp(trainer.evaluate(judged)["loss"])
        ramp.climb(trainer, judged, np.geomspace(start, stop, updates).tolist(), every, advance)
    found = _judged(ramp, limits)
    if epochs is None:
        return found
    highest = found.lrs[-1] if found.lrs else start
    budget = trainer.loader.updates(epochs) if trainer.loader is not None else 0
    rate, trials = best_rate(
        trainer, highest, start, budget, judged, ramp.first, partial(_set_rate, trainer)
    )
    return replace(found, suggestion=rate, epochs=epochs, trials=trials)


@dataclass
class _Ramp:
    """Updates whose learning rate rises from one to the next.

    first: the full loss before. looks: learning rate and full loss after the updates looked at.
    """

    first: float
    looks: list[tuple[float, float]] = field(default_factory=list)
    updates: int = 0
    diverged: bool = False

    def climb(
        self,
        trainer: Trainer,
        judged: Loader,
        lrs: Sequence[float],
        every: int,
        advance: Callable[[int], object] | None,
    ) -> None:
        """Make an update with each rate, until the loss diverges; look after each ``every``-th."""
        lowest = self.first
        for lr, (plan, number, batch) in zip(lrs, _batches(trainer), strict=False):
            _set_rate(trainer, lr)
            if len(trainer.engine.run(Block(plan, number, number + 1, [batch]))) < 1:
                self.diverged = True  # loss or gradient are not finite
                return
            self.updates += 1
            if advance is not None:
                advance(1)
            if self.updates % every and self.updates != len(lrs):
                continue
            loss = trainer.evaluate(judged)["loss"]
            if math.isfinite(loss):
                self.looks.append((lr, loss))
                lowest = min(lowest, loss)
            bound = self.first + (DIVERGED - 1) * max(abs(self.first), self.first - lowest)
            if not math.isfinite(loss) or loss > bound:
                self.diverged = True
                return


def check_gradient(trainer: Trainer) -> None:
    """Raise ModelError if updates are made of something else than the batch's gradient."""
    for callback in trainer.callbacks:
        if callback.listens_to("on_gradient"):
            raise ModelError(
                f"variance_reduction: {type(callback).__name__} changes gradients by what it has "
                "seen before, and the range test makes plain updates; test without it"
            )


def _check(start: float, stop: float, updates: int, every: int) -> None:
    whole_number("updates", updates, minimum=3)
    whole_number("every", every, minimum=1)
    if not 0 < start < math.inf:
        raise ConfigError.of("from", f"must be > 0, got {start}")
    if not start < stop < math.inf:
        raise ConfigError.of("to", f"must be > the {start:g} to start from, got {stop}")


def _batches(trainer: Trainer) -> Iterator[tuple[Plan, int, Batch]]:
    """The batches that the next updates would have, from the start of the present epoch on.

    An order that is asked is asked by training alone: see
    :func:`~gdtrain.training.blocks.known_plan`.
    """
    loader = trainer.loader
    assert loader is not None
    epoch = trainer.progress.epoch
    while True:
        plan = known_plan(trainer, loader, epoch)
        for number, batch in enumerate(trainer.read(loader, plan)):
            yield plan, number, batch
        epoch += 1


def _set_rate(trainer: Trainer, lr: float) -> None:
    """The rate of the first group; others keep their ratio to it."""
    groups = trainer.optimizer.param_groups
    present = float(groups[0]["lr"])
    for group in groups:
        group["lr"] = lr * float(group["lr"]) / present if present else lr
    groups[0]["lr"] = lr
    trainer.engine.publish()  # it may have kept the old one


def _judged(ramp: _Ramp, limits: dict[str, Any]) -> LrRange:
    lrs, losses = [lr for lr, _ in ramp.looks], [loss for _, loss in ramp.looks]
    mean = [value for value in smoothed(losses, SPAN) if value is not None]
    largest = limits.get("largest_rate")
    steepest = lowest = suggestion = None
    if len(mean) >= 3:
        at = int(np.argmin(mean))
        slopes = np.gradient(np.array(mean), np.log(lrs))[: at + 1]
        if mean[at] < ramp.first and slopes.min() < 0:
            steepest, lowest = lrs[int(np.argmin(slopes))], lrs[at]
            suggestion = None if largest is None else min(largest, lowest) / 2
    made = (ramp.first, ramp.updates, ramp.diverged)
    return LrRange(lrs, losses, mean, *made, steepest, lowest, suggestion, **limits)


def _said(value: float | None, otherwise: str = "nowhere: it never fell") -> str:
    return otherwise if value is None else f"{value:.3g}"
