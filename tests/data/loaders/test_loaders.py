"""The three loaders over tensors and arrays: batches, counts, cursors and refusals."""

from __future__ import annotations

import logging
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from gdtrain import BatchLoader, Loader, MiniBatchLoader, SampleLoader
from gdtrain.data.batch import Batch, Plan
from gdtrain.data.samples import Samples, TensorSamples
from gdtrain.errors import ConfigError, DataError

X = torch.arange(14.0).reshape(7, 2)
Y = torch.arange(7.0)
ORDERS = ["reshuffle", "shuffle_once", "sequential", "replacement"]


def draws(loader: Any) -> list[list[int]]:
    return [batch.indices.tolist() for batch in loader]


def raises(kind: type[Exception], message: str) -> Any:
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


class Fixed(Loader):
    """One plan for all epochs."""

    def plan(self, epoch: int) -> Plan:
        if not hasattr(self, "kept"):
            self.kept = Plan.of_batches(0, [torch.tensor([4, 2]), torch.tensor([6])])
        return self.kept


@pytest.mark.parametrize(
    "loader",
    [
        BatchLoader((X, Y), order=[4, 2, 6]),
        SampleLoader((X, Y), order=torch.tensor([4, 2, 6])),
        MiniBatchLoader((X, Y), 2, order=np.array([4, 2, 6])),
        MiniBatchLoader(TensorDataset(X, Y), 2, order=(4, 2, 6)),
        Fixed((X, Y)),
    ],
    ids=["batch", "sample", "minibatch", "dataset", "own plan"],
)
def test_what_is_written_to_the_indices_of_a_batch_changes_no_order(loader: Any) -> None:
    fingerprint = loader.fingerprint()
    for _ in range(3):
        drawn = []
        for batch in loader:
            drawn += batch.indices.tolist()
            assert torch.equal(batch.inputs, X[batch.indices])
            batch.indices.zero_()
        assert drawn == [4, 2, 6]
    assert loader.fingerprint() == fingerprint


def test_batch_loader_gives_every_sample_in_one_batch() -> None:
    loader = BatchLoader((X, Y))
    (batch,) = loader
    assert len(loader) == 1
    assert len(batch) == 7
    assert torch.equal(batch.inputs, X)
    assert torch.equal(batch.targets, Y)


def test_sample_loader_keeps_the_batch_dimension() -> None:
    loader = SampleLoader((X, Y), order="sequential")
    assert len(loader) == 7
    for i, (inputs, targets) in enumerate(loader):
        assert torch.equal(inputs, X[i : i + 1])
        assert torch.equal(targets, Y[i : i + 1])


def test_mini_batches_are_those_of_a_torch_dataloader() -> None:
    loader = MiniBatchLoader((X, Y), batch_size=3, order="sequential")
    expected = list(DataLoader(TensorDataset(X, Y), batch_size=3))
    assert len(loader) == len(expected) == 3
    for (inputs, targets), (x, y) in zip(loader, expected, strict=True):
        assert torch.equal(inputs, x)
        assert torch.equal(targets, y)


