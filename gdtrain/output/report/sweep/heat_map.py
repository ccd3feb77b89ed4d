"""A sweep's measure over learning rate and batch size, as a heat map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from itertools import pairwise
from typing import Any

from gdtrain.output.report.sweep.plan import plan
from gdtrain.output.report.sweep.values import as_number, rate_of, size_in, size_of

SHADES = 7  # in report.css
CELL = (70, 48)  # pixels
LEFT = 70  # of the first column

Cells = dict[tuple[float, float], float | None]  # by rate and size


def heat_map(result: dict[str, Any]) -> str:
    """The measure over learning rate and batch size, with the best ridge and linear scaling.

    Of other settings the best. Empty without two rates and two sizes.
    """
    cells = _cells(result)
    rates, sizes = (sorted({key[i] for key in cells}) for i in (0, 1))
    if len(rates) < 2 or len(sizes) < 2:
        return ""
    best = {size: _best_rate(cells, rates, size, higher=result["higher"]) for size in sizes}
    width, height = LEFT + CELL[0] * len(rates) + 8, CELL[1] * len(sizes) + 58
    shades = _Shades(result["by"], cells.values(), higher=result["higher"])
    squares, numbers = _squares(cells, rates, sizes, shades)
    title = f"{result['by']} over learning rate and batch size"
    return (
        "<h2>Learning rate and batch size</h2>"
        '<p class="note">★ and the solid line: the best rate of each batch size. Dashed: rates in '
        "proportion to the batch size (linear scaling), through the best rate of the smallest one. "
        "A dash in a cell: a run of this setting diverged or failed.</p>"
        + plan(
            title,
            (width, height),
            f"{squares}{_ridge(best, rates, sizes)}{_scaling(best, rates, sizes)}"
            f"{_stars(best, rates, sizes)}{numbers}{_axes(rates, sizes)}",
            shades.legend(),
        )
    )


def _cells(result: dict[str, Any]) -> Cells:
    """The best mean of each rate and size; None where none has one."""
    rate, size = rate_of(result), size_of(result)
    cells: Cells = {}
    if rate is None or size is None:
        return cells
    for group in result["groups"]:
        at = as_number(group["setting"][rate]), size_in(group["setting"][size])
        if at[0] is None or at[1] is None:
            continue
        key = at[0], at[1]
        cells[key] = _better(cells.get(key), group["mean"], higher=result["higher"])
    return cells


def _squares(
    cells: Cells, rates: Sequence[float], sizes: Sequence[float], shades: _Shades
) -> tuple[str, str]:
    """The shades of the cells, the smallest size at the bottom, and the numbers in them.

    A number is in the upper left corner, where most lines through the middles of cells do not
    come, and has a rim of its cell's shade for those that do.
    """
    width, height = CELL
    squares, numbers = [], []
    for row, size in enumerate(reversed(sizes)):
        for column, rate in enumerate(rates):
            value = cells.get((rate, size))
            shade = shades.of(value)
            x, y = LEFT + column * width, row * height
            text = shades.text(value) if (rate, size) in cells else ""
            squares.append(
                f'<rect class="shade-{shade}" x="{x}" y="{y}" width="{width - 2}" '
                f'height="{height - 2}"/>'
            )
            numbers.append(
                f'<text class="in shade-{shade}" x="{x + 4}" y="{y + 13}">{escape(text)}</text>'
            )
    return "".join(squares), "".join(numbers)


def _axes(rates: Sequence[float], sizes: Sequence[float]) -> str:
    width, height = CELL
    bottom = height * len(sizes)
    parts = [
        f'<text class="tick" x="{LEFT - 8}" y="{(row + 0.5) * height + 4:.0f}" text-anchor="end">'
        f"{size:,g}</text>"
        for row, size in enumerate(reversed(sizes))
    ]
    parts += [
        f'<text class="tick" x="{LEFT + (column + 0.5) * width:.0f}" y="{bottom + 18}" '
        f'text-anchor="middle">{rate:.2g}</text>'
        for column, rate in enumerate(rates)
    ]
    middle = LEFT + width * len(rates) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{bottom + 44}" text-anchor="middle">learning rate'
        '</text><text class="axis" text-anchor="middle" '
        f'transform="translate(15 {bottom / 2:.0f}) rotate(-90)">batch</text>'
    )
    return "".join(parts)


def _ridge(
    best: Mapping[float, float | None], rates: Sequence[float], sizes: Sequence[float]
) -> str:
    return _path(_best_points(best, rates, sizes), len(sizes), "ridge")


def _stars(
    best: Mapping[float, float | None], rates: Sequence[float], sizes: Sequence[float]
) -> str:
    return "".join(
        f'<polygon class="star" points="{_star(*_middle(len(sizes), point))}"/>'
        for point in _best_points(best, rates, sizes)
    )


def _star(x: float, y: float) -> str:
    """The corners of a star of five points about a place."""
    turns = [(math.radians(36 * corner), 3 if corner % 2 else 7.5) for corner in range(10)]
    return " ".join(
        f"{x + far * math.sin(turn):.1f},{y - far * math.cos(turn):.1f}" for turn, far in turns
    )


def _best_points(
    best: Mapping[float, float | None], rates: Sequence[float], sizes: Sequence[float]
) -> list[tuple[float, int]]:
    """Column and row of the best cell of each size."""
    return [
        (float(rates.index(rate)), row)
        for row, size in enumerate(sizes)
        if (rate := best[size]) is not None
    ]


def _scaling(
    best: Mapping[float, float | None], rates: Sequence[float], sizes: Sequence[float]
) -> str:
    """lr = lr_0 · B / B_0, as far as the rates of the map go."""
    first = next(((s, r) for s in sizes if (r := best[s]) is not None), None)
    if first is None:
        return ""
    wanted = [(row, first[1] * size / first[0]) for row, size in enumerate(sizes)]
    points = [(_column(rate, rates), row) for row, rate in wanted]
    return _path([(x, y) for x, y in points if x is not None], len(sizes), "scaling")


def _column(rate: float, rates: Sequence[float]) -> float | None:
    """Between which columns a rate lies, by its logarithm; None beside all of them."""
    for column, (low, high) in enumerate(pairwise(rates)):
        if low > 0 and low * (1 - 1e-9) <= rate <= high * (1 + 1e-9):
            return column + math.log(rate / low) / math.log(high / low)
    return None


def _path(points: Sequence[tuple[float, int]], rows: int, kind: str) -> str:
    """A line through the middles of cells."""
    placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(partial(_middle, rows), points))
    return f'<polyline class="{kind}" points="{placed}"/>' if len(points) > 1 else ""


def _middle(rows: int, point: tuple[float, int]) -> tuple[float, float]:
    """Of a cell, in pixels; rows are counted from below."""
    column, row = point
    width, height = CELL
    return LEFT + column * width + width / 2 - 1, (rows - row) * height - height / 2 - 1


def _best_rate(
    cells: Cells,
    rates: Sequence[float],
    size: float,
    *,
    higher: bool,
) -> float | None:
    known = [(v, r) for r in rates if (v := cells.get((r, size))) is not None]
    return (max if higher else min)(known)[1] if known else None


def _better(a: float | None, b: float | None, *, higher: bool) -> float | None:
    known = [value for value in (a, b) if value is not None]
    return (max if higher else min)(known) if known else None


class _Shades:
    """Shades by rank: of the values, each shade has about the same number.

    So the best ones, which a few bad values would press into one shade, are told apart.
    """

    def __init__(self, name: str, values: Iterable[float | None], *, higher: bool) -> None:
        self.name = name
        known = [value for value in values if value is not None]
        self.ordered = sorted(known, reverse=higher)  # the best first

    def of(self, value: float | None) -> str:
        """0 for the best, SHADES - 1 for the worst; none for what has no number."""
        if value is None:
            return "none"
        different = list(dict.fromkeys(self.ordered))
        if len(different) <= SHADES:  # spread over all shades
            return str(different.index(value) * (SHADES - 1) // max(1, len(different) - 1))
        return str(SHADES * self.ordered.index(value) // len(self.ordered))

    def text(self, value: float | None) -> str:
        """A value in few characters."""
        if value is None:
            return "–"
        accuracy = self.name.endswith("accuracy")
        return f"{100 * value:.1f}%" if accuracy else f"{value:.2g}"

    def legend(self) -> str:
        """The values of each shade, the best first."""
        ranges: dict[str, list[str]] = {}
        for value in self.ordered:
            ranges.setdefault(self.of(value), []).append(self.text(value))
        items = "".join(
            f'<li class="shade-{shade}">{escape(" to ".join(dict.fromkeys((t[0], t[-1]))))}</li>'
            for shade, t in ranges.items()
        )
        return f'<ul class="shades" aria-label="Shades">{items}</ul>'
