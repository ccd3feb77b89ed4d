"""The keeper puts back what it was told to keep, whatever was done to it in between."""

import gc
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from gdtrain import BatchLoader, Trainer
from gdtrain.training.state.keeper import Keeper, unchanged

X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))


class Scale(nn.Module):
    """A loss with a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.norm = nn.BatchNorm1d(1)

    def forward(self, output, targets):
        return (self.norm(output) - targets).square().mean()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 1), nn.BatchNorm1d(1)
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("nothing", None)
        self.draw = torch.Generator().manual_seed(1)
        self.numbers = np.random.default_rng(1)
        self.dice = random.Random(1)

    def forward(self, x):
        return self.norm(self.layer(x - self.mean))


def make():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(model, Scale(), optimizer, BatchLoader((X, X[:, :1])), device="cpu")
    trainer.fit(2)
    return trainer


def everything(trainer):
    """All state, in copies, with the identity of what may not be exchanged."""
    modules = [*trainer.model.modules(), *trainer.loss.modules()]
    buffers = [(m, n, b) for m in modules for n, b in m._buffers.items()]
    return {
        "modes": [m.training for m in modules],
        "buffers": [None if b is None else b.detach().clone() for _, _, b in buffers],
        "buffer names": [(id(m), n, id(b)) for m, n, b in buffers],
        "parameters": [p.detach().clone() for p in trainer.model.parameters()],
        "memory": [p.data_ptr() for p in trainer.model.parameters()],
        "gradients": [id(p.grad) for p in trainer.model.parameters()],
        "draws": [torch.get_rng_state(), trainer.model.draw.get_state()],
        "dice": [random.getstate(), trainer.model.dice.getstate()],
        "numbers": [str(np.random.get_state()), str(trainer.model.numbers.bit_generator.state)],
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list) and len(one) == len(other):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def grow(trainer):
    trainer.model.mean.resize_(5).fill_(7.0)


def shrink(trainer):
    trainer.model.mean.resize_(1).fill_(7.0)


def assign(trainer):
    trainer.model.mean = trainer.model.mean + 1
    trainer.loss.seen = torch.ones(3, dtype=torch.float64)


def rebind(trainer):
    trainer.model.mean.data = torch.full((4,), 2.0)
    trainer.model.layer.weight.data = torch.zeros(1, 2)


def register(trainer):
    trainer.model.register_buffer("new", torch.ones(1))
    trainer.model.nothing = torch.ones(1)
    del trainer.loss.seen


def move(trainer):
    with torch.no_grad():
        trainer.model.layer.weight.add_(1.0)


def switch(trainer):
    trainer.model.norm.eval()
    trainer.loss.eval()


def learn(trainer):
    trainer.loss(trainer.model(X), X[:, :1]).backward()


def draw(trainer):
    torch.rand(3)
    random.random()
    np.random.rand()
    torch.rand(1, generator=trainer.model.draw)
    trainer.model.numbers.random()
    trainer.model.dice.random()


CHANGES = [grow, shrink, assign, rebind, register, move, switch, learn, draw]


@pytest.mark.parametrize("change", CHANGES)
def test_a_look_changes_nothing(change) -> None:
    trainer = make()
    before = everything(trainer)
    with unchanged(trainer):
        change(trainer)
    after = everything(trainer)
    for part, kept in before.items():
        assert same(kept, after[part]), part


@pytest.mark.parametrize("change", CHANGES)
def test_a_keeper_is_used_again_though_the_model_has_changed(change) -> None:
    trainer = make()
    keeper = Keeper(trainer, "modes", "buffers", "parameters", "gradients", "generators")
    keeper.restore()
    change(trainer)
    before = everything(trainer)
    keeper.keep()
    for other in (grow, assign, rebind, move, switch, draw):
        other(trainer)
    keeper.restore()
    after = everything(trainer)
    for part, kept in before.items():
        assert same(kept, after[part]), part


def test_it_keeps_what_it_was_told_alone() -> None:
    trainer = make()
    keeper = Keeper(trainer, "buffers")
    weight = trainer.model.layer.weight.detach().clone()
    for change in (move, switch, assign):
        change(trainer)
    keeper.restore()
    assert torch.equal(trainer.model.layer.weight, weight + 1)
    assert not trainer.model.norm.training
    assert torch.equal(trainer.model.mean, torch.ones(2))


def test_extra_state_is_part_of_the_buffers() -> None:
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Linear(2, 1), 0

        def forward(self, x):
            self.calls += 1
            return self.layer(x)

        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    model = Counts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, X[:, :1])), device="cpu")
    trainer.fit(3)
    trainer.evaluate()
    trainer.predict(X)
    assert model.calls == 3


def test_an_optimizer_comes_back_with_its_groups() -> None:
    trainer = make()
    keeper = Keeper(trainer, "parameters", "optimizer")
    group = trainer.optimizer.param_groups[0]
    momenta = [s["momentum_buffer"].clone() for s in trainer.optimizer.state.values()]
    weights = [p.detach().clone() for p in trainer.model.parameters()]
    step = trainer.progress.step
    trainer.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    group["lr"] = 5.0
    trainer.fit(4)
    keeper.restore()
    assert trainer.optimizer.param_groups == [group]
    assert group["lr"] == 0.1
    assert trainer.progress.step == step
    assert same(weights, [p.detach() for p in trainer.model.parameters()])
    held = [s["momentum_buffer"] for s in trainer.optimizer.state.values()]
    assert same(momenta, held)


def test_a_rate_that_is_a_tensor_comes_back_when_it_was_written_to() -> None:
    trainer = make()
    rate = torch.tensor(0.1)
    trainer.optimizer.param_groups[0]["lr"] = rate
    keeper = Keeper(trainer, "optimizer")
    rate.mul_(0.5)  # as schedules do
    keeper.restore()
    assert trainer.optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == torch.tensor(0.1).item()


def test_copies_are_let_go_with_the_keeper_and_wait_for_no_collector() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, X)))
    gc.disable()
    try:
        keeper = Keeper(trainer, "modes", "buffers", "parameters", "gradients", "generators", "own")
        held = weakref.ref(keeper)
        del keeper
        assert held() is None
    finally:
        gc.enable()
