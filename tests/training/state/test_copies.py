"""Copies of a trainer, by deepcopy and by pickle, train on as the trainer itself does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_state import SCHEDULES, Nested
from torch import nn
from torch.utils.data import Dataset, RandomSampler

from gdtrain import (
    BatchLoader,
    Callback,
    EarlyStopping,
    MiniBatchLoader,
    PhasedLoader,
    SampleLoader,
    StepLosses,
    Trainer,
)
from gdtrain.training.optimizing import schedules

draw = torch.Generator().manual_seed(0)
X = torch.randn(20, 3, generator=draw)
Y = X.sum(1, keepdim=True)
EPOCHS = 4


class Rows(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Any:
        return X[i], Y[i]


def build(loader, kind="SGD", options=None, schedule=None, **more) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Tanh(), nn.Linear(4, 1))
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.05, **(options or {}))
    return Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu",
        scheduler=schedule(optimizer) if schedule else None, **more,
    )  # fmt: skip


def batches() -> MiniBatchLoader:
    return MiniBatchLoader((X, Y), 6, seed=1)


def ours(optimizer):
    return schedules.scheduler(optimizer, schedules.warmup(3, schedules.cosine(9)))


TRAINERS: dict[str, Callable[[], Trainer]] = {
    "momentum": lambda: build(batches(), options={"momentum": 0.9}),
    "adam": lambda: build(batches(), "Adam"),
    "lbfgs": lambda: build(BatchLoader((X, Y)), "LBFGS", {"max_iter": 3}),
    "schedule": lambda: build(batches(), schedule=SCHEDULES["ExponentialLR"]),
    "sequence": lambda: build(batches(), schedule=SCHEDULES["SequentialLR"], scheduler_per="step"),
    "schedule by name": lambda: build(batches(), schedule=ours, scheduler_per="step"),
    "validation": lambda: build(
        batches(), validation=BatchLoader((X, Y)), callbacks=[EarlyStopping(), StepLosses()]
    ),
    "microbatches": lambda: build(batches(), microbatch_size=4),
    "data set": lambda: build(MiniBatchLoader(Rows(), 6)),
    "sampler": lambda: build(MiniBatchLoader((X, Y), 6, order=RandomSampler(range(20)))),
    "phases": lambda: build(PhasedLoader([(2, SampleLoader((X, Y))), (None, batches())])),
}
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda one: pickle.loads(pickle.dumps(one))}


def fitted(trainer: Trainer, epochs: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    trainer.fit(epochs)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name])


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # of SequentialLR in torch 2.6
@pytest.mark.few(15)
@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_copy_trains_on(name, how, epochs) -> None:
    trainer = TRAINERS[name]()
    fitted(trainer, epochs)
    other = COPIES[how](trainer)
    assert_same(other.model.state_dict(), trainer.model.state_dict())
    mine = fitted(trainer, EPOCHS)
    start = {k: v.clone() for k, v in other.model.state_dict().items()}
    assert not all(torch.equal(start[name], mine[name]) for name in mine)  # a copy of its own
    assert_same(fitted(other, EPOCHS), mine)
    assert_same(fitted(trainer, EPOCHS), mine)  # and nothing moved in the first one
    assert other.history.lr == trainer.history.lr
    assert other.progress.step == trainer.progress.step


def test_an_optimizer_of_ones_own_is_copied_with_what_it_holds() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = Nested(torch.optim.Adam(model.parameters(), lr=0.02))
    trainer = Trainer(model, nn.MSELoss(), optimizer, batches(), device="cpu")
    trainer.fit(1)
    other = copy.deepcopy(trainer)
    assert other.optimizer.calls == 4
    assert other.optimizer.inner.param_groups[0]["params"][0] is next(other.model.parameters())
    mine = fitted(trainer, EPOCHS)
    assert_same(fitted(other, EPOCHS), mine)


def test_hooks_of_the_optimizer_are_copied() -> None:
    trainer = build(batches())
    trainer.optimizer.register_step_post_hook(_halve)
    other = copy.deepcopy(trainer)
    mine = fitted(trainer, 2)
    assert_same(fitted(other, 2), mine)
    assert_same(fitted(pickle.loads(pickle.dumps(trainer)), 3), fitted(trainer, 3))


def _halve(optimizer, *_) -> None:
    with torch.no_grad():
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.mul_(0.5)


class CopiesAt(Callback):
    every_n_steps = 1

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.copy = step, None

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.step:
            torch.manual_seed(3)
            self.copy = copy.deepcopy(trainer)


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_copy_within_an_epoch(step) -> None:
    trainer = build(batches(), callbacks=[copies := CopiesAt(step)])
    trainer.fit(EPOCHS)
    other = copies.copy
    assert other.progress.step == step
    torch.manual_seed(3)
    other.fit(EPOCHS)
    assert_same(other.model.state_dict(), trainer.model.state_dict())


def test_a_copy_makes_its_own_compiled_program() -> None:
    pytest.importorskip("jax")
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = Trainer(model, nn.MSELoss(), optimizer, batches(), device="cpu", engine="scan")
    trainer.fit(1)
    other = pickle.loads(pickle.dumps(trainer))
    mine = fitted(trainer, 2)
    assert_same(fitted(other, 2), mine)
    assert other.engine.name == "scan"
