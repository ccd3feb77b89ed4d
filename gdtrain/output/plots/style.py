"""The house style of every picture: curves over labelled axes, to PNG or SVG.

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
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gdtrain.checkpoint import durable_files as disk
from gdtrain.errors import ConfigError, MissingPackageError
from gdtrain.output.plots import MADE_BY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gdtrain.output.plots.picture import Picture

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
