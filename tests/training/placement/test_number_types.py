"""Numbers of any type: default dtypes, half precision, complex, tensors and numpy for settings."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import BatchLoader, Callback, MiniBatchLoader, Trainer

SGD, Adam = torch.optim.SGD, torch.optim.Adam


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def default(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def data(dtype=None, rows=20):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 3, generator=draw, dtype=torch.float32)
    return x.to(dtype or torch.get_default_dtype()), x.sum(1, keepdim=True).to(
        dtype or torch.get_default_dtype()
    )


def net(dtype=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def by_hand(model, optimizer, samples, clip=None, size=5, epochs=3):
    losses = []
    for _ in range(epochs):
        for inputs, targets in zip(*(part.split(size) for part in samples), strict=True):
            loss = F.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def by_gdtrain(model, optimizer, samples, clip=None, size=5, epochs=3, **options):
    return Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        MiniBatchLoader(samples, size, order="sequential"),
        device="cpu",
        clip_grad_norm=clip,
        **options,
    ).fit(epochs)


def assert_same(one, other):
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert p.dtype == q.dtype
        assert torch.equal(p, q)


OPTIMIZERS = {
    "plain": (SGD, {"lr": 0.05}, None),
    "momentum": (SGD, {"lr": 0.05, "momentum": 0.9}, None),
    "nesterov": (SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, None),
    "clip": (SGD, {"lr": 0.05}, 0.5),
    "adam": (Adam, {"lr": 0.01}, None),
}
optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


@optimizers
def test_default_dtype(default, name):
    """Under any default dtype a run has the bits of the hand-written loop."""
    kind, options, clip = OPTIMIZERS[name]
    hand, model = net(), net()
    by_hand(hand, kind(hand.parameters(), **options), data(), clip)
    by_gdtrain(model, kind(model.parameters(), **options), data(), clip)
    assert next(model.parameters()).dtype == default
    assert_same(model, hand)


@optimizers
def test_default_dtype_with_a_model_of_another(default, name):
    """A float32 model trains under another default dtype as it does under its own."""
    kind, options, clip = OPTIMIZERS[name]
    samples = data(torch.float32)
    hand, model = net(torch.float32), net(torch.float32)
    by_hand(hand, kind(hand.parameters(), **options), samples, clip)
    by_gdtrain(model, kind(model.parameters(), **options), samples, clip)
    assert_same(model, hand)


@optimizers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision(dtype, name):
    """Parameters in 16 bits end with the bits of the hand-written loop, under any optimizer."""
    kind, options, clip = OPTIMIZERS[name]
    hand, model = net(dtype), net(dtype)
    by_hand(hand, kind(hand.parameters(), **options), data(dtype), clip)
    by_gdtrain(model, kind(model.parameters(), **options), data(dtype), clip)
    assert_same(model, hand)


class Wave(nn.Module):
    """The modulus of a complex linear form."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x):
        return (x.real * self.w).sum(1, keepdim=True).abs()


@pytest.mark.filterwarnings("ignore:Complex modules")
@optimizers
def test_complex_parameters(name):
    """Complex parameters and real targets: the bits of the hand-written loop."""
    kind, options, clip = OPTIMIZERS[name]
    hand, model = Wave(), Wave()
    x, y = data()
    by_hand(hand, kind(hand.parameters(), **options), (x, y.abs()), clip)
    by_gdtrain(model, kind(model.parameters(), **options), (x, y.abs()), clip)
    assert_same(model, hand)


# ── learning rates ──────────────────────────────────────────────────────────────────────────────


LRS = {
    "tensor": lambda: torch.tensor(0.1),
    "numpy float64": lambda: np.float64(0.1),
    "numpy float32": lambda: np.float32(0.1),
    "int": lambda: 1,
}


def halving(lr):
    model = net()
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.5)
    return Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        BatchLoader(data()),
        device="cpu",
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    )


@pytest.mark.parametrize("kind", LRS)
def test_learning_rate_of_another_type(kind):
    """history.lr has each epoch's own number, whatever type the learning rate is of."""
    trainer = halving(LRS[kind]())
    first = 1.0 if kind == "int" else 0.1
    expected = [first, first / 2, first / 4, first / 8]
    lr = trainer.fit(4).lr
    assert [float(value) for value in lr] == pytest.approx(expected, rel=1e-6)
    assert all(isinstance(value, float | int) for value in lr)


