"""Sharpness, its limit and the landscape are those of the function that descent goes down."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtrain import (
    BatchLoader,
    GradientNorm,
    MiniBatchLoader,
    SampleLoader,
    SharpnessMonitor,
    Trainer,
)
from gdtrain.analysis.curvature.full_loss import Objective
from gdtrain.analysis.landscape import landscape
from gdtrain.analysis.lr_range import lr_range
from gdtrain.analysis.monitors.trajectory import WeightPath
from gdtrain.analysis.sharpness import Sharpness, largest_eigenvalue
from gdtrain.errors import ConfigError

ROWS = 12
draw = torch.Generator().manual_seed(0)
X = torch.randn(ROWS, 3, generator=draw).double()
Y = torch.randn(ROWS, 1, generator=draw).double()


def network(*beside: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), *beside, nn.Tanh(), nn.Linear(4, 1)).double()


def flat(parts: Any) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def eigenvalue(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> float:
    """The largest eigenvalue of the dense Hessian, on a copy of the model in its own modes."""
    model = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradient = flat(torch.autograd.grad(loss_of(model), parameters, create_graph=True))
    rows = [flat(torch.autograd.grad(g, parameters, retain_graph=True)) for g in gradient]
    return float(torch.linalg.eigvalsh(torch.stack(rows))[-1])


def trainer_of(model: nn.Module, loader: Any, loss: Any = None, kind: Any = Trainer, **options):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return kind(model, loss or nn.MSELoss(), optimizer, loader, device="cpu", **options)


def mean_square(model: nn.Module) -> Tensor:
    return F.mse_loss(model(X), Y)


def in_training(found: Sharpness) -> bool:
    """Whether it is of training mode; then, and only then, may be compared with the limit."""
    if found.training:
        assert found.no_limit is None
    return found.training


# ── layers that are another function in training mode ───────────────────────────────────────────


class OwnNorm(nn.Module):
    """Takes off the mean of a batch in training mode, and nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


class Frozen(nn.Module):
    """BatchNorm with statistics from elsewhere, in eval mode, and one that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.layers = nn.BatchNorm1d(3), network(nn.BatchNorm1d(4))
        self.frozen.double().requires_grad_(False).eval()
        self.frozen.running_mean.fill_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.frozen(x))


def scripted(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(layer)


NORMS = {
    "batch norm": lambda: network(nn.BatchNorm1d(4)),
    "untracked": lambda: network(nn.BatchNorm1d(4, track_running_stats=False)),
    "scripted": lambda: network(scripted(nn.BatchNorm1d(4))),
    "own": lambda: network(OwnNorm()),
    "frozen": Frozen,
}


@pytest.mark.few(3)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("after", ["training", "eval"])
def test_of_one_full_batch_it_is_that_of_training_mode(norm: str, after: str) -> None:
    model = NORMS[norm]()
    trainer = trainer_of(model, BatchLoader((X, Y), order="reshuffle"))
    trainer.fit(3)
    expected = eigenvalue(model, mean_square)
    kept = copy.deepcopy(model.state_dict())
    if after == "eval" and norm != "frozen":  # of all in eval mode, fit trains all
        model.eval()
    modes = [module.training for module in model.modules()]
    found = largest_eigenvalue(trainer)
    assert in_training(found)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert Objective(trainer, training=True).gradient().shape == (trainer_size(model),)


def trainer_size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_gradient_in_training_mode_is_that_of_the_next_update() -> None:
    model = network(nn.BatchNorm1d(4))
    trainer = trainer_of(model, BatchLoader((X, Y)))
    trainer.fit(3)
    found = Objective(trainer, training=True).gradient()
    assert float(found.norm()) == pytest.approx(
        GradientNorm().measure(trainer)["gradient_norm"], rel=1e-12
    )
    assert torch.allclose(found, gradient_of(model), rtol=1e-12, atol=1e-15)


def gradient_of(model: nn.Module) -> Tensor:
    model = copy.deepcopy(model)
    return flat(torch.autograd.grad(mean_square(model), list(model.parameters())))


@pytest.mark.few(5)
@pytest.mark.parametrize("norm", ["batch norm", "own", "frozen", "scripted"])
@pytest.mark.parametrize(
    ("loader", "options"),
    [
        (lambda: MiniBatchLoader((X, Y), 5), {}),
        (lambda: BatchLoader((X, Y)), {"microbatch_size": 5}),
        (lambda: BatchLoader((X, Y), order="replacement"), {}),
    ],
    ids=["mini-batches", "microbatches", "with repeats"],
)
def test_where_a_batch_is_a_part_there_is_no_such_function(
    norm: str, loader: Any, options: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, watch = NORMS[norm](), SharpnessMonitor(every_n_epochs=1)
    allowed = [name for name, _ in model.named_modules()] if options else []
    trainer = trainer_of(
        model, loader(), callbacks=[watch], microbatch_allow=allowed, engine="eager", **options
    )
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-3
    with caplog.at_level(logging.INFO, "gdtrain"):
        trainer.fit(2)
    found = largest_eigenvalue(trainer)
    assert not in_training(found)
    expected = eigenvalue(copy.deepcopy(model).eval(), mean_square)
    assert found.value == pytest.approx(expected, rel=1e-6)
    if norm == "own":
        assert "in training mode, and" in found.no_limit
    else:
        assert "(BatchNorm1d) is another function in training mode" in found.no_limit
    assert set(watch.report()) == {"sharpness"}
    (said,) = [text for text in caplog.messages if text.startswith("sharpness")]
    assert said.startswith("sharpness: in eval mode, which descent does not see: ")
    limits = lr_range(trainer, start=1e-4, stop=1e-2, updates=3)
    assert (limits.stability_limit, limits.no_limit) == (None, found.no_limit)
    assert limits.sharpness == pytest.approx(expected, rel=1e-6)


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.randn(x.shape, generator=self.generator).to(x)
        return x + 0.1 * drawn if self.training else x


@pytest.mark.parametrize("layer", [lambda: nn.Dropout(0.5), Drawing, OwnGenerator])
@pytest.mark.parametrize("form", [BatchLoader, lambda data: MiniBatchLoader(data, 5)])
def test_a_model_that_draws_has_no_such_function(layer: Any, form: Any) -> None:
    model = network(layer())
    trainer = trainer_of(model, form((X, Y)))
    trainer.fit(1)
    found = largest_eigenvalue(trainer)
    assert not in_training(found)
    assert found.no_limit is not None
    expected = eigenvalue(copy.deepcopy(model).eval(), mean_square)
    assert found.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", [BatchLoader, SampleLoader, lambda data: MiniBatchLoader(data, 5)])
@pytest.mark.parametrize("layer", [nn.Identity, lambda: nn.Dropout(0.0), lambda: nn.LayerNorm(4)])
def test_of_a_model_that_is_the_same_in_both_modes_there_is_a_limit(form: Any, layer: Any) -> None:
    model = network(layer())
    found = largest_eigenvalue(trainer_of(model, form((X, Y))))
    assert found.no_limit is None
    assert found.value == pytest.approx(eigenvalue(model, mean_square), rel=1e-6)


class RunningScale(nn.Module):
    """A squared error over its own running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        error = (output - targets).square().mean()
        if self.training:
            self.scale = 0.5 * self.scale + 0.5 * error.detach()
        return error / self.scale


