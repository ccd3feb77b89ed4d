"""The command ``lr-range``: find out which learning rates a configuration can take."""

from __future__ import annotations

import argparse
from pathlib import Path

from gdtrain.cli.options import (
    Parser,
    add_config,
    add_results,
    faults_of_options,
    name_of,
    results_alone,
)


def lr_range(given: list[str]) -> int:
    """Raise the learning rate from update to update, and watch the full loss."""
    options = _parser().parse_intermixed_args(given)
    with results_alone(options) as results:
        from gdtrain.config.load import load_config

        config, document = load_config(options.config, options.overrides)
        from gdtrain.cli.studies.lr_range_job import LrRangeJob

        with faults_of_options():
            return LrRangeJob(
                config,
                document,
                name_of(options.config),
                start=getattr(options, "from"),
                stop=options.to,
                updates=options.updates,
                every=options.every,
                limit=not options.no_limit,
                epochs=options.epochs,
                out=options.out,
                results=results,
            ).run()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "lr-range",
        "The learning-rate range test: make updates with a learning rate that rises "
        "from one to the next, and evaluate the loss over the whole training part, until it "
        "diverges. Prints a suggestion and, where it can be computed, the learning rate at which "
        "full-batch descent becomes unstable; draws the curve. Trains nothing.",
        examples=("lr-range --config minibatch.yaml --from 0.001 --updates 20",),
    )
    add_config(parser)
    parser.add_argument(
        "--from",
        type=float,
        default=1e-6,
        metavar="LR",
        help="rate of the first update (default: 1e-6)",
    )
    parser.add_argument(
        "--to", type=float, default=10.0, metavar="LR", help="rate of the last update (default: 10)"
    )
    parser.add_argument(
        "--updates",
        type=int,
        default=100,
        metavar="N",
        help="number of updates (default: %(default)s)",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="K",
        help="evaluate the full loss after every K-th update (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="also try rates out, for a training of N epochs"
    )
    parser.add_argument(
        "--no-limit",
        action="store_true",
        help="don't compute the theoretical limit; then only --epochs gives a suggestion",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="the picture, .png or .svg (default: lr-range-<config name>.png here, if matplotlib "
        "is installed); replaces only pictures that gdtrain has drawn",
    )
    add_results(parser)
    return parser
