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
from typing import TYPE_CHECKING, Any

import numpy as np

from gdtrain.checkpoint import disk
from gdtrain.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gdtrain.monitoring.picture import Picture

# Okabe and Ito's colours, without the yellow that white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SUFFIXES = (".png", ".svg")

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
_MOST_POINTS = 2000  # of a curve; more than there are pixels
_FEW_POINTS = 40  # up to which each point gets a marker
_LARGEST = 1e100  # far beyond any loss worth looking at, and far from what an axis can't bear


@dataclass(frozen=True)
class Curve:
    """One curve of a picture.

    label: for the legend. x, y: [n] each, in the units of the axes; what is None or not finite
    leaves a gap. raw: [n], the values that ``y`` smooths, drawn thin and pale behind it.
    style: number of its colour and dashes, for a curve that is to look the same in several
    pictures, or like another one; its place among the curves if left out. dashes: number of its
    dashes, where they are to differ from the colour's.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    raw: Sequence[float | None] | None = None
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

    height: beside that of the other panels.
    """

    curves: Sequence[Curve]
    y_label: str
    log_y: bool | None = None
    marks: Sequence[Mark] = ()
    height: float = 1.0


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
    panels: Sequence[Panel], *, title: str, x_label: str, log_x: bool = False
) -> Picture:
    """A picture of frames, one above the other, over one x axis; 800 pixels wide."""
    with house_style():
        from gdtrain.monitoring.picture import Picture

        heights = [panel.height for panel in panels]
        height = 3.6 + 1.4 * len(panels)
        figure = Picture(8, height)
        lines = textwrap.wrap(title, 78) or [""]
        figure.suptitle("\n".join(lines), x=0.54, y=1 - 0.1 / height, va="top", fontsize=13)
        top = 1 - (0.22 + 0.22 * len(lines)) / height
        figure.subplots_adjust(left=0.11, right=0.975, bottom=0.58 / height, top=top, hspace=0.12)
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
        frames: list[Axes] = [row[0] for row in rows]
        for frame, panel in zip(frames, panels, strict=True):
            if log_x:
                frame.set_xscale("log")
            _fill(frame, panel)
        frames[-1].set_xlabel(x_label)
        figure.align_ylabels(frames)
    return figure


def save(figure: Picture, path: Path) -> None:
    """Write a picture as its suffix says, in the place of what may be there.

    Raises ConfigError of ``out`` for another suffix than .png and .svg, OSError if the file can't
    be written.
    """
    check_name(path)
    disk.replace_file(path, figure.encoded(path.suffix.lower().removeprefix(".")))


def as_svg(figure: Picture) -> str:
    """A picture as an ``<svg>`` element, to be put into a page; it refers to nothing outside."""
    text = figure.encoded("svg").decode()
    return text[text.index("<svg") :]


def check_name(path: Path) -> None:
    """Raise ConfigError of ``out`` unless the name says PNG or SVG."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError.of("out", f"must end in .png or .svg, got {str(path)!r}")


def is_installed() -> bool:
    """Whether matplotlib is there; it is not imported, which would take half a second."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise MissingPackageError unless pictures can be drawn."""
    if not is_installed():
        raise MissingPackageError(
            "pictures need matplotlib, which is not installed; pip install 'gdtrain[plots]'"
        )


@contextmanager
def house_style() -> Iterator[None]:
    """Let what is drawn in the block look alike on every machine, whatever its settings are."""
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


# ── one frame ───────────────────────────────────────────────────────────────────────────────


def _fill(frame: Axes, panel: Panel) -> None:
    values: list[Any] = []
    for number, curve in enumerate(panel.curves):
        style = number if curve.style is None else curve.style
        dashes = style if curve.dashes is None else curve.dashes
        colour = COLOURS[style % len(COLOURS)]
        if curve.raw is not None:
            x, y = _thinned(*_finite(curve.x, curve.raw))
            frame.plot(x, y, color=colour, linewidth=0.6, alpha=0.35)
            values.append(y)
        x, y = _thinned(*_finite(curve.x, curve.y))
        few = len(x) <= _FEW_POINTS
        frame.plot(
            x,
            y,
            color=colour,
            linestyle=DASHES[dashes % len(DASHES)],
            marker=MARKERS[dashes % len(MARKERS)] if few else None,
            markersize=4.5,
            label=curve.label,
        )
        values.append(y)
    for mark in panel.marks:
        line = frame.axhline if mark.level else frame.axvline
        colour, dash = COLOURS[mark.style % len(COLOURS)], DASHES[mark.style % len(DASHES)]
        line(mark.at, color=colour, linestyle=dash, linewidth=1.3, label=mark.label)
    if panel.log_y or (panel.log_y is None and _is_wide(values)):
        frame.set_yscale("log")
    frame.set_ylabel(panel.y_label)
    if len(panel.curves) + len(panel.marks) > 1:
        frame.legend(loc="best")


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


def _is_wide(values: Sequence[Any]) -> bool:
    """Whether all values are positive and more than a power of ten apart."""
    held = np.concatenate([np.empty(0), *values])
    held = held[np.isfinite(held)]
    return bool(len(held) and held.min() > 0 and held.max() > 10 * held.min())
