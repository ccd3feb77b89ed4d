"""A sweep's small multiples and performance profiles."""

from __future__ import annotations

from html import escape
from typing import Any

from gdtrain.output.report import charts
from gdtrain.output.report.sweep_values import as_number, rate_of, shown

Group = dict[str, Any]
MOST_PANELS = 40


def multiples(result: dict[str, Any]) -> str:
    """The measure against the learning rate, a panel for each choice of the other settings."""
    rate = rate_of(result)
    panels: dict[str, list[Group]] = {}
    for group in result["groups"]:
        if rate is not None and as_number(group["setting"][rate]) is not None:
            rest = {k: v for k, v in group["setting"].items() if k != rate}
            name = " ".join(f"{k}={shown(v)}" for k, v in rest.items()) or "all settings"
            panels.setdefault(name, []).append(group)
    if rate is None or all(len(groups) < 2 for groups in panels.values()):
        return ""
    pictures = [
        _panel(result, rate, name, groups, style)
        for style, (name, groups) in enumerate(list(panels.items())[:MOST_PANELS])
    ]
    left = len(panels) - MOST_PANELS
    more = f" The {left} that are worse are left out." if left > 0 else ""
    return (
        "<h2>Against the learning rate</h2>"
        '<p class="note">Each dot is a run, the line goes through the means over seeds; rates at '
        f"which a run diverged or failed have no mean.{more}</p>"
        f'<div class="dotted">{"".join(pictures)}</div>'
    )


def _panel(result: dict[str, Any], rate: str, name: str, groups: list[Group], style: int) -> str:
    ordered = sorted(groups, key=lambda group: as_number(group["setting"][rate]) or 0.0)
    dots = [(as_number(g["setting"][rate]), v) for g in ordered for v in g["values"]]
    means = [(as_number(g["setting"][rate]), g["mean"]) for g in ordered]
    share = result["by"].endswith("accuracy")
    picture = charts.chart(
        [
            charts.Line("", [x for x, _ in dots], [y for _, y in dots], style, dots=True),
            charts.Line("", [x for x, _ in means], [y for _, y in means], style),
        ],
        title=f"{result['by']} against the learning rate: {name}",
        x_label="learning rate (logarithmic)",
        y_label=result["by"] if len(result["by"]) < 30 else "measure",
        x_write=charts.number_tick,
        y_write=charts.percent_tick if share else charts.number_tick,
        log_y=result["log"],
        named=False,
        width=340,
    )
    caption = f'<figcaption class="names {charts.form_class(style)}">{escape(name)}</figcaption>'
    return f'<figure class="card">{caption}{picture}</figure>'


def profiles(result: dict[str, Any]) -> str:
    """Of the best settings, the share of seeds in which they are within a factor of the best."""
    found = result["profiles"]
    if not found["groups"]:
        return ""
    short = charts.short_names(list(found["groups"]))
    lines = [
        charts.Line(name, found["factors"], shares, number, short=short[number])
        for number, (name, shares) in enumerate(found["groups"].items())
    ]
    picture = charts.chart(
        lines,
        title="Performance profiles",
        x_label=f"times the best {result['by']} of the seed"[:52],
        y_label="share of seeds",
        x_write=lambda value: f"{value:.3g}",
        y_write=charts.percent_tick,
        log_y=False,
    )
    names = "".join(
        f'<li class="{charts.form_class(number)}"><span class="names">'
        f"{escape(short[number])}: {escape(line.name)}</span></li>"
        for number, line in enumerate(lines)
        if short[number] != line.name
    )
    return (
        "<h2>Performance profiles</h2>"
        f'<p class="note">Of the {len(lines)} best settings, the share of seeds in which each '
        "comes within a factor of the best of that seed: higher and further left is better.</p>"
        f'<figure class="card wide profile">{picture}<ul>{names}</ul></figure>'
    )
