"""Batches by a budget of tokens: padded, none is over it, and none could have another sample."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from gdtrain import TokenBudgetLoader, Trainer, Weighted
from gdtrain.errors import ConfigError

LENGTHS = torch.randint(1, 20, (101,), generator=torch.Generator().manual_seed(0))


class Sequences(Dataset):
    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, row):
        return torch.full((int(LENGTHS[row]),), row % 7), torch.tensor([float(row % 2)])


def padded(samples):
    return pad_sequence([x for x, _ in samples], True), torch.stack([y for _, y in samples])


@pytest.mark.parametrize("order", ["reshuffle", "sequential", Weighted(LENGTHS)], ids=str)
def test_batches_fill_the_budget_and_stay_within_it(order):
    loader = TokenBudgetLoader(Sequences(), LENGTHS, 64, order=order, collate_fn=padded)
    batches = list(loader)
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        assert batch.inputs.numel() <= 64
        assert batch.inputs.shape[1] == LENGTHS[batch.indices].max()
        if following is not None:  # the next sample would not have fitted
            longest = max(batch.inputs.shape[1], int(LENGTHS[following.indices[0]]))
            assert (len(batch) + 1) * longest > 64
    seen = torch.cat([batch.indices for batch in batches])
    assert len(seen) == 101
    if isinstance(order, str):
        assert torch.equal(seen.sort().values, torch.arange(101))


def test_a_run_trains_on_them():
    model = nn.Sequential(nn.EmbeddingBag(7, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = TokenBudgetLoader(Sequences(), LENGTHS, 64, collate_fn=padded)
    trainer = Trainer(model, nn.BCEWithLogitsLoss(), optimizer, loader, device="cpu")
    trainer.fit(2)
    assert trainer.progress.samples == 202
    assert trainer.step == loader.updates(2)


@pytest.mark.parametrize(
    ("lengths", "tokens", "message"),
    [
        (LENGTHS[:5], 64, "lengths: must be 101 whole numbers, one for each sample; got "),
        (LENGTHS.float(), 64, "lengths: must be 101 whole numbers, one for each sample; got "),
        (LENGTHS, 10, r"lengths: that of sample \d+ is \d+, which is over tokens=10"),
        (LENGTHS - LENGTHS.min(), 64, r"lengths: that of sample \d+ is 0, which is < 1"),
        (LENGTHS, 0, "tokens: must be >= 1, got 0"),
    ],
)
def test_lengths_and_budgets_that_do_not_fit(lengths, tokens, message):
    with pytest.raises(ConfigError, match=message):
        TokenBudgetLoader(Sequences(), lengths, tokens)


def test_a_callable_order_is_refused():
    with pytest.raises(ConfigError, match="order: must not be a callable or a sampler here"):
        TokenBudgetLoader(Sequences(), LENGTHS, 64, order=lambda epoch: range(101))
