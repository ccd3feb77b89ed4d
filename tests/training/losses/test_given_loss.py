"""A loss of the batch that is given as a function, and updates from losses of your own."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer, curvature
from gdtrain.analysis.verify.gradients import verify
from gdtrain.errors import ConfigError, ModelError, NonFiniteError

X = torch.randn(22, 3, generator=torch.Generator().manual_seed(0)).double()
Y = X.sum(1, keepdim=True)


def squares(trainer, batch):
    return F.mse_loss(trainer.model(batch.inputs), batch.targets)


def make(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"compute_loss": squares, "device": "cpu", **options}
    loader = MiniBatchLoader((X, Y), 8, order="sequential")
    return Trainer(model, optimizer=optimizer, loader=loader, **options)


def by_hand(epochs, norm=None):
    model = make().model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        for x, y in zip(X.split(8), Y.split(8), strict=True):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            if norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), norm)
            optimizer.step()
    return list(model.parameters())


def assert_same(trainer, weights, **tolerance):
    for one, other in zip(trainer.model.parameters(), weights, strict=True):
        if tolerance:
            assert torch.allclose(one, other, **tolerance)
        else:
            assert torch.equal(one, other)


def test_it_has_the_bits_of_the_plain_loop_and_is_evaluated():
    trainer = make()
    trainer.fit(3)
    assert_same(trainer, by_hand(3))
    with torch.no_grad():
        assert trainer.evaluate()["loss"] == float(F.mse_loss(trainer.model(X), Y))


def test_cut_batches_need_what_it_is_divided_by():
    with pytest.raises(ConfigError, match="loss_weight: missing: batches are cut"):
        make(microbatch_size=3).fit(1)
    trainer = make(microbatch_size=3)
    trainer.loss_weight = len
    trainer.fit(3)
    assert_same(trainer, by_hand(3), rtol=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_computes_the_loss_of_its_own_model(copied):
    trainer = make()
    trainer.fit(1)
    other = copied(trainer)
    other.fit(3)
    assert_same(trainer, by_hand(1))
    assert_same(other, by_hand(3))


@pytest.mark.long
def test_it_is_verified():
    trainer = make()
    assert verify(trainer, next(iter(trainer.loader))).holds


def test_its_curvature_is_that_of_the_loss_by_name():
    expected = curvature(make(compute_loss=None, loss="mse")).hessian.top(2).values
    assert torch.allclose(curvature(make()).hessian.top(2).values, expected, rtol=1e-8)


def test_a_subclass_has_one_of_its_own():
    class Own(Trainer):
        def compute_loss(self, batch):
            return squares(self, batch)

    with pytest.raises(ModelError, match=r"^compute_loss: Own has one of its own; leave one of"):
        Own(nn.Linear(3, 1), optimizer="adam", compute_loss=squares)


# ── minimise ────────────────────────────────────────────────────────────────────────────────


class Minimises(Trainer):
    def train_step(self, batch):
        return self.minimise(squares(self, batch))


def minimising(kind=Minimises, **options):
    trainer = make()
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    return kind(trainer.model, None, optimizer, trainer.loader, device="cpu", **options)


@pytest.mark.parametrize("norm", [None, 0.1])
def test_minimise_has_the_bits_of_the_plain_loop(norm):
    trainer = minimising(clip_grad_norm=norm)
    history = trainer.fit(3)
    assert_same(trainer, by_hand(3, norm))
    assert len(history.train_loss) == 3


def hooked(kind, model, ahead):
    """An optimizer, and what one of its hooks has noted: some hooks change what is stepped."""
    optimizer, noted = kind(model.parameters(), lr=0.1), []

    def shrink(*_):
        for parameter in model.parameters():
            parameter.grad.mul_(0.5)

    def decay(*_):
        noted.append(model[0].weight.sum().item())
        model[0].weight.data.mul_(0.9)

    optimizer.register_step_post_hook(decay)
    if ahead:
        optimizer.register_step_pre_hook(shrink)
    return optimizer, noted


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("ahead", [True, False])
def test_minimise_calls_the_hooks_of_an_optimizer_as_its_step_does(kind, ahead):
    model, theirs = make().model, make().model
    optimizer, noted = hooked(kind, model, ahead)
    Minimises(model, None, optimizer, make().loader, device="cpu").fit(2)
    optimizer, expected = hooked(kind, theirs, ahead)
    for x, y in 2 * [*zip(X.split(8), Y.split(8), strict=True)]:
        optimizer.zero_grad()
        F.mse_loss(theirs(x), y).backward()
        optimizer.step()
    assert noted == expected
    assert all(map(torch.equal, model.parameters(), theirs.parameters()))


def test_what_is_not_finite_makes_no_update():
    class Breaks(Trainer):
        def train_step(self, batch):
            factor = float("nan") if self.step == 4 else 1.0
            return self.minimise(factor * squares(self, batch))

    trainer = minimising(Breaks)
    with pytest.raises(NonFiniteError):
        trainer.fit(3)
    assert trainer.step == 4
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_name_that_no_optimizer_has():
    class Wrong(Trainer):
        def train_step(self, batch):
            return self.minimise(squares(self, batch), "critic")

    model = make().model
    optimizers = {
        "first": torch.optim.SGD(model[0].parameters(), lr=0.1),
        "last": torch.optim.SGD(model[2].parameters(), lr=0.1),
    }
    message = "minimise: 'critic' is no optimizer's name; it must be one of first, last"
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        Wrong(model, None, optimizers, make().loader, device="cpu").fit(1)
