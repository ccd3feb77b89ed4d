"""What a sweep saves: beside one process for all runs, and beside a command for each of them.

    python scripts/benchmarks/sweeps.py [--rates 7] [--seeds 10] [--epochs 20] [--commands 6]
                                        [--engine scan]

The three forms at seven learning rates with ten seeds each, on the digits, 20 epochs: 210 runs of
the shipped mini-batch configuration without pictures, by ``gdtrain sweep`` with ``--jobs 2`` and
with one job, and by ``gdtrain train``, of which ``--commands`` runs, spread over the grid, are
timed and counted up to all. Also with ``--engine scan`` for the sweep, where it runs. Times are of
the wall clock, so nothing else should run. Prints the ratios that are asked for (two jobs against
one >= 1.8; against commands >= 7, under scan >= 15) and the time to the first row (<= 15 s), and
exits with 1 if any is short. Fewer seeds and epochs make it shorter, and start-up weigh more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

CONFIG = "configs/minibatch.yaml"
FORMS = ("batch", "sample", "minibatch")
RATES = ("0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1")
COMMON = ("scheduler=null", "log.picture=false")
JOBS, BESIDE_ONE, BESIDE_COMMANDS, UNDER_SCAN, FIRST_ROW = 2, 1.8, 7.0, 15.0, 15.0


def main() -> int:
    options = _options()
    own = [*COMMON, f"epochs={options.epochs}"]
    grid = _Grid(RATES[: options.rates], options.seeds)
    runs = len(grid.points)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = _commands(folder, own, grid, options.commands)
        one, _ = _sweep(folder / "one", own, grid, jobs=1)
        engine = [f"engine={options.engine}"] if options.engine else []
        many, first = _sweep(folder / "many", [*own, *engine], grid, jobs=JOBS)
    beside_commands = UNDER_SCAN if options.engine == "scan" else BESIDE_COMMANDS
    print(f"{runs} runs of {options.epochs} epochs")
    print(
        f"commands {commands:.1f} s (counted up from {options.commands}), one process {one:.1f} s"
    )
    print(f"{JOBS} jobs{' under ' + options.engine if options.engine else ''} {many:.1f} s")
    results = [
        ("times one process", one / many, one / many >= BESIDE_ONE, f">= {BESIDE_ONE:g}"),
        (
            "times the commands",
            commands / many,
            commands / many >= beside_commands,
            f">= {beside_commands:g}",
        ),
        ("seconds to the first row", first, first <= FIRST_ROW, f"<= {FIRST_ROW:g}"),
    ]
    for what, value, fine, bound in results:
        print(f"{what}: {value:.2f} ({bound}{'' if fine else ', short'})")
    return 0 if all(fine for *_, fine, _ in results) else 1


class _Grid:
    """What is swept over; points: as the commands have them, settings: as the sweep does."""

    def __init__(self, rates: Sequence[str], seeds: int) -> None:
        self.points = list(product(FORMS, rates, range(seeds)))
        self.settings = [
            f"loader={','.join(FORMS)}",
            f"optimizer.lr={','.join(rates)}",
            f"seed=0..{seeds - 1}",
        ]


def _sweep(directory: Path, settings: list[str], grid: _Grid, *, jobs: int) -> tuple[float, float]:
    """Seconds that a sweep takes, and that its first row takes."""
    began, first = time.monotonic(), None
    where = ["--output-dir", str(directory), "--jobs", str(jobs), "--quiet"]
    with subprocess.Popen(_command("sweep", CONFIG, *settings, *grid.settings, *where)) as running:
        while running.poll() is None:
            if first is None and any((directory / "rows").glob("*.json")):
                first = time.monotonic() - began
            time.sleep(0.02)
    if running.returncode:
        raise SystemExit(f"the sweep has ended with {running.returncode}")
    seconds = time.monotonic() - began
    return seconds, seconds if first is None else first


def _commands(folder: Path, settings: list[str], grid: _Grid, count: int) -> float:
    """Seconds that a command for each run takes, from ``count`` of them."""
    points = grid.points
    chosen = [points[number * len(points) // count] for number in range(count)]
    began = time.monotonic()
    for number, (form, rate, seed) in enumerate(chosen):
        loader = [] if form == "minibatch" else [f"loader={form}"]  # which the configuration has
        own = [*settings, *loader, f"optimizer.lr={rate}", f"seed={seed}"]
        where = ["--output-dir", str(folder / f"command-{number}"), "--quiet"]
        done = subprocess.run(_command("train", "--config", CONFIG, *own, *where), check=False)
        if done.returncode not in (0, 3):  # a run that diverges is one
            raise SystemExit(f"the command has ended with {done.returncode}")
    return (time.monotonic() - began) / count * len(points)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gdtrain", *arguments]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=int, default=len(RATES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--commands", type=int, default=6, help="how many are timed")
    parser.add_argument("--engine", help="of the sweep with several jobs, such as scan")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
