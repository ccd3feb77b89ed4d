"""Two processes on one machine: an update of gdtrain beside DistributedDataParallel by hand.

A perceptron 1024-2048-2048-10 in batches of 256, half of each in either process, over gloo, a
thread each. Both train in the same processes, some updates in turn; the ratio is the median over
the turns.

    python scripts/benchmarks/ranks.py [--turns 7]
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gdtrain import MiniBatchLoader, Trainer

BATCH, RANKS, ROWS = 256, 2, 2560


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 1024, generator=draw), torch.randint(10, (ROWS,), generator=draw)


def by_gdtrain() -> Callable[[], object]:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    loader = MiniBatchLoader(data(), BATCH)
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, loader, device="cpu", engine="eager")
    return lambda: trainer.fit(trainer.progress.epoch + 1)


def by_hand(rank: int) -> Callable[[], object]:
    net = DistributedDataParallel(model())
    optimizer, loss, (inputs, targets) = (
        torch.optim.SGD(net.parameters(), lr=0.01),
        nn.CrossEntropyLoss(),
        data(),
    )
    half = BATCH // RANKS

    def epoch() -> None:
        for first in range(rank * half, ROWS, BATCH):
            optimizer.zero_grad()
            value = loss(net(inputs[first : first + half]), targets[first : first + half])
            value.backward()
            optimizer.step()
            value.item()

    return epoch


def work(rank: int, port: int, turns: int, results: multiprocessing.Queue) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logging.disable()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    contestants = {"gdtrain": by_gdtrain(), "DDP by hand": by_hand(rank)}
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns + 1):  # of which the first warms up
        for name, epoch in contestants.items():
            dist.barrier()
            started = time.perf_counter()
            epoch()
            taken[name].append((time.perf_counter() - started) / (ROWS // BATCH))
    if rank == 0:
        results.put({name: seconds[1:] for name, seconds in taken.items()})
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=7, help="of 10 updates each")
    turns = parser.parse_args().turns
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    given = [(rank, port, turns, results) for rank in range(RANKS)]
    processes = [context.Process(target=work, args=arguments) for arguments in given]
    for process in processes:
        process.start()
    taken = results.get()
    for process in processes:
        process.join()
    for name, seconds in taken.items():
        print(f"{name:<12} {1000 * statistics.median(seconds):6.1f} ms an update")
    ratios = [a / b for a, b in zip(taken["gdtrain"], taken["DDP by hand"], strict=True)]
    print(f"gdtrain / DDP by hand: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
