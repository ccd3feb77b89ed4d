"""The order by weights: its frequencies, its independence of everything but seed and epoch."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from gdtrain import MiniBatchLoader, Trainer, Weighted
from gdtrain.errors import CheckpointError, ConfigError

WEIGHTS = [1.0, 0.0, 3.0, 2.0, 4.0]
CHI_SQUARE = {3: 16.27, 11: 31.26, 15: 37.70}  # 0.999 quantiles, by degrees of freedom


def drawn(order: Weighted, seed: int = 0, epoch: int = 0) -> list[int]:
    plan = MiniBatchLoader(torch.arange(len(order.weights)), 1, order=order, seed=seed).plan(epoch)
    assert isinstance(plan.indices, torch.Tensor)
    assert plan.indices.dtype == torch.int64
    return plan.indices.tolist()


def chi_square(found: Counter[Any], expected: dict[Any, float]) -> float:
    assert set(found) <= set(expected)
    return sum((found[key] - mean) ** 2 / mean for key, mean in expected.items())


def test_draws_are_in_proportion_to_the_weights() -> None:
    found = Counter(drawn(Weighted(WEIGHTS, draws=50_000)))
    shares = {i: 50_000 * w / 10 for i, w in enumerate(WEIGHTS) if w}
    assert chi_square(found, shares) < CHI_SQUARE[3]


def test_draws_are_independent_in_sequence_and_over_epochs() -> None:
    pairs: Counter[tuple[int, int]] = Counter()
    for epoch in range(2000):
        now, later = drawn(Weighted(WEIGHTS), epoch=epoch), drawn(Weighted(WEIGHTS), 1, epoch)
        pairs.update([(now[0], now[1]), (now[2], later[2])])
    held = [i for i, w in enumerate(WEIGHTS) if w]
    expected = {(i, j): 4000 * WEIGHTS[i] * WEIGHTS[j] / 100 for i in held for j in held}
    assert chi_square(pairs, expected) < CHI_SQUARE[15]


def test_without_replacement_each_draw_is_in_proportion_to_what_is_left() -> None:
    order = Weighted(WEIGHTS, replacement=False)
    assert sorted(drawn(order)) == [0, 2, 3, 4]
    found = Counter(tuple(drawn(order, epoch=epoch)[:2]) for epoch in range(8_000))
    held = [i for i, w in enumerate(WEIGHTS) if w]
    expected = {
        (i, j): 8_000 * WEIGHTS[i] / 10 * WEIGHTS[j] / (10 - WEIGHTS[i])
        for i in held
        for j in held
        if i != j
    }
    assert chi_square(found, expected) < CHI_SQUARE[11]


def test_a_share_of_the_samples_without_replacement() -> None:
    rows = drawn(Weighted(torch.ones(100), replacement=False, draws=30))
    assert len(set(rows)) == len(rows) == 30


def test_weights_over_many_orders_of_magnitude() -> None:
    weights = [1e-300, 1.0, 1e300]
    assert set(drawn(Weighted(weights, draws=1000))) == {2}
    assert drawn(Weighted(weights, replacement=False)) == [2, 1, 0]


def test_more_samples_than_torchs_multinomial_takes() -> None:
    n = (1 << 24) + 5
    weights = torch.zeros(n)
    weights[[3, n - 1]] = torch.tensor([1.0, 3.0])
    found = Counter(Weighted(weights, draws=4000).draw(torch.Generator().manual_seed(0)).tolist())
    assert set(found) == {3, n - 1}
    assert abs(found[3] - 1000) < 3.29 * math.sqrt(750)


@pytest.mark.parametrize("replacement", [True, False])
def test_seed_and_epoch_alone_decide(replacement: bool) -> None:
    order = Weighted(torch.rand(50) + 0.1, replacement=replacement)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = drawn(order, 3, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert drawn(order, 3, 4) == first
    assert drawn(order, 3, 5) != first
    assert drawn(order, 4, 4) != first


@pytest.mark.parametrize("make", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_is_the_same_order(make: Any) -> None:
    order = Weighted(WEIGHTS)
    assert drawn(make(order)) == drawn(order)


def test_weights_are_copied() -> None:
    own = np.array([1.0, 1.0])
    order = Weighted(own, draws=20)
    own[0] = 0.0
    assert set(drawn(order)) == {0, 1}


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> Any:
        return torch.full((2,), float(i)), torch.ones(1)


def test_a_loader_counts_the_draws() -> None:
    for data in (torch.zeros(5, 2), Rows()):
        loader = MiniBatchLoader(data, 4, order=Weighted(WEIGHTS, draws=13))
        assert len(loader) == 4
        assert [len(batch) for batch in loader] == [4, 4, 4, 1]


def trained(epochs: int, order: Weighted, state: Any = None) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    loader = MiniBatchLoader(Rows(), 2, order=order, seed=1)
    trainer = Trainer(
        model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.01), loader, device="cpu"
    )
    if state is not None:
        trainer.load_state_dict(state)
    trainer.fit(epochs)
    return trainer


def test_a_run_resumes_with_the_same_weights_alone() -> None:
    order = Weighted(WEIGHTS)
    half, alone = trained(2, order), trained(4, order)
    resumed = trained(4, Weighted(torch.tensor(WEIGHTS)), half.state_dict())
    assert torch.equal(resumed.model.weight, alone.model.weight)
    with pytest.raises(CheckpointError, match="the data or loader is another: order 5 draws with"):
        trained(4, Weighted(WEIGHTS[::-1]), half.state_dict())


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([], {}, "weights: must be one non-empty row of numbers, got shape [0]"),
        ([[1.0]], {}, "weights: must be one non-empty row of numbers, got shape [1, 1]"),
        (["a"], {}, "weights: must be one row of numbers; these make none"),
        ([1.0, -1.0], {}, "weights: must be finite and >= 0; that of sample 1 is -1"),
        ([math.nan, 1.0], {}, "weights: must be finite and >= 0; that of sample 0 is nan"),
        ([math.inf], {}, "weights: must be finite and >= 0; that of sample 0 is inf"),
        ([0.0, 0.0], {}, "weights: must have a finite sum > 0"),
        ([1.7e308, 1.7e308], {}, "weights: must have a finite sum > 0"),
        ([1.0], {"draws": 0}, "draws: must be >= 1, got 0"),
        (
            WEIGHTS,
            {"replacement": False, "draws": 5},
            "draws: must be <= 4, the samples of weight > 0, without replacement; got 5",
        ),
    ],
)
def test_what_are_no_weights_is_refused(weights: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Weighted(weights, **options)


def test_weights_of_another_data_set_are_refused() -> None:
    said = "order: 5 weights for 6 samples; give one for each"
    with pytest.raises(ConfigError, match=f"^{said}$"):
        MiniBatchLoader(torch.zeros(6), 2, order=Weighted(WEIGHTS))


@pytest.mark.parametrize(
    "labels",
    [[0] * 90 + [7] * 10, torch.tensor([[0.0]] * 90 + [[7.0]] * 10)],
    ids=["a list", "a column of floats"],
)
def test_classes_come_alike_often(labels):
    order = Weighted.balanced(labels, draws=4000)
    rows = order.checked(100).draw(torch.Generator().manual_seed(0))
    assert abs(int((rows >= 90).sum()) - 2000) < 5 * 1000**0.5
    by_class = torch.bincount(rows, minlength=100).double()
    assert by_class[:90].std() < 3 * (2000 / 90) ** 0.5


def test_a_loader_balances_its_own_targets_by_name():
    X, y = torch.zeros(100, 1), torch.tensor([0] * 90 + [1] * 10)
    loader = MiniBatchLoader((X, y), 10, order="class_balanced", seed=1)
    same = MiniBatchLoader((X, y), 10, order=Weighted.balanced(y), seed=1)
    assert torch.equal(loader.plan(3).indices, same.plan(3).indices)
    with pytest.raises(
        ConfigError, match="order: class_balanced needs class labels as targets, in"
    ):
        MiniBatchLoader(X, 10, order="class_balanced")
    with pytest.raises(ConfigError, match="labels: must be one class index for each sample, got"):
        MiniBatchLoader((X, torch.randn(100, 1)), 10, order="class_balanced")
