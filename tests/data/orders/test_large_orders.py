"""Orders of more samples than an index tensor may hold: bijective, uniform, and never kept."""

from __future__ import annotations

import math
import pickle
import re
import runpy
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.paths import ROOT
from torch import Tensor

from gdtrain import BatchLoader, MiniBatchLoader
from gdtrain.data.batch import Plan
from gdtrain.data.orders.order import check_order, epoch_indices, generator, mix
from gdtrain.data.orders.permutation import Draws, Permutation, Replacement
from gdtrain.errors import ConfigError

SIMULATION = runpy.run_path(str(ROOT / "scripts" / "simulate_shares.py"))
numbers, simulate = SIMULATION["Numbers"], SIMULATION["simulate"]

KINDS = [Permutation, Replacement]
LARGE = 10**12
WORDS = [10**9, LARGE]  # orders in words of 32 and of 64 bits
JUST_LARGE = (1 << 20) + 7
WINDOW = 1 << 18
# The 0.999 quantiles of chi-square, by degrees of freedom, and of |z|, z standard normal.
CHI_SQUARE = {2: 13.82, 4: 18.47, 254: 329.38, 255: 330.52, 1023: 1168.50}
Z = 3.29


def drawn(order: Any, n: int, seed: int = 0, epoch: int = 0) -> Draws:
    indices = epoch_indices(check_order(order, n), n, seed, epoch)
    assert isinstance(indices, Draws)
    return indices


def chi_square(cells: Tensor, count: int) -> float:
    """Of cell numbers [k] in 0 … count - 1 against equal frequencies."""
    expected = len(cells) / count
    found = torch.bincount(cells, minlength=count)
    assert len(found) == count
    return float(((found - expected) ** 2).sum() / expected)


def bins(indices: Tensor, n: int, count: int) -> Tensor:
    return (indices.double() / n * count).long().clamp(max=count - 1)


def correlation_z(a: Tensor, b: Tensor) -> float:
    """The correlation of two rows [k], in standard deviations of that of independent ones."""
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1]) * math.sqrt(len(a))


# Bijections


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_every_small_permutation_is_a_bijection(key: int) -> None:
    powers = [2**i + j for i in range(9, 15) for j in (-1, 0, 1)]
    for n in [*range(1, 300), 509, 997, 4099, *powers]:
        assert torch.equal(Permutation(n, key)[:].sort().values, torch.arange(n)), n


@pytest.mark.parametrize(
    "n", [10**6 + 3, JUST_LARGE, 1 << 21, pytest.param(10**7, marks=pytest.mark.long)]
)
def test_a_large_permutation_is_a_bijection(n: int) -> None:
    assert torch.equal(Permutation(n, mix(0, n))[:].sort().values, torch.arange(n))


