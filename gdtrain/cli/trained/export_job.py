"""The export command: load a run's model, and leave it in a file of another program."""

from __future__ import annotations

from pathlib import Path

from gdtrain.cli.trained.predict_job import load_finished, refused_out, write_out
from gdtrain.config.export import SUFFIXES, Format, exported
from gdtrain.output.export.onnx_file import require_onnx
from gdtrain.output.terminal import say


def export_run(run: Path, kind: Format, out: Path | None, *, averaged: bool = False) -> int:
    """Export and say where to; nothing is written unless the file predicts what the run does."""
    if kind == "onnx":
        require_onnx()
    trained = load_finished(run, averaged=averaged)
    out = out or run / f"model{SUFFIXES[kind]}"
    if out.is_file() and out.suffix != SUFFIXES[kind]:
        there = f"{out} is there already, and is no {SUFFIXES[kind]} file"
        raise refused_out(f"{there}; move it first, or choose another name")
    write_out(out, exported(trained, kind))
    say(f"written: {out}; checked: its predictions for 100 rows match the run's")
    return 0
