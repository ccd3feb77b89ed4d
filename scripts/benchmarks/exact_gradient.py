"""What exactness costs: microbatches against a single pass, and two ranks against one.

    python scripts/benchmarks/exact_gradient.py [--repeats 5]

Microbatches: full batch of 200,000 samples, MLP 64-256-1. Ranks: full batch of 20,000 samples,
MLP 512-512-512-1, which is bound by its arithmetic. One thread a process; each contestant is a
process of its own; the contestants take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

UPDATES = 5
WIDE = (200_000, [64, 256, 1])  # samples, layers
DEEP = (20_000, [512, 512, 512, 1])
CUTS: dict[str, dict[str, int | str]] = {
    "single pass": {},
    "microbatches of 2,048": {"microbatch_size": 2048},
    "microbatches: auto": {"microbatch_size": "auto"},
}
RANKS = "ranks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(_measure(options.contestant, options.rank)))
        return
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for name in CUTS:
            runs.setdefault(name, []).append(_run(name))
        runs.setdefault("one rank", []).append(_run(RANKS))
        runs.setdefault("two ranks", []).append(_run_two())
    seconds = {name: statistics.median(r["seconds"] for r in of) for name, of in runs.items()}
    extra = {name: statistics.median(r["extra"] for r in of) for name, of in runs.items()}
    print(f"full batch, n = {WIDE[0]:,}, MLP {'-'.join(map(str, WIDE[1]))}, one thread")
    print(
        f"{'':<24}{'ms an update':>14}{'extra peak MB':>15}{'time ratio':>12}{'memory ratio':>14}"
    )
    for name in CUTS:
        print(
            f"{name:<24}{seconds[name] * 1e3:>14.1f}{extra[name] / 1e6:>15.1f}"
            f"{seconds[name] / seconds['single pass']:>12.2f}"
            f"{extra[name] / extra['single pass']:>14.3f}"
        )
    print(
        f"n = {DEEP[0]:,}, MLP {'-'.join(map(str, DEEP[1]))}: "
        f"two ranks {seconds['two ranks'] * 1e3:.1f} ms an update, "
        f"{seconds['one rank'] / seconds['two ranks']:.2f} times one rank's "
        f"{seconds['one rank'] * 1e3:.1f} ms"
    )


def _run(contestant: str, *more: str) -> dict[str, float]:
    result: dict[str, float] = json.loads(_start(contestant, *more).communicate()[0])
    return result


def _run_two() -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [_start(RANKS, "--rank", f"{rank}:{port}") for rank in range(2)]
    results = [json.loads(rank.communicate()[0]) for rank in ranks]
    return {key: max(result[key] for result in results) for key in results[0]}


def _start(contestant: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--contestant", contestant, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def _measure(contestant: str, place: str | None) -> dict[str, float]:
    """Seconds of an update (the median of some), and peak memory beyond that before them."""
    import torch
    import torch.distributed as dist

    from gdtrain import BatchLoader, Trainer

    torch.set_num_threads(1)
    if place is not None:
        rank, port = map(int, place.split(":"))
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)
    samples, sizes = DEEP if contestant == RANKS else WIDE
    X, y = torch.randn(samples, sizes[0]), torch.randn(samples, 1)
    layers = [
        layer
        for inputs, outputs in itertools.pairwise(sizes)
        for layer in (torch.nn.Linear(inputs, outputs), torch.nn.ReLU())
    ]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = BatchLoader((X, y))
    options = CUTS.get(contestant, {"microbatch_size": 2048})
    trainer = Trainer(model, torch.nn.MSELoss(), optimizer, loader, device="cpu", **options)
    batch = next(trainer.read(loader))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = _memory("VmRSS")
    times = []
    for _ in range(UPDATES):
        started = time.perf_counter()
        trainer.train_step(batch)
        times.append(time.perf_counter() - started)
    extra = _memory("VmHWM") - before
    if place is not None:
        dist.barrier()
        dist.destroy_process_group()
    return {"seconds": statistics.median(times), "extra": float(extra)}


def _memory(kind: str) -> int:
    """Resident memory of this process in bytes: VmRSS, now, or VmHWM, at its peak (Linux)."""
    found = re.search(kind + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
