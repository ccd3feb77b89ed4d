"""A comparison as one page: nothing is loaded, and everything on it can be seen without scripts.

Drawn from what ``compare.json`` holds. Every text that came from a configuration is escaped; a
Content-Security-Policy forbids the page any request, and any script but its own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from gdtrain.output.report import charts
from gdtrain.output.report import figures as figures
from gdtrain.output.report import table as table

Form = dict[str, Any]


def page(result: dict[str, Any]) -> str:
    """The whole HTML document."""
    names = _listed([form["name"] for form in result["forms"]])
    body = [
        _header(result, names),
        figures.glance(result),
        figures.curves(result),
        figures.noise(result["forms"]),
        _table(result),
        _details(result),
    ]
    return document(f"{names} compared", body, curves=_embedded(result["forms"]))


def document(title: str, body: Sequence[str], *, curves: str = "") -> str:
    """A page of its own: style, policy, the parts of its body.

    curves: what the script is to read, if it is wanted.
    """
    script = _resource("report.js") if curves else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    parts = "\n".join(body)
    scripts = (
        f'<script type="application/json" id="curves">{curves}</script>\n'
        f"<script>{script}</script>\n"
        if curves
        else ""
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{_resource("report.css")}</style>
</head>
<body>
<main>
{parts}
</main>
{scripts}</body>
</html>
"""


def _resource(name: str) -> str:
    return (files("gdtrain.output.report") / name).read_text("utf-8")


def _embedded(forms: list[Form]) -> str:
    """The curves for the script; no text in them can end the element that holds them."""
    curves = [{"name": form["name"], **form["curve"]} for form in forms]
    return json.dumps(curves, allow_nan=False).replace("<", "\\u003c")


# ── the parts of the page ───────────────────────────────────────────────────────────────────


def _header(result: dict[str, Any], names: str) -> str:
    start = result["start"]
    problem = result.get("problem", {})
    training, validation = start["training"], start["validation"]
    message = f"{training['samples']:,} training sample{'s' * (training['samples'] > 1)}"
    if validation is not None:
        message += f", {validation['samples']:,} for validation"
    ((unit, amount),) = result["budget"].items()
    budget = f"{amount:,g} {unit.removesuffix('s') if amount == 1 else unit} each"
    facts = [
        f"{problem['data']}: {message}" if problem.get("data") else message,
        f"{start['parameters']:,} parameters",
        *([problem["loss"]] if problem.get("loss") else []),
        budget,
        "the same initial weights and samples",
    ]
    warning = ""
    if result["status"] == "interrupted":
        warning = callout("Interrupted", "Not every form has spent its budget.", "warn")
    return (
        f'<header><p class="eyebrow">Forms of gradient descent, measured side by side</p>'
        f"<h1>{escape(names[:1].upper() + names[1:])}</h1>"
        f'<p class="facts">{escape(" · ".join(facts))}</p></header>'
        f"{callout('When to use which', result['when_to_use'], '')}{warning}"
    )


def callout(head: str, text: str, kind: str) -> str:
    return f'<section class="verdict {kind}"><h2>{head}</h2><p>{escape(text)}</p></section>'


def _table(result: dict[str, Any]) -> str:
    heads = "".join(
        f'<th scope="col" class="{charts.form_class(number)}">{escape(form["name"])}</th>'
        for number, form in enumerate(result["forms"])
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(row.label)}<small>{escape(row.meaning)}</small></th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        + "</tr>"
        for row in table.rows(result)
    )
    note = escape(table.seeds_note(result).strip("()"))
    return (
        '<h2>The table</h2><div class="scroll"><table><caption>All of it was measured in these '
        f"runs{f'; {note}' if note else ''}.</caption>"
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
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
        message = "Learning rates tried, and the full loss after a short run with each"
        parts.append(f"<details open><summary>{message}</summary><ul>{items}</ul></details>")
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
the clock. What a compiled engine takes to compile is in them. Times to the target are precise to
the distance between two looks at the loss.</li>
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
