"""Another default device around a fit: tensors of the user's are on the CPU, and stay there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from gdtrain import (
    SAGA,
    SVRG,
    Alpha,
    Averaging,
    BatchLoader,
    BatchSizes,
    Callback,
    CurvatureMonitor,
    GradientCosine,
    GradientTestsMonitor,
    MiniBatchLoader,
    NoiseScale,
    PhasedLoader,
    PoissonLoader,
    SampleGradients,
    SampleLoader,
    SharpnessMonitor,
    TokenBudgetLoader,
    Trainer,
    Trajectory,
    Weighted,
)

N, EPOCHS = 11, 3
DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(N, 3, generator=DRAW), torch.randn(N, 2, generator=DRAW)
ORDERS: dict[str, Any] = {
    "reshuffle": "reshuffle",
    "shuffle_once": "shuffle_once",
    "sequential": "sequential",
    "replacement": "replacement",
    "weighted": Weighted([1.0, 2.0] * 5 + [1.0]),
    "indices": list(range(N))[::-1],
    "callable": lambda epoch: [*range(epoch, N), *range(epoch)],
}
LOADERS: dict[str, Callable[[Any], Any]] = {
    "batch": lambda order: BatchLoader((X, Y), order=order),
    "sample": lambda order: SampleLoader((X, Y), order=order),
    "minibatch": lambda order: MiniBatchLoader((X, Y), 4, order=order),
    "dataset": lambda order: MiniBatchLoader(TensorDataset(X, Y), 4, order=order),
    "dicts": lambda order: MiniBatchLoader(({"x": X}, Y), 4, order=order),
    "growing": lambda order: MiniBatchLoader(
        (X, Y), BatchSizes.growing(2, factor=2.0, every_n_epochs=1, largest=8), order=order
    ),
    "phases": lambda order: PhasedLoader(
        [(1, SampleLoader((X, Y), order=order)), (None, BatchLoader((X, Y), order=order))]
    ),
}


class OfDicts(nn.Linear):
    def forward(self, x: Any) -> torch.Tensor:
        return super().forward(x["x"] if isinstance(x, dict) else x)


def trained(loader: Any, **options: Any) -> list[torch.Tensor]:
    with torch.device("cpu"):
        torch.manual_seed(0)
        model = OfDicts(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu", progress=False, **options
    )
    history = trainer.fit(EPOCHS)
    return [*model.parameters(), torch.tensor(history.train_loss, device="cpu")]


@pytest.mark.few(14)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", LOADERS)
def test_it_changes_no_number(form, order) -> None:
    expected = trained(LOADERS[form](ORDERS[order]))
    with torch.device("meta"):
        found = trained(LOADERS[form](ORDERS[order]))
    assert all(map(torch.equal, found, expected))


class Looks(Callback):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def on_epoch_end(self, trainer, record) -> None:
        self.found += [trainer.evaluate()["loss"], trainer.predict(X).sum().item()]


@pytest.mark.parametrize(
    "options",
    [
        {"microbatch_size": 2},
        {"metrics": ["mae"]},
        {"clip_grad_norm": 0.1},
        {"evaluate_in": "batches"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_nor_does_it_where_others_look(options) -> None:
    runs = []
    for device in ("cpu", "meta"):
        looks = Looks()
        with torch.device(device):
            loader = MiniBatchLoader((X, Y), 4, order="reshuffle")
            weights = trained(loader, validation=loader, callbacks=[looks], **options)
        runs.append((looks.found, weights))
    assert runs[0][0] == runs[1][0]
    assert all(map(torch.equal, runs[0][1], runs[1][1]))


@pytest.mark.parametrize(
    "loader",
    [
        lambda: PoissonLoader((X, Y), 0.4),
        lambda: TokenBudgetLoader((X, Y), [1, 2] * 5 + [1], 5),
    ],
    ids=["poisson", "tokens"],
)
def test_nor_does_it_where_batches_vary_in_size(loader) -> None:
    expected = trained(loader())
    with torch.device("meta"):
        found = trained(loader())
    assert all(map(torch.equal, found, expected))


MEASURE = (
    *(Alpha, CurvatureMonitor, GradientCosine, GradientTestsMonitor, NoiseScale),
    *(SampleGradients, SharpnessMonitor, Trajectory),
)


@pytest.mark.parametrize("kind", [*MEASURE, SAGA, SVRG, Averaging])
def test_what_is_measured_is_the_same(kind) -> None:
    def records() -> list[dict[str, Any]]:
        with torch.device("cpu"):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        callback = kind(every_n_steps=2) if kind in MEASURE else kind()
        loader = MiniBatchLoader((X, Y), 4)
        options: Any = {"device": "cpu", "callbacks": [callback], "progress": False}
        history = Trainer(model, nn.MSELoss(), optimizer, loader, **options).fit(EPOCHS)
        return [{k: v for k, v in row.items() if k != "seconds"} for row in history]

    expected = records()
    with torch.device("meta"):
        assert records() == expected
