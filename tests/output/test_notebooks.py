"""What a notebook shows of objects, and what it completes: short texts, columns by key."""

from types import ModuleType

import pytest
import torch
from torch import nn

import gdtrain
from gdtrain import BatchLoader, MiniBatchLoader, PhasedLoader, SampleLoader, Trainer

X = torch.linspace(-1, 1, 40)[:, None]
Y = 3 * X


def make(lr: float = 0.1, loader=None, **options) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loader = loader or MiniBatchLoader((X, Y), 8)
    return Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", **options)


def phased() -> PhasedLoader:
    return PhasedLoader([(2, SampleLoader((X, Y))), (None, BatchLoader((X, Y)))])


def compared(count: int):
    return gdtrain.compare({f"a form with a long name, {n}": make for n in range(count)}, epochs=1)


SHOWN = {
    "Trainer": lambda: (
        make(),
        "Trainer(Linear of 2 parameters, MSELoss, SGD, MiniBatchLoader(40 samples, 5 updates an "
        "epoch, batch_size=8, order=reshuffle, seed=0), on cpu; 0 epochs, 0 updates)",
    ),
    "batch": lambda: (
        BatchLoader((X, Y), order="shuffle_once", seed=3),
        "BatchLoader(40 samples, 1 update an epoch, order=shuffle_once, seed=3)",
    ),
    "sample": lambda: (
        SampleLoader((X, Y), order=[3, 1]),
        "SampleLoader(40 samples, 2 updates an epoch, order=Tensor, seed=0)",
    ),
    "phased": lambda: (
        phased(),
        "PhasedLoader(SampleLoader until epoch 2, then BatchLoader; 40 samples, 40 updates in the "
        "first epoch)",
    ),
    "Comparison": lambda: (
        compared(2),
        "Comparison(done: a form with a long name, 0, a form with a long name, 1; print it for the "
        "table)",
    ),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_what_a_cell_shows(kind: str) -> None:
    value, shown = SHOWN[kind]()
    assert repr(value) == shown


@pytest.mark.parametrize("value", [lambda: compared(40), lambda: gdtrain.lr_range(make())])
def test_what_a_cell_shows_is_short(value) -> None:
    shown = repr(value())
    assert len(shown) < 400
    assert "\n" not in shown
    assert " at 0x" not in shown


def test_a_history_by_key_and_by_row() -> None:
    history = make(validation=BatchLoader((X, Y))).fit(3)
    assert history["val_loss"] == history.val_loss == [record["val_loss"] for record in history]
    assert [record["epoch"] for record in history[1:]] == [2, 3]
    assert history[-1] is history.epochs[2]
    with pytest.raises(AttributeError, match=r"^history has no column 'nothing'; it has: epoch, "):
        history["nothing"]
    with pytest.raises(IndexError):
        history[3]


def test_tab_offers_public_names_and_modules() -> None:
    offered = {name for name in dir(gdtrain) if not name.startswith("_")}
    assert set(gdtrain.__all__) <= offered
    for name in offered - set(gdtrain.__all__):
        value = getattr(gdtrain, name)
        assert isinstance(value, ModuleType)
        assert value.__name__ == f"gdtrain.{name}"
