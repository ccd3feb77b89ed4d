"""Per-sample gradient norms against closed forms, with and without torch.func."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gdtrain import BatchLoader, MiniBatchLoader, SampleGradients, Trainer
from gdtrain.analysis.sample_gradients import largest_sample_gradients, sample_gradient_norms


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
