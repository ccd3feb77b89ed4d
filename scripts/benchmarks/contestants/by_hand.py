"""Loops written by hand in PyTorch, and gdtrain's own under each engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from contestants.workload import LEARNING_RATE, Run, Workload
from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.data.loaders.loader import Loader


def model_of(workload: Workload, device: str = "cpu") -> nn.Sequential:
    """The workload's model with its initial weights."""
    layers: list[nn.Module] = []
    for weight, bias in workload.initial():
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device)


def loss_of(workload: Workload) -> nn.Module:
    return nn.CrossEntropyLoss() if workload.classes else nn.MSELoss()


def tensors_of(workload: Workload) -> tuple[Tensor, Tensor]:
    inputs, targets = workload.data()
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def data_loader(workload: Workload) -> Iterable[Any]:
    """The usual DataLoader over tensors in memory."""
    data = torch.utils.data.TensorDataset(*tensors_of(workload))
    return torch.utils.data.DataLoader(data, batch_size=workload.size, shuffle=workload.shuffled)


def loader_of(workload: Workload) -> Loader:
    """gdtrain's loader, as a user would make it."""
    if workload.batch_size is None:
        return BatchLoader(tensors_of(workload))
    if workload.batch_size == 1:
        return SampleLoader(tensors_of(workload))
    return MiniBatchLoader(tensors_of(workload), workload.batch_size)


def hand(workload: Workload, device: str) -> Run:
    """A new random order each epoch and one gather a batch; the whole set is used as it is."""
    model, loss = model_of(workload, device), loss_of(workload)
    inputs, targets = (t.to(device) for t in tensors_of(workload))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        if not workload.shuffled:
            yield inputs, targets
            return
        order = torch.randperm(len(inputs), device=device)
        for start in range(0, len(inputs), workload.size):
            chosen = order[start : start + workload.size]
            yield inputs[chosen], targets[chosen]

    def epoch() -> None:
        for x, y in batches():
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()

    return timed(epoch, device)


def with_data_loader(workload: Workload, device: str) -> Run:
    """The same loop over a DataLoader."""
    model, loss, loader = model_of(workload, device), loss_of(workload), data_loader(workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def epoch() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            value = loss(model(x.to(device)), y.to(device))
            value.backward()
            optimizer.step()

    return timed(epoch, device)


def gdtrain_engine(workload: Workload, device: str, *, engine: str) -> Run:
    """gdtrain's Trainer; raises ValueError where this gdtrain has no such engine."""
    model = model_of(workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loader = loader_of(workload)
    trainer = Trainer(model, loss_of(workload), optimizer, loader, device=device, engine=engine)  # type: ignore[arg-type]

    def run(epochs: int) -> float:
        started = time.perf_counter()
        trainer.fit(trainer.progress.epoch + epochs)
        synchronize(device)
        return time.perf_counter() - started

    return run


def matrix_products(workload: Workload, device: str) -> Run:
    """The matrix products of an update alone, through torch.mm: what the device can do at best."""
    sizes, n = workload.sizes, workload.num_samples
    inputs = [torch.randn(n, size, device=device) for size in sizes]
    weights = [torch.randn(b, a, device=device) for a, b in pairwise(sizes)]

    def epoch() -> None:
        for number, weight in enumerate(weights):
            x, gradient = inputs[number], inputs[number + 1]
            torch.mm(x, weight.t())
            torch.mm(gradient.t(), x)
            if number:  # nobody needs the gradient of the data
                torch.mm(gradient, weight)

    return timed(epoch, device)


def loop_over(loader: Iterable[Any]) -> Run:
    """Reads batches and does nothing with them."""

    def epoch() -> None:
        for _ in loader:
            pass

    return timed(epoch, "cpu")


def first_block(workload: Workload, device: str, *, engine: str) -> Run:
    """From a Trainer that is made to the end of its first epoch, compilation included."""

    def run(_: int) -> float:
        started = time.perf_counter()
        gdtrain_engine(workload, device, engine=engine)(1)
        return time.perf_counter() - started

    return run


def timed(epoch: Callable[[], None], device: str) -> Run:
    """Runs ``epoch`` so many times and waits for the device."""

    def run(epochs: int) -> float:
        started = time.perf_counter()
        for _ in range(epochs):
            epoch()
        synchronize(device)
        return time.perf_counter() - started

    return run


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
