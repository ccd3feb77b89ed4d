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

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gdtrain.checkpoint import durable_files as disk
from gdtrain.errors import ConfigError, MissingPackageError
from gdtrain.output.plots.style import MADE_BY, Curve, Mark, Panel, fill, legend_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gdtrain.output.plots.picture import Picture

MISSING = "pictures need matplotlib, which is not installed; pip install 'gdtrain[plots]'"

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


def is_installed() -> bool:
    """Whether matplotlib is there; it is not imported, which would take half a second."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise MissingPackageError unless pictures can be drawn."""
    if not is_installed():
        raise MissingPackageError(MISSING)


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
