"""Several forms of gradient descent on one problem, measured: speed, loss, memory, stability."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gdtrain.analysis.comparison.peak_memory import step_memory
from gdtrain.analysis.comparison.recorder import Budget, ClosureCounter, Recorder, Unit
from gdtrain.analysis.comparison.result import Comparison, comparison_of, line_of, measured_run
from gdtrain.analysis.comparison.same_problem import check_start, common_start
from gdtrain.analysis.theory import Theory, theories
from gdtrain.data.checks import whole_number
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ConfigError, ModelError, NonFiniteError
from gdtrain.output.run_directory import finite
from gdtrain.training.state.random_generators import RngState
from gdtrain.training.trainer import Trainer
from gdtrain.wording import first_guesses

MIN_LOOKS = 2


@first_guesses(num_epochs="is called epochs here: compare(forms, epochs=100)")
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
    theory: bool = True,
    seeds: int | Sequence[int] | None = None,
    validation: Loader | Callable[[int], Loader] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda _: None,
    on_look: Callable[[str, float], None] = lambda _name, _spent: None,
) -> Comparison:
    """Train each form from the same weights on the same samples, and measure it.

    forms: for each name, a function that makes a new trainer; called with ``lr=`` and ``budget=``
    if there is a grid: the learning rate, and a
    :class:`~gdtrain.analysis.comparison.recorder.Budget`, for schedules that span it. Every trainer
    must start with the same weights (seed before making the model) and have a loader over the same
    samples.
    epochs, samples, updates, seconds: the budget of each form; give one of them. Seconds count
    updates only (``trainer.progress.seconds``), not evaluation.
    target_loss: the full loss to which times are given; if left out, the largest of the final
    full losses of the forms that ended below their start, so that all of these reach it. If
    that says nothing, being hardly below the start or reached at once, another is used, or none:
    see :func:`~gdtrain.analysis.comparison.target.target_of`.
    lr_grid: learning rates; each form trains with every one for a quarter of the budget (see
    :meth:`~gdtrain.analysis.comparison.recorder.Budget.short`), and then for all of it with the one
    that had the smallest full loss at the end.
    looks: the number of evenly spread updates before and after which the full loss is evaluated.
    theory: compute λ, the noise scale and the largest rate that they allow each form, at the
    common start, and say how well the rates that were tried agree
    (:func:`~gdtrain.analysis.theory.theory`). It takes about twenty gradients of the full loss.
    seeds: their number, from 0, or a list. Each form is then made and trained once with each seed,
    called with ``seed=``, which determines its weights, its order and its data; for each seed all
    forms must start from the same weights. The grid is tried with the first seed. Without seeds
    there is one run of each form, which is not enough to recommend one.
    validation: evaluated each time as well; with seeds it may be a function of the seed.
    should_stop: called at each safe point. tell: called with progress messages. on_look: called
    with the share of the budget that a form has spent.

    What is measured of each form: see :class:`~gdtrain.analysis.comparison.result.Comparison`.
    Trainers with ``engine="auto"`` are measured under eager, so that their times are those of one
    engine. A form whose loss or gradient becomes NaN or infinite, or whose full loss rises to a
    million times that at its start, is reported as diverged. Raises ConfigError for a wrong budget
    and ModelError if the forms can't be compared.

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
    _check_arguments(forms, *["seed"] * (seeds is not None), *["lr", "budget"] * bool(lr_grid))
    measure = _Measure(budget, looks, sorted(lr_grid), should_stop, tell, on_look, theory)
    measured: dict[str, dict[int | None, dict[str, Any]]] = {}
    starts: list[dict[str, Any]] = []
    for seed in _seeds(seeds):
        judged = validation(seed or 0) if callable(validation) else validation
        seeded = {
            name: make if seed is None else partial(make, seed=seed) for name, make in forms.items()
        }
        start, runs = measure.all_of(seeded, judged)
        starts.append(start)
        for name, run in runs.items():
            measured.setdefault(name, {})[seed] = run
        if should_stop():
            break
    return comparison_of(budget, target_loss, starts[0], measured, interrupted=should_stop())


