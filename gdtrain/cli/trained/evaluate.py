"""The command ``evaluate``: loss and metrics of a trained model on labelled data."""

from __future__ import annotations

import json
import math
from pathlib import Path

from gdtrain.cli.options import Parser, add_results, add_run, results_alone


def evaluate(given: list[str]) -> int:
    """Evaluate the model of a run on the rows of a file."""
    parser = Parser(
        "evaluate",
        "Print loss and metrics of a finished run's model on labelled data, in the "
        "same units as its val_loss.",
        examples=("evaluate runs/houses/1 houses.csv",),
        notes="Exit codes: 0 done, 2 bad input, 3 the loss is not finite.",
    )
    add_run(parser)
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a table with the columns of the training data; .npz, .pt or .safetensors with arrays "
        "x and y (or named as in training); or a folder that convert wrote",
    )
    add_results(parser)
    options = parser.parse_args(given)
    with results_alone(options) as results:
        from gdtrain.cli.runs.train_job import EXIT_NON_FINITE
        from gdtrain.cli.trained.predict_job import load_finished
        from gdtrain.output.console import readings
        from gdtrain.output.run_directory import finite

        found = load_finished(options.run, options.weights).evaluate(options.file)
        if results is None:
            print("\n".join(readings(found)))
        else:
            print(json.dumps(finite(found)), file=results)
        return 0 if math.isfinite(found["loss"]) else EXIT_NON_FINITE