@given(
    n=st.integers(1, 40),
    size=st.integers(1, 50),
    order=st.sampled_from([*ORDERS, "explicit", "callable"]),
    drop_last=st.booleans(),
)
def test_batches_are_the_rows_that_the_plan_names(
    n: int, size: int, order: str, drop_last: bool
) -> None:
    x = torch.arange(n * 2.0).reshape(n, 2)
    explicit = [0, n - 1, 0, n // 2]
    given_order: Any = {"explicit": explicit, "callable": lambda epoch: explicit}.get(order, order)
    count = 4 if order in ("explicit", "callable") else n
    if drop_last and size > count:
        with raises(
            ConfigError, f"drop_last: leaves no batch: {count} samples do not fill one of {size}"
        ):
            list(MiniBatchLoader((x, x[:, 0]), size, order=given_order, drop_last=True))
        return
    loader = MiniBatchLoader((x, x[:, 0]), size, order=given_order, drop_last=drop_last)
    promised = len(loader)
    plan = loader.plan(0)
    batches = list(loader)
    assert promised == len(batches) == len(plan)
    assert promised == (count // size if drop_last else math.ceil(count / size))
    assert [len(batch) for batch in batches] == plan.batch_sizes(0, len(plan))
    assert all(len(batch) == min(size, count) for batch in batches[:-1])
    assert torch.equal(torch.cat([b.indices for b in batches]), plan.take(0, plan.num_samples))
    for number, batch in enumerate(batches):
        assert torch.equal(batch.indices, plan.batch_indices(number))
        assert torch.equal(batch.inputs, x[batch.indices])
        assert torch.equal(batch.targets, x[batch.indices, 0])


def test_a_single_sample_is_a_data_set_for_every_loader() -> None:
    for loader in (BatchLoader((X[:1], Y[:1])), SampleLoader((X[:1], Y[:1]))):
        assert draws(loader) == [[0]]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([6, 0, 0, 3], [[6, 0, 0], [3]]),
        (range(5, -1, -1), [[5, 4, 3], [2, 1, 0]]),
        (lambda epoch: [epoch] * 4, [[0, 0, 0], [0]]),
    ],
)
def test_explicit_orders_decide_the_draws(order: Any, expected: list[list[int]]) -> None:
    loader = MiniBatchLoader((X, Y), 3, order=order)
    assert len(loader) == 2
    assert draws(loader) == expected


def test_batch_loader_takes_an_explicit_order_as_its_batch() -> None:
    (batch,) = BatchLoader((X, Y), order=[2, 2, 5])
    assert torch.equal(batch.inputs, X[[2, 2, 5]])


def test_one_tensor_is_inputs_without_targets() -> None:
    (batch,) = BatchLoader(X)
    assert batch.targets is None
    assert torch.equal(batch.inputs, X)


