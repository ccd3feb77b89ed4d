"""Several forms of gradient descent on one problem, measured: speed, loss, memory, stability."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gdtrain.analysis.comparison.peak_memory import step_memory
from gdtrain.analysis.comparison.recorder import Budget, ClosureCounter, Recorder, Unit
from gdtrain.analysis.comparison.result import Comparison, comparison_of, line_of, measured_run
from gdtrain.analysis.comparison.same_problem import check_start, common_start
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError, NonFiniteError
from gdtrain.training.state.random_generators import RngState
from gdtrain.training.trainer import Trainer

MIN_LOOKS = 2


def compare(
    forms: Mapping[str, Callable[..., Trainer]],
    *,
    epochs: int | None = None,
    samples: int | None = None,
    updates: int | None = None,
    seconds: float | None = None,
    target_loss: float | None = None,
    lr_grid: Sequence[float] = (),
    looks: int = 100,
    validation: Loader | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda _: None,
    on_look: Callable[[str, float], None] = lambda _name, _spent: None,
) -> Comparison:
    """Train each form from the same weights on the same samples, and measure it.

    forms: a name for each, and what makes its trainer anew; called with ``lr=`` and ``budget=`` if
    there is a grid: the rate to take, and a :class:`~gdtrain.analysis.comparison.recorder.Budget`,
    for schedules that are to be as long as it is. Every trainer must start with the same weights
    (seed before making the model) and have a loader over the same samples.
    epochs, samples, updates, seconds: the budget of each, in one of them. Seconds are those of
    updates alone (``trainer.progress.seconds``): looking takes none.
    target_loss: the full loss to which times are given; if left out, the largest of the final
    full losses of the forms that ended below their start, so that all of these reach it.
    lr_grid: learning rates; each form trains with every one for a quarter of the budget (see
    :meth:`~gdtrain.analysis.comparison.recorder.Budget.short`), and then for all of it with the one
    that had the smallest full loss at the end.
    looks: evenly spread updates around which the full loss is evaluated: before and after.
    validation: evaluated at each look too.
    should_stop, tell, on_look: asked at each safe point; told what is done, in lines; told of the
    share of the budget that a form has spent.

    Measured, of each form:

    * samples per second, and seconds, updates and gradient evaluations to the target: up to the
      first look with a full loss at or below it, so to the precision of the looks;
    * the final full loss (:meth:`Trainer.evaluate` on the training part) and validation;
    * the peak memory of a step, see :func:`gdtrain.analysis.comparison.peak_memory.step_memory`;
    * stability: the variance of the updates' own losses about their trend in the last third, see
      :meth:`gdtrain.analysis.comparison.recorder.Recorder.loss_variance`, and the share of the
      updates looked at that raised the full loss by more than rounding.

    A form whose loss or gradient becomes NaN or infinite, or whose full loss rises to a million
    times that at its start, is reported as diverged. Raises
    ConfigError for a wrong budget and ModelError if the forms can't be compared.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, SampleLoader, Trainer, compare
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> def form(loader, lr):
    ...     torch.manual_seed(0)
    ...     model = nn.Linear(1, 1)
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    ...     return Trainer(model, nn.MSELoss(), optimizer, loader((X, 3 * X)), device="cpu")
    >>> forms = {
    ...     "batch": lambda: form(BatchLoader, 0.5),
    ...     "sample": lambda: form(SampleLoader, 0.1),
    ... }
    >>> compared = compare(forms, epochs=5)
    >>> [form["name"] for form in compared.result["forms"]]
    ['batch', 'sample']
    """
    budget = _budget(epochs=epochs, samples=samples, updates=updates, seconds=seconds)
    _check(forms, target_loss, lr_grid, looks)
    measure = _Measure(budget, looks, validation, should_stop, tell, on_look)
    trainers, generators = {}, {}
    for name, make in forms.items():
        trainers[name] = make()
        generators[name] = RngState.take(trainers[name].device)
    start = common_start(trainers, validation)
    measured: list[dict[str, Any]] = []
    for name, make in forms.items():
        if should_stop():
            break
        first = trainers.pop(name)
        assert first.loader is not None
        if lr_grid:
            measured.append(measure.tuned(name, make, first.loader, sorted(lr_grid), start))
        else:
            generators[name].restore(first.device)  # what it draws depends on itself alone
            measured.append(measure.run(name, first, budget, looks, start))
    return comparison_of(budget, target_loss, start, measured, interrupted=should_stop())


@dataclass
class _Measure:
    """How every form is measured."""

    budget: Budget
    looks: int
    validation: Loader | None
    should_stop: Callable[[], bool]
    tell: Callable[[str], None]
    on_look: Callable[[str, float], None]

    def tuned(
        self,
        name: str,
        make: Callable[..., Trainer],
        loader: Loader,
        grid: list[float],
        start: dict[str, Any],
    ) -> dict[str, Any]:
        """Measure the form with the learning rate of the smallest full loss after a short run."""
        short = self.budget.short(loader)
        tried: list[dict[str, Any]] = []
        for lr in grid:
            if tried and self.should_stop():
                break
            run = self.run(name, make(lr=lr, budget=short), short, MIN_LOOKS, start)
            loss = run["final"]["full_loss"]
            tried.append({"learning_rate": lr, "status": run["status"], "full_loss": loss})
        best = min(tried, key=_rank)["learning_rate"]
        if not self.should_stop():
            edge = " (an end of the grid)" if best in (grid[0], grid[-1]) and len(grid) > 1 else ""
            self.tell(f"{name}: takes learning rate {best:g}{edge}")
        trainer = make(lr=best, budget=self.budget)
        return self.run(name, trainer, self.budget, self.looks, start) | {"tried": tried}

    def run(
        self, name: str, trainer: Trainer, budget: Budget, looks: int, start: dict[str, Any]
    ) -> dict[str, Any]:
        """Measure one run of a fresh trainer."""
        assert trainer.loader is not None
        check_start(name, trainer, start)
        lr = trainer.optimizer.param_groups[0].get("initial_lr", trainer.lr)
        memory = step_memory(trainer)  # first, since it warms PyTorch up for the clock as well
        recorder = Recorder(
            budget,
            trainer.loader,
            self.validation,
            looks,
            self.should_stop,
            lambda spent: self.on_look(name, spent),
        )
        if trainer.needs_closure:
            recorder.closures = ClosureCounter()
            trainer.callbacks.append(recorder.closures)
        trainer.callbacks.append(recorder)
        status, reason = "done", None
        try:
            trainer.fit(budget.epochs(trainer.loader))
        except NonFiniteError as error:
            status, reason = "diverged", str(error)
        if recorder.interrupted:
            status = "interrupted"
        elif recorder.burst or not math.isfinite(recorder.rows[-1]["full_loss"]):
            message = f"the full loss rose to {recorder.rows[-1]['full_loss']:.3g}"
            status, reason = "diverged", reason or message
        found = measured_run(name, trainer, recorder, lr, status, reason)
        if memory is not None:
            found["memory"] = {"step_peak_bytes": memory.step, "held_bytes": memory.held}
        self.tell(line_of(found))
        return found


def _rank(run: dict[str, Any]) -> tuple[bool, float, float]:
    loss = run["full_loss"]
    return run["status"] != "done", math.inf if loss is None else loss, run["learning_rate"]


# ── arguments ───────────────────────────────────────────────────────────────────────────────


def _budget(**given: float | None) -> Budget:
    units: list[Unit] = ["epochs", "samples", "updates", "seconds"]
    chosen = [(unit, given[unit]) for unit in units if given[unit] is not None]
    if len(chosen) != 1:
        named = ", ".join(unit for unit, _ in chosen) or "none"
        raise ConfigError.of("budget", f"give one of {', '.join(units)}; got {named}")
    ((unit, amount),) = chosen
    assert amount is not None
    if not (0 < amount < math.inf) or (unit != "seconds" and amount != int(amount)):
        kind = "a number > 0" if unit == "seconds" else "a whole number >= 1"
        raise ConfigError.of(unit, f"must be {kind}, got {amount}")
    return Budget(unit, amount)


def _check(
    forms: Mapping[str, Any], target_loss: float | None, lr_grid: Sequence[float], looks: int
) -> None:
    if not forms:
        raise ConfigError.of("forms", "is empty; give at least one form")
    if target_loss is not None and not math.isfinite(target_loss):
        raise ConfigError.of("target_loss", f"must be a finite number, got {target_loss}")
    for lr in lr_grid:
        if not 0 < lr < math.inf:
            raise ConfigError.of("lr_grid", f"must hold numbers > 0, got {lr}")
    if looks < MIN_LOOKS:
        raise ConfigError.of("looks", f"must be >= {MIN_LOOKS}, got {looks}")
