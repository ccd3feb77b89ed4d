"""The command ``predict``: what a trained model says of the rows of a file."""

from __future__ import annotations

from pathlib import Path

from gdtrain.cli.options import Parser, add_import, add_run, import_modules


def predict(given: list[str]) -> int:
    """Predict for the rows of a file, and print them as CSV."""
    parser = Parser(
        "predict",
        "Predict with the model of a finished run: one row for each row of a table "
        "(CSV, Parquet, Feather, JSON lines), in its order. Columns are found by name, and others "
        "are ignored. Predicts class names and the probability of each class (its score under a "
        "loss without probabilities), or numbers in the units of the target.",
        examples=("predict runs/houses/1 new.csv --out prices.csv",),
    )
    add_run(parser)
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="a table with a header; - for standard input"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="where to write (default: -, standard output)"
    )
    parser.add_argument(
        "--columns",
        metavar="NAMES",
        help="columns of the result, such as prediction (default: all)",
    )
    parser.add_argument(
        "--on-bad-row",
        choices=["error", "skip", "empty"],
        default="error",
        help="a row that can't be read: stop with an error, skip it, or leave it empty",
    )
    add_import(parser)
    options = parser.parse_args(given)
    if options.imports:
        import_modules(options.imports)
    from gdtrain.cli.trained.predict_job import predict_rows

    return predict_rows(
        options.run,
        options.file,
        None if options.out == Path("-") else options.out,
        weights=options.weights,
        columns=None if options.columns is None else options.columns.split(","),
        on_bad_row=options.on_bad_row,
    )
