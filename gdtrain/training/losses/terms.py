"""Terms of a loss, and other numbers that are logged of single updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gdtrain.errors import ModelError

Numbers = dict[str, Any]  # by name: floats, or tensors of shape [] wherever they are
Place = tuple[bool, str]  # whether it is a term of the loss, else it was logged; its name

# What records of steps and epochs hold anyway.
_TAKEN = ("kind", "epoch", "step", "samples", "loss", "train_loss", "seconds", "lr", "skipped")


@dataclass
class StepTerms:
    """What is noted of the update that is being made, besides its loss.

    passed: the terms of the last pass. sums: of the last gradient, as far as its parts have been
        added. first: of the update's first gradient, which is that of its loss, if there are more.
    logged: what :meth:`Trainer.log` was given. under_way: whether an update is.
    """

    passed: Numbers = field(default_factory=dict)
    first: Numbers = field(default_factory=dict)
    logged: Numbers = field(default_factory=dict)
    under_way: bool = False
    sums: Numbers = field(default_factory=dict)

    def loss_of(self, value: Any) -> Any:
        """The loss in what ``compute_loss`` has given, whose other terms are noted.

        Raises ModelError for a mapping without a loss, and for terms that are no single numbers.
        """
        if isinstance(value, Tensor):
            return value
        if not isinstance(value, Mapping):
            raise ModelError(
                f"loss: must be a tensor of shape [], whose gradient is computed; got a "
                f"{type(value).__name__}: leave out .item(), float() and numpy"
            )
        if "loss" not in value:
            names = f"only {', '.join(map(str, value))}" if value else "nothing"
            raise ModelError(f"compute_loss: returned {names}; name the loss 'loss'")
        self.passed = {n: number(n, term) for n, term in value.items() if n != "loss"}
        return self.loss_of(value["loss"]) if type(value["loss"]) is not Tensor else value["loss"]

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Note meanwhile what a pass gives that is no update's; :meth:`of_pass` has it."""
        before = self.under_way, self.passed, self.logged
        self.under_way, self.passed, self.logged = True, {}, {}
        try:
            yield
        finally:
            self.under_way, self.passed, self.logged = before

    def of_pass(self) -> dict[Place, Any]:
        """The terms of the loss in the last pass, and the numbers that it has logged."""
        of_loss = {(True, name): term for name, term in self.passed.items()}
        return {**of_loss, **{(False, name): value for name, value in self.logged.items()}}

    def begin_gradient(self) -> None:
        """A gradient is about to be computed, perhaps once more."""
        self.first, self.sums = self.first or self.sums, {}

    def begin_again(self) -> None:
        """The gradient is computed again."""
        self.sums = {}

    def add(self, share: Any) -> None:
        """Add the terms of the pass that was made, which are so much of the batch's."""
        for name, term in self.passed.items():
            self.sums[name] = self.sums.get(name, 0.0) + term * share
        self.passed = {}

    def take(self) -> tuple[Numbers, Numbers]:
        """What was noted of the update: shares of its terms, and numbers that were logged."""
        shares = self.first or self.sums
        # An own train_step that takes its gradient by itself has made passes alone.
        logged = self.logged if shares else {**self.passed, **self.logged}
        self.passed, self.first, self.sums, self.logged = {}, {}, {}, {}
        return shares, logged


def of_row(places: Sequence[Place], values: Sequence[float]) -> tuple[Numbers, Numbers]:
    """What an update has given, in the form of :meth:`StepTerms.take`."""
    given = list(zip(places, values, strict=True))
    of_loss = {name: value for (is_term, name), value in given if is_term}
    return of_loss, {name: value for (is_term, name), value in given if not is_term}


def number(name: Any, value: Any) -> Any:
    """A term or a number to log, without its graph. Raises ModelError if it is not one number."""
    if not (isinstance(name, str) and name.isprintable()) or name in _TAKEN:
        raise ModelError(f"{name!r} can't be the name of a number that is logged; choose another")
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().reshape(()).clone()
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:  # of numpy
        value = value.item()
    if isinstance(value, int | float) and not isinstance(value, Tensor):
        return float(value)
    raise no_number(name, value)


def no_number(name: str, value: Any) -> ModelError:
    """The error of what is not one number."""
    shape = getattr(value, "shape", None)
    form = type(value).__name__ if shape is None else list(shape)
    return ModelError(f"{name}: must be one number, got {form}; take its mean, or leave it out")


def summed(rows: list[tuple[Numbers, Numbers]]) -> tuple[Numbers, Numbers]:
    """What all processes have noted of one update: sums of shares, and means of what was logged."""
    shares: Numbers = {}
    logged: dict[str, list[float]] = {}
    for own, others in rows:
        for name, value in own.items():
            shares[name] = shares.get(name, 0.0) + float(value)
        for name, value in others.items():
            logged.setdefault(name, []).append(float(value))
    return shares, {name: sum(values) / len(values) for name, values in logged.items()}
