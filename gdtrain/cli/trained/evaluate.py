"""The command ``evaluate``: loss and metrics of a trained model on labelled data."""

from __future__ import annotations

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
        from gdtrain.cli.trained.evaluate_job import evaluate_file

        return evaluate_file(options.run, options.file, results, averaged=options.averaged)
