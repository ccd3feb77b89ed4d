"""A comparison in words: its table, and the sentence that says when to use which form.

A comparison is what ``compare.json`` holds, in plain values; nothing else is looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

Form = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A measure of every form: what it is called, what it means, and a cell for each."""

    label: str
    meaning: str
    cells: tuple[str, ...]


def json_text(result: dict[str, Any]) -> str:
    """The comparison as JSON; its curves take a line a column."""
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    # A line end inside of brackets is never that of a text, in which JSON writes it as \\n.
    columns = re.compile(r'\[\n[^\[\]{}"]*\]')
    return columns.sub(lambda column: " ".join(column[0].split()), text) + "\n"


def text(result: dict[str, Any]) -> str:
    """The table as plain text: a column for each form."""
    names = [form["name"] for form in result["forms"]]
    lines = [("", *names), *((row.label, *row.cells) for row in rows(result))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's rows, in the order in which they are read."""
    forms, target = result["forms"], result["target"]["full_loss"]
    made: list[Row] = []

    def add(label: str, meaning: str, cell: Callable[[Form], str]) -> None:
        made.append(Row(label, meaning, tuple(cell(form) for form in forms)))

    if any(form["status"] != "done" for form in forms):
        add("outcome", "how training ended", lambda f: f["status"])
    add("samples per update", "the batch size B", _batch_sizes)
    tuned = any("tried" in form for form in forms)
    rate = "the best of those tried, by the final full loss" if tuned else "as configured"
    add("learning rate", rate, lambda f: f"{f['learning_rate']:g}")
    add("engine", "what executed the updates that were timed", lambda f: f["engine"])
    add("updates", "steps of the optimizer", lambda f: f"{f['updates']:,}")
    if target is not None:
        how = "given" if result["target"]["given"] else "which every form that learnt has reached"
        add(
            f"time to full loss {target:.3g}",
            f"seconds of updates until the loss on all training samples was {target:.4g}, {how}",
            lambda f: seconds_text(f["to_target"]["seconds"]) if f["to_target"] else "not reached",
        )
    speed = "samples trained on, per second of updates"
    add("samples per second", speed, lambda f: count_text(f["samples_per_second"]))
    final = "mean loss over all training samples with the final weights"
    add("final full loss", final, lambda f: number_text(f["final"]["full_loss"]))
    for name in metrics(forms):
        message = f"{name.removeprefix('val_')} on the validation part with the final weights"
        add(f"final {name}", message, partial(_metric_cell, name))
    add(
        "peak memory of a step",
        "batch, activations and gradients at their peak, beside what is held between steps",
        lambda f: bytes_text(f["memory"]["step_peak_bytes"]) if f["memory"] else "not measured",
    )
    add(
        "memory between steps",
        "weights, optimizer state, and what corrections such as SAGA keep",
        lambda f: bytes_text(f["memory"]["held_bytes"]) if f["memory"] else "not measured",
    )
    add(
        "variance of the loss",
        "of the updates' own losses about their trend, in the last third of the run",
        _variance,
    )
    add(
        "updates that raise the loss",
        "share of the updates looked at singly after which the full loss was higher than before",
        _raised_text,
    )
    return made


def descended(form: Form) -> bool:
    """Whether the full loss was lower at the end than at the start."""
    losses = form["curve"]["full_loss"]
    first, last = losses[0], losses[-1]
    return last is not None and (first is None or last < first)


# ── when to use which ───────────────────────────────────────────────────────────────────────


def when_to_use(result: dict[str, Any]) -> str:
    """One plain sentence that names the best form for each purpose, with its figure.

    Of forms that ended below their start; what failed is named after it.
    """
    forms = result["forms"]
    sound = [form for form in forms if form["status"] != "diverged" and descended(form)]
    failed = [form["name"] for form in forms if form["status"] == "diverged"]
    stuck = [form["name"] for form in forms if form not in sound and form["name"] not in failed]
    reasons = _reasons(sound, result["target"]["full_loss"]) if len(sound) > 1 else []
    parts = [f"{name} for {_listed(whys)}" for name, whys in _by_form(reasons)]
    text = f"On this problem use {'; '.join(parts)}" if parts else ""
    if len(sound) == 1 and len(forms) > 1:
        text = f"On this problem, with these settings, only {sound[0]['name']} got anywhere"
    if failed:
        verb = "diverged: give them" if len(failed) > 1 else "diverged: give it"
        text += f"{'; ' if text else ''}{_listed(failed)} {verb} a smaller learning rate"
    if stuck:
        verb = "ended above their start" if len(stuck) > 1 else "ended above its start"
        text += f"{'; ' if text else ''}{_listed(stuck)} {verb}"
    return f"{text}." if text else "There is only one form here, and so nothing to choose from."


def _reasons(sound: list[Form], target: float | None) -> list[tuple[str, str]]:
    """(name of the best form, why), for each purpose whose best is not shared by all."""
    found: list[tuple[str, str]] = []

    def best(
        forms: list[Form], key: Callable[[Form], Any], why: Callable[[Form, Form], str]
    ) -> None:
        order = sorted(forms, key=key)
        if len(order) > 1 and key(order[0]) != key(order[-1]):
            found.append((order[0]["name"], why(order[0], order[-1])))

    best(
        [form for form in sound if form["to_target"]],
        lambda f: f["to_target"]["seconds"],
        lambda a, b: (
            f"speed (a full loss of {target:.3g} after {seconds_text(a['to_target']['seconds'])}, "
            f"{b['name']} {seconds_text(b['to_target']['seconds'])})"
        ),
    )
    best(
        sound,
        lambda f: f["final"]["full_loss"],
        lambda a, b: (
            f"the lowest final loss ({number_text(a['final']['full_loss'])}, "
            f"{b['name']} {number_text(b['final']['full_loss'])})"
        ),
    )
    best(
        [form for form in sound if form["memory"]],
        lambda f: f["memory"]["step_peak_bytes"],
        lambda a, b: (
            f"the least memory ({bytes_text(a['memory']['step_peak_bytes'])} a step, "
            f"{b['name']} {bytes_text(b['memory']['step_peak_bytes'])})"
        ),
    )
    best(
        [form for form in sound if form["stability"]["share_that_raised"] is not None],
        lambda f: f["stability"]["share_that_raised"],
        lambda a, b: (
            f"the steadiest descent ({_raised(a)} of its updates raised the full loss, "
            f"{_raised(b)} of those of {b['name']})"
        ),
    )
    return found


def _by_form(reasons: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """The reasons of each form that has some, in the order of the reasons."""
    names = dict.fromkeys(name for name, _ in reasons)
    return [(name, [why for other, why in reasons if other == name]) for name in names]


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# ── numbers in words ────────────────────────────────────────────────────────────────────────


def metrics(forms: Iterable[Form]) -> list[str]:
    names = {name: None for form in forms for name in form["final"] if name != "full_loss"}
    return list(names)


def _batch_sizes(form: Form) -> str:
    sizes = form["batch_sizes"]
    return f"{sizes[0]:,} to {sizes[-1]:,}" if len(sizes) > 1 else f"{sizes[0]:,}"


def _metric_cell(name: str, form: Form) -> str:
    return metric_text(name, form["final"].get(name))


def _raised(form: Form) -> str:
    return f"{form['stability']['share_that_raised']:.0%}"


def _raised_text(form: Form) -> str:
    judged = form["stability"]["updates_judged"]
    return f"{_raised(form)} of {judged:,}" if judged else "not measured"


def _variance(form: Form) -> str:
    variance = form["stability"]["loss_variance"]
    unmeasured = variance is None and form["status"] != "diverged"  # of fewer than two updates
    return "not measured" if unmeasured else number_text(variance)


def number_text(value: float | None) -> str:
    """A loss in four digits."""
    return "not finite" if value is None else f"{value:.4g}"


def metric_text(name: str, value: float | None) -> str:
    """A validation metric: accuracy in percent."""
    if value is None:
        return "-"
    return f"{value:.2%}" if name.endswith("accuracy") else number_text(value)


def count_text(value: float | None) -> str:
    """A rate, in three digits."""
    return (
        "-"
        if value is None
        else f"{float(f'{value:.3g}'):,.0f}"
        if value >= 100
        else f"{value:.3g}"
    )


def seconds_text(value: float) -> str:
    """A time with its unit."""
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


def bytes_text(value: float) -> str:
    """Bytes in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"
