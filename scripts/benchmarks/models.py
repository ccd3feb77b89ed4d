"""Perceptrons, a CNN, a transformer block and an LSTM under each engine, beside the plain loop.

Contestants: the loop written by hand, as it is and with ``torch.compile``; ``Trainer.fit`` under
``eager``, ``scan`` and ``compile``. All have the same initial weights, the same data in memory, in
order, and plain SGD. What is compiled is compiled before the clock starts. Ratios are medians of
interleaved repetitions, the loop by hand over each; times are of the process, in one thread.

    python scripts/benchmarks/models.py [NAME …] [--repeats 5] [--seconds 0.5] [--without compile]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gdtrain import MiniBatchLoader, Trainer

LR = 0.01

Run = Callable[[int], object]  # epochs -> after them


@dataclass(frozen=True)
class Problem:
    """A model, which ``make`` makes, and data: classes where ``targets`` is how many there are."""

    make: Callable[[], nn.Module]
    rows: int
    shape: tuple[int, ...]  # of one row
    batch_size: int
    targets: int = 10

    def data(self) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(1)
        inputs = torch.randn(self.rows, *self.shape, generator=draw)
        if self.targets == 1:
            return inputs, inputs.flatten(1).sin().sum(1, keepdim=True)
        return inputs, torch.randint(self.targets, (self.rows,), generator=draw)

    def loss(self) -> nn.Module:
        return nn.MSELoss() if self.targets == 1 else nn.CrossEntropyLoss()

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()


def perceptron(*sizes: int, between: type[nn.Module] = nn.ReLU) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for width, outputs in pairwise(sizes):
            layers += [nn.Linear(width, outputs), between()]
        return nn.Sequential(*layers[:-1])

    return make


def cnn() -> nn.Module:
    """Of images of 8×8, as the digits are."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


class Transformer(nn.Module):
    """One block over sequences of 16 vectors, and a class from their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(x).mean(1))
        return logits


class Recurrent(nn.Module):
    """A class from the last output of an LSTM over 16 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0][:, -1])
        return logits


PROBLEMS = {
    "2-4-1/64": Problem(perceptron(2, 4, 1, between=nn.Tanh), 2000, (2,), 64, targets=1),
    "64-128-10/1": Problem(perceptron(64, 128, 10), 2000, (64,), 1),
    "64-128-10/64": Problem(perceptron(64, 128, 10), 2000, (64,), 64),
    "784-256-10/64": Problem(perceptron(784, 256, 10), 2000, (784,), 64),
    "cnn/64": Problem(cnn, 2000, (1, 8, 8), 64),
    "transformer/64": Problem(Transformer, 2000, (16, 32), 64),
    "lstm/64": Problem(Recurrent, 2000, (16, 8), 64),
}


def by_gdtrain(problem: Problem, engine: str) -> Run:
    model, loader = (
        problem.model(),
        MiniBatchLoader(problem.data(), problem.batch_size, order="sequential"),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    trainer = Trainer(
        model, problem.loss(), optimizer, loader, device="cpu", engine=engine, progress=False
    )
    return lambda epochs: trainer.fit(trainer.progress.epoch + epochs)


def by_hand(problem: Problem, *, compiled: bool = False) -> Run:
    model, loss, (x, y) = problem.model(), problem.loss(), problem.data()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    forward = torch.compile(model) if compiled else model

    def train(epochs: int) -> None:
        for _ in range(epochs):
            total = 0.0
            for inputs, targets in zip(
                x.split(problem.batch_size), y.split(problem.batch_size), strict=True
            ):
                optimizer.zero_grad()
                value = loss(forward(inputs), targets)
                value.backward()
                optimizer.step()
                total += value.item() * len(inputs)

    return train


CONTESTANTS: dict[str, Callable[[Problem], Run]] = {
    "by hand": by_hand,
    "torch.compile": lambda problem: by_hand(problem, compiled=True),
    "eager": lambda problem: by_gdtrain(problem, "eager"),
    "scan": lambda problem: by_gdtrain(problem, "scan"),
    "compile": lambda problem: by_gdtrain(problem, "compile"),
}


def an_epoch(run: Run, epochs: int) -> float:
    """Processor seconds."""
    start = time.process_time()
    run(epochs)
    return (time.process_time() - start) / epochs


def compared(problem: Problem, names: list[str], options: argparse.Namespace) -> str:
    """The loop by hand over each contestant: the median, the least and the largest."""
    runs, epochs = {}, {}
    for name in names:
        run = runs[name] = CONTESTANTS[name](problem)
        run(2)  # compiled
        run(2)
        epochs[name] = max(1, round(options.seconds / max(an_epoch(run, 1), 1e-6)))
        run(epochs[name])  # as long a block as those that are timed
    taken = [
        {name: an_epoch(run, epochs[name]) for name, run in runs.items()}
        for _ in range(options.repeats)
    ]
    cells = []
    for name in names[1:]:
        ratios = sorted(times["by hand"] / times[name] for times in taken)
        middle = statistics.median(ratios)
        cells.append(f"{name} {middle:.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})")
    return "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PROBLEMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a repetition")
    parser.add_argument(
        "--without", action="append", default=[], choices=list(CONTESTANTS)[1:], metavar="NAME"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(PROBLEMS):
        parser.error(f"NAME: must be among {', '.join(PROBLEMS)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)
    names = [name for name in CONTESTANTS if name not in options.without]
    for name in options.names or PROBLEMS:
        print(f"{name:15} {compared(PROBLEMS[name], names, options)}", flush=True)


if __name__ == "__main__":
    main()