def test_a_loss_with_a_state_is_looked_at_as_the_next_update_sees_it() -> None:
    model, loss = network(), RunningScale()
    trainer = trainer_of(model, BatchLoader((X, Y)), loss)
    trainer.fit(2)
    scale = 0.5 * loss.scale + 0.5 * mean_square(model).detach()
    found = largest_eigenvalue(trainer)
    assert in_training(found)
    assert found.value == pytest.approx(eigenvalue(model, mean_square) / float(scale), rel=1e-6)
    whole = trainer_of(model, MiniBatchLoader((X, Y), 5), loss)
    found = largest_eigenvalue(whole)
    assert not in_training(found)
    expected = eigenvalue(model, mean_square) / float(loss.scale)
    assert found.value == pytest.approx(expected, rel=1e-6)


# ── losses of which it is not known what they are divided by ────────────────────────────────────

MANY = 1500  # more than are looked at in a part
XS = torch.randn(MANY, 3, generator=draw).double()
YS = torch.randn(MANY, 1, generator=draw).double()


def ranking(output: Tensor, targets: Tensor) -> Tensor:
    """How far all pairs of samples are from the differences of their targets."""
    gaps = (output - output.T) - (targets - targets.T)
    return gaps.square().sum() / max(1, len(output) * (len(output) - 1))


def own(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).square().mean()


@pytest.mark.few(3)
@pytest.mark.parametrize("form", [BatchLoader, lambda data: MiniBatchLoader(data, 50)])
@pytest.mark.parametrize("loss", [ranking, own, partial(F.huber_loss, delta=0.5)])
def test_j_is_the_loss_of_all_samples_together(loss: Any, form: Any) -> None:
    model = nn.Linear(3, 1).double()
    trainer = trainer_of(model, form((XS, YS)), loss)
    expected = flat(torch.autograd.grad(loss(model(XS), YS), list(model.parameters())))
    found = Objective(trainer).gradient()
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)
    sharp = largest_eigenvalue(trainer)
    curvature = eigenvalue(model, lambda m: loss(m(XS), YS))
    assert sharp.value == pytest.approx(curvature, rel=1e-6)
    # Of mini-batches, a loss of pairs is not the mean of what is descended.
    assert (sharp.no_limit is None) == (loss is not ranking or form is BatchLoader)