@pytest.mark.parametrize("n", [2**32 - 1, 2**32, 2**32 + 1, LARGE, 2**62, 2**62 + 1, 2**63 - 1])
def test_windows_of_a_huge_permutation_have_no_index_twice(n: int) -> None:
    starts = [0, n // 3, n - 30_000]
    images = torch.cat([Permutation(n, 5)[start : start + 30_000] for start in starts])
    assert 0 <= int(images.min()) <= int(images.max()) < n
    assert len(images.unique()) == 90_000


# A permutation against the theory of random ones


@pytest.fixture(scope="module", params=WORDS)
def images_by_key(request) -> tuple[int, Tensor]:
    """A number of samples, and the images of six of their positions under 8,192 keys, [8192, 6]."""
    n = request.param
    positions = torch.tensor([0, 1, 2, n // 2, n // 2 + 1, n - 1])
    return n, torch.stack([drawn("reshuffle", n, 0, key)[positions] for key in range(8192)])


@pytest.mark.few(1)
@pytest.mark.parametrize("column", range(6))
def test_a_position_goes_everywhere_over_epochs(images_by_key, column: int) -> None:
    n, images = images_by_key
    assert chi_square(bins(images[:, column], n, 256), 256) < CHI_SQUARE[255]


@pytest.mark.few(1)
@pytest.mark.parametrize(("one", "two"), [(0, 1), (1, 2), (3, 4), (0, 5)])
def test_pairs_of_positions_go_everywhere(images_by_key, one: int, two: int) -> None:
    n, images = images_by_key
    first, second = (bins(images[:, column], n, 16) for column in (one, two))
    assert chi_square(16 * first + second, 256) < CHI_SQUARE[255]


@pytest.mark.long
def test_the_network_has_rounds_enough() -> None:
    # On 16 · 16 values the positions 0 and 16 share their right half. Differences of their images
    # are uniform over the 255 that are not 0; with four rounds chi-square would be over 1,000.
    places = torch.tensor([0, 16])
    images = torch.stack([Permutation(256, mix(5, key))[places] for key in range(20_000)])
    left, right = images // 16, images % 16
    difference = 16 * ((left[:, 1] - left[:, 0]) % 16) + (right[:, 0] ^ right[:, 1])
    assert chi_square(difference - 1, 255) < CHI_SQUARE[254]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", WORDS)
@pytest.mark.parametrize("part", [0, 1 / 3])
def test_a_window_of_positions_goes_everywhere(kind: type[Draws], n: int, part: float) -> None:
    start = int(part * n)
    images = kind(n, 11)[start : start + WINDOW]
    assert chi_square(bins(images, n, 1024), 1024) < CHI_SQUARE[1023]
    assert chi_square(images % 1024, 1024) < CHI_SQUARE[1023]  # the lowest bits too


# Positions of 10^9 samples that are 2^15 apart share the network's right half, of 10^12 2^20.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", WORDS)
@pytest.mark.parametrize("lag", [1, 2, 3, 1 << 10, 1 << 15, 1 << 20, 1 << 29])
def test_draws_have_no_serial_correlation(kind: type[Draws], n: int, lag: int) -> None:
    draws = kind(n, mix(1, lag))
    first, second = draws[:WINDOW], draws[lag : lag + WINDOW]
    assert abs(correlation_z(first, second)) < Z
    pairs = 32 * bins(first, n, 32) + bins(second, n, 32)
    assert chi_square(pairs, 1024) < CHI_SQUARE[1023]


@pytest.mark.parametrize("key", range(4))
@pytest.mark.parametrize("n", WORDS)
def test_half_of_the_steps_descend(key: int, n: int) -> None:
    # Mean (n - 1) / 2 and variance (n + 1) / 12 of the Eulerian distribution.
    images = Permutation(n, mix(2, key))[:WINDOW]
    descents = int((images[1:] < images[:-1]).sum())
    assert abs(descents - (WINDOW - 1) / 2) < Z * math.sqrt((WINDOW + 1) / 12)


@pytest.mark.few(1)
@pytest.mark.parametrize("n", [4099, 4160])  # with values to walk from, and with none
def test_fixed_points_are_poisson_of_mean_1(n: int) -> None:
    places = torch.arange(n)
    counts = torch.tensor(
        [int((Permutation(n, mix(3, key))[:] == places).sum()) for key in range(1000)]
    )
    assert abs(int(counts.sum()) - 1000) < Z * math.sqrt(1000)
    shares = [math.exp(-1) / math.factorial(k) for k in range(4)]
    expected = 1000 * torch.tensor([*shares, 1 - sum(shares)])
    found = torch.bincount(counts.clamp(max=4), minlength=5)
    assert float(((found - expected) ** 2 / expected).sum()) < CHI_SQUARE[4]


# Of the most samples for which words of 32 bits would do, a and all steps of L are even.
@pytest.mark.few(1)
@pytest.mark.parametrize("n", [2**30, 2**31 - 5, 2**31, 2**32 - 7, 2**32, 3 * 2**30, 2**63 - 3])
def test_the_lowest_bit_of_the_left_half_is_even_and_odd(n: int) -> None:
    shift = (n - 1).bit_length() // 2
    places = torch.tensor([0, 1, 5 << shift])
    keys = 2000
    images = torch.stack([Permutation(n, mix(8, key))[places] for key in range(keys)])
    odd = ((images >> shift) & 1).sum(0)
    assert bool(((odd - keys / 2).abs() < 3.9 * math.sqrt(keys / 4)).all())  # 0.9999, for 7 · 3


def test_version_1_keeps_the_permutations_of_its_checkpoints() -> None:
    # Computed by gdtrain 0.1.0.
    places = torch.tensor([0, 1, 2, 1000])
    old = [
        (2147483643, 3, [1169505747, 1932660227, 1705600049, 1510105312]),
        (4294967289, 18446744073709551615, [1568028679, 572172074, 1887880527, 2623058980]),
        (3221225472, 0, [1610963936, 869571613, 1594068896, 1748533795]),
        (
            9223372036854775805,
            17,
            [1522312413486364203, 6570527497449735254, 1317846411187492953, 3767331888592056323],
        ),
    ]
    for n, key, expected in old:
        assert Permutation(n, key, 1)[places].tolist() == expected, n
    for n in ((1 << 20) + 7, 10**7, 2**30, 2**32 + 1, LARGE):  # which were sound
        assert torch.equal(Permutation(n, 5, 1)[:9], Permutation(n, 5)[:9])


def test_the_number_of_cycles_is_that_of_random_permutations() -> None:
    # Mean Σ 1/k, variance Σ 1/k - Σ 1/k² (Goncharov, 1944).
    n, keys, cycles = 4099, 200, 0
    for key in range(keys):
        images = Permutation(n, mix(4, key))[:].tolist()
        for start in range(n):
            cycles += images[start] >= 0
            place = start
            while images[place] >= 0:
                images[place], place = -1, images[place]
    mean = sum(1 / k for k in range(1, n + 1))
    variance = mean - sum(1 / k**2 for k in range(1, n + 1))
    assert abs(cycles - keys * mean) < Z * math.sqrt(keys * variance)


@pytest.mark.few(1)
@pytest.mark.parametrize("order", ["reshuffle", "replacement"])
@pytest.mark.parametrize("by", ["epoch", "seed"])
def test_neighbouring_epochs_and_seeds_are_unrelated(order: str, by: str) -> None:
    # Two random orders agree at Poisson(1) places; 16 pairs of neighbours, at 16 on average.
    orders = [drawn(order, JUST_LARGE, **{by: number})[:] for number in range(17)]
    agreements = sum(int((a == b).sum()) for a, b in pairwise(orders))
    assert abs(agreements - 16) < Z * math.sqrt(16)
    assert abs(correlation_z(orders[0], orders[1])) < Z


# Draws with replacement


def test_replacement_takes_the_words_of_splitmix64() -> None:
    # The first outputs of the public-domain reference splitmix64.c for the seed 1234567.
    words = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert Replacement(LARGE + 39, 1234567)[:4].tolist() == [w % (LARGE + 39) for w in words]


def test_replacement_favours_no_index_where_n_does_not_divide_the_words() -> None:
    # 2^64 mod n is 2^62 here: without rejection, the first two thirds would get 3 draws for 2.
    n = 3 * 2**61
    assert chi_square(Replacement(n, 7)[:WINDOW] // 2**61, 3) < CHI_SQUARE[2]


def test_replacement_draws_as_many_distinct_samples_as_theory_says() -> None:
    # Mean n (1 - 1/e), variance n (1/e - 2/e²), to first order in n.
    n, epochs = JUST_LARGE, 8
    distinct = sum(len(drawn("replacement", n, 0, e)[:].unique()) for e in range(epochs))
    deviation = math.sqrt(epochs * n * (math.exp(-1) - 2 * math.exp(-2)))
    assert abs(distinct - epochs * n * (1 - math.exp(-1))) < Z * deviation


# What is picked, and how it is read


@pytest.mark.parametrize("order", ["reshuffle", "shuffle_once"])
def test_up_to_2_20_samples_an_order_is_torchs_permutation(order: str) -> None:
    n = 1 << 20
    indices = epoch_indices(check_order(order, n), n, 3, 0)
    assert isinstance(indices, Tensor)
    assert torch.equal(indices, torch.randperm(n, generator=generator(3, 0)))
    assert type(drawn(order, n + 1)) is Permutation


def test_up_to_2_20_samples_replacement_is_torchs_randint() -> None:
    n = 1 << 20
    indices = epoch_indices("replacement", n, 3, 1)
    assert isinstance(indices, Tensor)
    assert torch.equal(indices, torch.randint(n, (n,), generator=generator(3, 1)))
    assert type(drawn("replacement", n + 1)) is Replacement


def test_a_large_shuffle_once_keeps_the_permutation_of_epoch_0() -> None:
    once, first = drawn("shuffle_once", LARGE, 1, 9), drawn("reshuffle", LARGE, 1, 0)
    assert torch.equal(once[:100], first[:100])


@pytest.mark.parametrize("order", ["reshuffle", "shuffle_once", "replacement"])
def test_a_large_order_is_a_function_of_n_seed_and_epoch_alone(order: str) -> None:
    before = drawn(order, LARGE, 3, 4)[:50]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(drawn(order, LARGE, 3, 4)[:50], before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_does_not_depend_on_how_it_is_read(kind: type[Draws]) -> None:
    draws = kind(JUST_LARGE, 9)
    whole = draws[:]
    places = torch.randint(JUST_LARGE, (3, 50_001), generator=generator(0))
    assert torch.equal(draws[places], whole[places])
    assert torch.equal(draws[places.T], whole[places.T])  # not contiguous
    assert torch.equal(draws[100:20_000:7], whole[100:20_000:7])
    assert torch.equal(draws[-5:], whole[-5:])
    assert torch.equal(draws[places[0, 0]], whole[places[0, 0]])
    assert torch.equal(draws.head(10)[:], whole[:10])
    assert draws[5:5].shape == (0,)
    assert draws[torch.empty(2, 0, dtype=torch.int64)].shape == (2, 0)


@pytest.mark.parametrize(("wrong", "said"), [([0, 7], 7), ([7, -1], -1)])
def test_a_position_outside_is_refused(wrong: list[int], said: int) -> None:
    with pytest.raises(IndexError, match=f"^positions must be in 0 … 6, got {said}$"):
        Permutation(LARGE, 0).head(7)[torch.tensor(wrong)]


def test_draws_are_an_order_of_their_own() -> None:
    indices = MiniBatchLoader(numbers(LARGE), 3, seed=5).plan(2).indices
    for order in (indices, lambda epoch: indices):
        loader = MiniBatchLoader(numbers(LARGE), 3, order=order)
        assert loader.plan(0).indices is indices
        assert len(loader) == -(-LARGE // 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Permutation(8, 0), "Permutation(8 draws of 8 samples)"),
        (Replacement(7, 0).head(0), "Replacement(0 draws of 7 samples)"),
    ],
)
def test_draws_of_another_data_set_are_refused(wrong: Draws, said: str) -> None:
    message = f"order: {said} are no order of 7 samples"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_order(wrong, 7)


# Plans, loaders and ranks


@pytest.mark.parametrize("order", ["reshuffle", "shuffle_once", "replacement"])
def test_a_plan_of_any_size_is_a_few_numbers(order: str) -> None:
    plan = MiniBatchLoader(numbers(LARGE), 64, order=order).plan(3)
    restored = pickle.loads(pickle.dumps(plan))
    assert len(pickle.dumps(plan)) < 1000
    assert torch.equal(restored.batch_indices(10**9), plan.batch_indices(10**9))


def test_drop_last_shortens_a_large_plan_without_reading_it() -> None:
    whole = MiniBatchLoader(numbers(LARGE), 7).plan(0)
    loader = MiniBatchLoader(numbers(LARGE), 7, drop_last=True)
    plan = loader.plan(0)
    assert isinstance(plan.indices, Permutation)
    assert plan.num_samples == len(plan.indices) == LARGE - LARGE % 7
    assert len(plan) == len(loader) == LARGE // 7
    assert torch.equal(plan.batch_indices(len(plan) - 1), whole.batch_indices(len(plan) - 1))


def test_a_loader_over_10_12_samples_gives_its_first_batches() -> None:
    loader = MiniBatchLoader(numbers(LARGE), 1000, seed=2)
    batches = iter(loader)
    first = torch.cat([next(batches).inputs for _ in range(5)])
    assert torch.equal(first, drawn("reshuffle", LARGE, 2)[:5000])


def test_tensors_of_3_million_samples_are_read_each_once_and_from_anywhere() -> None:
    n, size = 3_000_000, 100_003
    loader = MiniBatchLoader(torch.arange(n), size, seed=1)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [size] * 29 + [n - 29 * size]
    assert torch.equal(torch.cat([b.inputs for b in batches]).sort().values, torch.arange(n))
    tail = list(loader.samples.read(loader.plan(0), 17))
    assert len(tail) == 13
    for ours, theirs in zip(tail, batches[17:], strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.inputs, ours.indices)


def test_one_batch_of_a_large_data_set_is_shared_by_ranks() -> None:
    plan = BatchLoader(numbers(JUST_LARGE), order="reshuffle").plan(0)
    rows = [plan.share(rank, 3).rows(0, 1)[0] for rank in range(3)]
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(JUST_LARGE))


@pytest.mark.few(1)
@pytest.mark.parametrize("size", [7, 1000, 65_537])  # fewer than ranks, and more
@pytest.mark.parametrize("order", ["reshuffle", "replacement", "sequential"])
def test_the_shares_of_1024_ranks_make_up_each_batch(order: Any, size: int) -> None:
    plan = MiniBatchLoader(numbers(LARGE), size, order=order, drop_last=True).plan(0)
    found = simulate(plan, ranks=1024, windows=1)
    assert (found.smallest_share, found.largest_share) == (size // 1024, -(-size // 1024))
    assert (found.uneven, found.incomplete) == (0, 0)
    assert found.batches >= 9
    if order != "replacement":
        assert found.repeated == 0


@pytest.mark.parametrize("indices", [None, torch.tensor([5, 3, 1, 0, 2, 4, 6, 6])])
def test_a_rank_reads_its_share_of_several_batches_at_once(indices: Tensor | None) -> None:
    plan = Plan(0, 8, 3, indices)
    for ranks in (2, 5):
        for rank in range(ranks):
            share = plan.share(rank, ranks)
            chosen, _, sizes = share.rows(0, 3)
            assert chosen is not None
            parts = chosen.split(sizes)
            for number in range(3):
                assert torch.equal(parts[number], share.batch_indices(number))
