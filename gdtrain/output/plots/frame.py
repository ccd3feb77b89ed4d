"""One frame of a picture: its curves, marks, axes and legend, in the house style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MADE_BY = "gdtrain, with Matplotlib"  # written into every picture
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
