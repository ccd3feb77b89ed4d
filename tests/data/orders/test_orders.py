"""Which sample comes when: orders are pure, uniform and checked."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gdtrain.data.orders.order import check_order, epoch_indices, generator, mix
from gdtrain.errors import ConfigError

DRAWN = ["reshuffle", "shuffle_once", "replacement"]


def indices(order: Any, n: int = 7, seed: int = 0, epoch: int = 0) -> list[int]:
    drawn = epoch_indices(check_order(order, n), n, seed, epoch)
    assert drawn is not None
    assert drawn.dtype == torch.int64
    return drawn.tolist()


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_mix_absorbs_a_key_by_one_round_of_splitmix64() -> None:
    # The first output of the public-domain reference splitmix64.c for the seed 1234567.
    assert mix(1234567, 0) == 6457827717110365317


def test_mix_without_keys_is_the_seed() -> None:
    assert mix(5) == 5


def test_seeds_from_2_64_on_have_orders_of_their_own() -> None:
    seeds = [s + h * 2**64 for s in (0, 1, 7) for h in (0, 1, 2, 2**64, 2**64 + 1)]
    assert len({mix(seed) for seed in seeds}) == len(seeds)
    for order in DRAWN:
        assert len({tuple(indices(order, 30, seed)) for seed in seeds}) == len(seeds)


def test_version_1_takes_seeds_modulo_2_64() -> None:
    made = [epoch_indices("reshuffle", 9, seed, 2, version=1) for seed in (5, 5 + 2**64)]
    assert torch.equal(*made)
    assert torch.equal(made[0], epoch_indices("reshuffle", 9, 5, 2))


# Computed by gdtrain 0.1.0: the orders of seeds below 2^64 and up to 2^20 samples never change.
OF_OLD = [
    (("reshuffle", 9, 3, 5), [1, 2, 3, 8, 0, 5, 7, 4, 6]),
    (("shuffle_once", 9, 2**64 - 1, 5), [7, 6, 5, 1, 2, 4, 0, 8, 3]),
    (("replacement", 9, 12345678901234567890, 0), [6, 0, 7, 3, 8, 7, 2, 7, 6]),
]


@pytest.mark.parametrize(("arguments", "expected"), OF_OLD)
def test_orders_are_those_of_version_0_1_0(arguments: Any, expected: list[int]) -> None:
    order, n, seed, epoch = arguments
    assert indices(order, n, seed, epoch) == expected


def test_mix_takes_numpy_integers() -> None:
    assert mix(np.int64(3), np.int64(4)) == mix(3, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["reshuffle", "shuffle_once"])
@given(n=st.integers(1, 200), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
def test_shuffles_are_permutations(order: str, n: int, seed: int, epoch: int) -> None:
    assert sorted(indices(order, n, seed, epoch)) == list(range(n))


@given(n=st.integers(1, 200), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
def test_replacement_draws_n_samples_in_range(n: int, seed: int, epoch: int) -> None:
    drawn = indices("replacement", n, seed, epoch)
    assert len(drawn) == n
    assert 0 <= min(drawn) <= max(drawn) < n


@pytest.mark.parametrize("order", DRAWN)
def test_an_order_is_a_function_of_n_seed_and_epoch_alone(order: str) -> None:
    before = indices(order, 50, 3, 4)
    torch.manual_seed(99)
    torch.rand(10)
    indices(order, 50, 3, 5)
    assert indices(order, 50, 3, 4) == before


@pytest.mark.parametrize("order", [*DRAWN, "sequential"])
def test_no_order_touches_global_random_state(order: str) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    epoch_indices(check_order(order, 50), 50, 0, 0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("order", ["reshuffle", "replacement"])
def test_every_epoch_and_every_seed_has_an_order_of_its_own(order: str) -> None:
    orders = {tuple(indices(order, 50, seed, epoch)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_shuffle_once_keeps_the_permutation_of_epoch_0() -> None:
    assert indices("shuffle_once", 50, 1, 9) == indices("reshuffle", 50, 1, 0)


def test_sequential_has_no_indices_so_that_readers_can_slice() -> None:
    assert epoch_indices(check_order("sequential", 7), 7, 0, 3) is None


def test_all_permutations_are_equally_frequent_over_epochs() -> None:
    counts = Counter(tuple(indices("reshuffle", 4, 0, epoch)) for epoch in range(4800))
    assert len(counts) == 24
    assert chi_square(list(counts.values())) < 49.73  # the 0.999 quantile for 23 degrees


def test_all_permutations_are_equally_frequent_over_seeds() -> None:
    counts = Counter(tuple(indices("shuffle_once", 4, seed, 0)) for seed in range(4800))
    assert len(counts) == 24
    assert chi_square(list(counts.values())) < 49.73


def test_draws_with_replacement_are_uniform_and_independent_in_sequence() -> None:
    pairs: Counter[tuple[int, int]] = Counter()
    for epoch in range(2500):
        drawn = indices("replacement", 5, 0, epoch)
        pairs.update([(drawn[0], drawn[1]), (drawn[2], drawn[3])])
    assert len(pairs) == 25
    assert chi_square(list(pairs.values())) < 51.18  # the 0.999 quantile for 24 degrees


def test_neighbouring_epochs_are_independent() -> None:
    pairs = Counter(
        (indices("reshuffle", 5, 0, epoch)[0], indices("reshuffle", 5, 0, epoch + 1)[0])
        for epoch in range(0, 5000, 2)
    )
    assert chi_square([pairs[i, j] for i in range(5) for j in range(5)]) < 51.18


def test_a_generator_of_other_keys_gives_other_numbers() -> None:
    drawn = [torch.rand(1, generator=generator(0, *keys)).item() for keys in [(), (0,), (1,)]]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(
    "order",
    [
        [3, 0, 3],
        (3, 0, 3),
        np.array([3, 0, 3]),
        np.array([3, 0, 3], dtype=">i4"),
        np.array([3, 0, 3], dtype=np.uint16),
        np.array([3, 0, 3])[::-1],
        np.array([3, 9, 0, 9, 3])[::2],
        torch.tensor([3, 0, 3], dtype=torch.uint8),
        torch.tensor([3, 0, 3], dtype=torch.int32),
        [torch.tensor(3), torch.tensor(0), torch.tensor(3)],
        lambda epoch: [3, 0, 3],
        lambda epoch: torch.tensor([3, 0, 3]),
    ],
)
def test_explicit_indices_of_any_integer_kind_are_taken_as_they_are(order: Any) -> None:
    assert indices(order) == [3, 0, 3]


def test_a_range_is_an_order() -> None:
    assert indices(range(6, 0, -2)) == [6, 4, 2]


def test_a_read_only_array_is_an_order() -> None:
    assert indices(np.broadcast_to(np.array([2]), (3,))) == [2, 2, 2]


def test_a_callable_is_asked_for_each_epoch() -> None:
    assert [indices(lambda epoch: [epoch, 0], epoch=epoch) for epoch in (1, 4)] == [[1, 0], [4, 0]]


def test_a_change_of_the_callers_array_does_not_change_the_order() -> None:
    own = torch.tensor([1, 2])
    order = check_order(own, 7)
    own[0] = 100
    assert indices(order) == [1, 2]


EMPTY = "order: explicit indices must be one non-empty row, got shape {}"
NOT_WHOLE = "order: explicit indices must be whole numbers, got {}"
OUTSIDE = "order: explicit indices must be in 0 … 6, got {}"
NO_ARRAY = "order: explicit indices must be one row of whole numbers; these make no array"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], EMPTY.format([0])),
        ([[0, 1]], EMPTY.format([1, 2])),
        (5, EMPTY.format([])),
        (None, EMPTY.format([])),
        ({1, 2}, EMPTY.format([])),
        (b"ab", EMPTY.format([])),
        ([0.0, 1.0], NOT_WHOLE.format("float64")),
        (torch.tensor([1.0]), NOT_WHOLE.format("float32")),
        ([True, False], NOT_WHOLE.format("bool")),
        (torch.tensor([True]), NOT_WHOLE.format("bool")),
        ([1j], NOT_WHOLE.format("complex128")),
        (["a"], NOT_WHOLE.format("<U1")),
        ([None], NOT_WHOLE.format("object")),
        ([-(2**70)], NOT_WHOLE.format("object")),
        ([0, 7], OUTSIDE.format(7)),
        ([-1, 7], OUTSIDE.format(-1)),
        (np.array([2**64 - 1], dtype=np.uint64), OUTSIDE.format(2**64 - 1)),
        ([[0], [1, 2]], NO_ARRAY),
        (torch.ones(2, dtype=torch.bfloat16), NO_ARRAY),
    ],
)
@pytest.mark.parametrize("as_callable", [False, True])
def test_wrong_indices_are_refused(wrong: Any, message: str, as_callable: bool) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        indices((lambda epoch: wrong) if as_callable else wrong)


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        check_order("suffle", 7)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "order: must be one of reshuffle, shuffle_once, sequential, replacement, class_balanced, "
        "row_groups, a sequence of indices, Weighted, a sampler or a callable; got 'suffle'"
    )
