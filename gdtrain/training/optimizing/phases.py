"""Switching in mid-run: an optimizer, a schedule and frozen layers for each phase of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gdtrain.data.loaders.phases import Piecewise
from gdtrain.errors import ConfigError

Factory = Callable[[list[Tensor]], Optimizer | Mapping[str, Optimizer]]


@dataclass(frozen=True)
class Phase:
    """What holds in one phase; see :class:`Phases`."""

    optimizer: Factory
    schedule: Callable[[Any], Any] | None = None
    frozen: tuple[str, ...] = ()


class Phases:
    """Phases of training, each with its optimizer, schedule and frozen layers.

    phases: tuples ``(until, optimizer, schedule, frozen)``; the last two may be omitted.

    * until: the last epoch of the phase, counted from 1; None in the last phase;
    * optimizer: ``parameters -> optimizer``, called when the phase begins, with what it trains;
    * schedule: ``optimizer -> scheduler``, or None;
    * frozen: names of layers or parameters that the phase does not train, as in
      ``model.named_modules()``, such as ``["backbone"]``. What was frozen before stays frozen.

    Pass it to a Trainer as its optimizer. It remains one run, with one history; a checkpoint of any
    phase can be resumed. The engine is chosen for each phase. Raises ConfigError for phases that do
    not follow each other, and for names that the model does not have.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Phases, Trainer
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> phases = Phases([(5, torch.optim.Adam, None, ["0"]), (None, torch.optim.LBFGS)])
    >>> history = Trainer(model, "mse", phases, BatchLoader((X, X.sin()))).fit(10)
    >>> history.train_loss[-1] < history.train_loss[5] < history.train_loss[0]
    True
    """

    def __init__(self, phases: Sequence[Sequence[Any]], *others: Any) -> None:
        if others:
            text = "is one list: Phases([(5, torch.optim.Adam), (None, torch.optim.LBFGS)])"
            raise ConfigError.of("phases", text)
        rows = list(phases) if isinstance(phases, list | tuple) else []
        for number, row in enumerate(rows):
            if not (isinstance(row, list | tuple) and 2 <= len(row) <= 4 and callable(row[1])):
                text = "must be (until, optimizer, schedule, frozen), the optimizer a function of "
                text += f"the parameters, such as torch.optim.Adam; got {row!r}"
                raise ConfigError.of(f"phases[{number}]", text)
            if len(row) == 4 and isinstance(row[3], str):
                raise ConfigError.of(f"phases[{number}]", f"frozen must be a list: [{row[3]!r}]")
        pairs = tuple((row[0], Phase(row[1], *row[2:3], *map(tuple, row[3:4]))) for row in rows)
        self._of_epoch = Piecewise(pairs)

    def __repr__(self) -> str:
        def name(phase: Phase) -> str:
            factory = getattr(phase.optimizer, "func", phase.optimizer)  # of a partial
            return getattr(factory, "__name__", type(factory).__name__)

        pairs = [(end, name(phase)) for end, phase in self._of_epoch.pairs]
        return f"Phases({Piecewise(tuple(pairs))})"

    def __len__(self) -> int:
        return len(self._of_epoch.pairs)

    def __getitem__(self, number: int) -> Phase:
        return self._of_epoch.values[number]

    def number(self, epoch: int) -> int:
        """Which phase an epoch is in, both from 0."""
        ends = [end for end, _ in self._of_epoch.pairs]
        return next(n for n, end in enumerate(ends) if end is None or epoch < end)

    def end(self, epoch: int, num_epochs: int) -> int:
        """The last epoch of the phase that ``epoch``, from 0, is in; ``num_epochs`` at most."""
        end, _ = self._of_epoch.pairs[self.number(epoch)]
        return num_epochs if end is None else min(end, num_epochs)

    def check(self, model: nn.Module) -> None:
        """Raise ConfigError for a name that the model does not have."""
        known = {*dict(model.named_modules()), *dict(model.named_parameters())}
        for number, phase in enumerate(self._of_epoch.values):
            for name in phase.frozen:
                if name not in known or not name:
                    text = f"the model has no {name!r}; give names of model.named_modules()"
                    raise ConfigError.of(f"phases[{number}].frozen", text)
            if not trained_in(phase.frozen, model):
                text = "leaves nothing to train; leave some layer out"
                raise ConfigError.of(f"phases[{number}].frozen", text)

    def freeze(self, number: int, model: nn.Module, trained: Sequence[str]) -> list[Tensor]:
        """Freeze what the phase freezes; return what it trains. trained: names, at first."""
        frozen = self[number].frozen
        left: list[Tensor] = []
        for name, parameter in model.named_parameters():
            if name not in trained:
                continue
            still = below(name, frozen)
            parameter.requires_grad_(not still)
            if still:
                parameter.grad = None
            else:
                left.append(parameter)
        return left


def below(name: str, layers: Iterable[str]) -> bool:
    """Whether a parameter is one of these layers and parameters, or in one of them."""
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


def trained_in(frozen: Iterable[str], model: nn.Module) -> list[Tensor]:
    """What of the model is trained beside layers that are frozen."""
    named = model.named_parameters()
    return [p for name, p in named if p.requires_grad and not below(name, frozen)]
