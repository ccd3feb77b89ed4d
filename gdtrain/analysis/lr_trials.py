"""Learning rates tried out: short runs from the same weights, longer ones of those that do best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from gdtrain.analysis.trial_updates import trial_updates
from gdtrain.data.batch import Block
from gdtrain.data.loaders.loader import Loader
from gdtrain.training.blocks import known_plan
from gdtrain.training.trainer import Trainer

FACTOR = 2.0  # between rates
MOST_RATES = 16
SHARES = ((1 / 16, 6), (1 / 4, 3), (1.0, 1))  # of the budget, and how many rates stay after it
CHEAP = 100  # updates, below which a stage makes no sense
CHUNK = 64  # updates in a row
OTHER_EPOCH = 1 << 20  # where another draw of the order begins

Set = Callable[[float], None]


@dataclass(frozen=True)
class Trial:
    """A run at a constant learning rate: its updates, and the full loss after the last one.

    full_loss: None if a loss or gradient was not finite.
    """

    learning_rate: float
    updates: int
    full_loss: float | None


def best_rate(
    trainer: Trainer,
    highest: float,
    lowest: float,
    updates: int,
    judged: Loader,
    first_loss: float,
    set_rate: Set,
) -> tuple[float | None, list[Trial]]:
    """The rate with the lowest full loss after ``updates`` updates, and all that was tried.

    Rates a factor of 2 apart, from ``highest`` down: all of them for a sixteenth of the budget, the
    best six of them for a quarter, the best three for all of it. The best one is tried on another
    draw of the order too, and gives way to the next if it does not descend there. None if none
    descends. The trainer is left as it was.
    """
    rates = _rates(highest, lowest)
    trials: list[Trial] = []
    for share, stays in SHARES:
        length = updates if updates <= CHEAP else max(1, round(share * updates))
        tried = [_try(trainer, rate, length, judged, set_rate) for rate in rates]
        trials += tried
        if length == updates:
            break
        rates = _kept(tried, stays)
    ranked = sorted(trials[-len(rates) :], key=_rank)
    for trial in ranked:
        if _loss(trial) >= first_loss:
            break
        other = _try(trainer, trial.learning_rate, updates, judged, set_rate, OTHER_EPOCH)
        trials.append(other)
        if _loss(other) < first_loss:
            return trial.learning_rate, trials
    return None, trials


def _rates(highest: float, lowest: float) -> list[float]:
    rates = [highest / FACTOR**number for number in range(MOST_RATES)]
    return [rate for rate in rates if rate >= lowest] or [highest]


def _kept(tried: list[Trial], stays: int) -> list[float]:
    """The best rates, and the one below the best: what is longer bears less."""
    ranked = [trial.learning_rate for trial in sorted(tried, key=_rank)]
    best = ranked[0] / FACTOR
    below = [rate for rate in ranked if math.isclose(rate, best)]
    return list(dict.fromkeys([ranked[0], *below, *ranked]))[:stays]


def _rank(trial: Trial) -> tuple[float, float]:
    """The better ones first; of those that are as good to four digits, the one that is safer."""
    return float(f"{_loss(trial):.4g}"), trial.learning_rate


def _loss(trial: Trial) -> float:
    return math.inf if trial.full_loss is None else trial.full_loss


def _try(
    trainer: Trainer,
    rate: float,
    updates: int,
    judged: Loader,
    set_rate: Set,
    first_epoch: int = 0,
) -> Trial:
    """Train at a constant rate, and put everything back."""
    with trial_updates(trainer):
        set_rate(rate)
        for block in _blocks(trainer, updates, first_epoch):
            if len(trainer.engine.run(block)) < block.stop - block.start:
                return Trial(rate, updates, None)
        loss = trainer.evaluate(judged)["loss"]
    return Trial(rate, updates, loss if math.isfinite(loss) else None)


def _blocks(trainer: Trainer, updates: int, first_epoch: int) -> Iterator[Block]:
    """So many updates of the epochs that come, a few at a time."""
    loader = trainer.loader
    assert loader is not None
    epoch = trainer.progress.epoch + first_epoch
    while updates:
        plan, made = known_plan(trainer, loader, epoch), 0
        batches = iter(trainer.read(loader, plan))
        while chunk := list(islice(batches, min(CHUNK, updates))):
            yield Block(plan, made, made + len(chunk), chunk)
            made, updates = made + len(chunk), updates - len(chunk)
        epoch += 1
