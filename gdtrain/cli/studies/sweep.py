"""The command ``sweep``: many runs over a grid of settings, and what they say together."""

from __future__ import annotations

import argparse
from pathlib import Path

from gdtrain.cli.options import (
    Parser,
    add_results,
    refuse,
    results_alone,
    split_settings,
)

_EXAMPLES = (
    "sweep batch.yaml optimizer.lr=0.1,1 seed=0..1 epochs=1",
    "sweep minibatch.yaml loader=batch,sample seed=0,1 epochs=1",
)
_NOTES = """\
Values are separated by commas; 0..9 are ten whole numbers. A file can have them in a section, \
sweep: {optimizer.lr: [0.01, 0.1], seed: 0..9}. Finished runs are not repeated by --resume, and \
the grid may have grown.

Exit codes: 0 done (runs that diverged or failed are rows), 1 if every run failed, 2 bad input, \
129/130/131/143 ended by a signal (the results so far are written).
"""


def sweep(given: list[str]) -> int:
    """Train once at each point of a grid, several at a time, and compare the results."""
    options = _parser().parse_intermixed_args(given)
    refuse(_faults(options))
    with results_alone(options) as results:
        from gdtrain.config.grid import load_sweep

        paths, settings = split_settings(options.configs)
        loaded = load_sweep(paths, settings)
        from gdtrain.cli.studies.sweep_job import SweepJob

        return SweepJob(
            loaded,
            imports=options.imports,
            jobs=options.jobs,
            cluster=options.cluster,
            random=options.random,
            by=options.by,
            mode=options.mode,
            output_dir=options.output_dir,
            resume=options.resume,
            quiet=options.quiet,
            results=results,
        ).run()


def _faults(options: argparse.Namespace) -> list[tuple[str, str]]:
    """What is wrong with the options themselves: (option, what)."""
    found = []
    if not split_settings(options.configs)[0]:
        found.append(("config", "missing; give at least one configuration file"))
    if options.jobs < 1:
        found.append(("jobs", f"must be >= 1, got {options.jobs}"))
    if options.random is not None and options.random < 1:
        found.append(("random", f"must be >= 1, got {options.random}"))
    if options.cluster is not None and options.jobs > 1:
        found.append(("jobs", "has no effect beside --cluster, whose workers are counted there"))
    if options.resume and options.output_dir is None:
        found.append(("resume", "goes with --output-dir, which names the sweep to go on with"))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "sweep",
        "Train once at each point of a grid of settings, several runs at a time, and compare the "
        "settings over their seeds. Writes a table (rows.csv), a page of pictures (report.html) "
        "and a directory for each run.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    parser.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG",
        help="configurations (YAML), which are merged, and settings with their values: "
        "section.key=a,b,c",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--cluster", metavar="ADDRESS", help="address of a Dask scheduler, such as tcp://host:8786"
    )
    parser.add_argument(
        "--random",
        type=int,
        metavar="N",
        help="take N random combinations, each with every seed",
    )
    parser.add_argument(
        "--by",
        metavar="NUMBER",
        help="what to compare settings by, such as val_accuracy (default: val_loss, else "
        "train_loss)",
    )
    parser.add_argument(
        "--mode",
        choices=["min", "max"],
        help="whether lower or higher is better (default: by its name, max for accuracy, r2, f1 "
        "and their like)",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="where results go (default: runs/sweep/<n>); new or empty, except with --resume",
    )
    parser.add_argument("--resume", action="store_true", help="continue the sweep in --output-dir")
    add_results(parser, "rows and what they say", quiet=True)
    return parser
