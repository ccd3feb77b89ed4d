"""Measure what is taught about batch, stochastic and mini-batch descent, on four problems.

    python scripts/measure_three_forms.py [--seeds 10] [--epochs 20] [--looks 20]

Digits, a generated regression, two moons, and a table with missing cells: each form with the best
of four learning rates, under the same number of epochs, with as many seeds. Writes
scripts/results/three_forms.json and a picture of the means with their 95 % intervals, and prints
what the teaching note says beside what these seeds support.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from gdtrain import Trainer, compare
from gdtrain.analysis.statistics import intervals
from gdtrain.config.build import BuiltRun, build
from gdtrain.config.load import parse_config

RESULTS = Path(__file__).resolve().parent / "results"
FORMS: dict[str, dict[str, Any]] = {
    "batch": {"name": "batch"},
    "stochastic": {"name": "sample"},
    "mini-batch": {"name": "minibatch", "batch_size": 32},
}
RATES = (0.003, 0.03, 0.3, 1.0)
# Colours of Okabe and Ito (2008), which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73")
MLP = {"name": "mlp", "hidden": [32]}
PROBLEMS: dict[str, dict[str, Any]] = {
    "digits": {"data": {"source": "digits"}, "model": MLP, "loss": "cross_entropy"},
    "regression": {
        "data": {"source": "linear_regression", "num_samples": 500, "noise": 0.5},
        "model": "linear",
        "loss": "mse",
    },
    "two moons": {
        "data": {"source": "two_moons", "num_samples": 500, "noise": 0.2},
        "model": MLP,
        "loss": "cross_entropy",
    },
    "missing cells": {
        "data": {"source": "csv", "target": "bought", "missing": {"age": "median", "pay": "mean"}},
        "model": MLP,
        "loss": "cross_entropy",
    },
}
# Property, what is measured of a run (less is better), and what the teaching note says.
PROPERTIES = (
    ("speed", "seconds to the target", "batch slow, stochastic fast, mini-batch fast"),
    ("accuracy", "final loss on the validation part", "batch best, stochastic noisy"),
    ("memory", "bytes of an update at its peak", "batch high, stochastic least"),
    ("stability", "share of updates that raise the loss", "batch smooth, stochastic not"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what is taught about the three forms.")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--looks", type=int, default=20)
    options = parser.parse_args()
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, problem in PROBLEMS.items():
            if problem["data"]["source"] == "csv":
                path = write_table(Path(folder) / "customers.csv")
                problem = problem | {"data": problem["data"] | {"path": str(path)}}
            measured[name] = measure(problem, options)
            print(f"{name}: {measured[name]['sentence']}")
    text = json.dumps({"budget": vars(options), "problems": measured}, indent=1)
    (RESULTS / "three_forms.json").write_text(text + "\n", "utf-8")
    draw(measured, RESULTS / "three_forms.png")
    print(table(measured))


def write_table(path: Path) -> Path:
    """400 customers, of whom one in ten has no age and one in ten no pay."""
    draw = np.random.default_rng(0)
    age, pay = draw.uniform(18, 80, 400), draw.lognormal(8, 0.5, 400)
    score = (age - 45) / 15 + np.log(pay) - 8 + draw.normal(0, 0.5, 400)
    lines = ["age,pay,bought"]
    for a, p, s in zip(age, pay, score, strict=True):
        cells = ["" if draw.random() < 0.1 else f"{value:.0f}" for value in (a, p)]
        lines.append(",".join([*cells, "yes" if s > 0 else "no"]))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def measure(problem: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Of each form and property the runs' values and their mean with its interval."""

    def built(form: str, lr: float, seed: int) -> BuiltRun:
        data = problem["data"] | {"validation_fraction": 0.2, "standardize": True}
        own = {"data": data, "loader": FORMS[form], "optimizer": {"name": "sgd", "lr": lr}}
        return build(parse_config(problem | own | {"epochs": options.epochs, "seed": seed}))

    def trainer(form: str, lr: float = RATES[0], seed: int = 0, **_: Any) -> Trainer:
        made = built(form, lr, seed).trainer
        made.callbacks = []  # looks evaluate the validation part too
        return made

    found = compare(
        {form: partial(trainer, form) for form in FORMS},
        epochs=options.epochs,
        looks=options.looks,
        lr_grid=RATES,
        seeds=options.seeds,
        theory=False,
        validation=lambda seed: built("batch", RATES[0], seed).validation,  # type: ignore[return-value, arg-type]
    ).result
    forms = {form["name"]: _properties(form) for form in found["forms"]}
    return {"forms": forms, "sentence": found["when_to_use"]}


