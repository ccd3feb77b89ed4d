"""Where a run stands: the only cursor, the owner of every counter, and the history of epochs."""

from __future__ import annotations

import importlib
import math
import time
from copy import copy
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gdtrain.data.batch import Block
from gdtrain.errors import MissingPackageError
from gdtrain.wording import counted, html_table

_SHOWN_ROWS = 20  # of a long history, at its start and at its end
# Losses that are added up at once: a core's cache holds them. Of a few, one by one.
_AT_ONCE, _FEW = 1 << 14, 32

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Progress:
    """Counters of a run.

    epoch: epochs completed. step: updates made, in all epochs. step_in_epoch: updates made in
    the current epoch, and batches of it that made none. skipped: of these the number in all epochs:
    under precision fp16, their gradient overflowed. samples: samples used, in all epochs. All are
    true at any moment: they move as an update is made. seconds: time spent in blocks, so without
    evaluation, logging and checkpoints, up to the end of the last block or epoch.
    epoch_loss_sum, epoch_weight: of the current epoch's blocks, Σ w J and Σ w, with J a batch's
    loss and w what it is divided by.
    epoch_terms: of the current epoch, by the key of its record: Σ w t and Σ w of each term t of the
    loss, and of each number that was logged.
    position: where a stream stands after the last block, for its source alone to understand;
    None for data that is not a stream.
    last: the last block and its losses, where it has run.
    lr: the learning rate of the last update, of the optimizer's first group.
    began: the seconds at the beginning of the last block.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    skipped: int = 0
    samples: int = 0
    seconds: float = 0.0
    epoch_loss_sum: float = 0.0
    epoch_samples: int = 0
    epoch_weight: float = 0.0
    epoch_terms: dict[str, tuple[float, float]] = field(default_factory=dict)
    position: list[int] | None = None
    last: tuple[Block, Tensor] | None = field(default=None, repr=False, compare=False)
    lr: float | Tensor = field(default=math.nan, repr=False, compare=False)
    _pending: int | None = field(default=None, repr=False, compare=False)
    began: float = field(default=0.0, repr=False, compare=False)
    _since: float = field(default=0.0, repr=False, compare=False)  # wall-clock time, in seconds

    @property
    def losses(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The loss of each step of the last block, [steps] float64, on the host."""
        return np.empty(0) if self.last is None else self.last[1].cpu().double().numpy()

    @property
    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The samples of each step of the last block, [steps] int64."""
        return np.empty(0, np.int64) if self.last is None else self.last[0].sizes

    def begin(self, samples: int) -> None:
        """An update of so many samples, on all ranks, is about to be made."""
        self._pending = samples

    def made(self) -> None:
        """The update that was begun has been made: the weights have moved. Counted once."""
        samples = self._pending
        if samples is not None:
            self._pending = None
            self.step += 1
            self.step_in_epoch += 1
            self.samples += samples
            self.epoch_samples += samples

    def skip(self) -> None:
        """The batch that was begun makes no update, and the next one follows."""
        self._pending = None
        self.step_in_epoch += 1
        self.skipped += 1

    def count(self, updates: int, samples: int) -> None:
        """Count updates that have been made at once."""
        self.step += updates
        self.step_in_epoch += updates
        self.samples += samples
        self.epoch_samples += samples

    def start_clock(self) -> None:
        """A block begins."""
        self.began, self._since = self.seconds, time.perf_counter()

    def read_clock(self) -> None:
        """Count the time since the block began, or the clock was read last."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def close(self, block: Block, losses: Tensor, *, adds: bool = False) -> None:
        """Add up the losses of a block's updates, all counted.

        losses: [len(block)], the batch's loss of each step before its update. adds: they are sums,
        and so is that of the epoch.
        """
        self.add(block, losses[block.added :] if block.added else losses, adds=adds)
        self.last = block, losses
        self.position = block.plan.release(block.stop)
        self.read_clock()

    def add(self, block: Block, losses: Tensor | list[Tensor], *, adds: bool = False) -> None:
        """Add up the next losses of a block, all of the current epoch: [k], or k of shape [].

        Reading them here is the one synchronisation of a block.
        """
        first, steps = block.added, len(losses)
        if 0 < steps < _FEW and losses[0].is_cpu:
            self._add_few(block, losses, adds)
        elif steps:
            sizes = block.sizes_of(first, first + steps)
            weights = _numbers(block.weights[first : first + steps]) if block.weights else sizes
            weights = np.ones(steps) if adds else weights
            losses = torch.stack(losses) if isinstance(losses, list) else losses
            plain = losses if losses.dtype in (torch.float32, torch.float64) else losses.double()
            values = plain.cpu().numpy()
            self.epoch_loss_sum = _added(self.epoch_loss_sum, values, weights)
            self.epoch_weight = _summed(self.epoch_weight, weights)
        if adds:
            self.epoch_weight = 1.0
        for place in range(first, first + steps) if block.terms else ():
            given = block.weights[place] if block.weights else block.sizes_of(place, place + 1)[0]
            self._add_terms(block.terms.get(place, ({}, {})), 1.0 if adds else float(given))
        block.added += steps

    def _add_few(self, block: Block, losses: Tensor | list[Tensor], adds: bool) -> None:
        """As in most epochs of small problems, where making arrays would take longer."""
        values = losses.tolist() if isinstance(losses, Tensor) else list(map(Tensor.item, losses))
        first, last = block.added, block.added + len(values)
        weights = block.weights[first:last] or block.sizes_of(first, last).tolist()
        for loss, given in zip(values, weights, strict=True):
            weight = 1.0 if adds else float(given)
            self.epoch_loss_sum += loss * weight if weight else 0.0
            self.epoch_weight += weight

    def _add_terms(self, terms: tuple[Terms, Terms], weight: float) -> None:
        of_loss, logged = terms
        for name, value in {**{f"train_{n}": v for n, v in of_loss.items()}, **logged}.items():
            total, weights = self.epoch_terms.get(name, (0.0, 0.0))
            if weight:  # else it may be 0/0: no target counts
                self.epoch_terms[name] = total + weight * float(value), weights + weight

    def log(self, name: str, value: Any, last: dict[str, Any] | None) -> None:
        """Note a number of the last update that was made; ``last``: the newest epoch's record."""
        block, losses = self.last or (None, ())
        if self.step_in_epoch == 0 and last is not None:  # the epoch has been closed
            last[name] = float(value)
        if block is not None and len(losses):
            of_loss, logged = block.terms.get(len(losses) - 1, ({}, {}))
            block.terms[len(losses) - 1] = of_loss, {**logged, name: float(value)}
            if self.step_in_epoch:
                weight = float(block.weights[-1]) if block.weights else float(block.sizes[-1])
                self._add_terms(({}, {name: value}), weight)

    def pass_epochs(
        self, block: Block, losses: Tensor, epochs: int, *, adds: bool = False
    ) -> list[dict[str, Any]]:
        """Count and close so many epochs that have ended in a block made at once; their records.

        Seconds are shared out evenly over the block's updates.
        """
        whole, first = len(block.plan), len(block.plan) - block.start
        ends = np.arange(first, first + epochs * whole, whole)  # in the block's updates
        rates, seconds = block.rates_at(ends - 1), self._seconds_at(ends / len(block))
        alone = epochs if block.terms else 1  # which are added up one by one
        records = []
        for end, passed, rate in islice(zip(ends.tolist(), seconds, rates, strict=True), alone):
            self.count(end - block.added, int(block.sizes_of(block.added, end).sum()))
            self.add(block, losses[block.added : end], adds=adds)
            records.append(self.close_epoch() | {"seconds": passed, "lr": rate})
        if more := epochs - len(records):
            epoch, step, samples = self.epoch, self.step, self.samples
            of_epoch = block.plan.num_samples
            columns = zip(
                range(epoch + 1, epoch + more + 1),
                range(step + whole, step + more * whole + 1, whole),
                range(samples + of_epoch, samples + more * of_epoch + 1, of_epoch),
                self._means(block, losses[first : ends[-1]].view(-1, whole), adds),
                seconds[1:],
                rates[1:],
                strict=True,
            )
            # A literal takes a third of the time of dict(zip(…)), in every epoch.
            records += [
                {"epoch": e, "step": k, "samples": n, "train_loss": j, "seconds": t, "lr": rate}
                for e, k, n, j, t, rate in columns
            ]
            self.epoch, self.step = epoch + more, step + more * whole
            self.samples = samples + more * of_epoch
        return records

    def _seconds_at(self, parts: Numbers) -> list[float]:
        """The seconds when these parts of a block, that runs, had passed."""
        self.read_clock()
        seconds: list[float] = (self.began + (self.seconds - self.began) * parts).tolist()
        return seconds

    @staticmethod
    def _means(block: Block, losses: Tensor, adds: bool) -> list[float]:
        """The mean losses of whole epochs, [epochs, updates]; see :meth:`close_epoch`."""
        first, whole = block.added, losses.shape[1]
        block.added += losses.numel()
        weights: Numbers = np.ones((1, whole))
        if block.weights and not adds:
            weights = _numbers(block.weights[first : block.added]).reshape(losses.shape)
        elif not adds:
            weights = block.sizes_of(first, first + whole)[None]
        return _row_means(losses, weights, adds)

    def close_epoch(self) -> dict[str, Any]:
        """Count a finished epoch and return its record.

        ``train_loss`` is the mean over the samples that were used, Σ w J / Σ w over the updates,
        with w the samples of a batch, or whatever else its loss J is divided by; Σ J of sums.
        """
        self.epoch += 1
        weight = self.epoch_weight
        mean = self.epoch_loss_sum / weight if weight else math.nan
        record: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "samples": self.samples}
        record |= {"train_loss": mean, "seconds": self.seconds}
        if self.skipped:
            record["skipped"] = self.skipped
        record |= {n: total / w for n, (total, w) in self.epoch_terms.items()}
        record["lr"] = float(self.lr)
        self.step_in_epoch, self.epoch_samples, self.epoch_terms = 0, 0, {}
        self.epoch_loss_sum, self.epoch_weight = 0.0, 0.0
        self.position = None
        return record

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without the batches of the last block, which have been read."""
        last = self.last and (replace(self.last[0], batches=()), self.last[1])
        return {**vars(self), "last": last}

    def state_dict(self) -> dict[str, Any]:
        """The counters as plain numbers."""
        return {f.name: copy(getattr(self, f.name)) for f in fields(self) if f.compare}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from counters that :meth:`state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)
        if "epoch_weight" not in state:  # of 0.1.0, where it was always the samples
            self.epoch_weight = float(self.epoch_samples)


Terms = dict[str, Any]


def _numbers(weights: list[Any]) -> Numbers:
    """Weights that are numbers or tensors of shape [], on the host."""
    if any(isinstance(weight, Tensor) for weight in weights):
        tensors = [torch.as_tensor(weight, dtype=torch.float64, device="cpu") for weight in weights]
        return torch.stack([tensor.cpu() for tensor in tensors]).numpy()
    return np.array(weights)


def _added(total: float, losses: Numbers, weights: Numbers) -> float:
    """``total`` + Σ losses · weights, added one after the other, so that it does not depend on
    where blocks end. torch does that in a quarter of numpy's time. Nothing is added at weight 0,
    where a loss may be 0/0."""
    for start in range(0, len(losses), _AT_ONCE):
        part = weights[start : start + _AT_ONCE]
        sums = losses[start : start + _AT_ONCE].astype(np.float64)
        sums *= part
        sums[part == 0] = 0.0
        total = _summed(total, sums)
    return total


def _row_means(losses: Tensor, weights: Numbers, adds: bool) -> list[float]:
    """Σ w J / Σ w of each row, or Σ J of sums, each added one after the other."""
    sums = losses.to(torch.float64, copy=True)
    if (weights != 1).any():
        sums *= torch.from_numpy(weights)
    if (weights == 0).any():
        sums[torch.from_numpy(weights == 0).expand_as(sums)] = 0.0
    totals = torch.cumsum(sums, 1, out=sums)[:, -1].numpy()
    whole = 1.0 if adds else weights.cumsum(axis=1)[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        means: list[float] = np.where(whole != 0, totals / whole, math.nan).tolist()
    return means


def _summed(total: float, numbers: Numbers) -> float:
    """``total`` + Σ numbers, one after the other."""
    sums = numbers.astype(np.float64)
    sums[0] += total
    added = torch.from_numpy(sums)  # the same memory
    torch.cumsum(added, 0, out=added)
    return float(sums[-1])


def public(name: str) -> Any:
    """What lies in a room above this one, by its public name, when it is used."""
    import gdtrain

    return getattr(gdtrain, name)


class History:
    """One record per finished epoch, readable by row (``epochs``) or by column.

    ``history.train_loss``, ``history["val_loss"]``, … are lists with one value per epoch, or None
    if an epoch has no such value. ``history[-1]`` is the record of the last epoch.
    ``history.columns()`` gives all columns, ``history.to_pandas()`` a pandas.DataFrame;
    ``history.table()`` is a table to print, ``history.plot()`` a picture. A notebook shows the
    history as a table.

    >>> import torch
    >>> from gdtrain import BatchLoader, Trainer
    >>> model = torch.nn.Linear(1, 1)
    >>> X = torch.ones(4, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> history = Trainer(model, "mse", optimizer, BatchLoader((X, X)), progress=False).fit(3)
    >>> history.epoch, history[-1]["step"], history.train_loss[2] < history.train_loss[0]
    ([1, 2, 3], 3, True)
    """

    # Columns that every epoch has.
    epoch: list[int]
    step: list[int]
    samples: list[int]
    train_loss: list[float]
    seconds: list[float]
    lr: list[float]

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> list[Any]:
        if name == "epochs" or name.startswith("__"):
            raise AttributeError(name)
        if name != "train_loss" and not any(name in record for record in self.epochs):
            known = ", ".join(self.columns()) or "none, no epoch has finished"
            raise AttributeError(f"history has no column {name!r}; it has: {known}")
        return [record.get(name) for record in self.epochs]

    def __getitem__(self, key: str | int | slice) -> Any:
        """A column by its name, as a list, or the records of epochs by their place, from 0."""
        return getattr(self, key) if isinstance(key, str) else self.epochs[key]

    def __len__(self) -> int:
        return len(self.epochs)

    def columns(self) -> dict[str, list[Any]]:
        """Every column by name, each with one value per epoch."""
        names = {name: None for record in self.epochs for name in record}
        return {name: [record.get(name) for record in self.epochs] for name in names}

    def to_pandas(self) -> Any:
        """The epochs as a pandas.DataFrame, one a row; MissingPackageError without pandas."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise MissingPackageError("pandas is not installed; pip install pandas") from error
        return pandas.DataFrame(self.columns())

    def table(self, *columns: str) -> str:
        """The epochs as a table in Markdown, one a row; of the named columns, or of all."""
        head, *rows = self._cells(columns)
        widths = [max(3, *map(len, cells)) for cells in zip(head, *rows, strict=True)]
        ruled = [head, ["-" * (width - 1) + ":" for width in widths], *rows]
        lines = [
            " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in ruled
        ]
        return "\n".join(f"| {line} |" for line in lines)

    def plot(self, *columns: str) -> Any:
        """Loss and learning rate, or the named columns, against the epochs.

        Returns a matplotlib Figure, which a notebook shows; ``savefig`` writes it. Raises
        DataError before an epoch has finished, MissingPackageError without matplotlib.
        """
        return public("plot_history")(self, *columns)

    def _repr_html_(self) -> str:
        head, *rows = self._cells(())
        if len(rows) > 2 * _SHOWN_ROWS:
            left_out = ["…"] * len(head)
            rows = [*rows[:_SHOWN_ROWS], left_out, *rows[-_SHOWN_ROWS:]]
        return html_table(head, rows)

    def _cells(self, names: tuple[str, ...]) -> list[list[str]]:
        """The names of columns, by default of all, and below them the values, as text."""
        chosen = list(names or self.columns() or ["epoch"])
        held = [getattr(self, name) for name in chosen] if self.epochs else [[] for _ in chosen]
        return [chosen, *([_cell(value) for value in row] for row in zip(*held, strict=True))]

    def __repr__(self) -> str:
        return f"History({counted(len(self), 'epoch')}: {', '.join(self.columns())})"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
