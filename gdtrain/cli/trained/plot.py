"""The command ``plot``: curves of one or several runs."""

from __future__ import annotations

import argparse

from gdtrain.cli.options import Parser, add_runs, faults_of_options

AXES = ("step", "epoch", "samples", "seconds")


def plot(given: list[str]) -> int:
    """Draw loss and learning rate of runs."""
    options = _parser().parse_args(given)
    from gdtrain.cli.trained.plot_job import PlotJob

    with faults_of_options():
        return PlotJob(
            options.runs,
            out=options.out,
            axis=options.x,
            metrics=options.metric,
            smooth=options.smooth,
        ).run()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "plot",
        "Draw loss and learning rate of one or several runs, finished or not, from "
        "their metrics.jsonl.",
        examples=(
            "plot runs/minibatch/1",
            "plot runs/mine runs/minibatch/1 --metric val_loss",
        ),
        notes="Needs matplotlib: pip install 'gdtrain[plots]'.",
    )
    add_runs(
        parser,
        "in the directory of the first run, loss.png, losses.png of several runs, or <metric>.png",
    )
    parser.add_argument(
        "--x",
        choices=AXES,
        help="the horizontal axis (default: epoch; step up to one epoch)",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="draw this recorded number instead, such as val_accuracy; repeatable",
    )
    parser.add_argument(
        "--smooth",
        type=int,
        metavar="N",
        help="smooth losses of single batches over N records (default: a thirtieth of them; "
        "1: not at all)",
    )
    return parser