def _properties(form: dict[str, Any]) -> dict[str, Any]:
    runs = form["runs"]
    values: dict[str, list[float | None]] = {
        "speed": [r["to_target"]["seconds"] if r["to_target"] else None for r in runs],
        "accuracy": [r["final"].get("val_loss") for r in runs],
        "memory": [r["memory"]["step_peak_bytes"] for r in runs],
        "stability": [r["stability"]["share_that_raised"] for r in runs],
    }
    return {"learning_rate": form["learning_rate"]} | {k: _summary(v, k) for k, v in values.items()}


def _summary(values: list[float | None], name: str) -> dict[str, Any]:
    """The mean of the runs that have a value; a geometric one, but of shares."""
    known = [value for value in values if value is not None]
    if not known:
        return {"values": values, "mean": None, "low": None, "high": None}
    mean = intervals.mean(known, log=name != "stability" and min(known) > 0)
    low, high = (mean.center if end is None else end for end in (mean.low, mean.high))
    return {"values": values, "mean": mean.center, "low": low, "high": high}


def table(measured: dict[str, Any]) -> str:
    """What is taught beside what was measured, in Markdown."""
    lines = ["| | taught | " + " | ".join(measured) + " |", "| --- " * (2 + len(measured)) + "|"]
    for name, _, taught in PROPERTIES:
        cells = [_order(problem["forms"], name) for problem in measured.values()]
        lines.append(f"| {name} | {taught} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(forms: dict[str, Any], name: str) -> str:
    """The forms, the best first; ≈ where the intervals of two overlap."""
    means = {form: own[name]["mean"] for form, own in forms.items()}
    known = sorted((mean, form) for form, mean in means.items() if mean is not None)
    words: list[str] = []
    for number, (mean, form) in enumerate(known):
        before = forms[known[number - 1][1]][name] if number else None
        apart = before is not None and before["high"] < forms[form][name]["low"]
        words += [] if before is None else ["<" if apart else "≈"]
        words.append(f"{form} {mean:.2g}")
    missing = [form for form, mean in means.items() if mean is None]
    return " ".join(words) + (f"; {', '.join(missing)}: none" if missing else "")


def draw(measured: dict[str, Any], output: Path) -> None:
    """A row for each property, a column for each problem; points with their intervals."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(PROPERTIES), len(measured), figsize=(11, 9), layout="constrained", squeeze=False
    )
    for row, (name, what, _) in enumerate(PROPERTIES):
        for column, (problem, found) in enumerate(measured.items()):
            axis = axes[row][column]
            means = [own[name] for own in found["forms"].values()]
            for place, (own, colour) in enumerate(zip(means, COLOURS, strict=True)):
                if own["mean"] is None:
                    axis.text(place, 0.5, "none", transform=axis.get_xaxis_transform(), ha="center")
                    continue
                ends = [[own["mean"] - own["low"]], [own["high"] - own["mean"]]]
                axis.errorbar([place], [own["mean"]], yerr=ends, fmt="o", color=colour, capsize=5)
            if name != "stability" and any(own["mean"] for own in means):
                axis.set_yscale("log")
            axis.set_xlim(-0.5, len(FORMS) - 0.5)
            axis.set_xticks(range(len(FORMS)), list(FORMS), fontsize=8)
            axis.grid(axis="y", alpha=0.3)
            if row == 0:
                axis.set_title(problem)
            if column == 0:
                axis.set_ylabel(f"{name}\n{what}", fontsize=8)
    figure.suptitle("Less is better throughout; means over seeds with 95 % intervals")
    figure.savefig(output, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
