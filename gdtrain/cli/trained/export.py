"""The command ``export``: a trained model in the file format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gdtrain.cli.options import Parser, add_import, add_run, import_modules
from gdtrain.output.terminal import say

if TYPE_CHECKING:
    from gdtrain.config.export import Format

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
    _write(options.run, options.format, options.out, options.weights)
    return 0


def _write(run: Path, kind: Format, out: Path | None, weights: str) -> None:
    """Export and say where to; nothing is written unless the file predicts what the run does."""
    from gdtrain.cli.trained.predict_job import load_finished, refused_out, write_out
    from gdtrain.config.export import SUFFIXES, exported
    from gdtrain.output.export.onnx_file import require_onnx

    if kind == "onnx":
        require_onnx()
    trained = load_finished(run, weights)
    out = out or run / f"model{SUFFIXES[kind]}"
    if out.is_file() and out.suffix != SUFFIXES[kind]:
        there = f"{out} is there already, and is no {SUFFIXES[kind]} file"
        raise refused_out(f"{there}; move it first, or choose another name")
    write_out(out, exported(trained, kind))
    say(f"written: {out}; checked: its predictions for 100 rows match the run's")
