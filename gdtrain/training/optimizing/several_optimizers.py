"""Several optimizers, and several schedules, of one trainer, each by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gdtrain.errors import ConfigError, ModelError
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.optimizing.schedules import Scheduler, ScheduleStepper
from gdtrain.training.safety.checks import needs_closure
from gdtrain.training.state.plain_values import is_number


class Optimizers:
    """Several optimizers of different parameters, which are stepped one after the other.

    of: by name, in the order in which they are stepped. ``param_groups`` and ``state`` are those of
    all of them, to be read.
    """

    def __init__(self, of: Mapping[str, Optimizer]) -> None:
        self.of = dict(of)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.of.values() for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        return {p: s for optimizer in self.of.values() for p, s in optimizer.state.items()}

    def are_several(self) -> list[Optimizer]:
        """Each, by which others tell this from an optimizer, which may have any attributes."""
        return list(self.of.values())

    def step(self, closure: None = None) -> None:
        for optimizer in self.of.values():
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.of.values():
            optimizer.zero_grad()


def together(given: Any) -> Optimizer:
    """One optimizer as it is, several as :class:`Optimizers`, which is read like one.

    Raises ModelError for several that hold the same parameter, or of which one needs a closure.
    """
    if not isinstance(given, Mapping):
        single: Optimizer = given
        return single
    if not given or not all(isinstance(name, str) and name.isidentifier() for name in given):
        raise ModelError(
            "optimizer: a mapping must have a name for each, such as {'generator': …}; "
            f"got {list(given)}"
        )
    owner: dict[Tensor, str] = {}
    for name, optimizer in given.items():
        if not isinstance(optimizer, Optimizer):
            text = f"optimizer: {name} must be a torch.optim optimizer, got {optimizer!r}"
            raise ModelError(text)
        if needs_closure(type(optimizer).step):
            kind = type(optimizer).__name__
            raise ModelError(f"optimizer: {name} is {kind}, which works alone; give it no others")
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if (other := owner.setdefault(parameter, name)) != name:
                raise ModelError(
                    f"optimizer: {other} and {name} hold the same parameter, "
                    f"{list(parameter.shape)}; give each to one of them"
                )
    return cast(Optimizer, Optimizers(given))


class Schedules(ScheduleStepper):
    """The schedules of several optimizers, by the optimizer's name."""

    def __init__(
        self,
        of: Mapping[str, Scheduler],
        per: Literal["epoch", "step"],
        metric: str | None,
    ) -> None:
        if metric is not None and not any(map(_is_by_metric, of.values())):
            raise ConfigError.of(
                "scheduler_metric", "has no effect without ReduceLROnPlateau; leave it out"
            )
        self.of = {name: _of_one(one, per, metric) for name, one in of.items()}
        first = next(iter(self.of.values()))
        super().__init__(first.scheduler, first.per, first.metric)

    @property
    def schedulers(self) -> dict[str, Scheduler]:
        return {n: one.scheduler for n, one in self.of.items() if one.scheduler is not None}

    @property
    def own_code(self) -> list[Any]:
        return [found for one in self.of.values() for found in one.own_code]

    @property
    def by_step(self) -> bool:
        return any(one.by_step for one in self.of.values())

    @property
    def by_metric(self) -> bool:
        return any(one.by_metric for one in self.of.values())

    def mark(self, *, over_epochs: bool = False) -> Callable[[], None]:
        marks = [one.mark(over_epochs=over_epochs) for one in self.of.values()]

        def back() -> None:
            for mark in marks:
                mark()

        return back

    def after_step(self) -> None:
        for one in self.of.values():
            one.after_step()

    def after_epoch(self) -> None:
        for one in self.of.values():
            one.after_epoch()

    def end_fit(self, records: Sequence[dict[str, Any]]) -> None:
        for one in self.of.values():
            one.end_fit(records)

    def after_validation(
        self, records: Sequence[dict[str, Any]], callbacks: Sequence[Callback]
    ) -> None:
        for one in self.of.values():
            one.after_validation(records, callbacks)


def _is_by_metric(scheduler: Any) -> bool:
    return isinstance(scheduler, ReduceLROnPlateau)


def _of_one(scheduler: Any, per: Literal["epoch", "step"], metric: str | None) -> ScheduleStepper:
    """What steps one schedule of several, not all of which need be by steps, or by a metric."""
    if _is_by_metric(scheduler):
        return ScheduleStepper(scheduler, "epoch", metric)
    return ScheduleStepper(scheduler, per)


def stepper(
    scheduler: Any,
    per: Literal["epoch", "step"],
    metric: str | None,
    optimizer: Any,
    *,
    in_phases: bool = False,
) -> ScheduleStepper:
    """What steps one schedule, or several, which are given by the names of their optimizers.

    in_phases: whether the metric may be for a schedule of another phase.
    """
    if not isinstance(scheduler, Mapping):
        return (_of_one if in_phases else ScheduleStepper)(scheduler, per, metric)
    if in_phases and not any(map(_is_by_metric, scheduler.values())):
        metric = None
    _check_names("scheduler", scheduler, optimizer)
    return Schedules(scheduler, per, metric) if scheduler else ScheduleStepper(None, per, metric)


def check_scheduler_is_of(scheduler: Any, optimizer: Any) -> None:
    """Raise ConfigError for schedulers of other optimizers, whose rates nothing reads.

    Optimizers of own classes may step another one, whose rates are set then.
    """
    pairs = [(scheduler, optimizer)]
    if isinstance(scheduler, Mapping):
        pairs = [(each, optimizer.of[name]) for name, each in scheduler.items()]
    for each, stepped in pairs:
        scheduled = getattr(each, "optimizer", None)
        if not isinstance(scheduled, Optimizer) or not _is_of_pytorch(stepped):
            continue
        groups = [id(group) for group in stepped.param_groups]
        if not any(id(group) in groups for group in scheduled.param_groups):
            text = "sets the rate of another optimizer than the one given, and so has no effect"
            raise ConfigError.of("scheduler", f"{text}; make it with that optimizer")


def _is_of_pytorch(optimizer: Any) -> bool:
    return type(optimizer).__module__.startswith("torch.optim.")


def check_bounds(key: str, bound: Any, optimizer: Any) -> None:
    """Raise ConfigError for bounds of gradients, by name, that are of no optimizer, or not > 0."""
    if not isinstance(bound, Mapping):
        bound = {"": bound}
    else:
        _check_names(key, bound, optimizer)
    for value in bound.values():
        if value is not None and not (is_number(value) and value > 0):
            raise ConfigError.of(key, f"must be > 0, got {value!r}")


def _check_names(key: str, names: Iterable[str], optimizer: Any) -> None:
    known = list(optimizer.of) if isinstance(optimizer, Optimizers) else []
    for name in names:
        if name not in known:
            among = f"one of {', '.join(known)}" if known else "left out: there is one optimizer"
            raise ConfigError.of(key, f"{name!r} is no optimizer's name; it must be {among}")