@pytest.mark.parametrize("kind", LRS)
def test_snapshot_with_a_learning_rate_of_another_type(kind):
    """A snapshot goes on with the same bits, whatever type the learning rate is of."""
    alone = halving(LRS[kind]())
    alone.fit(2)
    snapshot = alone.state_dict()
    alone.fit(4)
    restored = halving(LRS[kind]())
    restored.load_state_dict(snapshot)
    restored.fit(4)
    assert_same(restored.model, alone.model)
    assert restored.history.lr == pytest.approx(alone.history.lr, rel=1e-12)


# ── gradients ───────────────────────────────────────────────────────────────────────────────────


class Embedded(nn.Module):
    """Has a sparse gradient, and in some batches a dense one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(5, 2))

    def forward(self, i):
        out = F.embedding(i[:, 0], self.w, sparse=True).sum(1, keepdim=True)
        return out + (self.w.sum() if bool((i < 2).all()) else 0)


@pytest.mark.parametrize("rows", [[[0, 1, 0, 1], [3, 4, 3, 4]], [[3, 4, 3, 4], [0, 1, 0, 1]]])
def test_gradients_sparse_in_some_batches(rows):
    """Sparse and dense gradients may take turns: the weights are those of the loop by hand."""
    samples = torch.tensor(rows).reshape(8, 1), data(rows=8)[1]
    hand, model = Embedded(), Embedded()
    by_hand(hand, SGD(hand.parameters(), lr=0.1), samples, size=4, epochs=8)
    by_gdtrain(model, SGD(model.parameters(), lr=0.1), samples, size=4, epochs=8)
    assert torch.allclose(model.w, hand.w, rtol=1e-6)


class Perturbed(Trainer):
    """Moves its inputs by the sign of a gradient that it takes by a backward pass of its own."""

    def compute_loss(self, batch):
        x = batch.inputs.detach().clone().requires_grad_(True)
        F.mse_loss(self.model(x), batch.targets).backward()
        return F.mse_loss(self.model(x.detach() + 0.1 * x.grad.sign()), batch.targets)


class Look(Callback):
    def on_before_update(self, trainer):
        pass


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_backward_in_compute_loss(optimizer):
    """A backward pass in compute_loss does the same to an update however updates are made."""
    x, y = data()

    def hand(zero_first):
        model = net()
        descent = optimizer(model.parameters(), lr=0.05)
        for _ in range(3):
            if zero_first:
                descent.zero_grad()
            moved = x.clone().requires_grad_(True)
            F.mse_loss(model(moved), y).backward()
            loss = F.mse_loss(model(moved.detach() + 0.1 * moved.grad.sign()), y)
            if not zero_first:
                descent.zero_grad()
            loss.backward()
            descent.step()
        return model

    def run(**options):
        model = net()
        descent = optimizer(model.parameters(), lr=0.05)
        Perturbed(model, None, descent, BatchLoader((x, y)), device="cpu", **options).fit(3)
        return model

    plain = run()
    for options in ({"clip_grad_norm": 1e30}, {"callbacks": [Look()]}):
        assert_same(run(**options), plain)
    assert any(
        all(torch.equal(p, q) for p, q in zip(plain.parameters(), each.parameters(), strict=True))
        for each in (hand(True), hand(False))
    )


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_lazy_layers(optimizer):
    """Layers that learn their width from the first batch train as by hand."""

    def lazy():
        torch.manual_seed(0)
        return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(1))

    hand, model = lazy(), lazy()
    torch.manual_seed(1)
    by_hand(hand, optimizer(hand.parameters(), lr=0.01), data())
    torch.manual_seed(1)
    by_gdtrain(model, optimizer(model.parameters(), lr=0.01), data())
    assert_same(model, hand)


def test_data_keep_their_dtype_when_layers_of_another_are_trained_alone() -> None:
    """A model may mix dtypes; the plain loop casts nothing when its first layer is frozen."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1).to(torch.bfloat16)
            self.seen: list[torch.dtype] = []

        def forward(self, x):
            self.seen.append(x.dtype)
            return self.second(self.first(x).bfloat16()).float()

    class Freeze(Callback):
        def on_epoch_end(self, trainer, record):
            trainer.model.first.requires_grad_(record["epoch"] % 2 == 0)

    model = Mixed()
    X = torch.randn(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((X, X[:, :1]), 4)
    Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=[Freeze()]).fit(4)
    assert set(model.seen) == {torch.float32}