def test_in_batches_j_is_the_mean_over_the_loaders_batches() -> None:
    model = nn.Linear(3, 1).double()
    loader = MiniBatchLoader((XS, YS), 400, seed=4)
    trainer = trainer_of(model, loader, ranking, evaluate_in="batches")
    rows = [loader.plan(0).batch_indices(number) for number in range(len(loader.plan(0)))]
    total = sum(len(r) * ranking(model(XS[r]), YS[r]) for r in rows) / MANY
    expected = flat(torch.autograd.grad(total, list(model.parameters())))
    assert torch.allclose(Objective(trainer).gradient(), expected, rtol=1e-10, atol=1e-14)
    assert trainer.evaluate()["loss"] == pytest.approx(float(total.detach()), rel=1e-10)


class Own(Trainer):
    """Weighs samples, and says by what."""

    def compute_loss(self, batch):
        weights = 1 + batch.inputs[:, :1].abs()
        error = (self.model(batch.inputs) - batch.targets).square()
        return (weights * error).sum() / weights.sum()


class Saying(Own):
    def loss_weight(self, batch):
        return (1 + batch.inputs[:, :1].abs()).sum()


@pytest.mark.parametrize("kind", [Own, Saying])
@pytest.mark.parametrize("form", [BatchLoader, lambda data: MiniBatchLoader(data, 50)])
def test_an_own_compute_loss_is_averaged_rightly(kind: Any, form: Any) -> None:
    model = nn.Linear(3, 1).double()
    trainer = trainer_of(model, form((XS, YS)), None, kind)
    weights = 1 + XS[:, :1].abs()
    loss = (weights * (model(XS) - YS).square()).sum() / weights.sum()
    expected = flat(torch.autograd.grad(loss, list(model.parameters())))
    assert torch.allclose(Objective(trainer).gradient(), expected, rtol=1e-10, atol=1e-14)


def test_what_does_not_fit_the_memory_is_refused() -> None:
    model = nn.Linear(3, 1).double()
    loader = MiniBatchLoader((XS, YS), 50)
    trainer = trainer_of(model, loader, ranking, memory_limit="10KB")
    with pytest.raises(ConfigError, match=r"memory_limit: the loss, .* needs all samples at once"):
        Objective(trainer).gradient()
    full = trainer_of(model, BatchLoader((XS, YS)), ranking, memory_limit="10KB")
    Objective(full).gradient()  # a batch of training is as large


# ── the landscape ───────────────────────────────────────────────────────────────────────────────


class InPlace(nn.Module):
    """Works in place on its input and its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x *= 2.0
        self.layer.weight.data = self.layer.weight.data.clamp(-0.5, 0.5)
        return self.layer(x)


class Layers(nn.Module):
    """A layer that the optimizer holds is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 2), nn.Linear(2, 1)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("form", [BatchLoader, lambda data: MiniBatchLoader(data, 5)])
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (lambda: network(nn.BatchNorm1d(4)), nn.MSELoss()),
        (lambda: InPlace().double(), nn.MSELoss()),
        (lambda: Layers().double(), nn.MSELoss()),
        (network, ranking),
    ],
    ids=["batch norm", "in place", "frozen layer", "ranking"],
)
def test_a_slice_has_the_losses_of_its_points(model: Any, loss: Any, form: Any) -> None:
    model = model()
    data = (X.clone(), Y.clone())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, loss, optimizer, form(data), device="cpu")
    trainer.fit(2)
    end = flat(p.detach() for p in model.parameters())
    points = torch.stack([end + shift for shift in (0.1, 0.3 * torch.rand(len(end)), 0.0)])
    path = WeightPath(torch.arange(3).numpy(), points.numpy(), False)
    kept = copy.deepcopy(model.state_dict())
    found = landscape(trainer, [path], resolution=3)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert torch.equal(data[0], X)
    hand = copy.deepcopy(model)
    if form is not BatchLoader:
        hand.eval()
    for row, y in enumerate(found.y):
        for column, x in enumerate(found.x):
            point = found.centre + x * found.directions[0] + y * found.directions[1]
            nn.utils.vector_to_parameters(point, hand.parameters())
            with torch.no_grad():
                expected = float(loss(hand(X.clone()), Y))
            assert found.losses[row, column] == pytest.approx(expected, rel=1e-9)
            assert math.isfinite(expected)
