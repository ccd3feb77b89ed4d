"""Ranks that are threads of one process: their exchanges are real, their start takes no time.

For jobs that draw no random numbers, since threads share torch's generator.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from gdtrain.training.placement.distributed import World

SECONDS = 60.0


@dataclass(frozen=True)
class ThreadWorld(World):
    """One of several threads that exchange what they have."""

    table: dict[int, Any] = field(default_factory=dict)
    barrier: Barrier = field(default_factory=lambda: Barrier(1))

    def gather_objects(self, value: Any) -> list[Any]:
        self.table[self.rank] = value
        self.barrier.wait(SECONDS)
        everyone = [self.table[rank] for rank in range(self.size)]
        self.barrier.wait(SECONDS)
        return everyone

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self.gather_objects(tensor.clone())).sum(0))

    def sum_later(self, tensor: Tensor) -> Callable[[], None]:
        self.sum(tensor)
        return lambda: None

    def gather(self, values: Any) -> list[list[int]]:
        return self.gather_objects(list(values))

    def gather_text(self, text: str) -> list[str]:
        return self.gather_objects(text)


def on_threads(ranks: int, job: Callable[[World], Any]) -> list[Any]:
    """What ``job(world)`` gives on each of so many ranks."""
    table, barrier = {}, Barrier(ranks)

    def work(rank: int) -> Any:
        try:
            return job(ThreadWorld(rank, ranks, table, barrier))
        except BaseException:
            barrier.abort()  # nobody waits for this one
            raise

    with ThreadPoolExecutor(ranks) as pool:
        running = [pool.submit(work, rank) for rank in range(ranks)]
    first = [future.exception() for future in running if future.exception() is not None]
    for error in sorted(first, key=lambda error: type(error).__name__ == "BrokenBarrierError"):
        raise error
    return [future.result() for future in running]
