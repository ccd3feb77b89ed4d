"""What saving costs: a run that saves every 100 updates against one that never does.

    python scripts/benchmarks/checkpoints.py [--repeats 15] [--directory DIR]

The run is that of configs/minibatch.yaml, 40 epochs of 23 updates, on one thread. First the
updates alone, ``fit``: both take turns in one process, in an order that changes. Compared are
the medians of the wall time; the quickest runs of each, which what else runs on the machine has
disturbed least; and the time on processors, of all threads, which it does not disturb. Then
what a user waits for, the whole command, which always saves at both ends, with saves on the way
and without, in processes of their own. DIR decides which disk is written to.
Exits with 1 if saving adds more than 3 % to the median of the updates alone, the strictest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gdtrain.checkpoint.checkpoints import Checkpoints, CheckpointStore
from gdtrain.config.build import build
from gdtrain.config.load import load_config

CONFIG = Path(__file__).parents[2] / "configs" / "minibatch.yaml"
EVERY = 100
ALLOWED = 1.03


class TimedStore(CheckpointStore):
    """A store that keeps how long each save took, in seconds."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.seconds: list[float] = []

    def save(self, step: int, state: dict[str, Any]) -> Path:
        started = time.perf_counter()
        path = super().save(step, state)
        self.seconds.append(time.perf_counter() - started)
        return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--directory", type=Path, help="default: where temporary files go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    saves: list[float] = []
    _run(options.directory, [])
    for repeat in range(options.repeats):
        for saving in (False, True) if repeat % 2 else (True, False):
            runs[saving].append(_run(options.directory, saves if saving else None))
    wall, cpu = ({k: [run[i] for run in of] for k, of in runs.items()} for i in (0, 1))
    steps = _steps()
    print(f"{steps} updates, a checkpoint after every {EVERY} and at both ends, one thread")
    print(f"{'seconds':<22}{'without':>10}{'with':>10}{'ratio':>10}   (at most {ALLOWED})")
    ratios = []
    for name, figure, of in (
        ("wall, median", statistics.median, wall),
        ("wall, quickest", min, wall),
        ("processors, median", statistics.median, cpu),
    ):
        without, with_ = figure(of[False]), figure(of[True])
        ratios.append(with_ / without)
        print(f"{name:<22}{without:>10.3f}{with_:>10.3f}{ratios[-1]:>10.4f}")
    commands: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(options.repeats):
        for saving in (False, True) if repeat % 2 else (True, False):
            commands[saving].append(_command(options.directory, saving))
    without, with_ = (statistics.median(commands[saving]) for saving in (False, True))
    print(f"{'whole command, median':<22}{without:>10.3f}{with_:>10.3f}{with_ / without:>10.4f}")
    quantiles = statistics.quantiles(saves, n=100)
    print(f"a save: p50 {quantiles[49] * 1e3:.2f} ms, p99 {quantiles[98] * 1e3:.2f} ms")
    print(f"written: {len(saves)} of {(steps // EVERY + 2) * options.repeats} that were due")
    return 0 if ratios[0] <= ALLOWED else 1


def _run(directory: Path | None, saves: list[float] | None) -> tuple[float, float]:
    """Train once; return the seconds it took, and those on processors.

    saves: None to save nothing; else the seconds of each save are added to it.
    """
    config, _ = load_config(CONFIG)
    trainer = build(config).trainer
    with tempfile.TemporaryDirectory(dir=directory) as place:
        store = TimedStore(Path(place) / "checkpoints")
        if saves is not None:
            trainer.callbacks.append(Checkpoints(store, every_n_steps=EVERY))
        started, busy = time.perf_counter(), time.process_time()
        trainer.fit(config.epochs)
        seconds = time.perf_counter() - started, time.process_time() - busy
        if saves is not None:
            saves += store.seconds
    return seconds


def _command(directory: Path | None, saving: bool) -> float:
    """Seconds that the train command takes from its start to its end."""
    cadence = [f"checkpoint.every_n_steps={EVERY}"] if saving else []
    with tempfile.TemporaryDirectory(dir=directory) as place:
        command = [sys.executable, "-m", "gdtrain", "--config", str(CONFIG), *cadence]
        command += ["checkpoint.every_seconds=null", "--output-dir", f"{place}/out"]
        started = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return time.perf_counter() - started


def _steps() -> int:
    config, _ = load_config(CONFIG)
    loader = build(config).loader
    return config.epochs * len(loader.plan(0))


if __name__ == "__main__":
    sys.exit(main())
