"""Whether training on an endless stream holds its memory flat, and how fast it goes.

python scripts/benchmarks/stream.py [--rows 10000000] [--columns 20] [--batch-size 64]

A child process writes CSV into a pipe; this one trains a linear model on it and looks at its
resident memory ten times a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from gdtrain import Callback, Trainer
from gdtrain.config.build import build
from gdtrain.config.load import load_config

WARM_UP_SECONDS = 10.0
WINDOW_SECONDS = 60.0
CONFIG = """\
data: {{source: stream, format: csv, path: "{pipe}", target: y}}
model: linear
loss: mse
loader: {{name: minibatch, batch_size: {batch_size}}}
optimizer: {{lr: 0.01}}
device: cpu
epochs: 1
"""


class Memory(Callback):
    """Resident bytes over time, as (seconds, bytes)."""

    def __init__(self) -> None:
        super().__init__(every_seconds=0.1)
        self.started = time.perf_counter()
        self.seen: list[tuple[float, int]] = []

    def on_safe_point(self, trainer: Trainer) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        now = time.perf_counter() - self.started
        self.seen.append((now, pages * os.sysconf("SC_PAGE_SIZE")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--write", metavar="PIPE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write, options.rows, options.columns)
    else:
        measure(options)


def write(pipe: str, rows: int, columns: int) -> None:
    """The child: lines of 4-decimal numbers, made once and repeated."""
    numbers = torch.randn(10_000, columns + 1, generator=torch.Generator().manual_seed(0)).tolist()
    block = "".join(",".join(f"{v:.4f}" for v in row) + "\n" for row in numbers)
    with Path(pipe).open("w") as file:
        file.write(",".join([*(f"x{i}" for i in range(columns)), "y"]) + "\n")
        for _ in range(rows // len(numbers)):
            file.write(block)
        file.write("".join(block.splitlines(keepends=True)[: rows % len(numbers)]))


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pipe, config = Path(folder, "pipe"), Path(folder, "stream.yaml")
        os.mkfifo(pipe)
        config.write_text(CONFIG.format(pipe=pipe, batch_size=options.batch_size))
        child = subprocess.Popen(
            [
                *(sys.executable, __file__, "--write", str(pipe)),
                *("--rows", str(options.rows), "--columns", str(options.columns)),
            ]
        )
        memory = Memory()
        trainer = build(load_config(config)[0], [memory]).trainer
        started = time.perf_counter()
        trainer.fit(1)
        seconds = time.perf_counter() - started
        child.wait()
    print(f"{trainer.progress.samples:,} rows of {options.columns} columns in {seconds:.1f} s")
    print(f"{trainer.progress.samples / seconds:,.0f} rows/s, {trainer.progress.step:,} updates")
    last = memory.seen[-1][0]
    warm = [
        (t, b) for t, b in memory.seen if t - memory.seen[0][0] > min(WARM_UP_SECONDS, last / 4)
    ]
    window = min(WINDOW_SECONDS, (last - warm[0][0]) / 3)
    first = mean([b for t, b in warm if t < warm[0][0] + window])
    final = mean([b for t, b in warm if t > last - window])
    print(
        f"resident memory: {first / 2**20:.1f} MiB in the first {window:.0f} s after warm-up, "
        f"{final / 2**20:.1f} MiB in the last {window:.0f} s: ratio {final / first:.4f}"
    )


def mean(values: list[int]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
