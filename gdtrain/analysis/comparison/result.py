"""What a comparison has measured: the result as plain values, written as JSON and as a report."""

from __future__ import annotations

import platform
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gdtrain.analysis.comparison.recorder import Budget, Recorder
from gdtrain.analysis.comparison.target import reached, target_of
from gdtrain.analysis.comparison.verdicts import statistics_of
from gdtrain.analysis.theory import agreement, tried_rates
from gdtrain.checkpoint import durable_files as disk
from gdtrain.output.report import page as comparison_report
from gdtrain.output.report import table as comparison_table
from gdtrain.output.report.table import descended
from gdtrain.output.report.when_to_use import when_to_use
from gdtrain.training.trainer import Trainer
from gdtrain.version import __version__
from gdtrain.wording import counted, html_table

RESULT = "compare.json"
REPORT = "report.html"


@dataclass
class Comparison:
    """What :func:`compare` has measured; ``str()`` is the table and the sentence.

    result: all of it as plain values, as ``compare.json`` holds it; numbers that are not finite
    are None. Of each form in ``forms``: its settings, what it used, the time to the target, the
    final losses and metrics, memory, stability, and the curve in columns. With several seeds these
    are of the first one, ``runs`` has a row for each, and ``statistics`` what they say together.

    Measured for each form:

    * samples per second, and seconds, updates and gradient evaluations to the target: up to the
      first evaluation with a full loss at or below it, so to the precision of their spacing;
    * the final full loss (:meth:`Trainer.evaluate` on the training part) and validation;
    * the peak memory of a step, see :func:`gdtrain.analysis.comparison.peak_memory.step_memory`;
    * stability: the variance of the updates' own losses about their trend in the last third, see
      :meth:`gdtrain.analysis.comparison.recorder.Recorder.loss_variance`, and the share of the
      updates looked at that raised the full loss by more than rounding.
    """

    result: dict[str, Any]

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped before every form had spent its budget."""
        return bool(self.result["status"] == "interrupted")

    def __repr__(self) -> str:
        names = ", ".join(form["name"] for form in self.result["forms"])
        message = textwrap.shorten(names, 200, placeholder=" …")
        return f"Comparison({self.result['status']}: {message}; print it for the table)"

    def _repr_html_(self) -> str:
        names = [form["name"] for form in self.result["forms"]]
        rows = [(row.label, *row.cells) for row in comparison_table.rows(self.result)]
        return html_table(["", *names], rows, self.result["when_to_use"])

    def __str__(self) -> str:
        return f"{comparison_table.text(self.result)}\n\n{self.result['when_to_use']}"

    def html(self) -> str:
        """The report: one page that needs nothing besides itself."""
        return comparison_report.page(self.result)

    def save(self, directory: str | Path) -> None:
        """Write ``compare.json`` and ``report.html`` into a directory that is there.

        Raises StorageError if they can't be written.
        """
        texts = {RESULT: comparison_table.json_text(self.result), REPORT: self.html()}
        for name, text in texts.items():
            with disk.needed(name):
                disk.replace_file(Path(directory) / name, text.encode())


def measured_run(
    name: str, trainer: Trainer, recorder: Recorder, lr: float, status: str, reason: str | None
) -> dict[str, Any]:
    assert trainer.loader is not None
    progress, last = trainer.progress, {k: v[-1] for k, v in recorder.curve().items()}
    judged = recorder.judged
    return {
        "name": name,
        "batch_sizes": _batch_sizes(trainer),
        "optimizer": type(trainer.optimizer).__name__,
        "learning_rate": lr,
        "engine": trainer.engine.name,
        "device": str(trainer.device),
        "status": status,
        "reason": reason,
        "updates": progress.step,
        "samples": progress.samples,
        "gradient_evaluations": last["gradient_evaluations"],
        "seconds": progress.seconds,
        "samples_per_second": progress.samples / progress.seconds if progress.seconds else None,
        "to_target": None,
        "final": {k: v for k, v in last.items() if k == "full_loss" or k.startswith("val_")},
        "memory": None,
        "stability": {
            "loss_variance": recorder.loss_variance(),
            "updates_judged": judged,
            "updates_that_raised": recorder.raised,
            "share_that_raised": (
                recorder.raised / judged if judged and status != "diverged" else None
            ),
        },
        "curve": recorder.curve(),
    }


def _batch_sizes(trainer: Trainer) -> list[int]:
    """Samples per update, of each phase that was reached."""
    assert trainer.loader is not None
    epochs = range(trainer.progress.epoch + (trainer.progress.step_in_epoch > 0) or 1)
    turns = trainer.loader.turns(len(epochs))
    return list(dict.fromkeys(trainer.loader.outline(epoch).batch_size for epoch in turns))


def comparison_of(
    budget: Budget,
    target_loss: float | None,
    start: dict[str, Any],
    measured: dict[str, dict[int | None, dict[str, Any]]],
    *,
    interrupted: bool,
) -> Comparison:
    """Everything together, with the times to the target, which all runs may decide.

    measured: the runs of each form by their seeds; by None where there is just one of each.
    """
    runs = [run for of_form in measured.values() for run in of_form.values()]
    target = target_of(runs, target_loss)
    for run in runs:
        run["to_target"] = reached(run, target["full_loss"])
    for of_form in measured.values():
        _compare_with_theory(list(of_form.values()))
    forms = [_form(of_form) for of_form in measured.values()]
    result: dict[str, Any] = {
        "kind": "gdtrain comparison",
        "status": "interrupted" if interrupted else "done",
        "budget": {budget.unit: budget.amount},
        "target": target,
        "start": start,
        "forms": forms,
        "versions": {
            "gdtrain": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": {"architecture": platform.machine(), "threads": torch.get_num_threads()},
    }
    statistics = statistics_of(forms) if forms and "runs" in forms[0] else None
    if statistics is not None:
        result["statistics"] = statistics
    result["when_to_use"] = when_to_use(result)
    return Comparison(result)


def _compare_with_theory(runs: list[dict[str, Any]]) -> None:
    """Put beside the theory of a form, which its first run has, the rates that were tried."""
    first = runs[0]
    found = first.get("theory")
    if found is None:
        return
    start = first["curve"]["full_loss"][0]
    tried = [(run["learning_rate"], _fell(run, start)) for run in first.get("tried", [])]
    tried += [
        (run["learning_rate"], run["status"] != "diverged" and descended(run)) for run in runs
    ]
    found["descended"], found["failed"] = tried_rates(tried)
    if found["largest_rate"] is not None:
        rates = found["largest_rate"], found["descended"], found["failed"]
        found["agreement"] = agreement(*rates)


def _fell(tried: dict[str, Any], start: float | None) -> bool:
    """Whether a short run ended below the loss at the start."""
    loss = tried["full_loss"]
    return tried["status"] == "done" and loss is not None and (start is None or loss < start)


def _form(runs: dict[int | None, dict[str, Any]]) -> dict[str, Any]:
    """A form by its first run, with a row for each seed if there are several."""
    first, *_ = runs.values()
    if None in runs:
        return first
    left_out = ("name", "curve", "tried", "tuning", "theory")
    rows = [
        {"seed": seed, **{k: v for k, v in run.items() if k not in left_out}}
        for seed, run in runs.items()
    ]
    return {**first, "runs": rows}


def line_of(form: dict[str, Any]) -> str:
    loss = form["final"]["full_loss"]
    shown = "not finite" if loss is None else f"{loss:.4g}"
    ended = f" ({form['status']})" if form["status"] != "done" else ""
    return (
        f"{form['name']}: learning rate {form['learning_rate']:g}, "
        f"{counted(form['updates'], 'update')} in {form['seconds']:.2f} s, full loss {shown}{ended}"
    )
