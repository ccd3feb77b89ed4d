"""Simulate the ranks of a large run: are their shares of sampled batches disjoint and complete?

python scripts/simulate_shares.py [--samples 1000000000000] [--ranks 1024] [--windows 8]

Nothing is read and no process started: each rank's plan is asked for its rows, as a loader does.
For windows of batches at the start, the end and random places of an epoch it checks that the
ranks' rows, one rank after the other, are the batch's indices, that no index comes twice in any
window (in a permutation), and that the sizes of the shares differ by at most one.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gdtrain import MiniBatchLoader
from gdtrain.data.batch import Batch, Plan
from gdtrain.data.orders.order import OrderName, generator
from gdtrain.data.samples import Samples

BATCH_SIZES = (1, 7, 1000, 1024, 4096, 65_537)
ORDERS: tuple[OrderName, ...] = ("reshuffle", "replacement", "sequential")
# No window has more draws than this, nor more than so many batches.
MAX_DRAWS, MAX_BATCHES = 1 << 18, 4


class Numbers(Samples):
    """The samples 0 … n - 1, each its own index; they take no memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        for number in range(start, len(plan)):
            places = rank_rows(plan, number, number + 1)[0]
            yield Batch(places, None, places)


@dataclass
class Findings:
    """What was seen in the sampled windows of one epoch."""

    batches: int = 0
    draws: int = 0
    smallest_share: int = 1 << 62
    largest_share: int = 0
    uneven: int = 0  # batches with shares that differ by more than one
    incomplete: int = 0  # batches that the ranks' rows do not make up
    repeated: int = 0  # draws of an index that another draw of any window had


def rank_rows(plan: Plan, first: int, last: int) -> list[Tensor]:
    """The rows that the plan's rank reads of each of the batches ``first`` … ``last - 1``."""
    chosen, begin, sizes = plan.rows(first, last)
    rows = torch.arange(begin, begin + sum(sizes)) if chosen is None else chosen
    return list(rows.split(sizes))


def simulate(plan: Plan, ranks: int, windows: int, seed: int = 0) -> Findings:
    """Compare the shares of all ranks with the batches, in some windows of the plan's epoch."""
    found = Findings()
    length = min(MAX_BATCHES, max(1, MAX_DRAWS // plan.batch_size), len(plan))
    latest = len(plan) - length
    random = torch.randint(latest + 1, (windows,), generator=generator(seed, plan.batch_size))
    seen = []
    for first in sorted({0, latest, *random.tolist()}):
        shares = [
            rank_rows(plan.share(rank, ranks), first, first + length) for rank in range(ranks)
        ]
        for number, parts in enumerate(zip(*shares, strict=True), start=first):
            sizes = [len(part) for part in parts]
            union = torch.cat(parts)
            found.batches += 1
            found.smallest_share = min(found.smallest_share, *sizes)
            found.largest_share = max(found.largest_share, *sizes)
            found.uneven += max(sizes) - min(sizes) > 1
            found.incomplete += not torch.equal(union, plan.batch_indices(number))
            start = number * plan.batch_size
            seen.append((torch.arange(start, start + len(union)), union))
    positions, indices = (torch.cat(column) for column in zip(*seen, strict=True))
    found.draws = len(positions.unique())  # windows may overlap
    found.repeated = found.draws - len(indices.unique())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=10**12)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=8, help="besides the first and the last")
    given = parser.parse_args()
    print(f"{given.samples:,} samples, {given.ranks:,} ranks, {given.windows} + 2 windows")
    print("order        batch size  batches      draws  shares   uneven  incomplete  repeated    s")
    faults = 0
    for order in ORDERS:
        for size in BATCH_SIZES:
            began = time.perf_counter()
            plan = MiniBatchLoader(Numbers(given.samples), size, order=order).plan(0)
            found = simulate(plan, given.ranks, given.windows)
            faults += found.uneven + found.incomplete
            faults += found.repeated if order != "replacement" else 0
            shares = f"{found.smallest_share} … {found.largest_share}"
            print(
                f"{order:<12} {size:>10,} {found.batches:>8} {found.draws:>10,}  {shares:<8}"
                f" {found.uneven:>6} {found.incomplete:>11} {found.repeated:>9}"
                f" {time.perf_counter() - began:>4.1f}"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak resident memory {peak:.0f} MB, torch itself included; {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
