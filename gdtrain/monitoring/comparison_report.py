"""A comparison as one page: nothing is loaded, and everything on it can be seen without scripts.

Drawn from what ``compare.json`` holds. Every text that came from a configuration is escaped; a
Content-Security-Policy forbids the page any request, and any script but its own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from typing import Any

from gdtrain.monitoring import comparison_charts as charts
from gdtrain.monitoring import comparison_table as table

Form = dict[str, Any]
# Column, tab, axis, and how a tick is written.
X_AXES: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("seconds", "Seconds", "seconds of updates", charts.seconds_tick),
    ("gradient_evaluations", "Gradient evaluations", "gradient evaluations", charts.count_tick),
    ("samples", "Samples", "samples trained on", charts.count_tick),
    ("updates", "Updates", "updates", charts.count_tick),
)
HIGHEST = 1.5  # times the loss at the start: what is above leaves the picture


def page(result: dict[str, Any]) -> str:
    """The whole HTML document."""
    script, style = _resource("report.js"), _resource("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    names = _listed([form["name"] for form in result["forms"]])
    title = escape(f"{names} compared")
    body = "\n".join(
        [
            _header(result, names),
            _glance(result),
            _curves(result),
            _noise(result["forms"]),
            _table(result),
            _details(result),
        ]
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="curves">{_embedded(result["forms"])}</script>
<script>{script}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return (files("gdtrain.monitoring") / name).read_text("utf-8")


def _embedded(forms: list[Form]) -> str:
    """The curves for the script; no text in them can end the element that holds them."""
    curves = [{"name": form["name"], **form["curve"]} for form in forms]
    return json.dumps(curves, allow_nan=False).replace("<", "\\u003c")


# ── the parts of the page ───────────────────────────────────────────────────────────────────


def _header(result: dict[str, Any], names: str) -> str:
    start = result["start"]
    problem = result.get("problem", {})
    training, validation = start["training"], start["validation"]
    said = f"{training['samples']:,} training samples"
    if validation is not None:
        said += f", {validation['samples']:,} for validation"
    ((unit, amount),) = result["budget"].items()
    budget = f"{amount:,g} {unit.removesuffix('s') if amount == 1 else unit} each"
    facts = [
        f"{problem['data']}: {said}" if problem.get("data") else said,
        f"{start['parameters']:,} parameters",
        *([problem["loss"]] if problem.get("loss") else []),
        budget,
        "the same initial weights and samples",
    ]
    warning = ""
    if result["status"] == "interrupted":
        warning = _callout("Interrupted", "Not every form has spent its budget.", "warn")
    return (
        f'<header><p class="eyebrow">Forms of gradient descent, measured side by side</p>'
        f"<h1>{escape(names[:1].upper() + names[1:])}</h1>"
        f'<p class="facts">{escape(" · ".join(facts))}</p></header>'
        f"{_callout('When to use which', result['when_to_use'], '')}{warning}"
    )


def _callout(head: str, text: str, kind: str) -> str:
    return f'<section class="verdict {kind}"><h2>{head}</h2><p>{escape(text)}</p></section>'


def _glance(result: dict[str, Any]) -> str:
    forms, target = result["forms"], result["target"]["full_loss"]
    cards = []
    if target is not None:
        cards.append(
            _card(
                "Speed",
                f"time to a full loss of {target:.3g}; shorter is better",
                [f["to_target"]["seconds"] if f["to_target"] else None for f in forms],
                table.seconds_text,
                forms,
                missing="not reached",
            )
        )
    cards.append(
        _card(
            "Final loss",
            "on all training samples; lower is better",
            [f["final"]["full_loss"] for f in forms],
            table.number_text,
            forms,
        )
    )
    for name in table.metrics(forms)[-1:]:
        word = name.removeprefix("val_")
        higher = name.endswith("accuracy")
        cards.append(
            _card(
                f"Validation {word}",
                f"at the end; {'higher' if higher else 'lower'} is better",
                [f["final"].get(name) if f["status"] != "diverged" else None for f in forms],
                partial(table.metric_text, name),
                forms,
                higher=higher,
            )
        )
    cards += [
        _card(
            "Memory",
            "peak of one update; less is better",
            [f["memory"]["step_peak_bytes"] if f["memory"] else None for f in forms],
            table.bytes_text,
            forms,
            missing="not measured",
        ),
        _card(
            "Stability",
            "updates that raised the full loss; fewer is steadier",
            [_unless_diverged(f, f["stability"]["share_that_raised"]) for f in forms],
            lambda value: f"{value:.0%}",
            forms,
        ),
        _card(
            "Noise of the loss curve",
            "variance of the updates' losses, last third; less is smoother",
            [_unless_diverged(f, f["stability"]["loss_variance"]) for f in forms],
            lambda value: f"{value:.1e}",
            forms,
        ),
    ]
    return f'<h2>At a glance</h2><div class="cards">{"".join(cards)}</div>'


def _unless_diverged(form: Form, value: float | None) -> float | None:
    return None if form["status"] == "diverged" else value


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
    best = (max if higher else min)(known) if len(set(known)) > 1 else None
    largest = max(known, default=0.0) or 1.0
    bars = []
    for number, (form, value) in enumerate(zip(forms, values, strict=True)):
        width = 0.0 if value is None else 100 * max(0.0, value) / largest
        fill = "" if value is None else f'<span class="fill" style="width:{width:.2f}%"></span>'
        absent = "diverged" if form["status"] == "diverged" else missing
        kind = "best" if value is not None and value == best else "pad"
        bars.append(
            f'<div class="{kind} form-{number % charts.STYLES}">'
            f'<dt title="{escape(form["name"])}">{escape(form["name"])}</dt>'
            f'<dd class="track" aria-hidden="true">{fill}</dd>'
            f'<dd class="value">{escape(absent if value is None else write(value))}</dd></div>'
        )
    return (
        f'<section class="card"><h3>{escape(title)}</h3><p class="note">{escape(note)}</p>'
        f'<dl class="bars">{"".join(bars)}</dl></section>'
    )


def _curves(result: dict[str, Any]) -> str:
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
        "Looking at the loss takes none of the seconds.</p>"
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
    lines = [
        charts.Line(form["name"], form["curve"][column], form["curve"].get(name, []), number)
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


def _noise(forms: list[Form]) -> str:
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
                charts.Line("", [share[place] for place in single], own, number, dots=True),
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
            width=400,
        )
        name = (
            f'<figcaption class="form-{number % charts.STYLES}">{escape(form["name"])}</figcaption>'
        )
        pictures.append(f'<figure class="card">{name}{picture}</figure>')
    return (
        "<h2>Why some curves are noisy</h2>"
        '<p class="note">Each dot is the loss that one update saw, on its own samples before it '
        "was made; the line is the loss on all of them. Few samples an update: dots far from the "
        "line.</p>"
        f'<div class="dotted">{"".join(pictures)}</div>'
    )


def _table(result: dict[str, Any]) -> str:
    heads = "".join(
        f'<th scope="col" class="form-{number % charts.STYLES}">{escape(form["name"])}</th>'
        for number, form in enumerate(result["forms"])
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(row.label)}<small>{escape(row.meaning)}</small></th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        + "</tr>"
        for row in table.rows(result)
    )
    return (
        '<h2>The table</h2><div class="scroll"><table><caption>All of it was measured in these '
        f"runs.</caption><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _details(result: dict[str, Any]) -> str:
    parts = ["<h2>How it was measured</h2>", f"<ul>{_METHOD}</ul>"]
    reasons = [(f["name"], f["reason"]) for f in result["forms"] if f["reason"]]
    for name, reason in reasons:
        parts.append(f"<p><strong>{escape(name)}</strong>: {escape(reason)}</p>")
    tried = [form for form in result["forms"] if "tried" in form]
    if tried:
        items = "".join(
            f"<li><strong>{escape(form['name'])}</strong>: "
            + escape(
                ", ".join(
                    f"{run['learning_rate']:g} → {table.number_text(run['full_loss'])}"
                    for run in form["tried"]
                )
            )
            + f"; took {form['learning_rate']:g}</li>"
            for form in tried
        )
        said = "Learning rates tried, and the full loss after a short run with each"
        parts.append(f"<details open><summary>{said}</summary><ul>{items}</ul></details>")
    for name, text in result.get("configs", {}).items():
        parts.append(
            f"<details><summary>Configuration of {escape(name)}</summary>"
            f"<pre>{escape(text)}</pre></details>"
        )
    start = result["start"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    command = f"<br><code>{escape(result['command'])}</code>" if "command" in result else ""
    parts.append(
        f"<footer>{escape(versions)}; {escape(result['machine']['architecture'])}, "
        f"{result['machine']['threads']} threads. SHA-256 of the initial weights: "
        f"<code>{escape(start['weights_sha256'][:16])}…</code>; checksum of the training samples: "
        f"<code>{escape(str(start['training']['checksum']))}</code>.{command}</footer>"
    )
    return "\n".join(parts)


_METHOD = """
<li><strong>Full loss</strong>: the mean loss over all training samples, in evaluation mode, with
the weights as they stand.</li>
<li><strong>Seconds</strong>: of updates alone, reading their samples included; evaluation stops
the clock. Times to the target are precise to the distance between two looks at the loss.</li>
<li><strong>Peak memory of a step</strong>: the bytes of all tensors that an eager update keeps
alive at its peak: its batch, activations and gradients. Weights and optimizer state come on
top and are the same for all.</li>
<li><strong>Variance of the loss</strong>: of the updates' own losses in the last third of the run,
about their trend, by mean square successive differences: Σ (l<sub>t+1</sub> − l<sub>t</sub>)² /
2(m − 1) (von Neumann and others, 1941).</li>
<li><strong>Updates that raise the loss</strong>: the full loss is evaluated right before and right
after updates that are evenly spread over the run; those after which it is higher by more than
rounding are counted.</li>
"""


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
