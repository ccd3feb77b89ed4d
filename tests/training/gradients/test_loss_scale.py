"""precision: fp16: the bits of a plain loop with torch.amp.GradScaler, skips are counted."""

import copy

import pytest
import torch
from helpers.paths import CONFIGS
from torch import nn
from torch.nn import functional as F

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.cli.main import main
from gdtrain.errors import ConfigError, NonFiniteError

X = torch.randn(22, 3, generator=torch.Generator().manual_seed(0))
Y = 40 * X.sum(1, keepdim=True)


def net():
    torch.manual_seed(0)
    layers = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)
    return nn.Sequential(*layers)


def make(*callbacks, kind=Trainer, optimizer=torch.optim.SGD, **options):
    model = net()
    made = optimizer(model.parameters(), lr=0.001)
    loader = MiniBatchLoader((X, Y), 6)
    options = {"device": "cpu", "precision": "fp16", "callbacks": callbacks, **options}
    return kind(model, nn.MSELoss(), made, loader, **options)


def by_hand(epochs, norm=None):
    """A plain loop with a GradScaler: the model, the scale, and the skips."""
    model, loader = net(), MiniBatchLoader((X, Y), 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    scaler, skipped = torch.amp.GradScaler("cpu"), 0
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = F.mse_loss(model(batch.inputs), batch.targets)
            scaler.scale(loss).backward()
            if norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), norm)
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
    return model, scaler.get_scale(), skipped


def assert_same(mine, theirs):
    for (name, one), other in zip(
        mine.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("norm", [None, 0.5])
def test_it_has_the_bits_of_the_plain_loop(norm):
    trainer = make(clip_grad_norm=norm)
    history = trainer.fit(4)
    model, scale, skipped = by_hand(4, norm)
    assert_same(trainer.model, model)
    assert float(trainer.loss_scale.scale) == scale
    assert trainer.progress.skipped == skipped >= 2  # at first the scale is too large
    assert trainer.step == 16 - skipped
    assert history[-1]["skipped"] == skipped
    assert trainer.progress.epoch == 4


class StopsAt(Callback):
    every_n_steps = 1

    def on_safe_point(self, trainer):
        if trainer.progress.epoch == 1:
            trainer.stop("here")


def test_a_run_that_is_resumed_ends_with_the_same_bits():
    whole = make()
    whole.fit(4)
    first, second = make(StopsAt()), make()
    first.fit(4)
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    second.fit(4)
    assert_same(second.model, whole.model)
    assert second.loss_scale.state_dict() == whole.loss_scale.state_dict()
    assert second.progress.skipped == whole.progress.skipped


def test_a_row_of_overflows_ends_the_fit_with_everything_else_as_it_was():
    class Breaks(Trainer):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            return loss * float("nan") if self.step == 5 else loss

    trainer = make(kind=Breaks)
    with pytest.raises(NonFiniteError, match="weights and optimizer are as they were before"):
        trainer.fit(40)
    assert trainer.step == 5
    assert trainer.loss_scale.in_a_row == 19


def test_the_command_ends_with_3(tmp_path):
    config, out = str(CONFIGS / "minibatch.yaml"), str(tmp_path / "run")
    settings = ["precision=fp16", "epochs=40", "optimizer.lr=1e30", "scheduler=null"]
    assert main(["--config", config, *settings, "--output-dir", out]) == 3


def test_parts_of_a_batch_are_scaled_alike():
    def trained(**options):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        loader = MiniBatchLoader((X / 10, Y / 4000), 6)  # small, so that nothing overflows
        trainer = Trainer(
            *(model, nn.MSELoss(), optimizer, loader), device="cpu", precision="fp16", **options
        )
        trainer.fit(3)
        assert trainer.progress.skipped == 0
        return model.weight

    assert torch.allclose(trained(microbatch_size=2), trained(), rtol=1e-2, atol=1e-4)


def test_a_train_step_of_ones_own_uses_the_scaled_gradient_or_is_refused():
    class Own(Trainer):
        def train_step(self, batch):
            loss = self.batch_gradient(batch)
            self.optimizer.step()
            return loss

    class Alone(Trainer):
        def train_step(self, batch):
            self.optimizer.zero_grad()
            loss = self.batch_loss(batch)
            loss.backward()
            self.optimizer.step()
            return loss.detach()

    trainer = make(kind=Own)
    trainer.fit(3)
    assert_same(trainer.model, by_hand(3)[0])
    with pytest.raises(ConfigError, match=r"precision: fp16: Alone.train_step makes"):
        make(kind=Alone).fit(1)
    with pytest.raises(ConfigError, match="precision: fp16 works without a closure"):
        make(optimizer=torch.optim.LBFGS)
