"""How long tables take to read, and how much memory, beside pyarrow.csv.read_csv.

    python scripts/benchmarks/tables.py [--rows 200000] [--repeats 3]

Times are the process's own, on one thread, the least of several, the two taking turns; memory is
the peak of a fresh process above its imports, beside that of the tensors.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv

from gdtrain.data.tables.table import read_table


def write(path: Path, kind: str, rows: int) -> None:
    """A table of numbers, of numbers and text, or of 40,000 columns."""
    draw = np.random.default_rng(0)
    width = 40_000 if kind == "wide" else 20
    rows = 100 if kind == "wide" else rows
    numbers = draw.normal(size=(rows, width))
    colours, places = (
        np.array(["red", "green", "blue"]),
        np.array([f"place {i}" for i in range(40)]),
    )
    texts = zip(draw.choice(colours, rows), draw.choice(places, rows), strict=True)
    with path.open("w") as file:
        names = [f"x{i}" for i in range(width)]
        more = ["colour", "place"] * 2 if kind == "mixed" else []
        file.write(",".join([*names, *(f"{n}{i}" for i, n in enumerate(more))]) + "\n")
        for row, text in zip(numbers.tolist(), texts, strict=True):
            cells = [f"{value:.4f}" for value in row]
            file.write(",".join([*cells, *(text * 2 if more else ())]) + "\n")


def ours(path: str) -> torch.Tensor:
    """Inputs as float32."""
    table = read_table(path, "x0", missing="mean")
    return table.data(torch.arange(len(table))).inputs.float()


def theirs(path: str) -> pa.Table:
    return csv.read_csv(path, csv.ReadOptions(use_threads=False))


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def peak(path: str) -> tuple[float, float]:
    """MB of memory that reading takes above the imports, and those of the tensors."""
    line = (
        "import sys, torch, pyarrow.csv\n"
        "from pathlib import Path\n"
        "from gdtrain.data.tables.table import read_table\n"
        "def most():\n"
        "    text = Path('/proc/self/status').read_text()\n"
        "    return int(text.split('VmHWM:')[1].split()[0])\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"  # the peak so far is forgotten
        "before = most()\n"
        "read = read_table(sys.argv[1], 'x0')\n"
        "data = read.data(torch.arange(len(read)))\n"
        "print((most() - before) / 1e3, (data.inputs.nbytes + data.targets.nbytes) / 1e6)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", line, path], capture_output=True, text=True, check=True
    )
    above, tensors = map(float, done.stdout.split())
    return above, tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for kind in ("numbers", "mixed", "wide"):
            path = Path(f"{kind}.csv")
            write(path, kind, options.rows)
            times = [
                (seconds(lambda p=str(path): ours(p)), seconds(lambda p=str(path): theirs(p)))
                for _ in range(options.repeats)
            ]
            mine, arrow = (min(each) for each in zip(*times, strict=True))
            above, tensors = peak(str(path))
            print(
                f"{kind}, {path.stat().st_size / 1e6:.0f} MB: {mine:.2f} s, read_csv "
                f"{arrow:.2f} s, ratio {mine / arrow:.2f}; memory {above:.0f} MB for "
                f"{tensors:.0f} MB of float64 tensors"
            )


if __name__ == "__main__":
    main()
