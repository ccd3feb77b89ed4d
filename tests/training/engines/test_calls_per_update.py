"""The overhead of the eager loop, without a clock: how many functions of gdtrain it calls."""

import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

import gdtrain
from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.data.batch import Block

PACKAGE = str(Path(gdtrain.__file__).parent)
X = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def calls(work: Callable[[], object]) -> Counter[str]:
    """The named functions of gdtrain that ``work`` calls."""
    found: Counter[str] = Counter()

    def note(frame, event, _) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name[0] != "<":
            found[f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_name}"] += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


class OwnLoss(Trainer):
    """Whose code may change anything in each update."""

    def compute_loss(self, batch):
        return self.loss(self.model(batch.inputs), batch.targets)


class OwnStep(OwnLoss):
    def train_step(self, batch):
        self.optimizer.zero_grad()
        loss = self.compute_loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def make(loader, kind=Trainer, **options) -> Trainer:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = nn.MSELoss()
    trainer = kind(model, loss, optimizer, loader, device="cpu", engine="eager", **options)
    trainer.fit(2)
    return trainer


def of_a_block(trainer: Trainer, steps: int) -> int:
    """Calls that a block of so many updates takes."""
    assert trainer.loader is not None
    plan = trainer.loader.plan(5)
    batches = trainer.read(trainer.loader, plan)
    block = Block(plan, 0, steps, islice(batches, steps))
    return calls(lambda: trainer._run_block(block)).total()


MOST = {Trainer: (21, 109), OwnLoss: (35, 52), OwnStep: (37, 54)}  # in an update, in a block


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("loader", [SampleLoader((X, Y)), MiniBatchLoader((X, Y), 2)])
def test_calls_in_an_update_and_in_a_block(loader, kind) -> None:
    trainer = make(loader, kind)
    few, many = of_a_block(trainer, 32), of_a_block(trainer, 96)
    per_update = (many - few) / 64
    assert per_update <= MOST[kind][0]
    assert few - 32 * per_update <= MOST[kind][1]


@pytest.mark.parametrize(("order", "most"), [("sequential", 43), ("reshuffle", 50)])
def test_calls_in_an_epoch_of_one_update(order: str, most: int) -> None:
    trainer = make(BatchLoader((X, Y), order=order))
    trainer.block_length._steps = 64  # whatever the clock has said
    few, many = calls(lambda: trainer.fit(12)), calls(lambda: trainer.fit(32))
    assert (many - few).total() / 10 <= most
