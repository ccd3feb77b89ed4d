"""The teaching example, 500 rows and 2-4-1, where most of an epoch's time was between the epochs.

Contestants: ``Trainer.fit`` under ``eager`` and ``scan``, the loop written by hand, and the whole
run written by hand as one ``jax.lax.scan`` over the epochs, whose time includes drawing the same
orders by torch. One sample, 64 and all of them per update, in order and reshuffled. Ratios are
medians of interleaved repetitions; times are of the process, in one thread. Of a full batch also:
``eager`` reshuffled over the loop in order, and the microseconds that an epoch in order takes
beyond its bare update, which is the loop's without ``.item()`` and sums.

    python scripts/benchmarks/epochs.py [--repeats 7] [--only 64]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from gdtrain import BatchLoader, Loader, MiniBatchLoader, Trainer
from gdtrain.data.orders.order import generator

ROWS, LR, SEED = 500, 0.01, 3
X = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1))
Y = X.sin().sum(1, keepdim=True)
# Samples per update -> epochs of a repetition: of compiled contestants, and of the others.
EPOCHS = {1: (1000, 2), 64: (2000, 15), ROWS: (4000, 200)}

Run = Callable[[int], float]  # epochs -> seconds an epoch


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def timed(train: Callable[[int], object]) -> Run:
    def run(epochs: int) -> float:
        start = time.process_time()
        train(epochs)
        return (time.process_time() - start) / epochs

    return run


def by_gdtrain(size: int, order: str, engine: str) -> Run:
    loader: Loader = MiniBatchLoader((X, Y), size, order=order, seed=SEED)
    if size == ROWS:
        loader = BatchLoader((X, Y), order=order, seed=SEED)
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    trainer = Trainer(net, nn.MSELoss(), optimizer, loader, device="cpu", engine=engine)
    return timed(lambda epochs: trainer.fit(trainer.progress.epoch + epochs))


def by_hand(size: int, order: str) -> Run:
    net, loss = model(), nn.MSELoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def train(epochs: int) -> None:
        for epoch in range(epochs):
            batches = zip(X.split(size), Y.split(size), strict=True)
            if order == "reshuffle":
                drawn = torch.randperm(ROWS, generator=generator(SEED, epoch)).split(size)
                batches = ((X[rows], Y[rows]) for rows in drawn)
            total = 0.0
            for inputs, targets in batches:
                optimizer.zero_grad()
                value = loss(net(inputs), targets)
                value.backward()
                optimizer.step()
                total += value.item() * len(inputs)

    return timed(train)


def bare_update(epochs: int) -> None:
    """Updates by all samples, and nothing else."""
    net, loss = model(), nn.MSELoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss(net(X), Y).backward()
        optimizer.step()


def by_jax(size: int, order: str) -> Run:
    parameters = [jnp.asarray(p.detach().numpy()) for p in model().parameters()]
    x, y, full = jnp.asarray(X.numpy()), jnp.asarray(Y.numpy()), ROWS // size * size

    def loss(p, inputs, targets):
        hidden = jnp.tanh(inputs @ p[0].T + p[1])
        return jnp.mean((hidden @ p[2].T + p[3] - targets) ** 2)

    def update(p, inputs, targets):
        value, gradient = jax.value_and_grad(loss)(p, inputs, targets)
        return [a - LR * g for a, g in zip(p, gradient, strict=True)], value

    def epoch(p, rows):
        inputs, targets = (x, y) if rows is None else (x[rows], y[rows])
        parts = inputs[:full].reshape(-1, size, 2), targets[:full].reshape(-1, size, 1)
        p, losses = jax.lax.scan(lambda p, part: update(p, *part), p, parts)
        total = losses.sum() * size
        if full < ROWS:
            p, last = update(p, inputs[full:], targets[full:])
            total += last * (ROWS - full)
        return p, total / ROWS

    if order == "sequential":
        run = jax.jit(
            lambda p, n: jax.lax.scan(lambda p, _: epoch(p, None), p, None, length=n),
            static_argnums=1,
        )
        return timed(lambda epochs: np.asarray(run(parameters, epochs)[1]).tolist())
    run = jax.jit(lambda p, orders: jax.lax.scan(epoch, p, orders))

    def train(epochs: int) -> None:
        orders = [torch.randperm(ROWS, generator=generator(SEED, e)) for e in range(epochs)]
        rows = torch.stack(orders).numpy().astype(np.int32)
        np.asarray(run(parameters, jnp.asarray(rows))[1]).tolist()

    return timed(train)


def compared(size: int, order: str, repeats: int) -> str:
    """A row of the table: medians of ratios of interleaved repetitions."""
    many, few = EPOCHS[size]
    contestants = {
        "scan": (by_gdtrain(size, order, "scan"), many),
        "jax": (by_jax(size, order), many),
        "eager": (by_gdtrain(size, order, "eager"), few),
        "hand": (by_hand(size, order), few),
    }
    if size == ROWS and order == "sequential":
        contestants["bare"] = timed(bare_update), few
    elif size == ROWS:
        contestants["in order"] = by_hand(size, "sequential"), few
    for run, epochs in contestants.values():  # compiled, and warm
        run(epochs)
        run(epochs)
    taken = [{n: run(epochs) for n, (run, epochs) in contestants.items()} for _ in range(repeats)]

    def ratio(first: str, second: str) -> float:
        return statistics.median(times[first] / times[second] for times in taken)

    name, more = "all" if size == ROWS else size, ""
    if "bare" in contestants:
        beyond = statistics.median(times["eager"] - times["bare"] for times in taken)
        more = f"  beyond the bare update {1e6 * beyond:.1f} µs"
    elif "in order" in contestants:
        more = f"  eager/hand in order {ratio('eager', 'in order'):5.2f}"
    return (
        f"{name:>5} {order:<10} scan/jax {ratio('scan', 'jax'):5.2f}  "
        f"hand/scan {ratio('hand', 'scan'):7.1f}  eager/hand {ratio('eager', 'hand'):5.2f}{more}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", type=int, choices=list(EPOCHS), action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in options.only or EPOCHS:
        for order in ("sequential", "reshuffle"):
            print(compared(size, order, options.repeats), flush=True)


if __name__ == "__main__":
    main()
