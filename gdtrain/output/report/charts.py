"""The curves of a comparison as SVG: lines on logarithmic axes, told apart without colour too."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from gdtrain.output.report.table import seconds_text

# The plot area inside of a figure of WIDTH × HEIGHT; the rest is for labels.
WIDTH, HEIGHT = 560, 350
LEFT, RIGHT, TOP, BOTTOM = 78, 132, 14, 52
MARKERS = 6  # on each line
LABEL_GAP = 17  # between names at the ends of lines
COLOURS, DASHES = 8, 4  # of lines, in report.css
MARKS: tuple[tuple[tuple[float, float], ...], ...] = (  # corners; the circle's are none
    (),
    ((-4, 4), (4, 4), (0, -5)),
    ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
    ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
    ((-4, -4), (4, -4), (0, 5)),
)
NAME_LENGTH = 13  # characters of usual width that fit beside a plot
CHARACTER = 7.2  # pixels of one in a tick's text, at most


@dataclass(frozen=True)
class Line:
    """A named curve. x, y: as many numbers each; a y that is None or not finite is left out.

    style: which colour, dash and marker, from 0: no two of 160 are alike. dots: draw points
    instead of a line. short: the name as it is written beside the plot.
    """

    name: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    style: int
    dots: bool = False
    short: str = ""

    def points(self) -> list[tuple[float, float]]:
        """What can be drawn."""
        pairs = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(y)]


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``, logarithmic if ``log``, in pixels ``start`` … ``stop``.

    write: a tick's value in words.
    """

    label: str
    low: float
    high: float
    log: bool
    start: float
    stop: float
    write: Callable[[float], str]

    def place(self, value: float) -> float:
        """Where a value lies, in pixels."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, low * 1e-9))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values on the axis, some three to eight of them."""
        found = _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)
        return found if len(found) > 1 else [self.low, self.high]


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_write: Callable[[float], str],
    y_write: Callable[[float], str],
    log_x: bool = True,
    log_y: bool = True,
    highest: float = math.inf,
    named: bool = True,
    width: int = WIDTH,
    names_width: int = RIGHT,
    beside: Sequence[Line] = (),
) -> str:
    """An SVG element. highest: the largest y shown; what is above leaves the plot.

    title: what the picture is, for those who do not see it. named: names at the ends of lines, for
    which the picture is as high as they need. names_width: of them, in pixels. beside: lines of
    other pictures with the same axes, which so have room for these too. Values that a logarithmic
    axis does not have are left out. An empty picture says so.
    """
    height = max(HEIGHT, TOP + BOTTOM + LABEL_GAP * len(lines) * named)
    drawn = [(line, _drawable(line, log_x, log_y)) for line in lines]
    points = [point for _, some in drawn for point in some]
    right = width - (names_width if named else 14)
    head = (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
    )
    if not points:
        middle = f'x="{width / 2:.0f}" y="{height / 2:.0f}" text-anchor="middle"'
        return f'{head}<text class="tick" {middle}>no finite values to draw</text></svg>'
    points += [point for line in beside for point in _drawable(line, log_x, log_y)]
    xs, ys = [x for x, _ in points], [min(y, highest) for _, y in points]
    x_axis = Axis(x_label, *_range(xs, log_x, 0.0), log_x, LEFT, right, x_write)
    y_axis = Axis(y_label, *_range(ys, log_y, 0.06), log_y, height - BOTTOM, TOP, y_write)
    parts = [head, _grid(x_axis, y_axis)]
    # What is above the plot is cut off; beside and below there is room for half a marker.
    box = f"{LEFT - 6} {TOP} {right - LEFT + 12} {height - TOP - BOTTOM + 6}"
    x, y, box_width, box_height = box.split()
    size = f'x="{x}" y="{y}" width="{box_width}" height="{box_height}"'
    parts.append(f'<svg {size} viewBox="{box}">')
    parts += [_curve(line, some, x_axis, y_axis) for line, some in drawn if some]
    parts.append("</svg>")
    if named:
        parts.append(_names([(line, some[-1]) for line, some in drawn if some], y_axis, right))
    bounds = f"{x_axis.low:.9g},{x_axis.high:.9g},{int(log_x)},{LEFT},{right}"
    parts.append(f'<line class="cross" data-x="{bounds}" y1="{TOP}" y2="{height - BOTTOM}"/></svg>')
    return "".join(parts)


def _drawable(line: Line, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in line.points() if (x > 0 or not log_x) and (y > 0 or not log_y)]


