"""Layers that get their weights from the first batch: states are taken up before they have any."""

import pytest
import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer
from gdtrain.errors import CheckpointError

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(11, 3, generator=DRAW), torch.randn(11, 1, generator=DRAW)
OPTIMIZERS = {
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
}


class Counting(nn.Module):
    """Keeps what is somebody's own: a buffer that is None at first, and one that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(1)
        self.register_buffer("last", None)
        self.register_buffer("means", torch.zeros(0))

    def forward(self, x):
        self.last = x.detach()[:1]
        self.means = torch.cat([self.means, x.detach().mean()[None]])
        return self.linear(x)


class Taught(Trainer):
    def compute_loss(self, batch):
        with torch.no_grad():
            aim = self.teacher(batch.inputs)
        output = self.model(batch.inputs)
        return (output - batch.targets).square().mean() + (output - aim).square().mean()


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(1))


def trainer_of(optimizer: str, teacher: nn.Module | None = None) -> Trainer:
    model = network()
    kind, loss = (Trainer, nn.MSELoss()) if teacher is None else (Taught, None)
    made = OPTIMIZERS[optimizer](model.parameters())
    trainer = kind(model, loss, made, MiniBatchLoader((X, Y), 4), device="cpu")
    if teacher is not None:
        trainer.register_state("teacher", teacher)
    return trainer


def assert_same(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(map(torch.equal, mine.values(), theirs.values()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_goes_on_in_a_model_that_has_no_weights_yet(optimizer) -> None:
    whole, later = trainer_of(optimizer), trainer_of(optimizer)
    whole.fit(2)
    state = whole.state_dict()
    whole.fit(4)
    later.load_state_dict(state)
    later.fit(4)
    assert_same(later.model, whole.model)


@pytest.mark.parametrize("make", [network, Counting])
def test_so_does_a_registered_module(make) -> None:
    whole, later = (trainer_of("momentum", make()) for _ in range(2))
    assert whole.evaluate()["loss"] > 0
    whole.fit(2)
    state = whole.state_dict()
    whole.fit(4)
    later.load_state_dict(state)
    later.fit(4)
    assert_same(later.model, whole.model)
    assert_same(later.teacher, whole.teacher)


def test_vectors_of_several_sizes_are_refused() -> None:
    first = trainer_of("lbfgs")
    first.fit(1)
    state = first.state_dict()
    (kept,) = state["optimizer"]["state"].values()
    kept["prev_flat_grad"] = kept["prev_flat_grad"][:-1]
    with pytest.raises(CheckpointError, match="prev_flat_grad is not what L-BFGS keeps"):
        trainer_of("lbfgs").load_state_dict(state)
