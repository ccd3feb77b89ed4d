"""Learning from a file as it is read, one sample per update: gdtrain, Vowpal Wabbit and River.

Each reads the same numbers, of four decimals, in the format that is its own: gdtrain and River CSV,
Vowpal Wabbit its own text. Parsing is timed with the rest.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from contestants.workload import LEARNING_RATE, Run, Workload

CONFIG = """\
data: {{source: stream, format: csv, path: "{path}", target: y}}
model: linear
loss: mse
loader: sample
optimizer: {{lr: {lr}}}
device: cpu
engine: {engine}
epochs: 1
"""


def gdtrain_stream(workload: Workload, _: str, *, engine: str) -> Run:
    """``data: {source: stream}``, as the command line builds it; an epoch is the whole file."""
    from gdtrain.config.build import build
    from gdtrain.config.load import load_config

    csv = _csv(workload)
    config = csv.with_suffix(".yaml")
    config.write_text(CONFIG.format(path=csv, lr=LEARNING_RATE, engine=engine))
    trainer = build(load_config(config)[0]).trainer  # refuses an engine that is not there

    def run(passes: int) -> float:
        before = trainer.progress.samples
        started = time.perf_counter()
        trainer.fit(trainer.progress.epoch + passes)
        seconds = time.perf_counter() - started
        assert trainer.progress.samples - before == passes * workload.num_samples
        return seconds

    return run


def gdtrain_parsing(workload: Workload, _: str) -> Run:
    """The stream's reading and parsing alone, in batches of 4,096 rows."""
    from gdtrain.config.build import build
    from gdtrain.config.load import load_config

    csv = _csv(workload)
    config = csv.with_suffix(".yaml")
    config.write_text(CONFIG.format(path=csv, lr=LEARNING_RATE, engine="auto"))
    override = ["loader={name: minibatch, batch_size: 4096}"]

    def run(passes: int) -> float:
        seconds = 0.0
        for _ in range(passes):
            loader = build(load_config(config, override)[0]).loader
            started = time.perf_counter()
            assert sum(len(batch) for batch in loader) == workload.num_samples
            seconds += time.perf_counter() - started
        return seconds

    return run


def vowpal_wabbit(workload: Workload, _: str) -> Run:
    """Plain SGD, without the adaptive, normalised and invariant updates that it has by default."""
    from vowpalwabbit import Workspace

    inputs, targets = workload.data()
    path = Path(tempfile.mkdtemp()) / "rows.vw"
    with path.open("w") as file:
        for x, y in zip(inputs.tolist(), targets[:, 0].tolist(), strict=True):
            features = " ".join(f"{i}:{value:.4f}" for i, value in enumerate(x))
            file.write(f"{y:.4f} | {features}\n")

    def run(passes: int) -> float:
        started = time.perf_counter()
        for _ in range(passes):
            Workspace(f"--quiet --sgd --power_t 0 -l {LEARNING_RATE} -d {path}").finish()
        return time.perf_counter() - started

    return run


def river_stream(workload: Workload, _: str) -> Run:
    """LinearRegression and ``stream.iter_csv``."""
    from river import stream

    csv = _csv(workload)
    names = csv.open().readline().strip().split(",")
    model = _river_model()

    def run(passes: int) -> float:
        started = time.perf_counter()
        for _ in range(passes):
            rows = stream.iter_csv(str(csv), target="y", converters=dict.fromkeys(names, float))
            for x, y in rows:
                model.learn_one(x, y)
        return time.perf_counter() - started

    return run


def river_in_memory(workload: Workload, _: str) -> Run:
    """The same model on dictionaries that are in memory already."""
    inputs, targets = workload.data()
    names = [f"x{i}" for i in range(inputs.shape[1])]
    rows = [dict(zip(names, row, strict=True)) for row in inputs.tolist()]
    numbers = targets[:, 0].tolist()
    model = _river_model()

    def run(epochs: int) -> float:
        started = time.perf_counter()
        for _ in range(epochs):
            for x, y in zip(rows, numbers, strict=True):
                model.learn_one(x, y)
        return time.perf_counter() - started

    return run


def _river_model() -> Any:
    from river import linear_model, optim

    sgd = optim.SGD(LEARNING_RATE)
    return linear_model.LinearRegression(sgd, intercept_lr=LEARNING_RATE, l2=0.0)


def _csv(workload: Workload) -> Path:
    inputs, targets = workload.data()
    path = Path(tempfile.mkdtemp()) / "rows.csv"
    with path.open("w") as file:
        file.write(",".join([*(f"x{i}" for i in range(inputs.shape[1])), "y"]) + "\n")
        for x, y in zip(inputs.tolist(), targets[:, 0].tolist(), strict=True):
            file.write(",".join(f"{value:.4f}" for value in (*x, y)) + "\n")
    return path
