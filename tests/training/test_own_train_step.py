"""A train_step of your own: what it leaves unused is refused, what it has made is counted."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer
from gdtrain.errors import ConfigError, ModelError, NonFiniteError

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def make(kind, loader=None, optimizer=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    loader = loader or MiniBatchLoader((X, Y), 4, order="sequential")
    return kind(model, None, optimizer(model.parameters(), lr=0.1), loader, device="cpu", **options)


class Bare(Trainer):
    """The hand-written step, which knows nothing of the trainer's settings."""

    def train_step(self, batch):
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.model(batch.inputs), batch.targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Looks(Callback):
    def on_before_update(self, trainer):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_grad_norm": 1.0}, "clip_grad_norm: Bare.train_step makes an update without it; "
         "call self.finish_gradient() before optimizer.step(), or leave the setting out"),
        ({"clip_grad_value": 1.0}, "clip_grad_value: Bare.train_step makes an update without it; "
         "call self.finish_gradient() before optimizer.step(), or leave the setting out"),
        ({"callbacks": [Looks()]}, "callbacks: Bare.train_step makes an update without it; "
         "call self.finish_gradient() before optimizer.step(), or leave the setting out"),
    ],
)  # fmt: skip
def test_a_setting_that_it_leaves_unused_is_refused_before_any_update(options, message) -> None:
    trainer = make(Bare, **options)
    before = trainer.model.weight.detach().clone()
    with pytest.raises(ConfigError) as caught:
        trainer.fit(1)
    assert str(caught.value) == message
    assert torch.equal(trainer.model.weight, before)
    assert trainer.progress.step == 0


def test_a_refusal_leaves_buffers_and_generators_as_they_were() -> None:
    trainer = make(Bare, clip_grad_norm=1.0)
    trainer.model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), trainer.model)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    drawn = torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"^clip_grad_norm: "):
        trainer.fit(1)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_refusal_leaves_the_numbers_that_an_optimizer_of_your_own_draws() -> None:
    class Drawing(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            drawn.append((np.random.random(), random.random()))
            super().zero_grad(set_to_none)

        def step(self, closure=None):
            return super().step(closure)

    drawn: list[tuple[float, float]] = []
    model = nn.Linear(3, 2)  # and one target: refused in the first pass
    loader = MiniBatchLoader((X, Y), 4)
    trainer = Trainer(model, nn.MSELoss(), Drawing(model.parameters(), lr=0.1), loader)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"^loss: output has shape"):
            trainer.fit(1)
    assert drawn[:2] == drawn[2:]  # each time for the pass, and as it is taken back


def test_a_refusal_leaves_weights_that_a_forward_pass_sets() -> None:
    class Bounded(nn.Linear):
        def forward(self, x):
            self.weight.data.renorm_(2, 0, 0.1)
            return super().forward(x)

    trainer = make(Bare, clip_grad_norm=1.0)
    trainer.model.__class__ = Bounded
    before = trainer.model.weight.detach().clone()
    for _ in range(2):
        with pytest.raises(ConfigError):
            trainer.fit(1)
        assert torch.equal(trainer.model.weight, before)


