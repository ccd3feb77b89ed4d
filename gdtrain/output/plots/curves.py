"""Pictures of curves over labelled axes, to PNG or SVG; and of the records of runs to such curves.

A picture is legible at 800 pixels, and to readers who can't tell colours apart: curves differ in
colour (Okabe and Ito, 2008) and in their dashes, or markers where there are few points. It is
made without pyplot, so nothing global changes, and the same numbers give the same file. For a
curve or several in one frame::

    figure = draw(
        [Curve("batch", steps, losses)],
        title="Loss of the three forms", x_label="updates", y_label="full loss (nats)",
    )
    save(figure, Path("losses.svg"))

:func:`draw_panels` puts several frames over one x axis. :func:`house_style` and ``Picture`` are
for pictures of other kinds. matplotlib is imported by the first call that draws.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gdtrain.checkpoint import durable_files as disk
from gdtrain.errors import ConfigError, DataError, MissingPackageError
from gdtrain.output.plots import MADE_BY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


# ── the house style ─────────────────────────────────────────────────────────────────────────────


_LEFT = 8  # pixels that are free beside labels
_SMALLEST = 6  # points, of a label

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "legend.fontsize": 10,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.useoffset": False,
    "legend.framealpha": 0.85,
    "lines.linewidth": 1.8,
}


def draw(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool | None = None,
    marks: Sequence[Mark] = (),
) -> Picture:
    """A picture of curves in one frame, 800 by 500 pixels.

    x_label, y_label: with their units. log_y: None takes a log axis where all values are positive
    and the largest is more than ten times the smallest.
    Raises MissingPackageError without matplotlib.
    """
    panel = Panel(curves, y_label, log_y, marks)
    return draw_panels([panel], title=title, x_label=x_label, log_x=log_x)


def draw_panels(
    panels: Sequence[Panel],
    *,
    title: str,
    x_label: str,
    log_x: bool = False,
    whole_x: bool = False,
) -> Picture:
    """A picture of frames, one above the other, over one x axis; 800 pixels wide.

    whole_x: whether ticks of the x axis are at whole numbers only, as of what is counted.
    """
    with house_style():
        from gdtrain.output.plots.picture import Picture

        heights = [panel.height for panel in panels]
        rows = legend_rows(panels[0])
        above = 0.22 * rows if rows > 1 else 0.0
        height = 3.6 + 1.4 * len(panels) + above
        figure = Picture(8, height)
        lines = textwrap.wrap(title, 78) or [""]
        figure.suptitle("\n".join(lines), x=0.54, y=1 - 0.1 / height, va="top", fontsize=13)
        top = 1 - (0.22 + 0.22 * len(lines) + above) / height
        figure.subplots_adjust(left=0.11, right=0.975, bottom=0.58 / height, top=top, hspace=0.12)
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
        frames: list[Axes] = [row[0] for row in grid]
        for frame, panel in zip(frames, panels, strict=True):
            if log_x:
                frame.set_xscale("log")
            fill(frame, panel, is_first=frame is frames[0])
        if whole_x:
            frames[-1].locator_params(axis="x", integer=True)
        frames[-1].set_xlabel(x_label)
        figure.align_ylabels(frames)
        _make_room_for_labels(figure, frames)
    return figure


def _make_room_for_labels(figure: Picture, frames: Sequence[Axes]) -> None:
    """Keep labels in sight: small beside a low frame, and the frames off the widest ticks."""
    for frame in frames:
        label = frame.yaxis.label
        too_long = label.get_window_extent().height / frame.bbox.height
        if too_long > 1:
            label.set_fontsize(max(_SMALLEST, _STYLE["axes.labelsize"] / too_long))
    boxes = [frame.yaxis.get_tightbbox() for frame in frames]
    widest = max(frame.bbox.x0 - box.x0 for frame, box in zip(frames, boxes, strict=True) if box)
    room = (widest + _LEFT) / figure.bbox.width
    figure.subplots_adjust(left=max(room, figure.subplotpars.left))


def require_matplotlib() -> None:
    """Raise MissingPackageError unless matplotlib is there; importing it takes half a second."""
    if find_spec("matplotlib") is None:
        raise MissingPackageError(
            "pictures need matplotlib, which is not installed; pip install 'gdtrain[plots]'"
        )


@contextmanager
def house_style() -> Iterator[None]:
    """Let what is drawn in the block look alike on every machine, whatever its settings are."""
    require_matplotlib()
    try:
        import matplotlib
    except (ImportError, ValueError) as error:  # ValueError: a backend in the environment
        message = " ".join(str(error).split())[:100]
        raise MissingPackageError(
            f"pictures need matplotlib, which does not work: {message}"
        ) from error

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


# ── one frame ───────────────────────────────────────────────────────────────────────────────────


# Okabe and Ito's colours, without the yellow that white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_POINTS = 2000  # of a curve; more than there are pixels
_FEW_POINTS = 25  # up to which each point of all curves of a frame gets a marker
_MOST_INSIDE = 4  # entries of a legend that leave room for curves beside it
_LARGEST = 1e100  # far beyond any loss worth looking at, and far from what an axis can't bear


@dataclass(frozen=True)
class Curve:
    """One curve of a picture.

    label: for the legend. x, y: [n] each, in the units of the axes; what is None or not finite
    leaves a gap. raw: the values that ``y`` smooths or averages, drawn thin and pale behind it, at
    raw_x, or x if that is left out; at their tails the frame may cut them off.
    style: number of its colour and dashes, for a curve that is to look the same in several
    pictures, or like another one; its place among the curves if left out. dashes: number of its
    dashes, where they are to differ from the colour's.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    raw: Sequence[float | None] | None = None
    raw_x: Sequence[float] | None = None
    style: int | None = None
    dashes: int | None = None


