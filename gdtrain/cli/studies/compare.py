"""The command ``compare``: several forms on one problem, measured, with a report to look at."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from gdtrain.cli.options import (
    Parser,
    add_results,
    refuse,
    results_alone,
    split_settings,
)
from gdtrain.training.safety.signals import current_desk

UNITS = ("epochs", "samples", "updates", "seconds")
# Half decades, from what suits single samples under momentum to what suits all of them together.
GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

_NOTES = """\
All configurations must have the same data, model, loss, seed, device and precision. Early \
stopping, monitors, checkpoints and averaging are ignored.
Exit codes: 0 done (a form that diverged is a result), 2 bad input, 129/130/131/143 ended by a \
signal (the results so far are written), 1 any other error.
"""


def compare(given: list[str]) -> int:
    """Train several forms from the same start under the same budget, and compare them."""
    options = _parser().parse_intermixed_args(given)
    refuse(_faults(options))
    with results_alone(options) as results:
        from gdtrain.config.comparison import load_forms

        paths, overrides = split_settings(options.configs)
        forms = load_forms(paths, overrides, _names(options.loaders))
        from gdtrain.cli.studies.compare_job import CompareJob

        job = CompareJob(
            forms=forms,
            budget={unit: getattr(options, unit) for unit in UNITS},
            target_loss=options.target_loss,
            lr_grid=options.lr_grid or (GRID if options.tune else ()),
            looks=options.looks,
            theory=not options.no_theory,
            seeds=options.seeds,
            output_dir=options.output_dir,
            signals=current_desk(),
            quiet=options.quiet,
            results=results,
        )
        return job.run()


def _faults(options: argparse.Namespace) -> list[tuple[str, str]]:
    """What is wrong with the options themselves: (option, what)."""
    found = []
    paths, _ = split_settings(options.configs)
    if not paths:
        found.append(("config", "missing; give at least one configuration file"))
    if options.loaders is not None and len(paths) > 1:
        found.append(("loaders", "goes with one configuration; give one, or leave it out"))
    if options.loaders is None and len(paths) == 1:
        found.append(("loaders", "missing; name what to compare, such as batch,sample,minibatch"))
    if options.loaders is not None and not all(_names(options.loaders) or [""]):
        found.append(("loaders", f"holds an empty name: {options.loaders!r}"))
    chosen = [unit for unit in UNITS if getattr(options, unit) is not None]
    if len(chosen) > 1:
        found.append((chosen[1], f"can't be given together with --{chosen[0]}; remove one"))
    for unit in chosen:
        amount = getattr(options, unit)
        if not 0 < amount < math.inf:
            found.append((unit, f"must be > 0, got {amount:g}"))
    if options.target_loss is not None and not math.isfinite(options.target_loss):
        found.append(("target-loss", f"must be a finite number, got {options.target_loss}"))
    if options.tune and options.lr_grid:
        found.append(("tune", "has no effect beside --lr-grid; remove one of the two"))
    for lr in options.lr_grid or ():
        if not 0 < lr < math.inf:
            found.append(("lr-grid", f"must hold numbers > 0, got {lr:g}"))
    if options.seeds is not None and options.seeds < 1:
        found.append(("seeds", f"must be >= 1, got {options.seeds}"))
    if options.looks < 2:
        found.append(("looks", f"must be >= 2, got {options.looks}"))
    return found


def _names(loaders: str | None) -> list[str]:
    return [] if loaders is None else [name.strip() for name in loaders.split(",")]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(float(word) for word in text.split(",")))


_numbers.__name__ = "list of numbers"  # what argparse calls it when it can't be read


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "compare",
        "Train several forms of gradient descent from the same weights on the same samples; "
        "measure speed, loss, memory, stability; write compare.json and report.html.",
        examples=(
            "compare minibatch.yaml --loaders batch,sample --updates 30",
            "compare batch.yaml --loaders batch,sample --tune --updates 9",
        ),
        notes=_NOTES,
    )
    parser.usage = "python -m gdtrain compare CONFIG [CONFIG ...] [options]"
    parser.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG",
        help="configurations (YAML), and settings for all of them: section.key=value",
    )
    parser.add_argument(
        "--loaders",
        metavar="NAMES",
        help="the forms to compare, with one configuration: batch,sample,minibatch:64",
    )
    _add_budget(parser)
    parser.add_argument(
        "--target-loss",
        type=float,
        metavar="LOSS",
        help="time to this full loss (default: the largest final one of those that learnt)",
    )
    _add_rates(parser)
    parser.add_argument(
        "--looks",
        type=int,
        default=100,
        metavar="N",
        help="evaluate the full loss around N updates (default: %(default)s)",
    )
    parser.add_argument(
        "--no-theory", action="store_true", help="don't compute sharpness and noise at the start"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="K",
        help="seeds per form; from 5 on, the best may be recommended",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="where results go (default: runs/compare/<n>); new or empty",
    )
    add_results(parser, "compare.json", quiet=True)
    return parser


def _add_budget(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_argument_group("budget of each form (default: the configuration's epochs)")
    budget.add_argument("--epochs", type=int, metavar="N", help="passes over the data")
    budget.add_argument("--samples", type=int, metavar="N", help="samples trained on")
    budget.add_argument("--updates", type=int, metavar="N", help="steps of the optimizer")
    budget.add_argument(
        "--seconds", type=float, metavar="S", help="time spent on updates, without evaluation"
    )


def _add_rates(parser: argparse.ArgumentParser) -> None:
    """The options by which each form may get a learning rate of its own."""
    parser.add_argument(
        "--tune",
        action="store_true",
        help="find each form's best learning rate: 0.001, 0.003 ... 1",
    )
    parser.add_argument(
        "--lr-grid", type=_numbers, metavar="RATES", help="the same among these rates: 0.01,0.1"
    )
