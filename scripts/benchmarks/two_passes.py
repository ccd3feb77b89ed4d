"""What a loss that mixes the batch costs in parts: two passes over them against one over all.

    python scripts/benchmarks/two_passes.py [--repeats 31]

Gradients of InfoNCE over 1,024 pairs, by a 784-256-64 encoder, in parts of 128, on one thread: the
same trainer with and without ``microbatch_size``, in one process, in turns. Compared are medians of
the time on the processor, which what else runs on the machine does not disturb, and of the wall
time; the largest difference of the gradients; and the bytes that are allocated at the peak, counted
tensor by tensor, against those of one part's pass, all outputs, and the loss with its gradient.
Exits with 1 if the time is over 1.7 of one pass, the memory over 1.1 of a part's plus outputs and
loss, or the gradient off by more than rounding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import Batch, Trainer
from gdtrain.analysis.comparison.peak_memory import LiveBytes

PAIRS, PART, SIZES = 1024, 128, (784, 256, 64)
TIME, MEMORY = 1.7, 1.1
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}


class Pairs(nn.Module):
    """Encodes both views of each sample by the same network."""

    def __init__(self) -> None:
        super().__init__()
        inputs, hidden, outputs = SIZES
        self.encoder = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(one), self.encoder(other)


def info_nce(outputs: tuple[Tensor, Tensor], _: object) -> Tensor:
    one, other = (F.normalize(output) for output in outputs)
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


class Contest:
    """One batch, and trainers that compute its gradient, whole and in parts."""

    def __init__(self, dtype: torch.dtype) -> None:
        draw = torch.Generator().manual_seed(0)
        views = torch.randn(2, PAIRS, SIZES[0], generator=draw).to(dtype)
        self.dtype = dtype
        self.batch = Batch(tuple(views), None, torch.arange(PAIRS))
        self.part = next(self.batch.split(PART))
        self.whole, self.parts = self.trainer(None), self.trainer(PART)

    def trainer(self, size: int | None) -> Trainer:
        torch.manual_seed(1)
        model = Pairs().to(self.dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Trainer(model, info_nce, optimizer, device="cpu", microbatch_size=size)

    def gradient(self, trainer: Trainer) -> Tensor:
        trainer.batch_gradient(self.batch)
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    def error(self) -> float:
        expected = self.gradient(self.whole)
        return float((self.gradient(self.parts) - expected).norm() / expected.norm())

    def seconds(self, repeats: int) -> list[dict[str, float]]:
        """Medians for whole batches and for parts, which take turns in changing order."""
        trainers = [self.whole, self.parts]
        runs: list[list[tuple[float, float]]] = [[], []]
        for number in range(repeats + 2):
            for i in (0, 1) if number % 2 else (1, 0):
                runs[i].append(_timed(lambda i=i: trainers[i].batch_gradient(self.batch)))
        medians = [[statistics.median(column) for column in zip(*r[2:], strict=True)] for r in runs]
        return [{"processor": processor, "wall": wall} for processor, wall in medians]

    def memory(self) -> tuple[int, int, int]:
        """Bytes at the peak: in parts; of one part's pass; of all outputs, and the loss on them."""
        self.parts.optimizer.zero_grad()
        in_parts = _peak(lambda: self.parts.batch_gradient(self.batch))
        self.whole.optimizer.zero_grad()
        of_part = _peak(lambda: self.whole.batch_gradient(self.part))

        def loss() -> None:
            outputs = [torch.zeros(PAIRS, SIZES[-1], dtype=self.dtype) for _ in range(2)]
            for output in outputs:
                output.add_(torch.eye(PAIRS, SIZES[-1])).requires_grad_()
            info_nce((outputs[0], outputs[1]), None).backward()

        return in_parts, of_part, _peak(loss)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    processor, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def _peak(work: Callable[[], object]) -> int:
    with LiveBytes() as live:
        work()
    return live.peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = "-".join(map(str, SIZES))
    print(f"InfoNCE, {PAIRS:,} pairs, {sizes} encoder, parts of {PART}, one thread")
    good = True
    for dtype in (torch.float32, torch.float64):
        contest = Contest(dtype)
        error, (whole, parts) = contest.error(), contest.seconds(options.repeats)
        in_parts, of_part, of_loss = contest.memory()
        bound = MEMORY * of_part + of_loss
        ratio = parts["processor"] / whole["processor"]
        print(
            f"{str(dtype).removeprefix('torch.')}: {1e3 * parts['processor']:.1f} ms for "
            f"{1e3 * whole['processor']:.1f} ms in one pass, {ratio:.2f} times (wall time "
            f"{parts['wall'] / whole['wall']:.2f}); gradient off by {error:.1e}; peak "
            f"{in_parts / 2**20:.1f} MiB, a part's {of_part / 2**20:.1f}, outputs and loss "
            f"{of_loss / 2**20:.1f}: {in_parts / bound:.2f} of what is allowed"
        )
        good &= ratio <= TIME and in_parts <= bound and error <= ROUNDING[dtype]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
