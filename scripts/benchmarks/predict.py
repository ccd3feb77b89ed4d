"""What `predict`, `convert` and training on Parquet as it is take of time and memory.

`predict` stands beside reading the file and the model's own passes.

    python scripts/benchmarks/predict.py [--rows 2000000] [--repeats 3]

A table of eight numbers and a target is written as CSV and as Parquet in groups of 100,000 rows;
``--rows 22000000`` makes a CSV file of 2 GB. Each measurement is of a fresh process: its own time
on one thread, the median of several, and its memory's peak above the imports. What is converted and
trained on Parquet is measured once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

CONFIG = """\
data: {source: csv, path: train.csv, target: y}
model: {name: mlp, hidden: [16]}
loss: mse
loader: {name: minibatch, batch_size: 64}
optimizer: {name: sgd, lr: 0.01}
epochs: 2
"""
OF_PARQUET = """\
data: {source: parquet, path: rows.parquet, target: y}
model: {name: mlp, hidden: [16]}
loss: mse
loader: {name: minibatch, batch_size: 10000, order: row_groups}
optimizer: {name: sgd, lr: 0.01}
epochs: 1
log: {picture: false}
"""
GROUP = 100_000
MEASURED = """\
import sys, time
from pathlib import Path
import pyarrow as pa, torch
from pyarrow import csv, parquet
from gdtrain.cli.main import main
from gdtrain.cli.runs import train_job
from gdtrain.cli.trained.predict_job import predict_rows
from gdtrain.config.load_run import load_run

torch.set_num_threads(1)
pa.set_cpu_count(1)
file, whose = sys.argv[1:]

def most():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def read_and_pass():
    model = load_run("run").model
    if file.endswith("parquet"):
        parts = parquet.ParquetFile(file).iter_batches(65_536, use_threads=False)
    else:
        parts = csv.open_csv(file, csv.ReadOptions(use_threads=False))
    with torch.no_grad():
        for part in parts:
            model(torch.zeros(part.num_rows, 8))

Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before, started = most(), time.process_time()
if whose == "ours":
    predict_rows(Path("run"), Path(file), Path("out.csv"))
elif whose == "convert":
    main(["convert", file, "out of " + file, "--target", "y"])
elif whose == "train":
    main(["--config", "parquet.yaml", "--output-dir", "direct", "--quiet"])
else:
    read_and_pass()
print(time.process_time() - started, (most() - before) / 1e3)
"""


def write(rows: int) -> None:
    """train.csv, rows.csv and rows.parquet; the last two a group of rows at a time."""
    draw, names = np.random.default_rng(0), [f"x{i}" for i in range(8)]
    schema = pa.schema([(name, pa.float64()) for name in [*names, "y"]])
    with (
        parquet.ParquetWriter("rows.parquet", schema) as to_parquet,
        csv.CSVWriter("rows.csv", schema) as to_csv,
    ):
        for start in range(0, rows, GROUP):
            values = draw.normal(size=(9, min(GROUP, rows - start))).round(6)
            group = pa.table(list(values), schema=schema)
            to_parquet.write_table(group, row_group_size=GROUP)
            to_csv.write_table(group)
            if not start:
                csv.write_csv(group.slice(0, 2000), "train.csv")


def measured(file: str, whose: str) -> tuple[float, float]:
    """Seconds and MB."""
    command = [sys.executable, "-c", MEASURED, file, whose]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, above = map(float, done.stdout.split())
    return seconds, above


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write(options.rows)
        Path("run.yaml").write_text(CONFIG)
        Path("parquet.yaml").write_text(OF_PARQUET)
        train = ["-m", "gdtrain", "--config", "run.yaml", "--output-dir", "run", "--quiet"]
        subprocess.run([sys.executable, *train], check=True)
        for file in ("rows.csv", "rows.parquet"):
            pairs = [
                (measured(file, "ours"), measured(file, "theirs")) for _ in range(options.repeats)
            ]
            ours, theirs = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
            above = max(pair[0][1] for pair in pairs)
            print(
                f"{file}, {options.rows:,} rows, {Path(file).stat().st_size / 1e6:,.0f} MB: "
                f"{ours:.2f} s, reading and the model's passes {theirs:.2f} s, ratio "
                f"{ours / theirs:.2f}; memory {above:.0f} MB above the imports"
            )
            print("convert {:.2f} s, {:.0f} MB".format(*measured(file, "convert")))
        print("train on Parquet {:.2f} s, {:.0f} MB".format(*measured(file, "train")))


if __name__ == "__main__":
    main()
