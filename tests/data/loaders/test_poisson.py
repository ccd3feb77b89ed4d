"""Poisson sampling: each sample is in each batch with one probability, independently."""

import math

import pytest
import torch
from torch import nn

from gdtrain import PoissonLoader, Trainer
from gdtrain.errors import ConfigError

X = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))


def test_an_epoch_depends_on_seed_and_epoch_alone():
    one, other = PoissonLoader(X, 0.1, seed=3), PoissonLoader(X, 0.1, seed=3)
    assert [b.tolist() for b in map(one.plan(2).batch_indices, range(3))] == [
        b.tolist() for b in map(other.plan(2).batch_indices, range(3))
    ]
    assert one.plan(0) != one.plan(1)


def test_no_batch_has_a_sample_twice_and_none_is_empty():
    loader = PoissonLoader(X, 0.004)
    for epoch in range(20):
        plan = loader.plan(epoch)
        for number in range(len(plan)):
            rows = plan.batch_indices(number)
            assert len(rows) >= 1
            assert len(rows.unique()) == len(rows)


@pytest.mark.parametrize("rate", [0.02, 0.3, 1.0])
def test_inclusions_are_independent_and_of_the_rate(rate):
    """Counts of samples, of batch sizes and of pairs, within 5 standard errors of theirs."""
    n, draws = 50, 4000
    plan = PoissonLoader(X[:n], rate, draws=draws).plan(0)
    there = torch.zeros(draws, n)
    for number in range(len(plan)):
        there[number, plan.batch_indices(number)] = 1
    error = 5 * math.sqrt(rate * (1 - rate) / draws) + 1e-9
    assert (there.mean(0) - rate).abs().max() <= error
    sizes = there.sum(1)
    assert (
        abs(float(sizes.mean()) - n * rate) <= 5 * math.sqrt(n * rate * (1 - rate) / draws) + 1e-9
    )
    variance = n * rate * (1 - rate)
    assert abs(float(sizes.var()) - variance) <= 5 * variance * math.sqrt(2 / draws) + 0.05
    pairs = (there[:, :-1] * there[:, 1:]).mean()
    assert abs(float(pairs) - rate**2) <= 5 * math.sqrt(rate**2 / (draws * (n - 1))) + 1e-9


def test_a_run_trains_on_them():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = PoissonLoader((X, X[:, :1]), 0.05)
    trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")
    history = trainer.fit(5)
    assert history.train_loss[-1] < history.train_loss[0]
    assert trainer.step == loader.updates(5) == sum(len(loader.plan(e)) for e in range(5))


@pytest.mark.parametrize("rate", [0, 1.5, -1, "0.1"])
def test_a_rate_is_over_0_and_at_most_1(rate):
    with pytest.raises(ConfigError, match="rate: must be > 0 and <= 1, got "):
        PoissonLoader(X, rate)
