"""Per-sample gradient norms against closed forms, with and without torch.func."""

import logging
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleGradients, Trainer
from gdtrain.analysis.noise_scale import gradient_noise
from gdtrain.analysis.sample_gradients import largest_sample_gradients, sample_gradient_norms
from gdtrain.analysis.sharpness import largest_eigenvalue
from gdtrain.errors import ModelError


def data(n: int = 23) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=draw).double(), torch.randn(n, 1, generator=draw).double()


def trainer_of(model: nn.Module, loss: nn.Module, samples: tuple, **options) -> Trainer:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loader = MiniBatchLoader(samples, batch_size=7, order="reshuffle")
    return Trainer(model, loss, optimizer, loader, device="cpu", **options)


@pytest.mark.parametrize("microbatch_size", [None, 5])
def test_norms_of_least_squares_are_the_closed_form_by_index(microbatch_size) -> None:
    """∂/∂w (xᵀw + b - y)² = 2 e x and ∂/∂b = 2 e, so the norm is 2 |e| √(|x|² + 1)."""
    X, y = data()
    model = nn.Linear(4, 1).double()
    errors = (model(X) - y).detach()[:, 0]
    expected = 2 * errors.abs() * (X.square().sum(1) + 1).sqrt()
    trainer = trainer_of(model, nn.MSELoss(), (X, y), microbatch_size=microbatch_size)
    norms = sample_gradient_norms(trainer)
    assert torch.allclose(norms, expected, rtol=1e-12, atol=0)
    found = largest_sample_gradients(trainer, 3)
    assert found.indices.tolist() == np.argsort(-expected.numpy())[:3].tolist()
    assert torch.equal(found.norms, norms[found.indices])
    assert found.mean == pytest.approx(float(expected.mean()), rel=1e-12)
    assert len(largest_sample_gradients(trainer, 100).norms) == 23


def test_a_mislabelled_sample_is_found() -> None:
    X, _ = data(200)
    y = X.sum(1, keepdim=True)
    y[137] += 50
    model = nn.Linear(4, 1).double()
    trainer = trainer_of(model, nn.MSELoss(), (X, y))
    watch = SampleGradients(every_n_epochs=5, count=2)
    trainer.callbacks.append(watch)
    history = trainer.fit(10)
    assert [record["epoch"] for record in watch.records] == [5, 10]
    assert watch.records[-1]["largest_samples"][0] == 137
    assert watch.report()["largest_sample"] == 137
    assert history.largest_sample == [None] * 4 + [137] + [None] * 4 + [137]


