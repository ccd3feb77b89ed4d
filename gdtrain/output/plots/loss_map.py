"""Drawing a slice of the loss as a map, with the ways that the weights of runs have taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gdtrain.output.plots.curves import COLOURS, DASHES, MARKERS, house_style, legend_label

if TYPE_CHECKING:
    from gdtrain.output.plots.picture import Picture

Array = np.ndarray[Any, Any]

_LEVELS = 14


def draw_hill(
    x: Array,
    y: Array,
    losses: Array,
    ways: Sequence[Array],
    labels: Sequence[str],
    explained: tuple[float, float],
    loss_label: str = "full loss",
) -> Picture:
    """A map of losses [g, g] over x [g] and y [g], the lower the darker, and ways [k, 2] on it.

    explained: the shares of the ways' variance along x and y; written on the axes and above.
    """
    with house_style():
        import matplotlib
        from matplotlib.colors import BoundaryNorm

        from gdtrain.output.plots.picture import Picture

        figure = Picture(8, 6.4)
        figure.subplots_adjust(left=0.1, right=0.97, bottom=0.1, top=0.885)
        frame = figure.subplots()
        levels = _levels(losses)
        held = np.ma.masked_invalid(np.clip(losses, None, levels[-1]))
        colours = matplotlib.colormaps["cividis"]
        scale = BoundaryNorm(levels.tolist(), colours.N, extend="max")
        area = frame.contourf(x, y, held, levels, cmap=colours, norm=scale, extend="max")
        frame.contour(x, y, held, levels, colors="#ffffff", linewidths=0.4, alpha=0.6)
        bar = figure.colorbar(area, ax=frame, pad=0.02)
        bar.set_ticks(levels[::2].tolist(), labels=_told_apart(levels[::2]))
        bar.set_label(loss_label)
        for number, (way, label) in enumerate(zip(ways, labels, strict=True)):
            _draw_way(frame, way, label, number)
        for say, rank, share in (
            (frame.set_xlabel, "1st", explained[0]),
            (frame.set_ylabel, "2nd", explained[1]),
        ):
            say(f"{rank} principal direction, ‖Δθ‖ in units of the weights ({share:.1%})")
        frame.grid(False)
        frame.legend(loc="best", facecolor="white", framealpha=0.9)
        path, whose = ("paths", "their") if len(ways) > 1 else ("path", "its")
        figure.suptitle(
            f"Full loss in the principal plane of the weights' {path}\n"
            f"(explains {sum(explained):.1%} of {whose} variance; circle: start, star: end)",
            x=0.5,
            y=0.985,
            fontsize=13,
        )
    return figure


def _draw_way(frame: Any, way: Array, label: str, number: int) -> None:
    """A way with a white rim, so that it stands out on any ground; circle at its start, star at
    its end."""
    colour = _BRIGHT[number % len(_BRIGHT)]
    dashes, marker = DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]
    frame.plot(*way.T, color="white", linewidth=3.6, solid_capstyle="round")
    frame.plot(
        *way.T,
        color=colour,
        linestyle=dashes,
        linewidth=2.0,
        marker=marker,
        markersize=4,
        markevery=max(1, len(way) // 12),
        label=legend_label(label),
    )
    ends = {"markeredgecolor": "white", "markeredgewidth": 1.2, "color": colour, "zorder": 5}
    frame.plot(*way[:1].T, marker="o", markersize=10, **ends)
    frame.plot(*way[-1:].T, marker="*", markersize=17, **ends)


_BRIGHT = (COLOURS[1], COLOURS[0], COLOURS[2], COLOURS[3], COLOURS[4], COLOURS[6])


def _told_apart(values: Array) -> list[str]:
    """The values, which all differ, with as few digits as tell them apart, at least two."""
    for digits in range(2, 18):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts


def _levels(losses: Array) -> Array:
    """Where to draw contours: from the lowest loss up to nine tenths of the map and beyond.

    By factors where losses are positive and far apart, else by squares, as on a parabola whose
    contours are at even distances. What lies above the highest is drawn as one.
    """
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        return np.linspace(0.0, 1.0, _LEVELS)
    low, high = float(finite.min()), float(np.quantile(finite, 0.95))
    if not high > low:
        high = low + (abs(low) or 1.0)
    if low > 0 and high > 5 * low:
        return np.geomspace(low, high, _LEVELS)
    return low + (high - low) * np.linspace(0.0, 1.0, _LEVELS) ** 2
