"""The pictures of a comparison's page: bars at a glance, curves to choose from, and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from typing import Any

from gdtrain.output.report import charts as charts
from gdtrain.output.report import table as table
from gdtrain.wording import best_of

Form = dict[str, Any]
# Column, tab, axis, and how a tick is written.
X_AXES: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("seconds", "Seconds", "seconds of updates", charts.seconds_tick),
    ("gradient_evaluations", "Gradient evaluations", "gradient evaluations", charts.count_tick),
    ("samples", "Samples", "samples trained on", charts.count_tick),
    ("updates", "Updates", "updates", charts.count_tick),
)
HIGHEST = 1.5  # times the loss at the start: what is above leaves the picture


def glance(result: dict[str, Any]) -> str:
    """A card of bars for each property: speed, loss, memory, stability."""
    forms = result["forms"]
    cards = [*_speed(forms, result["target"]["full_loss"]), *_reached(forms), *_manner(forms)]
    return f'<h2>At a glance</h2><div class="cards">{"".join(cards)}</div>'


def _speed(forms: list[Form], target: float | None) -> list[str]:
    if target is None:
        return []
    times = [f["to_target"]["seconds"] if f["to_target"] else None for f in forms]
    return [
        _card(
            "Speed",
            f"time to a full loss of {target:.3g}; shorter is better",
            [_unless_diverged(f, seconds) for f, seconds in zip(forms, times, strict=True)],
            table.seconds_text,
            forms,
            missing="not reached",
        )
    ]


def _reached(forms: list[Form]) -> Iterator[str]:
    """Where the forms ended: the full loss, and a metric on the validation part if there is one."""
    yield _card(
        "Final loss",
        "on all training samples; lower is better",
        [_unless_diverged(f, f["final"]["full_loss"]) for f in forms],
        table.number_text,
        forms,
    )
    for name in table.metrics(forms)[-1:]:
        higher = best_of(name) == "max"
        yield _card(
            f"Validation {name.removeprefix('val_')}",
            f"at the end; {'higher' if higher else 'lower'} is better",
            [_unless_diverged(f, f["final"].get(name)) for f in forms],
            partial(table.metric_text, name),
            forms,
            higher=higher,
        )


def _manner(forms: list[Form]) -> Iterator[str]:
    """What the forms needed and how they behaved on their way."""
    yield _card(
        "Memory",
        "peak of one update; less is better",
        [f["memory"]["step_peak_bytes"] if f["memory"] else None for f in forms],
        table.bytes_text,
        forms,
        missing="not measured",
    )
    yield _card(
        "Stability",
        "updates that raised the full loss; fewer is steadier",
        [_unless_diverged(f, f["stability"]["share_that_raised"]) for f in forms],
        lambda value: f"{value:.0%}",
        forms,
    )
    yield _card(
        "Noise of the loss curve",
        "variance of the updates' losses, last third; less is smoother",
        [_unless_diverged(f, f["stability"]["loss_variance"]) for f in forms],
        lambda value: f"{value:.1e}",
        forms,
    )


def _unless_diverged(form: Form, value: float | None) -> float | None:
    return value if _sound(form) else None


def _sound(form: Form) -> bool:
    return bool(form["status"] != "diverged")


def _card(
    title: str,
    note: str,
    values: Sequence[float | None],
    write: Callable[[float], str],
    forms: list[Form],
    *,
    missing: str = "–",
    higher: bool = False,
) -> str:
    """Bars from zero, one for each form, the best one marked."""
    known = [value for value in values if value is not None]
    sound = [v for v, f in zip(values, forms, strict=True) if v is not None and _sound(f)]
    best = (max if higher else min)(sound) if len(set(sound)) > 1 else None
    largest = max(known, default=0.0) or 1.0
    bars = []
    for number, (form, value) in enumerate(zip(forms, values, strict=True)):
        width = 0.0 if value is None else 100 * max(0.0, value) / largest
        fill = "" if not value else f'<span class="fill" style="width:{width:.2f}%"></span>'
        absent = "diverged" if form["status"] == "diverged" else missing
        kind = "best" if value is not None and value == best and _sound(form) else "pad"
        bars.append(
            f'<div class="{kind} {charts.form_class(number)}">'
            f'<dt title="{escape(form["name"])}">{escape(form["name"])}</dt>'
            f'<dd class="track" aria-hidden="true">{fill}</dd>'
            f'<dd class="value">{escape(absent if value is None else write(value))}</dd></div>'
        )
    return (
        f'<section class="card"><h3>{escape(title)}</h3><p class="note">{escape(note)}</p>'
        f'<dl class="bars">{"".join(bars)}</dl></section>'
    )


def curves(result: dict[str, Any]) -> str:
    """The full loss and a validation metric against what the reader chooses, without a script."""
    forms = result["forms"]
    metric = table.metrics(forms)[-1:]
    tabs, panels = [], []
    for number, (column, tab, label, write) in enumerate(X_AXES):
        checked = " checked" if number == 0 else ""
        tabs.append(
            f'<input type="radio" name="x" id="x-{column}"{checked}>'
            f'<label for="x-{column}">{tab}</label>'
        )
        figures = [_figure(forms, column, label, write, name) for name in ["full_loss", *metric]]
        kind = "panel" if metric else "panel one"
        panels.append(f'<div class="{kind} p-{column}">{"".join(figures)}</div>')
    return (
        "<h2>The curves</h2>"
        '<p class="note">Choose what to count along the bottom: the same runs look different by '
        "their updates, their samples and their time. Each step to the right is ten times as much. "
        "Evaluation time is not counted.</p>"
        '<fieldset class="tabs"><legend>Against</legend>'
        f"{''.join(tabs)}{''.join(panels)}</fieldset>"
    )


def _figure(
    forms: list[Form], column: str, label: str, write: Callable[[float], str], name: str
) -> str:
    share = name.endswith("accuracy")
    word = "full loss" if name == "full_loss" else f"validation {name.removeprefix('val_')}"
    starts = [losses[0] for f in forms if (losses := f["curve"]["full_loss"])[0] is not None]
    title = f"{word[:1].upper()}{word[1:]} against {label}"
    short = charts.short_names([form["name"] for form in forms])
    lines = [
        charts.Line(
            form["name"],
            form["curve"][column],
            form["curve"].get(name, []),
            number,
            short=short[number],
        )
        for number, form in enumerate(forms)
        if name in form["curve"]
    ]
    picture = charts.chart(
        lines,
        title=title,
        x_label=f"{label} (logarithmic)",
        y_label=word if share else f"{word} (logarithmic)",
        x_write=write,
        y_write=charts.percent_tick if share else charts.number_tick,
        log_y=not share,
        highest=HIGHEST * max(starts) if starts and name == "full_loss" else float("inf"),
    )
    values = f'data-xname="{column}" data-xlabel="{label}" data-y="{escape(name)}"'
    return (
        f'<figure class="card" {values}><figcaption>{escape(title)}</figcaption>{picture}</figure>'
    )


def noise(forms: list[Form]) -> str:
    """For each form, single updates' own losses as dots around the full loss."""
    pictures = []
    starts = [losses[0] for f in forms if (losses := f["curve"]["full_loss"])[0] is not None]
    for number, form in enumerate(forms):
        curve = form["curve"]
        total = curve["updates"][-1] or 1
        share = [100 * step / total for step in curve["updates"]]
        single = [
            place
            for place in range(1, len(share))
            if curve["updates"][place] == curve["updates"][place - 1] + 1
        ]
        own = [curve["batch_loss"][place] for place in single]
        title = f"{form['name']}: what single updates see, and the full loss"
        picture = charts.chart(
            [
                charts.Line("", [share[place - 1] for place in single], own, number, dots=True),
                charts.Line("", share, curve["full_loss"], number),
            ],
            title=title,
            x_label="share of the updates (%)",
            y_label="loss (logarithmic)",
            x_write=charts.number_tick,
            y_write=charts.number_tick,
            log_x=False,
            highest=2 * HIGHEST * max(starts) if starts else float("inf"),
            named=False,
            width=340,
        )
        name = (
            f'<figcaption class="{charts.form_class(number)}">{escape(form["name"])}</figcaption>'
        )
        pictures.append(f'<figure class="card">{name}{picture}</figure>')
    return (
        "<h2>Why some curves are noisy</h2>"
        '<p class="note">Each dot is the loss that one update saw, on its own samples before it '
        "was made; the line is the loss on all of them. Few samples an update: dots far from the "
        "line.</p>"
        f'<div class="dotted">{"".join(pictures)}</div>'
    )
