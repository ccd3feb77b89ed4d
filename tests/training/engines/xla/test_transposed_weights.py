"""Weights of layers that read the batch are kept transposed by the engine scan, and others not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdtrain import MiniBatchLoader, Trainer

pytest.importorskip("jax")

N = 23
SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True, "dampening": 0.0},
    {"weight_decay": 0.01, "maximize": True},
]


class Penalized(nn.Module):
    """Reads its first weights beside the product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.last(self.first(x).relu()) + 1e-3 * self.first.weight.square().sum()


class Copying(nn.Module):
    """Keeps a copy of its weights from one pass for the next."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 32), nn.Linear(32, 3)
        self.register_buffer("before", torch.zeros(32, 5))

    def forward(self, x):
        y = self.last(self.first(x).relu() + F.linear(x, self.before).tanh())
        with torch.no_grad():
            self.before.copy_(self.first.weight)
        return y


class Shared(nn.Module):
    """Two of its layers have the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.last(self.first(x).relu() * F.linear(x.sin(), self.first.weight))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def fitted(make, engine, dtype, settings, **options) -> Trainer:
    torch.manual_seed(4)
    model = make().to(dtype)
    X = torch.randn(N, 5, dtype=dtype)
    loader = MiniBatchLoader((X, X[:, :3].sin()), 4, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, **settings)
    precision = {torch.float32: "fp32", torch.float64: "fp64"}[dtype]
    trainer = Trainer(
        model,
        nn.MSELoss(),
        optimizer,
        loader,
        device="cpu",
        engine=engine,
        precision=precision,
        **options,
    )
    trainer.fit(3)
    return trainer


def transposed(trainer: Trainer) -> set[int]:
    """The places of what the step needs transposed alone: parameters, buffers, momenta."""
    captured = next(iter(trainer.engine._step._captured.values()))
    return {place for place, is_so in enumerate(captured.outline.transposed) if is_so}


@pytest.mark.few(1)
@pytest.mark.parametrize("settings", SGD)
def test_the_first_layer_is_kept_transposed_with_its_momentum(settings) -> None:
    trainer = fitted(perceptron, "scan", torch.float64, settings)
    assert transposed(trainer) == ({0, 6} if "momentum" in settings else {0})


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (Shared, {}, set()),
        (Penalized, {}, set()),
        (Copying, {}, set()),
        (perceptron, {"clip_grad_norm": 0.1}, set()),
        (perceptron, {"clip_grad_value": 0.1}, set()),
    ],
)
def test_weights_that_are_read_otherwise_stay_as_they_are(make, options, expected) -> None:
    assert transposed(fitted(make, "scan", torch.float64, {}, **options)) == expected


@pytest.mark.few(3)
@pytest.mark.parametrize("settings", SGD)
@pytest.mark.parametrize("make", [perceptron, Penalized, Copying, Shared])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_weights_are_those_of_eager(make, settings, dtype, bound) -> None:
    ours, eager = (fitted(make, engine, dtype, settings) for engine in ("scan", "eager"))
    assert ours.history.train_loss == pytest.approx(eager.history.train_loss, rel=bound)
    for after, expected in zip(
        ours.model.state_dict().values(), eager.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(after, expected, rtol=bound, atol=bound)


def test_loops_have_the_transposes() -> None:
    trainer = fitted(perceptron, "scan", torch.float32, {"momentum": 0.9})
    (program, *_) = trainer.engine._step._programs._programs.values()
    loops = [line for line in program._compiled.as_text().splitlines() if " while(" in line]
    assert loops
    assert all("f32[5,32]" in line and "f32[32,5]" not in line for line in loops)