@dataclass(frozen=True)
class Mark:
    """A line across a frame at ``at``: upright, at a place on the x axis, or level on the y axis.

    style: number of its colour and dashes, as of curves.
    """

    label: str
    at: float
    style: int = 6
    level: bool = False


@dataclass(frozen=True)
class Panel:
    """One frame of a picture. log_y: None takes a log axis for positive values of wide range.

    height: beside that of the other panels. markers: whether points get some, where they are few.
    """

    curves: Sequence[Curve]
    y_label: str
    log_y: bool | None = None
    marks: Sequence[Mark] = ()
    height: float = 1.0
    markers: bool = True


def fill(frame: Axes, panel: Panel, *, is_first: bool) -> None:
    """Draw a panel into a frame; a long legend has room above the first one only."""
    values: list[Any] = []
    tails: list[Any] = []
    few = panel.markers and all(len(curve.x) <= _FEW_POINTS for curve in panel.curves)
    for number, curve in enumerate(panel.curves):
        style = number if curve.style is None else curve.style
        dashes = style if curve.dashes is None else curve.dashes
        colour = COLOURS[style % len(COLOURS)]
        if curve.raw is not None:
            xs, ys = _finite(curve.x if curve.raw_x is None else curve.raw_x, curve.raw)
            frame.plot(*_thinned(xs, ys), color=colour, linewidth=0.6, alpha=0.35)
            tails.append(ys)
        x, y = _thinned(*_finite(curve.x, curve.y))
        frame.plot(
            x,
            y,
            color=colour,
            linestyle=DASHES[dashes % len(DASHES)],
            marker=MARKERS[dashes % len(MARKERS)] if few or len(x) == 1 else None,
            markersize=4.5,
            label=legend_label(curve.label),
        )
        values.append(y)
    for mark in panel.marks:
        line = frame.axhline if mark.level else frame.axvline
        colour, dash = COLOURS[mark.style % len(COLOURS)], DASHES[mark.style % len(DASHES)]
        line(mark.at, color=colour, linestyle=dash, linewidth=1.3, label=legend_label(mark.label))
    low, high = _bounds(values)
    log_y = high > 10 * low > 0 if panel.log_y is None else panel.log_y
    if log_y:
        frame.set_yscale("log")
    if tails:
        _cut_tails(frame, values, tails)
    elif low == high > 0 and not (log_y or panel.marks):
        frame.set_ylim(0, 2 * high)  # around one value, ticks would tell of digits that are none
    frame.set_ylabel(panel.y_label)
    rows = legend_rows(panel)
    if rows == 1 or (rows and is_first):
        above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 2}
        frame.legend(**(above if rows > 1 else {"loc": "best"}))


