"""Optimizers around another one that are made without ``Optimizer.__init__``."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ExponentialLR

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.errors import ConfigError

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


class Lookahead(torch.optim.Optimizer):
    """Every third update goes half of the way back; in the form in which it is often copied."""

    def __init__(self, base):
        self.base, self.steps = base, 0
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def zero_grad(self, set_to_none=True):
        self.base.zero_grad(set_to_none)

    def step(self, closure=None):
        loss = self.base.step(closure)
        self.steps += 1
        if self.steps % 3 == 0:
            fast = [p for g in self.param_groups for p in g["params"]]
            for parameter, slow in zip(fast, self.slow, strict=True):
                slow.lerp_(parameter.detach(), 0.5)
                parameter.data.copy_(slow)
        return loss


class Safe(Callback):
    every_n_steps = 1

    def on_safe_point(self, trainer):
        pass


class Every(Callback):
    def on_before_update(self, trainer):
        pass


def make(base):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, Lookahead(base(model.parameters(), lr=0.05))


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("callbacks", [[], [Safe()], [Every()]], ids=["none", "safe", "every"])
def test_the_bits_of_the_loop_by_hand(base, callbacks):
    model, optimizer = make(base)
    loader = MiniBatchLoader((X, Y), 8)
    trainer = Trainer(
        *(model, nn.MSELoss(), optimizer, loader),
        scheduler=ExponentialLR(optimizer, 0.9),
        scheduler_per="step",
        clip_grad_norm=0.5,
        callbacks=callbacks,
        device="cpu",
    )
    trainer.fit(4)
    hand, optimizer = make(base)
    schedule = ExponentialLR(optimizer, 0.9)
    for epoch in range(4):
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            F.mse_loss(hand(batch.inputs), batch.targets).backward()
            nn.utils.clip_grad_norm_(hand.parameters(), 0.5)
            optimizer.step()
            schedule.step()
    assert trainer.step == 12
    assert all(map(torch.equal, model.parameters(), hand.parameters()))


class Own(Trainer):
    def train_step(self, batch):
        loss = self.batch_gradient(batch)
        self.optimizer.step()
        return loss


def test_an_own_step_can_not_be_watched():
    """Whether it has been made is seen by hooks, which such an optimizer does not call."""
    model, optimizer = make(torch.optim.SGD)
    before = copy.deepcopy(model.state_dict())
    trainer = Own(model, nn.MSELoss(), optimizer, MiniBatchLoader((X, Y), 8), device="cpu")
    with pytest.raises(ConfigError, match=r"Lookahead .* Optimizer\.__init__"):
        trainer.fit(1)
    assert trainer.step == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
