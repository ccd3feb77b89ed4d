"""Models that send samples on different ways: a part of a batch may meet no trained parameter."""

import copy

import pytest
import torch
from helpers.thread_ranks import on_threads
from torch import Tensor, nn
from torch.nn import functional as F

import gdtrain
from gdtrain import MiniBatchLoader, Trainer
from gdtrain.analysis.noise_scale import gradient_noise
from gdtrain.analysis.sample_gradients import sample_gradient_norms
from gdtrain.errors import ModelError

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
X = X[X[:, 0].argsort()]  # the first samples go past the body, in batches and in shares of them
Y = X.square().sum(1, keepdim=True)


class Routed(nn.Module):
    """Its body takes the samples with x_0 > 0 only; its head, which takes all, is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 3).double(), nn.Linear(3, 1).double()
        self.head.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, 0] > 0
        if not chosen.any():
            return self.head(x)
        return self.head(x.masked_scatter(chosen[:, None], torch.tanh(self.body(x[chosen]))))


def relative_error(output: Tensor, targets: Tensor) -> Tensor:
    """Of all samples together, so that it takes two passes over a batch that is cut."""
    return (output - targets).square().sum() / targets.square().sum()


LOSSES = {"one pass": F.mse_loss, "two passes": relative_error}


def plain(model: nn.Module, loss, size: int, epochs: int = 2) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for _ in range(epochs):
        for x, y in zip(X.split(size), Y.split(size), strict=True):
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return losses


def trainer_of(model: nn.Module, loss, size: int, **options) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = MiniBatchLoader((X, Y), size, order="sequential")
    return Trainer(model, loss, optimizer, loader, device="cpu", **options)


def assert_alike(model: nn.Module, expected: nn.Module) -> None:
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("accumulate", [{}, {"accumulate_in": "fp64"}])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("loss", LOSSES)
def test_in_microbatches(loss, size, accumulate) -> None:
    model, expected = Routed(), Routed()
    trainer = trainer_of(model, LOSSES[loss], 12, microbatch_size=size, **accumulate)
    history = trainer.fit(2)
    losses = plain(expected, LOSSES[loss], 12)
    assert_alike(model, expected)
    assert history.train_loss == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_on_ranks_of_which_some_have_none(loss, ranks) -> None:
    def job(world) -> nn.Module:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        trainer.fit(2)
        return trainer.model

    trainers, expected = [trainer_of(Routed(), LOSSES[loss], 12) for _ in range(ranks)], Routed()
    plain(expected, LOSSES[loss], 12)
    for model in on_threads(ranks, job):
        assert_alike(model, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_that_has_none_at_all_is_refused(loss) -> None:
    """As a whole, in microbatches, and by all ranks, before the update."""
    for options in ({}, {"microbatch_size": 1}):
        model = Routed()
        before = copy.deepcopy(model)
        with pytest.raises(ModelError, match="loss: has no gradient"):
            trainer_of(model, LOSSES[loss], 3, **options).fit(1)
        assert_alike(model, before)

    def job(world) -> str:
        trainer = trainers[world.rank]
        trainer.world = trainer.microbatches.world = world
        with pytest.raises(ModelError) as caught:
            trainer.fit(1)
        return str(caught.value)

    trainers = [trainer_of(Routed(), LOSSES[loss], 3) for _ in range(2)]
    assert all("loss: has no gradient" in text for text in on_threads(2, job))


# ── what is asked of the gradients of samples and groups ────────────────────────────────────


def gradients_by_hand(size: int) -> Tensor:
    """Of each group of so many samples, [groups, numbers]; zeros where nothing has one."""
    model, rows = Routed(), []
    for x, y in zip(X.split(size), Y.split(size), strict=True):
        loss = F.mse_loss(model(x), y)
        parts = list(model.body.parameters())
        found = (
            torch.autograd.grad(loss, parts) if loss.requires_grad else map(torch.zeros_like, parts)
        )
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


def test_the_norms_of_samples_of_which_some_have_no_gradient() -> None:
    found = sample_gradient_norms(trainer_of(Routed(), nn.MSELoss(), 12))
    expected = gradients_by_hand(1).norm(dim=1)
    assert not expected[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_the_noise_of_groups_of_which_some_have_no_gradient() -> None:
    """tr Σ = 1/(K - 1) Σ B |g_k - ḡ|² of K groups of B; that of the draws' own groups of one."""
    found = gradient_noise(trainer_of(Routed(), nn.MSELoss(), 12))
    rows = gradients_by_hand(1)
    trace = (rows - rows.mean(0)).square().sum() / (len(rows) - 1)
    assert found.covariance_trace == pytest.approx(trace.item(), rel=1e-12)
    assert gradient_noise(trainer_of(Routed(), nn.MSELoss(), 12), batch_size=2).covariance_trace > 0


def test_the_hessian_in_parts_of_which_some_have_no_gradient() -> None:
    alone, cut = (
        gdtrain.curvature(trainer_of(Routed(), nn.MSELoss(), 12, **options))
        for options in ({}, {"microbatch_size": 1})
    )
    for name in ("hessian", "gauss_newton"):
        whole, parts = getattr(alone, name).dense(), getattr(cut, name).dense()
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
