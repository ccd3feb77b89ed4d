"""The evaluate command: load a run's model, and say how well it does on labelled data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TextIO

from gdtrain.cli.runs.train_job import EXIT_NON_FINITE
from gdtrain.cli.trained.predict_job import load_finished
from gdtrain.output.console import readings
from gdtrain.output.metrics_file import finite


def evaluate_file(run: Path, file: Path, results: TextIO | None, *, averaged: bool = False) -> int:
    """Evaluate and print; results: where that goes as JSON, if that is asked for."""
    found = load_finished(run, averaged=averaged).evaluate(file)
    if results is None:
        print("\n".join(readings(found)))
    else:
        print(json.dumps(finite(found)), file=results)
    return 0 if math.isfinite(found["loss"]) else EXIT_NON_FINITE
