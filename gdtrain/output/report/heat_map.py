"""A sweep's measure over learning rate and batch size, as a heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from gdtrain.output.report.sweep_values import as_number, batch_size, rate_of, size_of

SHADES = 7  # in report.css
CELL = (62, 30)  # pixels
LEFT = 84  # of the first column

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
    squares, numbers = _squares(result, cells, rates, sizes, best)
    title = f"{result['by']} over learning rate and batch size"
    return (
        "<h2>Learning rate and batch size</h2>"
        '<p class="note">★ and the solid line: the best rate of each batch size. Dashed: rates in '
        "proportion to the batch size (linear scaling), through the best rate of the smallest one. "
        "– : a run of it diverged or failed.</p>"
        f'<figure class="card wide plan"><svg class="chart" viewBox="0 0 {width} {height}" '
        f'style="width:{width}px" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>"
        f"{squares}{_ridge(best, rates, sizes)}{_scaling(best, rates, sizes)}{numbers}"
        f"{_axes(rates, sizes)}</svg></figure>"
    )


def _cells(result: dict[str, Any]) -> Cells:
    """The best mean of each rate and size; None where none has one."""
    rate, size = rate_of(result), size_of(result)
    cells: Cells = {}
    if rate is None or size is None:
        return cells
    for group in result["groups"]:
        at = as_number(group["setting"][rate]), batch_size(group["setting"][size])
        if at[0] is None or at[1] is None:
            continue
        key = at[0], at[1]
        cells[key] = _better(cells.get(key), group["mean"], higher=result["higher"])
    return cells


def _squares(
    result: dict[str, Any],
    cells: Cells,
    rates: Sequence[float],
    sizes: Sequence[float],
    best: Mapping[float, float | None],
) -> tuple[str, str]:
    """The shades of the cells, the smallest size at the bottom, and the numbers in them."""
    known = [value for value in cells.values() if value is not None]
    width, height = CELL
    squares, numbers = [], []
    for row, size in enumerate(reversed(sizes)):
        for column, rate in enumerate(rates):
            value = cells.get((rate, size))
            shade = _shade(value, known, log=result["log"], higher=result["higher"])
            x, y = LEFT + column * width, row * height
            star = "★ " if best[size] == rate else ""
            text = f"{star}{_short(result['by'], value)}" if (rate, size) in cells else ""
            squares.append(
                f'<rect class="shade-{shade}" x="{x}" y="{y}" width="{width - 2}" '
                f'height="{height - 2}"/>'
            )
            numbers.append(
                f'<text class="in shade-{shade}" x="{x + width / 2 - 1:.0f}" '
                f'y="{y + height / 2 + 3:.0f}" text-anchor="middle">{escape(text)}</text>'
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
    points = [
        (float(rates.index(rate)), row)
        for row, size in enumerate(sizes)
        if (rate := best[size]) is not None
    ]
    return _path(points, len(sizes), "ridge")


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
    """A line through the lower edges of cells, where it crosses no text."""
    width, height = CELL
    placed = " ".join(
        f"{LEFT + (x + 0.5) * width:.1f},{(rows - y) * height - 5}" for x, y in points
    )
    return f'<polyline class="{kind}" points="{placed}"/>' if len(points) > 1 else ""


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


def _shade(value: float | None, known: Sequence[float], *, log: bool, higher: bool) -> str:
    """0 for the best, SHADES - 1 for the worst; none for what has no number."""
    if value is None:
        return "none"
    scale = math.log if log else float
    low, high = scale(min(known)), scale(max(known))
    share = (scale(value) - low) / (high - low) if high > low else 0.0
    return str(min(SHADES - 1, int(SHADES * (1 - share if higher else share))))


def _short(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if name.endswith("accuracy") else f"{value:.2g}"