def test_several_inputs_come_as_a_tuple_before_the_targets() -> None:
    loader = MiniBatchLoader((X, X * 10, Y), 3, order=[4, 1, 2, 0])
    for batch in loader:
        first, second = batch.inputs
        assert torch.equal(first, X[batch.indices])
        assert torch.equal(second, 10 * X[batch.indices])
        assert torch.equal(batch.targets, Y[batch.indices])


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 2, 3, 4), (7, 0)])
def test_any_trailing_shape_is_kept(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for batch in MiniBatchLoader((x, Y), 3):
        assert torch.equal(batch.inputs, x[batch.indices])


@pytest.mark.parametrize("ranks", [1, 2])
def test_large_consecutive_batches_are_views_that_say_so(ranks: int) -> None:
    row = torch.arange(1 << 12, dtype=torch.float32)  # 16 KiB
    x = torch.stack([row + i for i in range(21)])
    storage = x.untyped_storage().data_ptr()
    for size, are_views in ((1, False), (3, False), (4, True), (5, True), (21, True)):
        loader = MiniBatchLoader(x, size, order="sequential")
        read = list(loader.samples.read(loader.plan(0).share(ranks - 1, ranks)))
        assert len(read) == len(loader)
        for batch in read:
            assert batch.is_view == are_views
            assert (batch.inputs.untyped_storage().data_ptr() == storage) == are_views
            assert torch.equal(batch.inputs, x[batch.indices])
            assert all(part.is_view == are_views for part in batch.split(2))
            copy = batch.copy()
            assert not copy.is_view
            copy.inputs.zero_()
            assert torch.equal(batch.inputs, x[batch.indices])


@pytest.mark.parametrize("size", [2, 4, 64, 21])
def test_batches_of_a_hand_written_loop_are_no_views(size: int) -> None:
    x = torch.randn(21, 1 << 12)
    before = x.clone()
    for batch in MiniBatchLoader(x, size, order="sequential"):
        batch.inputs.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("order", ["sequential", "reshuffle", "replacement"])
def test_work_in_place_on_a_batch_is_seen_in_no_other(order: str) -> None:
    x = X.clone()
    loader = MiniBatchLoader((x, Y), 2, order=order)
    for batch in loader:
        assert torch.equal(batch.inputs, X[batch.indices])
        batch.inputs.fill_(9.0)
    assert torch.equal(x, X)


def test_a_numpy_array_is_shared_and_not_copied() -> None:
    array = np.zeros((4, 2), dtype=np.float32)
    loader = BatchLoader(array)
    array[1, 1] = 5
    (batch,) = loader
    assert batch.inputs[1, 1] == 5


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


class Frame:
    """A table that gives its numbers through numpy's protocol, as pandas objects do."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return read_only(np.array([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize(
    ("given_data", "dtype"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], torch.float64),
        (np.array([[1, 2], [3, 4]], dtype=">f4"), torch.float32),
        (np.array([[1, 2], [3, 4]], dtype="<f2"), torch.float16),
        (np.array([[3.0, 4.0], [1.0, 2.0]])[::-1], torch.float64),
        (np.array([[2.0, 1.0], [4.0, 3.0]])[:, ::-1], torch.float64),
        (np.array([[1.0, 3.0], [2.0, 4.0]]).T, torch.float64),
        (np.array([[1.0, 9, 2, 9], [3, 9, 4, 9]])[:, ::2], torch.float64),
        (read_only(np.array([[1.0, 2.0], [3.0, 4.0]])), torch.float64),
        (np.array([[1, 2], [3, 4]], dtype=np.uint8), torch.uint8),
        (np.array([[1, 2], [3, 4]], dtype=np.uint16), torch.int64),
        (np.array([[1, 2], [3, 4]], dtype=">u8"), torch.int64),
        (torch.tensor([[1, 2], [3, 4]]).to(torch.uint16), torch.int64),
        (torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T, torch.float32),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True), torch.float32),
        (Frame(), torch.float64),
    ],
)
@pytest.mark.parametrize("order", ["sequential", [1, 0]])
def test_arrays_of_every_make_are_read_by_value(given_data: Any, dtype: Any, order: Any) -> None:
    (batch,) = BatchLoader((given_data, [0, 1]), order=order)
    assert batch.inputs.dtype == dtype
    assert not batch.inputs.requires_grad
    assert batch.inputs.tolist() == [[[1, 2], [3, 4]][i] for i in batch.indices]


@pytest.mark.few(5)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("n", "row", "size"), [(3000, 1, 1), (2500, 40, 3), (7, 150_000, 2), (1200, 64, 500)]
)
def test_reading_does_not_depend_on_how_many_batches_one_gather_serves(
    order: Any, n: int, row: int, size: int
) -> None:
    # From 1,024 batches of a gather (tiny rows) to one batch each (rows over half a MiB).
    x = torch.arange(n * row, dtype=torch.float32).reshape(n, row)
    loader = MiniBatchLoader((x, torch.arange(n)), size, order=order)
    for number, batch in enumerate(loader):
        expected = loader.plan(0).batch_indices(number)
        assert torch.equal(batch.targets, expected)
        assert torch.equal(batch.inputs, x[expected])


@pytest.mark.parametrize("order", ORDERS)
def test_reading_from_the_middle_is_the_tail_of_reading_from_the_start(order: Any) -> None:
    x = torch.arange(3001)
    loader = MiniBatchLoader(x, 2, order=order)
    plan = loader.plan(5)
    whole = [batch.inputs for batch in loader.samples.read(plan)]
    for start in (0, 1, 1024, 1025, 1500, 1501):
        tail = [batch.inputs for batch in loader.samples.read(plan, start)]
        assert len(tail) == 1501 - start
        assert all(torch.equal(a, b) for a, b in zip(tail, whole[start:], strict=True))


@pytest.mark.few(49)
@pytest.mark.parametrize("rows", ["whole", "tail", "column", "strided"])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (4,), (2, 2), (16,), (20,)])
@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.float16, torch.float32, torch.float64, torch.complex64],
)
def test_rows_of_any_width_are_gathered_to_the_bit(
    rows: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    made = torch.randn(301, *shape, 2, generator=torch.Generator().manual_seed(0)).double()
    made[5], made[6] = -0.0, torch.nan
    x = (made * 100).to(dtype)
    x = {"whole": x, "tail": x[1:], "column": x[..., 1], "strided": x[::2]}[rows]
    loader = MiniBatchLoader(x, 7, allow_nonfinite=True)
    for batch in loader:
        wanted, found = x[batch.indices].contiguous(), batch.inputs.contiguous()
        assert found.dtype == dtype
        assert found.shape == wanted.shape
        assert found.view(-1).view(torch.uint8).equal(wanted.view(-1).view(torch.uint8))


def test_many_small_batches_are_cut_in_parts() -> None:
    n = 1000
    loader = SampleLoader((torch.arange(n), torch.arange(n) * 2))
    batches = list(loader)
    assert sorted(int(b.inputs) for b in batches) == list(range(n))
    assert all(int(b.targets) == 2 * int(b.inputs) == 2 * int(b.indices) for b in batches)


def test_every_iteration_is_the_next_epoch() -> None:
    loader = MiniBatchLoader((X, Y), 3, seed=4)
    by_hand = [draws(loader) for _ in range(3)]
    planned = [
        [loader.plan(epoch).batch_indices(i).tolist() for i in range(3)] for epoch in range(3)
    ]
    assert by_hand == planned
    assert by_hand[0] != by_hand[1]


def test_set_epoch_pins_the_epoch_and_none_lets_it_count_on() -> None:
    loader = MiniBatchLoader((X, Y), 3, order=lambda epoch: [epoch])
    loader.set_epoch(4)
    assert [draws(loader), draws(loader)] == [[[4]], [[4]]]
    loader.set_epoch(None)
    assert [draws(loader), draws(loader)] == [[[5]], [[6]]]


def test_len_of_a_callable_order_is_that_of_the_next_epoch() -> None:
    loader = SampleLoader((X, Y), order=lambda epoch: range(epoch + 1))
    assert len(loader) == 1
    list(loader)
    assert len(loader) == 2
    loader.set_epoch(6)
    assert len(loader) == 7


def test_two_iterators_at_once_have_epochs_of_their_own() -> None:
    loader = MiniBatchLoader((X, Y), 3)
    first, second = iter(loader), iter(loader)
    interleaved = [(a.indices.tolist(), b.indices.tolist()) for a, b in zip(first, second)]  # noqa: B905
    plans = loader.plan(0), loader.plan(1)
    assert interleaved == [
        (plans[0].batch_indices(i).tolist(), plans[1].batch_indices(i).tolist()) for i in range(3)
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_iterating_neither_consumes_nor_consults_global_random_state(order: Any) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draws(MiniBatchLoader((X, Y), 3, order=order))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert draws(MiniBatchLoader((X, Y), 3, order=order)) == first


def test_a_batch_size_over_n_is_one_batch_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="gdtrain"):
        loader = MiniBatchLoader((X, Y), 9)
    assert caplog.messages == ["batch_size 9 is over the 7 samples: each epoch is one batch of 7"]
    assert [len(batch) for batch in loader] == [7]


def test_the_note_counts_the_draws_of_an_explicit_order(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="gdtrain"):
        long = MiniBatchLoader((X, Y), 9, order=[0] * 20)
        MiniBatchLoader((X, Y), 5, order=[0, 1])
    assert [len(batch) for batch in long] == [9, 9, 2]
    assert caplog.messages == ["batch_size 5 is over the 2 samples: each epoch is one batch of 2"]


def test_drop_last_leaves_out_the_ragged_batch() -> None:
    loader = MiniBatchLoader((X, Y), 3, drop_last=True)
    assert len(loader) == 2
    assert [len(batch) for batch in loader] == [3, 3]
    assert loader.plan(0).num_samples == 6


def test_drop_last_that_leaves_nothing_is_refused_at_once() -> None:
    with raises(ConfigError, "drop_last: leaves no batch: 7 samples do not fill one of 8"):
        MiniBatchLoader((X, Y), 8, drop_last=True)


WHOLE = "{}: must be a whole number, got {!r}"


@pytest.mark.parametrize("wrong", [2.0, True, "3", None, math.nan])
def test_sizes_seeds_and_epochs_must_be_whole(wrong: Any) -> None:
    with raises(ConfigError, WHOLE.format("batch_size", wrong)):
        MiniBatchLoader((X, Y), wrong)
    with raises(ConfigError, WHOLE.format("seed", wrong)):
        MiniBatchLoader((X, Y), 3, seed=wrong)
    with raises(ConfigError, WHOLE.format("epoch", wrong)):
        MiniBatchLoader((X, Y), 3).plan(wrong)


def test_sizes_seeds_and_epochs_have_a_smallest_value() -> None:
    with raises(ConfigError, "batch_size: must be >= 1, got 0"):
        MiniBatchLoader((X, Y), 0)
    with raises(ConfigError, "seed: must be >= 0, got -1"):
        SampleLoader((X, Y), seed=-1)
    with raises(ConfigError, "epoch: must be >= 0, got -1"):
        BatchLoader((X, Y)).set_epoch(-1)


def test_numpy_integers_are_whole_numbers() -> None:
    loader = MiniBatchLoader((X, Y), np.int64(3), seed=np.int32(5))  # type: ignore[arg-type]
    loader.set_epoch(np.int64(2))  # type: ignore[arg-type]
    assert draws(loader) == draws(MiniBatchLoader((X, Y), 3, seed=5, order=loader.plan(2).indices))


@pytest.mark.parametrize(
    ("key", "value"), [("num_workers", 1), ("num_workers", -1), ("collate_fn", list)]
)
def test_settings_of_a_dataloader_have_no_effect_on_tensors(key: str, value: Any) -> None:
    message = f"{key}: has no effect on tensors, which are sliced, not loaded; omit it"
    with raises(ConfigError, message):
        BatchLoader((X, Y), **{key: value})


EMPTY = "the data set is empty; at least one sample is needed"


class NoSamples(Samples):
    def __len__(self) -> int:
        return 0

    def read(self, plan: Plan, start: int = 0) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((), "no tensors given; give inputs and targets"),
        ((X[:0], Y[:0]), EMPTY),
        (np.zeros((0, 3)), EMPTY),
        (NoSamples(), EMPTY),
        (
            (X, Y[:6]),
            "different numbers of samples: inputs 7 and targets 6; each sample needs one of each",
        ),
        (
            (X, X[:3], Y),
            "different numbers of samples: inputs[0] 7 and inputs[1] 3 and targets 7; "
            "each sample needs one of each",
        ),
        (3, "inputs: a single number has no rows; give a tensor of shape [n, …]"),
        ((X, 3.0), "targets: a single number has no rows; give a tensor of shape [n, …]"),
        (torch.tensor(1), "inputs: a single number has no rows; give a tensor of shape [n, …]"),
        (None, "inputs: an array of object is not numeric; encode it first"),
        (np.array([1, None]), "inputs: an array of object is not numeric; encode it first"),
        (
            (X, np.array(["a"] * 7)),
            "targets: an array of <U1 is not numeric; encode it first",
        ),
        (
            np.array(["2020-01-01"], dtype="M8[D]"),
            "inputs: an array of datetime64[D] is not numeric; encode it first",
        ),
        (([[1], [2, 3]], [0, 1]), "inputs: make no array; give rows of equal length"),
        (
            np.ma.array([1.0, 2.0], mask=[False, True]),
            "inputs: holds masked values; fill them in or remove the rows",
        ),
        (
            np.array([1, 2**63], dtype=np.uint64),
            "inputs: a value is over 2^63 - 1, the largest int64; rescale it",
        ),
        (
            torch.eye(3).to_sparse(),
            "inputs: a sparse tensor can't be cut into rows; give a dense one",
        ),
        (
            torch.zeros(3, device="meta"),
            "inputs: a meta tensor can't be cut into rows; give a dense one",
        ),
    ],
)
def test_data_that_can_not_be_used_is_refused(data: Any, message: str) -> None:
    with raises(DataError, message):
        BatchLoader(data)


def test_extended_precision_is_refused_where_numpy_has_it() -> None:
    extended = np.zeros(3, dtype=np.longdouble)
    if extended.dtype == np.float64:
        pytest.skip("longdouble is float64 on this machine")
    with raises(DataError, f"inputs: torch has no {extended.dtype}; convert the array to float64"):
        BatchLoader(extended)


NAN, INF = math.nan, math.inf
FILL = "; remove the row or fill in a number before training"


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ((torch.tensor([[1.0, 2], [3, NAN]]), Y[:2]), "inputs: row 1, column 1 is nan"),
        ((X, torch.tensor([0, 1, INF, 3, 4, 5, 6])), "targets: row 2 is inf"),
        (torch.tensor([INF, -INF]), "inputs: row 0 is inf (and 1 more)"),
        (torch.tensor([0.0, -INF]).half(), "inputs: row 1 is -inf"),
        (torch.full((1, 2, 2), NAN), "inputs: row 0, column 0, 0 is nan (and 3 more)"),
        ((X, X * NAN, Y), "inputs[1]: row 0, column 0 is nan (and 13 more)"),
    ],
)
def test_values_that_are_not_finite_are_named_by_row_and_column(data: Any, place: str) -> None:
    with raises(DataError, place + FILL):
        BatchLoader(data)


def test_a_value_far_down_that_is_not_finite_is_found() -> None:
    x = torch.zeros(100_000, 2)
    x[70_001, 1] = torch.inf
    message = "inputs: row 70001, column 1 is inf; remove the row or fill in a number before"
    with raises(DataError, f"{message} training"):
        BatchLoader((x, torch.zeros(100_000)))


def test_allow_nonfinite_takes_them() -> None:
    (batch,) = BatchLoader(torch.tensor([1.0, NAN]), allow_nonfinite=True)
    assert batch.inputs.isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    "huge",
    [
        torch.full((5,), 1.7e308, dtype=torch.float64),
        torch.full((5,), 65504.0, dtype=torch.float16),
        torch.full((5,), 3e38, dtype=torch.complex64),
    ],
)
def test_finite_values_whose_sum_overflows_are_accepted(huge: Tensor) -> None:
    (batch,) = BatchLoader(huge)
    assert torch.equal(batch.inputs, huge)


def test_a_tensor_dataset_is_taken_as_its_tensors() -> None:
    loader = BatchLoader(TensorDataset(X, Y))
    assert loader.samples.tensors[0].data_ptr() == X.data_ptr()  # type: ignore[attr-defined]
    (batch,) = loader
    assert torch.equal(batch.inputs, X)


def test_a_tensor_dataset_is_read_as_it_is_now() -> None:
    dataset = TensorDataset(X.clone(), Y)
    loader = MiniBatchLoader(dataset, 3, order="sequential")
    dataset.tensors[0].add_(1)
    assert torch.equal(torch.cat([batch.inputs for batch in loader]), X + 1)
    dataset.tensors = (X[:5] * 2, Y[:5])
    for order in ("sequential", "reshuffle"):
        loader = loader if order == "sequential" else MiniBatchLoader(dataset, 3)
        batches = list(loader)
        assert sum(map(len, batches)) == 5
        assert all(torch.equal(b.inputs, 2 * X[b.indices]) for b in batches)
    dataset.tensors = (X[:5] / 0, Y[:5])
    with raises(
        DataError,
        "inputs: row 0, column 0 is nan (and 9 more); remove the row or fill in a number before "
        "training",
    ):
        list(loader)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MiniBatchLoader(X, Y, 32), "MiniBatchLoader((X, y), 32)"),
        (lambda: MiniBatchLoader(X, Y), "MiniBatchLoader((X, y), 32)"),
        (lambda: MiniBatchLoader(X, Y.numpy(), batch_size=3), "MiniBatchLoader((X, y), 32)"),
        (lambda: BatchLoader(X, Y), "BatchLoader((X, y))"),
        (lambda: SampleLoader(X.numpy(), Y), "SampleLoader((X, y))"),
    ],
)
def test_inputs_and_targets_as_two_arguments_are_refused(make: Any, said: str) -> None:
    whole = f"data: inputs and targets are one argument: {said}, with options by name"
    with raises(ConfigError, whole):
        make()


def test_samples_are_taken_as_they_are() -> None:
    samples = TensorSamples([X, Y])
    assert BatchLoader(samples).samples is samples
    assert torch.equal(samples.targets, Y)  # type: ignore[arg-type]
    assert TensorSamples([X]).targets is None


def test_a_batch_splits_into_microbatches_with_the_ragged_one_last() -> None:
    batch = Batch({"a": X, "b": [Y, "kept"]}, (Y,), torch.arange(7))
    parts = list(batch.split(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.inputs["a"] for part in parts]), X)
    assert torch.equal(torch.cat([part.inputs["b"][0] for part in parts]), Y)
    assert torch.equal(torch.cat([part.targets[0] for part in parts]), Y)
    assert torch.equal(torch.cat([part.indices for part in parts]), torch.arange(7))
    assert parts[2].inputs["b"][1] == "kept"
    assert repr(batch) == "Batch(7 samples)"