def test_microbatches_that_it_leaves_unused_are_refused() -> None:
    class Weighed(Bare):
        def loss_weight(self, batch):
            return len(batch)

    with pytest.raises(ConfigError, match=r"^microbatch_size: Weighed\.train_step makes an update"):
        make(Weighed, microbatch_size=2).fit(1)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_its_update_is_that_of_the_loop_by_hand(optimizer) -> None:
    trainer = make(Bare, optimizer=optimizer)
    history = trainer.fit(2)
    torch.manual_seed(0)
    hand = nn.Linear(3, 1)
    descent = optimizer(hand.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        for x, y in zip(X.split(4), Y.split(4), strict=True):
            descent.zero_grad()
            loss = F.mse_loss(hand(x), y)
            loss.backward()
            descent.step()
            losses.append(float(loss.detach()))
    assert torch.equal(trainer.model.weight, hand.weight)
    assert trainer.progress.step == 6
    assert history.train_loss[1] == pytest.approx(sum(losses[3:]) / 3, rel=1e-6)
    assert not trainer.optimizer._optimizer_step_post_hooks  # nothing of ours stays behind
    assert not trainer.optimizer._optimizer_step_pre_hooks


def test_one_that_calls_ours_is_clipped() -> None:
    class Calls(Trainer):
        def train_step(self, batch):
            return super().train_step(batch)

        def compute_loss(self, batch):
            return F.mse_loss(self.model(batch.inputs), batch.targets)

    trainer = make(Calls, BatchLoader((X, Y)), clip_grad_norm=0.01)
    before = trainer.model.weight.detach().clone(), trainer.model.bias.detach().clone()
    trainer.fit(1)
    moved = [p.detach() - b for p, b in zip(trainer.model.parameters(), before, strict=True)]
    length = torch.cat([part.flatten() for part in moved]).norm()
    assert float(length) == pytest.approx(0.1 * 0.01, rel=1e-3)


# ── errors ──────────────────────────────────────────────────────────────────────────────────


class FailsAfterItsUpdate(Bare):
    """Fails once in the moment after ``optimizer.step``."""

    fail_at = 2

    def train_step(self, batch):
        loss = super().train_step(batch)
        if self.progress.step == self.fail_at:
            self.fail_at = None
            raise RuntimeError("once")
        return loss


def test_an_update_is_counted_though_an_error_follows() -> None:
    trainer = make(FailsAfterItsUpdate)
    undisturbed = make(Bare)
    undisturbed.fit(2)
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(2)
    assert trainer.progress.step == 2
    trainer.fit(2)
    assert trainer.progress.step == 6
    assert torch.equal(trainer.model.weight, undisturbed.model.weight)


def test_an_update_is_counted_though_a_hook_of_the_optimizer_fails() -> None:
    class Plain(Trainer):
        def compute_loss(self, batch):
            return F.mse_loss(self.model(batch.inputs), batch.targets)

    trainer, undisturbed = make(Plain), make(Plain)
    undisturbed.fit(2)
    calls = []

    def hook(*_) -> None:
        calls.append(trainer.progress.step)
        if len(calls) == 2:
            raise RuntimeError("once")

    trainer.optimizer.register_step_post_hook(hook)
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(2)
    assert trainer.progress.step == 2
    trainer.fit(2)
    assert calls == [1, 2, 3, 4, 5, 6]
    assert torch.equal(trainer.model.weight, undisturbed.model.weight)


def test_updates_made_without_an_optimizer_are_counted() -> None:
    class ByHand(Trainer):
        def train_step(self, batch):
            self.model.zero_grad()
            loss = F.mse_loss(self.model(batch.inputs), batch.targets)
            loss.backward()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(parameter.grad, alpha=-0.1)
            return loss.detach()

    trainer, expected = make(ByHand), make(Bare)
    trainer.fit(2)
    expected.fit(2)
    assert trainer.progress.step == 6
    assert torch.equal(trainer.model.weight, expected.model.weight)


# ── losses that are not finite ──────────────────────────────────────────────────────────────


class TwoSteps(Trainer):
    """Steps twice a batch; the second gradient of the third batch is not finite."""

    def train_step(self, batch):
        for number in (1, 2):
            self.optimizer.zero_grad()
            loss = F.mse_loss(self.model(batch.inputs), batch.targets)
            if number == 2 and self.broken(batch):
                loss = loss * float("inf")
            loss.backward()
            self.optimizer.step()
        return loss.detach()

    def broken(self, batch):
        return int(batch.indices[0]) == 8


def test_what_a_step_before_has_changed_is_said_to_be_kept() -> None:
    trainer = make(TwoSteps)
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(1)
    assert (
        "TwoSteps.train_step had stepped the optimizer before that was seen, and what the step "
        "changed is kept"
    ) in str(caught.value)
    assert "in epoch 1, step 3, with lr 0.1, on samples 8, 9, 10, 11" in str(caught.value)
    assert trainer.progress.step == 3  # of the third batch, one step was made
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


def test_a_loss_that_is_not_finite_ends_the_run_though_its_gradient_is() -> None:
    class Overflows(Bare):
        def train_step(self, batch):
            return super().train_step(batch) + float("inf")

    trainer = make(Overflows)
    with pytest.raises(NonFiniteError, match=r"^loss is inf in epoch 1, step 1, .* is kept"):
        trainer.fit(1)
    assert trainer.progress.step == 1


def test_a_loss_that_is_not_finite_needs_no_compute_loss_to_be_explained() -> None:
    class Never(Bare):
        def train_step(self, batch):
            self.optimizer.zero_grad()
            loss = F.mse_loss(self.model(batch.inputs), batch.targets) * float("nan")
            loss.backward()
            self.optimizer.step()
            return loss.detach()

        def compute_loss(self, batch):
            raise AssertionError("nobody asked for it")

    trainer = make(Never)
    with pytest.raises(NonFiniteError, match="gradient of weight"):
        trainer.fit(1)
    assert trainer.progress.step == 0