def _range(values: list[float], log: bool, margin: float) -> tuple[float, float]:
    """The least and the largest value, with a margin, and never the same."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    room = (high - low) * margin or (0.0 if high > low else abs(low) * 0.1 or 0.5)
    low, high = low - room, high + room
    return (10**low, 10**high) if log else (low, high)


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [
        n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 10, 100, …; of a range of less than two decades 1, 2, 5, 10, …; or evenly spaced ones."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors = (1,) if decades > 2 else (1, 2, 5)
    step = -(-decades // 8)
    found = [factor * 10.0**power for power in range(first, last + 1, step) for factor in factors]
    inside = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    return inside if len(inside) > 2 else _ticks(low, high)


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    """Ticks, grid lines and what the axes are called."""
    left, right, bottom, top = x_axis.start, x_axis.stop, y_axis.start, y_axis.stop
    parts = []
    for value, text in _apart(y_axis, lambda _: 16.0):
        y = y_axis.place(value)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(text)}</text>"
        )
    for value, text in _apart(x_axis, lambda text: CHARACTER * len(text) + 8):
        x = x_axis.place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{escape(text)}</text>"
        )
    middle, height = (left + right) / 2, (top + bottom) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{bottom + 41}" text-anchor="middle">'
        f"{escape(x_axis.label)}</text>"
    )
    parts.append(
        f'<text class="axis" transform="translate(15 {height:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_axis.label)}</text>'
    )
    return "".join(parts)


def _apart(axis: Axis, room: Callable[[str], float]) -> list[tuple[float, str]]:
    """The ticks with their texts, without those that would touch the one before, or say the same.

    room: the pixels along the axis that a text needs.
    """
    kept: list[tuple[float, str]] = []
    for value in axis.ticks():
        text = axis.write(value)
        if kept:
            before, other = kept[-1]
            apart = abs(axis.place(value) - axis.place(before))
            if text == other or apart < (room(text) + room(other)) / 2:
                continue
        kept.append((value, text))
    return kept


def _curve(line: Line, points: list[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> str:
    placed = [(x_axis.place(x), y_axis.place(y)) for x, y in points]
    if line.dots:
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in placed)
        return f'<g class="dots {form_class(line.style)}">{dots}</g>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    marked = _spread(placed)
    shapes = "".join(_marker(line.style, x, y) for x, y in marked)
    # A colour's forms have all dashes in turn, and then once more with other markers.
    dash = (line.style + line.style // COLOURS) % DASHES
    kind = f"line {form_class(line.style)} dash-{dash}"
    return f'<g class="{kind}"><polyline points="{path}"/>{shapes}</g>'


def form_class(style: int) -> str:
    """The class that gives a form its colour."""
    return f"form-{style % COLOURS}"


def _spread(placed: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points for markers, about evenly spread along the x axis, the last one among them."""
    first, last = placed[0][0], placed[-1][0]
    wanted = [first + (last - first) * number / MARKERS for number in range(1, MARKERS + 1)]
    xs = np.array([x for x, _ in placed])
    return [placed[i] for i in dict.fromkeys(int(np.abs(xs - at).argmin()) for at in wanted)]


def _marker(style: int, x: float, y: float) -> str:
    shape = MARKS[(style + style // (COLOURS * DASHES)) % len(MARKS)]
    if not shape:
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    corners = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in shape)
    return f'<polygon class="mark" points="{corners}"/>'


def _names(ends: list[tuple[Line, tuple[float, float]]], y_axis: Axis, right: float) -> str:
    """Each line's name beside its end, moved apart where they would overlap."""
    wanted = sorted(
        (min(max(y_axis.place(end[1]), TOP + 4), y_axis.start), line.short or line.name, line.style)
        for line, end in ends
    )
    places: list[float] = []
    for y, _, _ in wanted:
        places.append(max(y, places[-1] + LABEL_GAP) if places else y)
    places = _pushed_up(places, y_axis.start)
    return "".join(
        f'<text class="name {form_class(style)}" x="{right + 9}" y="{y + 4:.1f}">'
        f"{escape(name)}</text>"
        for y, (_, name, style) in zip(places, wanted, strict=True)
    )


def _pushed_up(places: list[float], lowest: float) -> list[float]:
    """The places, from the last one up, moved so that none is below ``lowest``."""
    moved: list[float] = []
    for y in reversed(places):
        moved.append(min(y, moved[-1] - LABEL_GAP if moved else lowest))
    return moved[::-1]


def short_names(names: Sequence[str], most: int = NAME_LENGTH) -> list[str]:
    """Names of ``most`` usual characters that stay different: cut, their middles, or numbered.

    >>> short_names(["a-long-run-of-lr-0.01-sgd", "a-long-run-of-lr-0.03-sgd", "adam"])
    ['…0.01-sgd', '…0.03-sgd', 'adam']
    """
    short = [_cut(name, most) for name in names]
    if len(set(short)) == len(set(names)):
        return short
    long = [name for name in names if _width(name) > most]
    pairs = enumerate(zip(min(long), max(long), strict=False))
    start = next((place for place, (a, b) in pairs if a != b), 0)
    while start and (long[0][start - 1].isalnum() or long[0][start - 1] == "."):
        start -= 1  # to the beginning of a word
    short = [
        _cut(f"…{name[start:]}", most) if name in long and start else _cut(name, most)
        for name in names
    ]
    if len(set(short)) == len(set(names)):
        return short
    return [
        _cut(f"{number} {name}", most) if name in long else name
        for number, name in enumerate(names, 1)
    ]


def _cut(name: str, most: int) -> str:
    if _width(name) <= most:
        return name
    while _width(name) > most - 1:
        name = name[:-1]
    return f"{name}…"


def _width(name: str) -> float:
    """How many usual characters are as wide."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in name)
    return len(name) + wide + 0.5 * sum(character in "MWmw@%" for character in name)


def count_tick(value: float) -> str:
    """1, 10, 100, 1k, 10k, 1M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def seconds_tick(value: float) -> str:
    """1 ms, 10 ms, 1 s."""
    return seconds_text(value) if value >= 1e-3 else f"{1e6 * value:.3g} µs"


def number_tick(value: float) -> str:
    """A loss."""
    return f"{value:.3g}"


def percent_tick(value: float) -> str:
    """A share."""
    return f"{100 * value:.3g} %"
