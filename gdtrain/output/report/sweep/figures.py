"""A sweep's small multiples and performance profiles."""

from __future__ import annotations

from html import escape
from typing import Any

from gdtrain.output.report import charts
from gdtrain.output.report.sweep.values import as_number, rate_of, shown, size_in

Group = dict[str, Any]
MOST_PANELS = 40
PROFILE_WIDTH = 400


def multiples(result: dict[str, Any]) -> str:
    """The measure against the learning rate, a panel for each choice of the other settings.

    The panels have the same axes, and the order of their settings.
    """
    rate = rate_of(result)
    found: dict[str, list[Group]] = {}
    for group in result["groups"]:
        if rate is not None and as_number(group["setting"][rate]) is not None:
            rest = {k: v for k, v in group["setting"].items() if k != rate}
            name = " ".join(f"{k}={shown(v)}" for k, v in rest.items()) or "all settings"
            found.setdefault(name, []).append(group)
    if rate is None or all(len(groups) < 2 for groups in found.values()):
        return ""
    best = list(found.items())[:MOST_PANELS]
    panels = sorted(best, key=lambda panel: _place(panel[1][0]["setting"], rate))
    lines = [_lines(rate, groups, style) for style, (_, groups) in enumerate(panels)]
    every = [line for of_panel in lines for line in of_panel]
    pictures = [
        _panel(result, name, own, every) for (name, _), own in zip(panels, lines, strict=True)
    ]
    left = len(found) - MOST_PANELS
    more = f" The {left} that are worse are left out." if left > 0 else ""
    return (
        "<h2>Against the learning rate</h2>"
        '<p class="note">Each dot is a run, the line goes through the means over seeds; rates at '
        f"which a run diverged or failed have no mean. All panels have the same axes.{more}</p>"
        f'<div class="dotted">{"".join(pictures)}</div>'
    )


def _place(setting: dict[str, Any], rate: str) -> list[tuple[bool, float, str]]:
    """What settings are sorted by: sizes as numbers, before what is none."""
    values = [value for name, value in setting.items() if name != rate]
    sizes = [size_in(value) for value in values]
    return [
        (size is None, size or 0.0, shown(value)) for size, value in zip(sizes, values, strict=True)
    ]


def _lines(rate: str, groups: list[Group], style: int) -> list[charts.Line]:
    """The runs as dots, and a line through the means."""
    ordered = sorted(groups, key=lambda group: as_number(group["setting"][rate]) or 0.0)
    dots = [(as_number(g["setting"][rate]), v) for g in ordered for v in g["values"]]
    means = [(as_number(g["setting"][rate]), g["mean"]) for g in ordered]
    return [
        charts.Line("", [x for x, _ in dots], [y for _, y in dots], style, dots=True),
        charts.Line("", [x for x, _ in means], [y for _, y in means], style),
    ]


def _panel(
    result: dict[str, Any], name: str, lines: list[charts.Line], every: list[charts.Line]
) -> str:
    share = result["by"].endswith("accuracy")
    picture = charts.chart(
        lines,
        title=f"{result['by']} against the learning rate: {name}",
        x_label="learning rate (logarithmic)",
        y_label=result["by"] if len(result["by"]) < 30 else "measure",
        x_write=charts.number_tick,
        y_write=charts.percent_tick if share else charts.number_tick,
        log_y=result["log"],
        named=False,
        width=340,
        beside=every,
    )
    form = charts.form_class(lines[0].style)
    caption = f'<figcaption class="names {form}">{escape(name)}</figcaption>'
    return f'<figure class="card">{caption}{picture}</figure>'


def profiles(result: dict[str, Any]) -> str:
    """Of the best settings, the share of seeds in which they are within a factor of the best.

    Lines have numbers at their ends, and a list says which setting each is.
    """
    found = result["profiles"]
    if not found["groups"]:
        return ""
    lines = [
        charts.Line(name, found["factors"], shares, number, short=str(number + 1))
        for number, (name, shares) in enumerate(found["groups"].items())
    ]
    picture = charts.chart(
        lines,
        title="Performance profiles",
        x_label=f"times the best {result['by']} of the seed"[:46],
        y_label="share of seeds",
        x_write=lambda value: f"{value:.3g}",
        y_write=charts.percent_tick,
        log_y=False,
        width=PROFILE_WIDTH,
        names_width=34,
    )
    names = "".join(
        f'<li class="names {charts.form_class(line.style)}">{escape(line.name)}</li>'
        for line in lines
    )
    return (
        "<h2>Performance profiles</h2>"
        f'<p class="note">Of the {len(lines)} best settings, the share of seeds in which each '
        "comes within a factor of the best of that seed: higher and further left is better.</p>"
        f'<figure class="card wide profile">{picture}<ol>{names}</ol></figure>'
    )
