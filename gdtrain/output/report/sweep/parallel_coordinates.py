"""The settings of a sweep in parallel coordinates: a line through the values of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from gdtrain.output.report import charts
from gdtrain.output.report.sweep.plan import plan
from gdtrain.output.report.sweep.values import as_number, rate_of, shown
from gdtrain.output.report.table import metric_text

TICK_GAP = 18  # pixels between texts, one below the other
MOST_TEXTS = 40  # of an axis
LEFT, TOP, GAP = 100, 34, 140  # pixels beside, above and between axes
RIGHT = 80  # beside the last one, for its values
LABEL = 17  # characters above an axis


def coordinates(result: dict[str, Any]) -> str:
    """A line for each setting through its values to its result; the best ones stand out.

    Empty without two settings that have a mean, and where one thing alone was varied.
    """
    groups = [group for group in result["groups"] if group["mean"] is not None]
    names = list(groups[0]["setting"]) if groups else []
    if len(groups) < 2 or len(names) < 2:
        return ""
    rate = rate_of(result)
    scales = [
        _Scale([group["setting"][name] for group in groups], log=name == rate) for name in names
    ]
    scales.append(_Scale([group["mean"] for group in groups], log=result["log"], by=result["by"]))
    height = max(240, TICK_GAP * max(scale.rows for scale in scales))
    width = LEFT + GAP * len(names) + RIGHT
    lines = [
        _line(scales, [*group["setting"].values(), group["mean"]], height, best=rank < tenth)
        for tenth in [max(1, len(groups) // 10)]
        for rank, group in reversed(list(enumerate(groups)))  # the best on top
    ]
    labels = charts.short_names([*names, result["by"]], LABEL)
    axes = [
        _axis(LEFT + GAP * place, label, scale, height)
        for place, (label, scale) in enumerate(zip(labels, scales, strict=True))
    ]
    return (
        "<h2>All settings at once</h2>"
        '<p class="note">A line is a setting, from value to value to its result; the best '
        "tenth stands out. Settings of which a run diverged or failed are left out.</p>"
        + plan(
            "Parallel coordinates of the settings",
            (width, TOP + height + 16),
            f"{''.join(lines)}{''.join(axes)}",
        )
    )


def _line(scales: Sequence[_Scale], values: Sequence[Any], height: float, *, best: bool) -> str:
    placed = " ".join(
        f"{LEFT + GAP * place},{TOP + height * (1 - scale.place(value)):.1f}"
        for place, (scale, value) in enumerate(zip(scales, values, strict=True))
    )
    return f'<polyline class="path {"good" if best else "other"}" points="{placed}"/>'


def _axis(x: int, label: str, scale: _Scale, height: float) -> str:
    parts = [
        f'<line class="post" x1="{x}" x2="{x}" y1="{TOP}" y2="{TOP + height}"/>'
        f'<text class="axis" x="{x}" y="16" text-anchor="middle">{escape(label)}</text>'
    ]
    # Lines come to the result's axis from the left alone.
    at, anchor = (x + 8, "start") if scale.by is not None else (x - 6, "end")
    for text, share in scale.ticks(height):
        y = TOP + height * (1 - share) + 4
        parts.append(
            f'<text class="tick halo" x="{at}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )
    return "".join(parts)


class _Scale:
    """An axis: numbers by size, or by logarithm if they reach that far; or names in turn."""

    def __init__(self, values: Sequence[Any], *, log: bool = False, by: str | None = None) -> None:
        self.values = list(dict.fromkeys(values))
        self.by = by
        numbers = [as_number(value) for value in self.values]
        self.numeric = None not in numbers
        known = [value for value in numbers if value is not None]
        self.low, self.high = (min(known), max(known)) if self.numeric else (0.0, 1.0)
        self.log = self.low > 0 and (log or self.high >= 20 * self.low)

    @property
    def rows(self) -> int:
        """Texts that need a place each."""
        return 0 if self.by is not None else min(MOST_TEXTS, len(self.values))

    def place(self, value: Any) -> float:
        """From 0 below to 1 above."""
        if not self.numeric:
            return (self.values.index(value) + 0.5) / len(self.values)
        at, low, high = float(value), self.low, self.high
        if self.log:
            at, low, high = math.log(at), math.log(low), math.log(high)
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self, height: float) -> list[tuple[str, float]]:
        """Texts and their places, those left out that would touch the one before."""
        wanted = self.values if self.by is None else [self.low, self.high]
        texts = charts.short_names([self._text(value) for value in wanted])
        placed = sorted(zip((self.place(value) for value in wanted), texts, strict=True))
        kept: list[tuple[str, float]] = []
        for share, text in placed:
            if not kept or (share - kept[-1][1]) * height >= TICK_GAP - 1:
                kept.append((text, share))
        return kept

    def _text(self, value: Any) -> str:
        return shown(value) if self.by is None else metric_text(self.by, value)
