"""A comparison as a table: a row for each measure, a column for each form.

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
    shown = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    return "\n".join([*shown, *([of_seeds] if (of_seeds := seeds_note(result)) else [])])


def seeds_note(result: dict[str, Any]) -> str:
    """What the numbers in brackets are, where there are several seeds."""
    if "statistics" not in result:
        return ""
    seeds = len(result["statistics"]["seeds"])
    return (
        f"(in brackets: 95 % intervals of the means over {seeds} seeds, geometric means of times "
        "and of losses > 0; the other rows are of the first seed)"
    )


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's rows, in the order in which they are read."""
    table = _Rows(result)
    table.add_settings()
    table.add_times()
    table.add_losses()
    table.add_costs()
    if any("theory" in form for form in table.forms):
        table.made += _theory_rows(table.forms)
    return table.made


class _Rows:
    """Rows as they are made, each with a cell for every form."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.forms: list[Form] = result["forms"]
        self.target: dict[str, Any] = result["target"]
        self.measures: dict[str, Any] = result.get("statistics", {}).get("measures", {})
        self.tuned = any("tried" in form for form in self.forms)
        self.made: list[Row] = []

    def add(self, label: str, meaning: str, cell: Callable[[Form], str]) -> None:
        self.made.append(Row(label, meaning, tuple(cell(form) for form in self.forms)))

    def over(
        self, name: str, write: Callable[[float], str], single: Callable[[Form], str]
    ) -> Callable[[Form], str]:
        """The cell of a measure that several seeds have, else that of a single run."""
        if name not in self.measures:
            return single
        return lambda f: _interval_text(self.measures[name]["forms"][f["name"]], write)

    def add_settings(self) -> None:
        """What each form was, and what it was given."""
        if any(form["status"] != "done" for form in self.forms):
            self.add("outcome", "how training ended", lambda f: f["status"])
        self.add("samples per update", "the batch size B", _batch_sizes)
        rate = "the best of those tried, by the final full loss" if self.tuned else "as configured"
        self.add("learning rate", rate, lambda f: f"{f['learning_rate']:g}")
        self.add("engine", "what executed the updates that were timed", lambda f: f["engine"])
        self.add("updates", "steps of the optimizer", lambda f: f"{f['updates']:,}")

    def add_times(self) -> None:
        """How fast it was."""
        loss = self.target["full_loss"]
        if loss is not None:
            given = self.target["given"]
            how = "given" if given else "which every form that learnt has reached"
            how = self.target.get("chosen", how)
            self.add(
                f"time to full loss {loss:.3g}",
                f"seconds of updates until the loss on all training samples was {loss:.4g}, {how}",
                self.over("seconds_to_target", seconds_text, _to_target),
            )
        if loss is not None and self.tuned:
            self.add(
                "the same with tuning",
                "and the seconds of updates in which its learning rate was looked for",
                lambda f: _to_target(f, f["tuning"]["seconds"]) if "tuning" in f else _NOT_REACHED,
            )
        speed = "samples trained on, per second of updates"
        self.add("samples per second", speed, lambda f: count_text(f["samples_per_second"]))

    def add_losses(self) -> None:
        """What it came to."""
        final = "mean loss over all training samples with the final weights"
        last = self.over("full_loss", number_text, lambda f: number_text(f["final"]["full_loss"]))
        self.add("final full loss", final, last)
        for name in metrics(self.forms):
            message = f"{name.removeprefix('val_')} on the validation part with the final weights"
            cell = self.over(name, partial(metric_text, name), partial(_metric_cell, name))
            self.add(f"final {name}", message, cell)

    def add_costs(self) -> None:
        """The memory that it took, and how steadily it descended."""
        self.add(
            "peak memory of a step",
            "batch, activations and gradients at their peak, beside what is held between steps",
            lambda f: bytes_text(f["memory"]["step_peak_bytes"]) if f["memory"] else "not measured",
        )
        self.add(
            "memory between steps",
            "weights, optimizer state, and what corrections such as SAGA keep",
            lambda f: bytes_text(f["memory"]["held_bytes"]) if f["memory"] else "not measured",
        )
        self.add(
            "variance of the loss",
            "of the updates' own losses about their trend, in the last third of the run",
            _variance,
        )
        self.add(
            "updates that raise the loss",
            "share of the updates that were evaluated one by one, which raised the full loss",
            self.over("share_that_raised", lambda share: f"{share:.0%}", _raised_text),
        )


_NOT_REACHED = "not reached"


def _to_target(form: Form, before: float = 0.0) -> str:
    """Seconds of updates to the target, and those spent before."""
    reached = form["to_target"]
    return seconds_text(reached["seconds"] + before) if reached else _NOT_REACHED


def _theory_rows(forms: list[Form]) -> list[Row]:
    """What theory says at the start, and how far the rates that were tried agree."""

    found: list[dict[str, Any]] = [form.get("theory", {}) for form in forms]

    def number(name: str) -> tuple[str, ...]:
        return tuple("none" if own.get(name) is None else f"{own[name]:.3g}" for own in found)

    reasons = dict.fromkeys(own["no_rate"] for own in found if own.get("no_rate"))
    why = f"; none: {'; '.join(reasons)}" if reasons else ""
    return [
        Row(
            "sharpness λ",
            "the largest curvature of the loss at the start",
            number("sharpness"),
        ),
        Row(
            "noise scale",
            "tr Σ / |G|² of the samples' gradients at the start: the critical batch size",
            number("noise_scale"),
        ),
        Row(
            "largest rate in theory",
            f"2/λ of full batches without momentum, and less by the noise of smaller ones{why}",
            number("largest_rate"),
        ),
        Row(
            "rates that were tried",
            "the largest that descended, the next that did not, and how far theory agrees",
            tuple(own.get("agreement") or "-" for own in found),
        ),
    ]


def descended(form: Form) -> bool:
    """Whether the full loss was lower at the end than at the start."""
    losses = form["curve"]["full_loss"]
    first, last = losses[0], losses[-1]
    return last is not None and (first is None or last < first)


# ── numbers in words ────────────────────────────────────────────────────────────────────────


def metrics(forms: Iterable[Form]) -> list[str]:
    names = {name: None for form in forms for name in form["final"] if name != "full_loss"}
    return list(names)


def _batch_sizes(form: Form) -> str:
    sizes = form["batch_sizes"]
    return f"{sizes[0]:,} to {sizes[-1]:,}" if len(sizes) > 1 else f"{sizes[0]:,}"


def _metric_cell(name: str, form: Form) -> str:
    return metric_text(name, form["final"].get(name))


def _raised_text(form: Form) -> str:
    share, judged = form["stability"]["share_that_raised"], form["stability"]["updates_judged"]
    if form["status"] == "diverged":
        return "diverged"
    return "not measured" if share is None else f"{share:.0%} of {judged:,}"


def _interval_text(own: dict[str, Any], write: Callable[[float], str]) -> str:
    """A mean with its interval; a median of those that have none, where some runs failed."""
    kind = "mean" if "mean" in own else "median"
    center = own[kind]
    if kind == "median":
        known = f"{own['known']} of {own['of']} runs"
        return known if center is None else f"median {write(center)}, {known}"
    ends = [] if own["low"] is None else [write(own["low"]), write(own["high"])]
    if set(ends) <= {write(center)}:
        return write(center)
    return f"{write(center)} ({ends[0]} to {ends[1]})"


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
