"""The command ``replay``: look at one update of a run."""

from __future__ import annotations

from pathlib import Path

from gdtrain.cli.options import Parser, add_results, results_alone
from gdtrain.errors import CheckpointError, ConfigError, Fault, OutputError


def replay(given: list[str]) -> int:
    """Look at one update of a run."""
    parser = Parser(
        "replay",
        "Rebuild the state before one update of a run, from the nearest checkpoint, "
        "and show the update's samples, loss and gradient norms. Writes nothing.",
        examples=("replay runs/minibatch/1 --step 7",),
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's directory")
    parser.add_argument(
        "--step", type=int, required=True, metavar="N", help="number of the update, from 1"
    )
    add_results(parser)
    options = parser.parse_args(given)
    if options.step < 1:
        raise ConfigError([Fault("--step", f"must be >= 1, got {options.step}", "command line")])
    try:
        with results_alone(options) as results:
            from gdtrain.cli.runs.replay_job import ReplayJob

            return ReplayJob(options.run, options.step, results).run()
    except (CheckpointError, OutputError) as error:
        raise ConfigError([Fault("RUN", str(error), "command line")]) from error