def legend_label(name: str) -> str:
    """The name as matplotlib shows it; it leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def legend_rows(panel: Panel) -> int:
    """Rows of two that the legend has above the frame; 1 if it is short and goes into the frame."""
    entries = len(panel.curves) + len(panel.marks)
    return 0 if entries < 2 else 1 if entries <= _MOST_INSIDE else -(-entries // 2)


def _cut_tails(frame: Axes, values: Sequence[Any], tails: Sequence[Any]) -> None:
    """Show all of the curves, and of what they smooth all but the outermost twentieths."""
    log = frame.get_yscale() == "log"
    seen = [y[np.isfinite(y) & ((y > 0) | (not log))] for y in (*values, *tails)]
    shown = [
        *seen[: len(values)],
        *(np.percentile(y, [5, 95]) for y in seen[len(values) :] if len(y)),
    ]
    together = np.concatenate([np.empty(0), *shown])
    if not len(together):
        return
    low, high = float(together.min()), float(together.max())
    if log:
        margin = max((high / low) ** 0.05, 1.05)
        frame.set_ylim(low / margin, high * margin)
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        frame.set_ylim(low - margin, high + margin)


def _finite(x: Sequence[float], y: Sequence[float | None]) -> tuple[Any, Any]:
    """x and y as [n] float64, NaN where a value can't be drawn."""
    xs = np.asarray(x, dtype=np.float64)
    ys = np.array([math.nan if value is None else value for value in y], dtype=np.float64)
    ys[~(np.abs(ys) <= _LARGEST)] = math.nan
    return xs, ys


def _thinned(x: Any, y: Any) -> tuple[Any, Any]:
    """Of many points, the lowest and the highest of each of as many stretches as are seen."""
    if len(x) <= _MOST_POINTS:
        return x, y
    kept = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), _MOST_POINTS // 2):
        held = part[np.isfinite(y[part])]
        if len(held):
            kept |= {int(held[y[held].argmin()]), int(held[y[held].argmax()])}
        else:
            kept.add(int(part[0]))
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def _bounds(values: Sequence[Any]) -> tuple[float, float]:
    """The smallest and the largest value that is finite; 0 if there is none."""
    held = np.concatenate([np.empty(0), *values])
    held = held[np.isfinite(held)]
    return (float(held.min()), float(held.max())) if len(held) else (0.0, 0.0)


# ── pictures on the disk ────────────────────────────────────────────────────────────────────

SUFFIXES = (".png", ".svg")


class Encoded(Protocol):
    """A picture that can be written."""

    def encoded(self, kind: str) -> bytes:
        """It as a ``png`` or ``svg`` file."""


def save(figure: Encoded, path: Path) -> None:
    """Write a picture as its suffix says; of what is there, only another of our own gives way.

    Raises ConfigError of ``out`` as :func:`check_out` does, OSError if the disk fails.
    """
    check_out(path)
    disk.replace_file(path, figure.encoded(path.suffix.lower().removeprefix(".")))


def check_out(path: Path) -> None:
    """Raise ConfigError of ``out`` unless a picture may be written there: to be asked early.

    The name must say PNG or SVG, its directory be there, and the file be new or our own.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError.of("out", f"must end in .png or .svg, got {str(path)!r}")
    try:
        if not path.parent.is_dir():
            raise ConfigError.of("out", f"{path.parent} is not a directory; make it first")
        if disk.is_there(path) and not _is_ours(path):
            text = f"{path} is there and no picture of gdtrain's; remove it, or choose another name"
            raise ConfigError.of("out", text)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError.of("out", f"{path} can't be written: {error}") from error


def _is_ours(path: Path) -> bool:
    """Whether a file is a picture that :func:`save` has written: it says so near its start."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return MADE_BY.encode() in file.read(4096)
