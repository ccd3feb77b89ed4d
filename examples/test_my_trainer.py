"""What to test of a Trainer of your own, in seconds on a CPU: put yours in ``make``."""

import math

import pytest
import torch
from my_trainer import PenalizedTrainer, build_model

from gdtrain import MiniBatchLoader

# Seven samples in batches of three: the last batch is another, and 2 does not divide it.
UPDATES = 3


def make(**settings) -> PenalizedTrainer:
    """A trainer that is the same each time."""
    torch.manual_seed(0)
    model, draw = build_model().double(), torch.Generator().manual_seed(1)
    x = torch.randn(7, 3, generator=draw, dtype=torch.float64)
    y = x.sum(dim=1, keepdim=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = MiniBatchLoader((x, y), batch_size=3, seed=0)
    return PenalizedTrainer(model, None, optimizer, loader, device="cpu", **settings)


def weights(trainer: PenalizedTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_an_update_moves_every_weight() -> None:
    trainer = make()
    before = weights(trainer)
    trainer.fit(1)
    assert trainer.step == UPDATES
    for old, new in zip(before, weights(trainer), strict=True):
        assert not torch.equal(old, new)


def test_the_loss_is_finite_and_falls() -> None:
    history = make().fit(20)
    assert all(math.isfinite(loss) for loss in history.train_loss)
    assert history.train_loss[-1] < history.train_loss[0]


def test_a_resumed_run_ends_with_the_same_bits() -> None:
    whole, first, second = make(), make(), make()
    whole.fit(2)
    first.fit(1)
    second.load_state_dict(first.state_dict())
    second.fit(2)
    for expected, found in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("size", [1, 2])
def test_microbatches_give_the_same_weights(size: int) -> None:
    whole, cut = make(), make(microbatch_size=size)
    whole.fit(2)
    cut.fit(2)
    for expected, found in zip(weights(whole), weights(cut), strict=True):
        assert torch.allclose(expected, found, rtol=1e-10, atol=1e-12)