@dataclass
class _Measure:
    """How every form is measured.

    grid: the learning rates to try, in rising order. rates: those taken, by the forms' names.
    predicted: what theory says of them.
    """

    budget: Budget
    looks: int
    grid: list[float]
    should_stop: Callable[[], bool]
    tell: Callable[[str], None]
    on_look: Callable[[str, float], None]
    theory: bool = False
    rates: dict[str, float] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    validation: Loader | None = None
    predicted: dict[str, Theory] = field(default_factory=dict)

    def all_of(
        self, forms: Mapping[str, Callable[..., Trainer]], validation: Loader | None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Measure each form once from a common start: what that is, and their runs by name."""
        trainers, generators = {}, {}
        for name, make in forms.items():
            trainers[name] = _made(name, make)
            generators[name] = RngState.take(trainers[name].device)
        self.start, self.validation = common_start(trainers, validation), validation
        if self.theory and not self.predicted:  # of the first seed's start
            self.predicted = theories(trainers)
        runs: dict[str, dict[str, Any]] = {}
        for name, make in forms.items():
            if self.should_stop():
                break
            first = trainers.pop(name)
            assert first.loader is not None
            if self.grid:
                runs[name] = self.tuned(name, make, first.loader)
            else:
                generators[name].restore(first.device)  # what it draws depends on itself alone
                runs[name] = self.run(name, first, self.budget, self.looks)
        return self.start, runs

    def tuned(self, name: str, make: Callable[..., Trainer], loader: Loader) -> dict[str, Any]:
        """Measure the form with its learning rate, which is looked for at the first time."""
        found = {} if name in self.rates else self.tune(name, make, loader)
        trainer = make(lr=self.rates[name], budget=self.budget)
        return self.run(name, trainer, self.budget, self.looks) | found

    def tune(self, name: str, make: Callable[..., Trainer], loader: Loader) -> dict[str, Any]:
        """Choose the learning rate of the smallest full loss after a short run; what was tried."""
        short = self.budget.short(loader)
        tried: list[dict[str, Any]] = []
        spent = dict.fromkeys(("updates", "gradient_evaluations", "seconds"), 0.0)
        for lr in self.grid:
            if tried and self.should_stop():
                break
            run = self.run(name, make(lr=lr, budget=short), short, MIN_LOOKS)
            loss = run["final"]["full_loss"]
            tried.append({"learning_rate": lr, "status": run["status"], "full_loss": loss})
            spent = {key: total + run[key] for key, total in spent.items()}
        best = self.rates[name] = min(tried, key=_rank)["learning_rate"]
        if not self.should_stop():
            at_end = best in (self.grid[0], self.grid[-1]) and len(self.grid) > 1
            edge = ", the end of the grid: try rates beyond it" if at_end else ""
            self.tell(f"{name}: chooses learning rate {best:g}{edge}")
        return {"tried": tried, "tuning": spent}

    def run(self, name: str, trainer: Trainer, budget: Budget, looks: int) -> dict[str, Any]:
        """Measure one run of a fresh trainer."""
        assert trainer.loader is not None
        check_start(name, trainer, self.start)
        trainer.choice.keep("eager")  # under auto: times of several engines are not comparable
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
        if name in self.predicted:
            found["theory"] = finite(self.predicted[name].as_dict())
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


def _seeds(given: int | Sequence[int] | None) -> Sequence[int | None]:
    if given is None:
        return [None]
    if isinstance(given, int):
        whole_number("seeds", given, minimum=1)
        return range(given)
    if not given or len(set(given)) < len(given):
        raise ConfigError.of("seeds", f"must be different whole numbers, got {list(given)}")
    return given


def _made(name: str, make: Callable[..., Trainer]) -> Trainer:
    """A new trainer. Raises ModelError if the form makes something else."""
    made: Any = make()
    if not isinstance(made, Trainer):
        raise ModelError(f"forms.{name}: must return a Trainer; got {made!r}")
    return made


def _check_arguments(forms: Mapping[str, Any], *wanted: str) -> None:
    """Raise ConfigError for a form that can't be called with these arguments, by their names."""
    for name, make in forms.items():
        if not callable(make):
            text = f"must be a function that makes a new Trainer; got {type(make).__name__}"
            raise ConfigError.of(f"forms.{name}", f"{text}; write a function that returns it")
        try:
            inspect.signature(make).bind(**dict.fromkeys(wanted))
        except TypeError as error:
            call = ", ".join(f"{one}=…" for one in wanted)
            raise ConfigError.of(
                f"forms.{name}", f"is called as {name}({call}): {error}; have it take just these"
            ) from None


def _check(
    forms: Mapping[str, Any], target_loss: float | None, lr_grid: Sequence[float], looks: int
) -> None:
    if not isinstance(forms, Mapping):
        text = "must be a mapping of names to functions that make a trainer, such as {'batch': f}"
        raise ConfigError.of("forms", f"{text}; got a {type(forms).__name__}")
    if not forms:
        raise ConfigError.of("forms", "is empty; give at least one form")
    if target_loss is not None and not math.isfinite(target_loss):
        raise ConfigError.of("target_loss", f"must be a finite number, got {target_loss}")
    for lr in lr_grid:
        if not 0 < lr < math.inf:
            raise ConfigError.of("lr_grid", f"must hold numbers > 0, got {lr}")
    if looks < MIN_LOOKS:
        raise ConfigError.of("looks", f"must be >= {MIN_LOOKS}, got {looks}")
