"""What the command line costs beside the loop by hand: the teaching example, 64 samples an update.

500 rows in memory, 2-4-1, ``engine: scan``, a log, a validation every 100 epochs, no pictures.

- *epochs*: the wall time of 10,000 epochs less that of 5,000, which leaves out all that happens
  once; 5,000 epochs of the plain loop over it.
- *start-up*: the wall time of one epoch, whose program is in the user's cache.
- *first block*: in a second process, from a Trainer that is made to the end of its first epoch,
  less the import of jax.

    python scripts/benchmarks/command_line.py [--repeats 3]
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

import torch
from torch import nn

CONFIG = """\
seed: 0
data: {source: teaching, num_samples: 500, num_features: 2, validation_fraction: 0.2}
model: {name: mlp, hidden: [4]}
loss: mse
loader: {name: minibatch, batch_size: 64}
optimizer: {name: sgd, lr: 0.01}
validation: {every_n_epochs: 100}
engine: scan
log: {picture: false}
epochs: 1
"""
FIRST_BLOCK = """\
import time
import torch
from torch import nn
import jax
import gdtrain

torch.manual_seed(0)
x = torch.randn(500, 2)
model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
loader = gdtrain.MiniBatchLoader((x, x.sum(1, keepdim=True)), 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)  # which may import torch's compiler
started = time.perf_counter()
trainer = gdtrain.Trainer(
    model, nn.MSELoss(), optimizer, loader, device="cpu", engine="scan", progress=False
)
trainer.fit(1)
print(time.perf_counter() - started)
"""


def command(folder: Path, epochs: int) -> float:
    """Seconds that the command took, from its start to its end."""
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    arguments = ["--config", str(folder / "run.yaml"), f"epochs={epochs}", "--output-dir", str(run)]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "gdtrain", *arguments], check=True, capture_output=True, cwd=folder
    )
    return time.perf_counter() - started


def first_block(folder: Path) -> float:
    """Seconds, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_BLOCK], check=True, capture_output=True, text=True, cwd=folder
    )
    return float(done.stdout)


def by_hand(epochs: int) -> float:
    """Seconds of the plain loop over the 400 samples that are trained on, reshuffled."""
    torch.manual_seed(0)
    x, y = torch.randn(400, 2), torch.randn(400, 1)
    model, loss = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    started = time.perf_counter()
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(400).split(64):
            optimizer.zero_grad()
            value = loss(model(x[rows]), y[rows])
            value.backward()
            optimizer.step()
            total += value.item() * len(rows)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        (folder / "run.yaml").write_text(CONFIG, "utf-8")
        for epochs in (1, 5000):  # compiled, and kept for later processes
            command(folder, epochs)
        first_block(folder)
        starts = [command(folder, 1) for _ in range(repeats)]
        blocks = [first_block(folder) for _ in range(repeats)]
        taken = [
            (by_hand(500) * 10, command(folder, 10_000) - command(folder, 5_000))
            for _ in range(repeats)
        ]
    ratio = statistics.median(by_loop / ours for by_loop, ours in taken)
    ours = statistics.median(ours for _, ours in taken)
    print(f"epochs: by hand / command line {ratio:.1f}; {1e6 * ours / 5000:,.0f} µs an epoch")
    print(f"start-up: {statistics.median(starts):.2f} s; least {min(starts):.2f} s")
    print(f"first block of a second process: {statistics.median(blocks):.2f} s")


if __name__ == "__main__":
    main()
