"""What saving costs: a run that saves every 100 updates against one that never does.

    python scripts/benchmark_checkpoints.py [--repeats 15] [--directory DIR]

The run is that of configs/minibatch.yaml, 40 epochs of 23 updates, on one thread. Both take
turns in one process, in an order that changes, and medians are compared; so are the medians of
the pairs' ratios, which what else runs on the machine disturbs less. DIR decides which disk is
written to. Exits with 1 if saving adds more than 3 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gdtrain.checkpoint.checkpoints import Checkpoints
from gdtrain.checkpoint.store import CheckpointStore
from gdtrain.config.build import build
from gdtrain.config.load import load_config

CONFIG = Path(__file__).parents[1] / "configs" / "minibatch.yaml"
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
    plain, saving, saves = [], [], []
    _run(options.directory, [])
    for repeat in range(options.repeats):
        for saves_now in (False, True) if repeat % 2 else (True, False):
            if saves_now:
                saving.append(_run(options.directory, saves))
            else:
                plain.append(_run(None, None))
    steps, of = _steps(), statistics.median
    due = steps // EVERY + 2
    ratio = of(saving) / of(plain)
    paired = of(s / p for s, p in zip(saving, plain, strict=True))
    print(f"{steps} updates, a checkpoint after every {EVERY} and at both ends, one thread")
    print(f"{'without':<24}{of(plain):>10.3f} s, median of {options.repeats}")
    print(f"{'with':<24}{of(saving):>10.3f} s")
    print(f"{'ratio of the medians':<24}{ratio:>10.4f}   (at most {ALLOWED})")
    print(f"{'median of the ratios':<24}{paired:>10.4f}")
    quantiles = statistics.quantiles(saves, n=100)
    print(f"{'a save, p50':<24}{quantiles[49] * 1e3:>10.2f} ms")
    print(f"{'a save, p99':<24}{quantiles[98] * 1e3:>10.2f} ms")
    print(f"{'written of those due':<24}{len(saves):>10} of {due * options.repeats}")
    return 0 if min(ratio, paired) <= ALLOWED else 1


def _run(directory: Path | None, saves: list[float] | None) -> float:
    """Train once; return the seconds it took. saves: those of each save are added to it."""
    config, _ = load_config(CONFIG)
    trainer = build(config).trainer
    with tempfile.TemporaryDirectory(dir=directory) as place:
        store = TimedStore(Path(place) / "checkpoints")
        if saves is not None:
            trainer.callbacks.append(Checkpoints(store, every_n_steps=EVERY))
        started = time.perf_counter()
        trainer.fit(config.epochs)
        seconds = time.perf_counter() - started
        if saves is not None:
            saves += store.seconds
    return seconds


def _steps() -> int:
    config, _ = load_config(CONFIG)
    loader = build(config).loader
    return config.epochs * len(loader.plan(0))


if __name__ == "__main__":
    sys.exit(main())
