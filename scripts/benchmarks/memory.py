"""Peak resident memory of training on mapped data, for a set and for one a tenth the size.

python scripts/benchmarks/memory.py [--megabytes 640] [--share 8]

Each training runs in a process of its own, over a set ``share`` times what the process may
allocate beyond what torch itself takes (RLIMIT_DATA), and then over one a tenth the size. What is
compared is VmHWM of /proc/self/status, which counts mapped pages too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gdtrain import BatchLoader, MiniBatchLoader, Trainer, mapped

FEATURES = 64
ROWS_AT_ONCE = 10_000
SHARDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=640, help="of the larger set")
    parser.add_argument("--share", type=int, default=8, help="set over memory allowed")
    parser.add_argument("--train", nargs=2, metavar=("FORM", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--allowed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(train(*options.train, options.allowed)))
        return
    allowed = options.megabytes // options.share
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        sizes = {"set": options.megabytes, "a tenth": options.megabytes // 10}
        for label, megabytes in sizes.items():
            generate(Path(name) / label, megabytes)
        print(f"{allowed} MB may be allocated besides torch itself; peaks in MB")
        print("form               set   a tenth   ratio   seconds for the set")
        for form in ("batch", "minibatch"):
            peak = {
                label: run(form, Path(name) / label, allowed if label == "set" else None)
                for label in sizes
            }
            whole, tenth = peak["set"], peak["a tenth"]
            print(
                f"{form:<12} {whole['peak']:9.0f} {tenth['peak']:9.0f} "
                f"{whole['peak'] / tenth['peak']:7.3f} {whole['seconds']:9.1f}",
                flush=True,
            )


def generate(folder: Path, megabytes: int) -> None:
    """Shards of normal inputs and targets that a linear model explains, ``megabytes`` in all."""
    draw = np.random.default_rng(0)
    weights = draw.standard_normal((FEATURES, 1), dtype=np.float32)
    rows = megabytes * 1_000_000 // (4 * (FEATURES + 1)) // SHARDS
    for name, width in (("inputs", FEATURES), ("targets", 1)):
        (folder / name).mkdir(parents=True)
        for shard in range(SHARDS):
            with (folder / name / f"{shard}.npy").open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
                np.lib.format.write_array_header_1_0(file, header)
                draw = np.random.default_rng(shard)
                for start in range(0, rows, ROWS_AT_ONCE):
                    count = min(ROWS_AT_ONCE, rows - start)
                    x = draw.standard_normal((count, FEATURES), dtype=np.float32)
                    file.write((x if name == "inputs" else x @ weights).data)


def run(form: str, folder: Path, allowed: int | None) -> dict[str, Any]:
    """Train in a fresh process; its peak memory and seconds."""
    command = [sys.executable, __file__, "--train", form, str(folder)]
    if allowed is not None:
        command += ["--allowed", str(allowed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def train(form: str, folder: str, allowed: int | None) -> dict[str, float]:
    """Two epochs of one form over a folder, with no more than ``allowed`` MB to allocate."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Once over 4,096 samples first: torch imports much of itself at its first update.
    fit(form, (torch.randn(4096, FEATURES), torch.randn(4096, 1)), epochs=1)
    if allowed is not None:
        limit = (_status("VmData") + allowed * 1000) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    samples = mapped(f"{folder}/inputs", f"{folder}/targets")
    started = time.perf_counter()
    fit(form, samples, epochs=2)
    return {"peak": _status("VmHWM") / 1000, "seconds": time.perf_counter() - started}


def fit(form: str, data: Any, epochs: int) -> None:
    """Full batches in microbatches, or shuffled mini-batches."""
    whole = form == "batch"
    loader = BatchLoader(data) if whole else MiniBatchLoader(data, batch_size=256)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 1))
    trainer = Trainer(
        model,
        loss=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        loader=loader,
        device="cpu",
        microbatch_size=2048 if whole else None,
    )
    trainer.fit(epochs)


def _status(key: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


if __name__ == "__main__":
    main()
