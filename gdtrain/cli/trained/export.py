"""The command ``export``: a trained model in the file format of another program."""

from __future__ import annotations

from pathlib import Path

from gdtrain.cli.options import Parser, add_import, add_run, import_modules

FORMATS = ("torch_export", "onnx")


def export(given: list[str]) -> int:
    """Write the model of a run, with what was done to its data, into one file."""
    parser = Parser(
        "export",
        "Write the model and the preprocessing of a finished run into one file, which takes raw "
        "rows: an exported PyTorch program (.pt2), or ONNX. The file is written only if it "
        "predicts the same as the run for a hundred rows.",
        examples=("export runs/houses/1 --format torch_export",),
        notes="ONNX needs more packages: pip install 'gdtrain[onnx]'.",
    )
    add_run(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="the kind of file")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="where to write (default: model.pt2 or model.onnx in RUN)",
    )
    add_import(parser)
    options = parser.parse_args(given)
    if options.imports:
        import_modules(options.imports)
    from gdtrain.cli.trained.export_job import export_run

    return export_run(options.run, options.format, options.out, averaged=options.averaged)
