"""From the records of one or several runs to curves of loss, learning rate and other numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gdtrain.errors import DataError
from gdtrain.output.plots.style import Curve, Mark, Panel, draw_panels

if TYPE_CHECKING:
    from gdtrain.output.plots.picture import Picture
    from gdtrain.training.progress import History

Record = dict[str, Any]

# What the x axis may count, and what it says.
AXES = {
    "step": "step (updates)",
    "epoch": "epoch (passes over the training part)",
    "samples": "samples used (draws)",
    "seconds": "training time (s)",
}
_LOSSES = {
    "l1": "mean absolute error (target units)",
    "mse": "mean squared error (target units²)",
    "cross_entropy": "cross-entropy (nats)",
    "nll": "negative log-likelihood (nats)",
    "bce": "binary cross-entropy (nats)",
    "bce_with_logits": "binary cross-entropy (nats)",
    "poisson_nll": "Poisson neg. log-likelihood (nats)",
    "kl_div": "KL divergence (nats)",
}
_IN_DEVIATIONS = ("target units", "standard deviations")
# From so many records on, losses of single batches say more than the means of epochs.
_STEPS_PER_EPOCH = 4
_LR_APART = 8  # times, between runs, from which on the axis is a logarithmic one
_MOST_NAMES = 5  # in a title
_ENOUGH_EPOCHS = 5  # for a curve of their means
# Of a run's losses beside those of its updates: the key of the records, and the words for it.
_OTHER_LOSSES = {
    "val_loss": "validation",
    "full_loss": "full loss",
    "prequential_loss": "prequential, each sample before it is learnt from",
}


@dataclass(frozen=True)
class RunLog:
    """What a run has recorded.

    label: what the run is called in legends. loss: name of its loss, as in configurations;
    standardized: whether it is one of standardised targets.
    steps, epochs: its records of these kinds, in their order, as metrics.jsonl has them.
    broken: of a run that a number that was not finite has ended, ``step``, the update that could
    not be made, and ``seconds``.
    """

    label: str
    steps: list[Record]
    epochs: list[Record]
    loss: str | None = None
    broken: Record | None = None
    standardized: bool = False

    @classmethod
    def of(
        cls,
        label: str,
        records: Sequence[Record],
        loss: str | None = None,
        broken: Record | None = None,
        standardized: bool = False,
    ) -> RunLog:
        """The log in records that ``read_metrics`` gave."""
        timed = [record for record in records if isinstance(record.get("seconds"), int | float)]
        steps = [record for record in timed if record["kind"] == "step"]
        epochs = [r for r in timed if r["kind"] == "epoch" and isinstance(r.get("samples"), int)]
        return cls(label, steps, epochs, loss, broken, standardized)

    def values(self, name: str) -> tuple[list[Record], list[float | None]]:
        """The records that have the number ``name``, of steps if they do, and the numbers."""
        for kind in (self.steps, self.epochs):
            held = [record for record in kind if _is_number(record.get(name, ""))]
            if held:
                return held, [record[name] for record in held]
        return [], []

    def x(self, records: Sequence[Record], axis: str) -> list[float]:
        """Where the records lie on an axis of :data:`AXES`.

        Between two epochs, samples and parts of an epoch are proportional to the updates; after
        the last, as in it. Raises DataError where these are asked for and no epoch has ended.
        """
        if axis in ("step", "seconds"):
            return [float(record[axis]) for record in records]
        if not self.epochs:
            raise DataError(f"{self.label}: no epoch has ended, so {axis} is not known; use step")
        known = [(0, 0), *((r["step"], r[axis]) for r in self.epochs)]
        steps, places = np.array(known, dtype=np.float64).T
        at = np.array([record["step"] for record in records], dtype=np.float64)
        rate = (places[-1] - places[-2]) / max(1.0, steps[-1] - steps[-2])
        beyond = np.maximum(at - steps[-1], 0.0) * rate
        return [float(place) for place in np.interp(at, steps, places) + beyond]


def picture(
    logs: Sequence[RunLog],
    *,
    axis: str | None = None,
    metrics: Sequence[str] = (),
    smooth: int | None = None,
) -> Picture:
    """Loss and learning rate of the runs, or ``metrics``, one panel for each.

    axis: of :data:`AXES`; if left out, epochs if all runs have ended two, else steps: a pass over
    a stream has no parts.
    smooth: over how many records losses of single batches are smoothed; by their number if left
    out, not at all if 1.
    Raises DataError if there is nothing to draw.
    """
    axis = axis or ("epoch" if all(len(log.epochs) > 1 for log in logs) else "step")
    if metrics:
        panels = [_metric_panel(logs, axis, name) for name in metrics]
        what = " and ".join(metrics)
    else:
        panels = [_loss_panel(logs, axis, smooth), _lr_panel(logs, axis)]
        what = "Loss and learning rate"
    shown = [log.label for log in logs if log.label]
    if len(shown) > _MOST_NAMES:
        shown[_MOST_NAMES - 1 :] = [f"{len(shown) - _MOST_NAMES + 1} more"]
    names = ", ".join(shown)
    title = f"{what}: {names}" if names else what[:1].upper() + what[1:]
    return draw_panels(panels, title=title, x_label=AXES[axis], whole_x=axis != "seconds")


def labels(directories: Sequence[Path]) -> list[str]:
    """A short name for each directory: its own, with those above it until all names differ."""
    paths = [directory.absolute() for directory in directories]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        unique = len(set(names)) == len(set(paths))
        if unique and not any(name.isdecimal() for name in names):
            break
    return names


def plot_history(history: History, *columns: str) -> Picture:
    """The picture of a trainer's history: loss and learning rate, or the named columns.

    >>> from gdtrain import plot_history
    >>> from gdtrain.training.progress import History
    >>> history = History()
    >>> history.epochs = [{"epoch": n, "step": n, "train_loss": 1 / n} for n in (1, 2)]
    >>> plot_history(history, "train_loss").savefig("loss.png")
    """
    log = RunLog("", [], history.epochs)
    if not history.epochs:
        raise DataError("history: no epoch has finished; call fit first")
    return picture([log], metrics=columns)


def smoothed(values: Sequence[float | None], span: int) -> list[float | None]:
    """The exponential moving average with β = 1 - 1/span, without bias towards its start.

    m_k = β m_{k-1} + (1 - β) v_k from m_0 = 0, divided by 1 - β^k (Kingma and Ba, 2015). None and
    what is not finite is skipped, and stays None.
    """
    beta, mean, weight = 1 - 1 / span, 0.0, 0.0
    result: list[float | None] = []
    for value in values:
        if value is None or not math.isfinite(value):
            result.append(None)
            continue
        mean = beta * mean + (1 - beta) * value
        weight = beta * weight + (1 - beta)
        result.append(mean / weight)
    return result


def loss_label(name: str, standardized: bool = False) -> str:
    """What an axis says of the loss that configurations call ``name``, with its unit.

    standardized: whether the targets are, by their standard deviations.
    """
    label = _LOSSES.get(name, f"loss: {name}")
    return label.replace(*_IN_DEVIATIONS) if standardized else label


# ── panels ──────────────────────────────────────────────────────────────────────────────────


def _loss_panel(logs: Sequence[RunLog], axis: str, smooth: int | None) -> Panel:
    curves: list[Curve] = []
    if _unit_of(logs) is None and all(log.loss for log in logs):  # not to be compared
        logs = [replace(log, label=f"{log.label} ({_kind(log)})") for log in logs]
    for number, log in enumerate(logs):
        found = [_train_curve(log, axis, smooth, alone=len(logs) == 1)]
        for name, words in _OTHER_LOSSES.items():
            records, values = log.values(name)
            if records:
                found.append(Curve(words, log.x(records, axis), values))
        for curve in found:
            if len(curve.x):
                # Of several runs, each has its colour; all curves differ in their dashes.
                dashes, alone = len(curves), len(logs) == 1
                label = curve.label if alone else f"{log.label}: {curve.label}"
                style = dashes if alone else number
                curves.append(replace(curve, label=label, style=style, dashes=dashes))
    if not curves:
        raise DataError(
            f"{', '.join(log.label for log in logs)}: no loss has been recorded yet; a run "
            "records one every log.every_n_steps updates and at the end of every epoch"
        )
    marks = [
        _break_of(log, axis, number, len(logs)) for number, log in enumerate(logs) if log.broken
    ]
    return Panel(curves, _unit_of(logs) or "loss", marks=marks, height=2.2)


def _break_of(log: RunLog, axis: str, number: int, runs: int) -> Mark:
    """Where a run has ended at a number that is not finite."""
    assert log.broken is not None
    (at,) = log.x([log.broken], axis)
    words = f"stopped at update {log.broken['step']:,}: not finite"
    return Mark(
        words if runs == 1 else f"{log.label}: {words}", at, style=3 if runs == 1 else number
    )


def _train_curve(log: RunLog, axis: str, smooth: int | None, alone: bool) -> Curve:
    """The means of the epochs; of few epochs, the losses of single batches, smoothed.

    alone: whether there is room for the batches' own losses behind the curve.
    """
    steps = [record for record in log.steps if _is_number(record.get("loss"))]
    losses = [record["loss"] for record in steps]
    if log.epochs and smooth is None:
        enough = len(steps) >= _STEPS_PER_EPOCH * len(log.epochs)
        if len(log.epochs) >= _ENOUGH_EPOCHS or not enough:
            values = [record.get("train_loss") for record in log.epochs]
            words, x = "training, mean of each epoch", log.x(log.epochs, axis)
            if alone and enough:
                words += " (thin: single batches)"
                return Curve(words, x, values, raw=losses, raw_x=log.x(steps, axis))
            return Curve(words, x, values)
    span = smooth or max(1, len(steps) // 30)
    if span == 1:
        return Curve("training, losses of single batches", log.x(steps, axis), losses)
    words = f"training, losses of batches: smoothed over {span}" + (" (thin: each)" * alone)
    raw = losses if alone else None
    return Curve(words, log.x(steps, axis), smoothed(losses, span), raw=raw)


def _lr_panel(logs: Sequence[RunLog], axis: str) -> Panel:
    """Of all records that have the rate: those of updates may be far apart."""
    curves = []
    for number, log in enumerate(logs):
        found = [record for record in (*log.steps, *log.epochs) if _is_number(record.get("lr", ""))]
        records = sorted(found, key=lambda record: int(record["step"]))
        if records:
            values = [record["lr"] for record in records]
            curves.append(Curve(log.label, log.x(records, axis), values, style=number))
    largest = [max((lr for lr in c.y if lr is not None), default=0.0) for c in curves]
    apart = min(largest, default=0.0) > 0 and max(largest) > _LR_APART * min(largest)
    return Panel(curves, "learning rate α", log_y=apart, markers=False)


def _metric_panel(logs: Sequence[RunLog], axis: str, name: str) -> Panel:
    curves = []
    for number, log in enumerate(logs):
        records, values = log.values(name)
        if not records:
            known = ", ".join(sorted(_names(log))) or "nothing yet"
            raise DataError(
                f"{log.label or 'history'}: has not recorded {name!r}; it has recorded {known}"
            )
        curves.append(Curve(log.label, log.x(records, axis), values, style=number))
    unit = _unit_of(logs) if name.endswith("loss") else None
    if name.endswith("accuracy"):
        unit = "share of samples"
    return Panel(curves, f"{name}: {unit}" if unit else name)


def _unit_of(logs: Sequence[RunLog]) -> str | None:
    """What an axis says of the losses, if they are of one kind that is known."""
    kinds = {(log.loss, log.standardized) for log in logs}
    kind, standardized = kinds.pop()
    return None if kind is None or kinds else loss_label(kind, standardized)


def _kind(log: RunLog) -> str:
    return f"{log.loss}, standardised targets" if log.standardized else str(log.loss)


def _names(log: RunLog) -> set[str]:
    return {
        name
        for record in (*log.steps[:1], *log.steps[-1:], *log.epochs[:1], *log.epochs[-1:])
        for name, value in record.items()
        if _is_number(value) and name not in ("step", "epoch", "kind")
    }


def _is_number(value: Any) -> bool:
    """Whether it is a number, or null, which stands for one that was not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