class Branches(nn.Linear):
    """Looks at its data to decide, which vmap can't take."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > 0 else -x)


def test_a_model_that_torch_func_can_not_take_goes_one_by_one_with_a_note(caplog) -> None:
    X, y = data()
    model = Branches(4, 1).double()
    turned = torch.where(X.sum(1, keepdim=True) > 0, X, -X)
    errors = (nn.functional.linear(turned, model.weight, model.bias) - y).detach()[:, 0]
    expected = 2 * errors.abs() * (X.square().sum(1) + 1).sqrt()
    with caplog.at_level(logging.WARNING, "gdtrain"):
        norms = sample_gradient_norms(trainer_of(model, nn.MSELoss(), (X, y)))
    assert torch.allclose(norms, expected, rtol=1e-12, atol=0)
    (note,) = caplog.messages
    assert note.startswith(
        "per-sample gradients are computed one by one, which is slow: torch.func"
    )


def test_batch_norm_and_dropout_are_looked_at_in_eval_mode_without_a_trace() -> None:
    X, y = data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
    trainer = trainer_of(model.double(), nn.MSELoss(), (X, y))
    trainer.fit(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = [p.grad for p in model.parameters()]
    rng = torch.get_rng_state()
    norms = sample_gradient_norms(trainer)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(module.training for module in model.modules())
    model.eval()
    by_hand = []
    for i in range(len(X)):
        loss = nn.functional.mse_loss(model(X[i : i + 1]), y[i : i + 1])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        by_hand.append(torch.cat([p.flatten() for p in parts]).norm())
    assert torch.allclose(norms, torch.stack(by_hand), rtol=1e-12, atol=0)


def test_ignored_targets_have_no_gradient_and_weights_count() -> None:
    """With w̄ the mean weight, f_i = w_i / w̄ · l_i, and ignored ones are 0, not 0/0."""
    torch.manual_seed(0)
    X = data(9)[0]
    y = torch.tensor([0, 1, -100, 0, 1, 1, -100, 0, 1])
    weight = torch.tensor([1.0, 3.0]).double()
    model = nn.Linear(4, 2).double()
    loader = BatchLoader((X, y))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.CrossEntropyLoss(weight)
    trainer = Trainer(model, loss, optimizer, loader, device="cpu")
    norms = sample_gradient_norms(trainer)
    mean = (3 * 1.0 + 4 * 3.0) / 9
    probabilities = model(X).softmax(1).detach()
    for i, label in enumerate(y.tolist()):
        if label == -100:
            assert norms[i] == 0
            continue
        error = probabilities[i] - nn.functional.one_hot(torch.tensor(label), 2)
        outer = torch.cat([X[i], torch.ones(1).double()])
        expected = float(weight[label]) / mean * float(error.norm() * outer.norm())
        assert float(norms[i]) == pytest.approx(expected, rel=1e-12)


def test_one_sample() -> None:
    X, y = data(1)
    model = nn.Linear(4, 1).double()
    norms = sample_gradient_norms(trainer_of(model, nn.MSELoss(), (X, y)))
    assert norms.shape == (1,)


# ── losses of your own, and parameters of other kinds ──────────────────────────────────────────


def by_hand(model: nn.Module, loss, samples: tuple) -> Tensor:
    """The norm of the gradient of each sample alone."""
    norms = []
    for x, y in zip(*samples, strict=True):
        gradients = torch.autograd.grad(loss(model(x[None]), y[None]), list(model.parameters()))
        norms.append(math.sqrt(sum(float(g.abs().square().sum()) for g in gradients)))
    return torch.tensor(norms, dtype=torch.float64)


def test_a_mean_of_ones_own_has_sample_gradients() -> None:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return (output - targets).abs().pow(1.5).mean()

    model, samples = nn.Linear(4, 1).double(), data()
    norms = sample_gradient_norms(trainer_of(model, loss, samples))
    assert torch.allclose(norms, by_hand(model, loss, samples), rtol=1e-12, atol=0)


def ranking(output: Tensor, targets: Tensor) -> Tensor:
    gaps = (output - output.T) - (targets - targets.T)
    return gaps.square().sum() / max(1, len(output) * (len(output) - 1))


def weighted(output: Tensor, targets: Tensor) -> Tensor:
    weights = 1 + targets.abs()
    return (weights * (output - targets).square()).sum() / weights.sum()


@pytest.mark.parametrize("loss", [ranking, weighted])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_loss_that_is_no_mean_over_samples_is_refused(loss, batch_size: int) -> None:
    trainer = trainer_of(nn.Linear(4, 1).double(), loss, data())
    said = r"loss: is .* for 23 samples together, and .* as the mean of what it is for each"
    with pytest.raises(ModelError, match=said):
        sample_gradient_norms(trainer)
    with pytest.raises(ModelError, match=said):
        gradient_noise(trainer, batch_size=batch_size)


def test_an_own_weight_says_what_the_loss_is_divided_by() -> None:
    class Saying(Trainer):
        def loss_weight(self, batch):
            return (1 + batch.targets.abs()).sum()

    X, y = data()
    model = nn.Linear(4, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Saying(model, weighted, optimizer, MiniBatchLoader((X, y), 7), device="cpu")
    weights = (1 + y.abs())[:, 0]
    expected = by_hand(model, weighted, (X, y)) * weights / weights.mean()
    assert torch.allclose(sample_gradient_norms(trainer), expected, rtol=1e-12, atol=0)


class Complex(nn.Module):
    """A product with complex weights, whose real part is the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
        self.last = nn.Linear(3, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x.to(torch.complex128) @ self.weight).abs())


def test_complex_weights_count_as_two_real_ones() -> None:
    model, samples = Complex(), data()
    trainer = trainer_of(model, nn.MSELoss(), samples)
    norms = sample_gradient_norms(trainer)
    assert torch.allclose(norms, by_hand(model, nn.MSELoss(), samples), rtol=1e-12, atol=0)
    noise = gradient_noise(trainer)
    loss = nn.MSELoss()(model(samples[0]), samples[1])
    square = sum(
        float(g.abs().square().sum()) for g in torch.autograd.grad(loss, model.parameters())
    )
    assert noise.gradient_square == pytest.approx(square, rel=1e-10)
    trace = (float(norms.square().sum()) - 23 * square) / 22
    assert noise.covariance_trace == pytest.approx(trace, rel=1e-10)

    def real(parts: Tensor) -> Tensor:
        inner, rest = parts[:24].view(4, 3, 2), parts[24:]
        output = (samples[0].to(torch.complex128) @ torch.view_as_complex(inner)).abs()
        return nn.functional.mse_loss(output @ rest[:3, None] + rest[3], samples[1])

    flat = [
        torch.view_as_real(model.weight).flatten(),
        *(p.flatten() for p in model.last.parameters()),
    ]
    hessian = torch.autograd.functional.hessian(real, torch.cat(flat).detach())
    found = largest_eigenvalue(trainer)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)
