"""Mapped data gives the loaders what tensors in memory give them, without being loaded."""

import gc
import os
import subprocess
import sys
import threading
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import gdtrain
from gdtrain import BatchLoader, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.data.files import mapped as mapped_module
from gdtrain.data.files import shards
from gdtrain.data.files.mapped import MappedSamples, held_out
from gdtrain.data.files.read_ahead import read_ahead
from gdtrain.data.files.shards import ShardedArray
from gdtrain.data.lazy_batch import LazyBatch
from gdtrain.errors import DataError

draw = torch.Generator().manual_seed(0)
N = 7
X = torch.randn(N, 3, generator=draw)
Y = torch.randn(N, 1, generator=draw)
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, -100])
ORDERS = {
    "reshuffle": "reshuffle",
    "shuffle_once": "shuffle_once",
    "sequential": "sequential",
    "replacement": "replacement",
    "explicit": [6, 0, 0, 3],
    "callable": lambda epoch: [(epoch + 1) % N, 5],
}
LOADERS = {
    "batch": BatchLoader,
    "sample": SampleLoader,
    "minibatch": lambda data, **options: MiniBatchLoader(data, 3, **options),
}


def save(path: Path, tensor: torch.Tensor) -> Path:
    """Save as the file's suffix says; without one, as a folder of .npy shards of uneven length."""
    if path.suffix == ".npy":
        np.save(path, tensor.numpy())
    elif path.suffix == ".pt":
        torch.save(tensor, path)
    elif path.suffix == ".safetensors":
        save_file({"rows": tensor}, path)
    else:
        path.mkdir()
        for number, part in enumerate(torch.split(tensor, [2, 4, 0, 1])):
            np.save(path / f"{number}.npy", part.numpy())
    return path


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "gdtrain-read-ahead"]


@pytest.fixture
def small_pieces(monkeypatch) -> None:
    """Chunks of two rows, drops after every row, and lazy batches from two rows on."""
    monkeypatch.setattr(mapped_module, "CHUNK_BYTES", 32)
    monkeypatch.setattr(mapped_module, "LAZY_BYTES", 32)
    monkeypatch.setattr(shards, "RESIDENT_BYTES", 1)


def assert_same_batches(got, expected) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine.indices, theirs.indices)
        assert len(mine) == len(theirs)
        assert torch.equal(mine.inputs, theirs.inputs)
        assert torch.equal(mine.targets, theirs.targets)
        assert mine.inputs.dtype == theirs.inputs.dtype


@pytest.mark.few(25)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", LOADERS)
@pytest.mark.parametrize("suffix", ["", ".npy", ".pt", ".safetensors"])
def test_loaders_give_what_they_give_of_tensors(tmp_path, suffix, form, order) -> None:
    files = save(tmp_path / f"x{suffix}", X), save(tmp_path / f"y{suffix}", Y)
    options = {"order": ORDERS[order], "seed": 5}
    loader = LOADERS[form](gdtrain.mapped(*files), **options)
    in_memory = LOADERS[form]((X, Y), **options)
    for _ in range(2):
        assert_same_batches(loader, in_memory)
    assert readers() == []


@pytest.mark.few(5)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", LOADERS)
def test_nor_does_it_matter_in_what_pieces_it_is_read(tmp_path, small_pieces, form, order) -> None:
    files = save(tmp_path / "x", X), save(tmp_path / "y", Y)
    options = {"order": ORDERS[order], "seed": 5}
    loader = LOADERS[form](gdtrain.mapped(*files), **options)
    assert_same_batches(loader, LOADERS[form]((X, Y), **options))
    gc.collect()
    assert readers() == []


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_rows_keep_their_dtype_and_shape(tmp_path, suffix, dtype) -> None:
    rows = (torch.arange(N * 6).reshape(N, 2, 3) % 5).to(dtype)
    array = ShardedArray(save(tmp_path / f"x{suffix}", rows))
    assert array.shape == [N, 2, 3]
    for places in ([4, 0, 6, 4], [1, 2, 3], []):
        taken = array.take(torch.tensor(places, dtype=torch.int64))
        assert taken.dtype == dtype
        assert torch.equal(taken, rows[places])


def test_unsigned_numbers_become_int64_as_in_memory(tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.array([[65535], [3]], dtype=np.uint16))
    (batch,) = BatchLoader(gdtrain.mapped(tmp_path / "x.npy"))
    (in_memory,) = BatchLoader(torch.tensor([[65535], [3]]))
    assert torch.equal(batch.inputs, in_memory.inputs)
    assert batch.targets is None


def test_several_inputs_and_named_tensors(tmp_path) -> None:
    save_file({"a": X, "b": X * 2, "y": Y}, tmp_path / "all.safetensors")
    torch.save({"a": X, "y": Y}, tmp_path / "all.pt")
    one, two = tmp_path / "all.safetensors", tmp_path / "all.pt"
    samples = gdtrain.mapped((two, "a"), (one, "b"), (one, "y"))
    loader, in_memory = MiniBatchLoader(samples, 3), MiniBatchLoader((X, X * 2, Y), 3)
    for mine, theirs in zip(loader, in_memory, strict=True):
        assert [torch.equal(*pair) for pair in zip(mine.inputs, theirs.inputs, strict=True)] == [
            True,
            True,
        ]
        assert torch.equal(mine.targets, theirs.targets)


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("form", LOADERS)
def test_ranks_read_the_shares_that_they_read_of_tensors(tmp_path, form, world) -> None:
    files = save(tmp_path / "x", X), save(tmp_path / "y", Y)
    loader, in_memory = LOADERS[form](gdtrain.mapped(*files)), LOADERS[form]((X, Y))
    for rank in range(world):
        plan = in_memory.plan(1).share(rank, world)
        assert_same_batches(loader.samples.read(plan), in_memory.samples.read(plan))


def test_reading_can_start_at_any_batch(tmp_path) -> None:
    samples = gdtrain.mapped(save(tmp_path / "x", X), save(tmp_path / "y", Y))
    in_memory = MiniBatchLoader((X, Y), 2, seed=3)
    plan = in_memory.plan(4)
    assert_same_batches(samples.read(plan, 2), in_memory.samples.read(plan, 2))


# ── lazy batches ────────────────────────────────────────────────────────────────────────────────


def lazy_batch(folder: Path, targets: torch.Tensor = Y, **options) -> LazyBatch:
    samples = gdtrain.mapped(save(folder / "x", X), save(folder / "y", targets))
    (batch,) = BatchLoader(samples, **options)
    assert isinstance(batch, LazyBatch)
    return batch


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
@pytest.mark.parametrize("order", ["sequential", "reshuffle"])
def test_a_lazy_batch_splits_as_one_in_memory(tmp_path, small_pieces, order, size) -> None:
    batch = lazy_batch(tmp_path, order=order, seed=1)
    (in_memory,) = BatchLoader((X, Y), order=order, seed=1)
    assert_same_batches(batch.split(size), in_memory.split(size))
    parts = list(batch.split(size))  # all of them at once, from the last to the first
    assert_same_batches(reversed(parts), reversed(list(in_memory.split(size))))
    assert_same_batches(parts[0].split(2), next(in_memory.split(size)).split(2))
    inputs, targets = batch
    assert torch.equal(inputs, in_memory.inputs)
    assert torch.equal(targets, in_memory.targets)
    assert batch.inputs is inputs  # read once, then kept


def test_targets_alone_are_read_without_inputs(tmp_path, small_pieces) -> None:
    batch = lazy_batch(tmp_path)
    for file in (tmp_path / "x").iterdir():
        file.write_bytes(b"")  # reading a mapped page that is gone would end the process
    assert torch.equal(torch.cat([part.targets for part in batch.split(2)]), Y)
    assert torch.equal(batch.targets, Y)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.MSELoss(), X[:, :2]),
        (nn.MSELoss(reduction="sum"), X[:, :2]),
        (nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 2.5])), LABELS),
    ],
    ids=["mean", "sum", "weighted"],
)
def test_a_lazy_full_batch_trains_to_the_bits_of_one_in_memory(
    tmp_path, small_pieces, loss, targets
) -> None:
    weights = []
    samples = gdtrain.mapped(save(tmp_path / "x", X), save(tmp_path / "y", targets))
    for data in (samples, (X, targets)):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3 if targets.ndim == 1 else 2)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loader = BatchLoader(data, order="reshuffle")
        trainer = Trainer(model, loss, optimizer, loader, device="cpu", microbatch_size=2)
        history = trainer.fit(3)
        weights.append([*model.parameters(), torch.tensor(history.train_loss)])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    gc.collect()
    assert readers() == []


def test_a_precision_applies_to_lazy_batches_too(tmp_path, small_pieces) -> None:
    samples = gdtrain.mapped(save(tmp_path / "x", X), save(tmp_path / "y", Y))
    model = nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=50)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, BatchLoader(samples), precision="fp64", microbatch_size=3
    )
    trainer.fit(3)
    ones = torch.cat([X, torch.ones(N, 1)], dim=1).double()
    solution = torch.linalg.lstsq(ones, Y.double()).solution
    found = torch.cat([model.weight.T, model.bias[None]])
    assert torch.allclose(found, solution, atol=1e-4)


# ── splits ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 0.5, 0.6, 0.8])
@pytest.mark.parametrize("order", ["sequential", "reshuffle"])
def test_the_two_parts_of_a_split_are_disjoint_and_complete(tmp_path, order, fraction) -> None:
    arrays = [ShardedArray(save(tmp_path / "x", torch.arange(N)))]
    held = held_out(N, fraction, seed=3)
    training = MappedSamples(arrays, without=held)
    validation = MappedSamples(arrays, only=held)
    assert len(validation) == (max(1, round(fraction * N)) if fraction else 0)
    rows = []
    for samples in (training, validation):
        if len(samples):
            batches = list(MiniBatchLoader(samples, 2, order=order))
            rows += [int(x) for batch in batches for x in batch.inputs]
            places = sorted(int(i) for batch in batches for i in batch.indices)
            assert places == list(range(len(samples)))
    assert sorted(rows) == list(range(N))


def test_a_split_takes_one_row_of_each_stratum_at_random() -> None:
    drawn = torch.stack([held_out(10, 0.2, seed) for seed in range(2000)])
    assert torch.equal(drawn, torch.stack([held_out(10, 0.2, seed) for seed in range(2000)]))
    for stratum in range(2):
        counts = torch.bincount(drawn[:, stratum] - 5 * stratum, minlength=5)
        assert len(counts) == 5
        assert ((counts - 400) ** 2 / 400).sum() < 18.5  # chi-squared, 4 degrees, p = 0.001


def test_a_split_that_leaves_nothing_is_refused() -> None:
    said = "no samples to train on: validation_fraction 0.9 takes 2 of 2; use a smaller fraction"
    with pytest.raises(DataError) as error:
        held_out(2, 0.9, seed=0)
    assert str(error.value) == said


# ── reading ahead ───────────────────────────────────────────────────────────────────────────────


def test_what_is_read_ahead_is_bounded() -> None:
    made = []

    def numbers():
        for number in count():
            made.append(number)
            yield number

    ahead = read_ahead(numbers(), depth=2)
    assert readers() == []  # nothing starts before it is asked for
    assert list(islice(ahead, 3)) == [0, 1, 2]
    (thread,) = readers()
    assert max(made) <= 6
    ahead.close()
    assert not thread.is_alive()
    assert len(made) <= 8


def test_a_reader_that_is_dropped_ends() -> None:
    ahead = read_ahead(count())
    assert next(ahead) == 0
    assert len(readers()) == 1
    del ahead
    gc.collect()
    assert readers() == []


def test_errors_come_where_the_item_would_have_been() -> None:
    def numbers():
        yield 0
        raise DataError("the disk is gone")

    ahead = read_ahead(numbers())
    assert next(ahead) == 0
    with pytest.raises(DataError, match=r"^the disk is gone$"):
        next(ahead)
    assert readers() == []


def test_a_loader_that_is_left_midway_leaves_no_thread(tmp_path, small_pieces) -> None:
    samples = gdtrain.mapped(save(tmp_path / "x", X), save(tmp_path / "y", Y))
    batches = iter(SampleLoader(samples))
    next(batches)
    batches.close()
    assert readers() == []
    for part in lazy_batch_parts(samples):
        assert part.inputs.shape == (2, 3)
        break
    del part
    gc.collect()
    assert readers() == []


def lazy_batch_parts(samples):
    (batch,) = BatchLoader(samples)
    return batch.split(2)


@pytest.mark.long
def test_a_process_ends_while_a_reader_waits(tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 3), np.float32))
    script = (
        "import gdtrain, itertools\n"
        "from gdtrain.data.files import mapped\n"
        "mapped.CHUNK_BYTES = 12\n"
        "batches = iter(gdtrain.SampleLoader(gdtrain.mapped('x.npy')))\n"
        "print(next(batches).inputs.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[[0.0, 0.0, 0.0]]\n", "")


# ── bad input ───────────────────────────────────────────────────────────────────────────────────


def fault(*parts) -> str:
    with pytest.raises(DataError) as error:
        gdtrain.mapped(*parts)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shards_that_do_not_fit(here) -> None:
    for name, second in (
        ("dtype", np.zeros((1, 2))),
        ("width", np.zeros((1, 3), np.float32)),
        ("ndim", np.zeros(1, np.float32)),
    ):
        Path(name).mkdir()
        np.save(f"{name}/0.npy", np.zeros((3, 2), np.float32))
        np.save(f"{name}/1.npy", second)
    assert fault("dtype") == (
        "dtype/1.npy: holds float64, but dtype/0.npy float32; all shards must be of one dtype"
    )
    assert fault("width") == (
        "width/1.npy: has rows of shape [3], but width/0.npy of [2]; "
        "all shards must be of one width"
    )
    assert fault("ndim") == (
        "ndim/1.npy: has rows of shape [], but ndim/0.npy of [2]; all shards must be of one width"
    )


def test_lengths_that_differ(here) -> None:
    np.save("x.npy", np.zeros((3, 2)))
    np.save("y.npy", np.zeros(4))
    assert fault("x.npy", "y.npy") == (
        "different numbers of samples: x.npy 3 and y.npy 4; each sample needs one of each"
    )


def test_truncated_files(here) -> None:
    np.save("x.npy", np.zeros((3, 2), np.float32))
    os.truncate("x.npy", 128 + 20)
    assert fault("x.npy") == "x.npy: is truncated; it promises 152 bytes and has 148"
    os.truncate("x.npy", 5)
    assert fault("x.npy").startswith("x.npy: can't be read: ")
    save_file({"x": X}, "x.safetensors")
    os.truncate("x.safetensors", Path("x.safetensors").stat().st_size - 1)
    assert fault("x.safetensors").startswith("x.safetensors: can't be read: ")
    torch.save(X, "x.pt")
    os.truncate("x.pt", 300)
    assert fault("x.pt").startswith("x.pt: can't be read: ")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([None, 1]), "an array of object is not numeric; encode it first"),
        (np.array(["a"]), "an array of <U1 is not numeric; encode it first"),
        (np.zeros((2, 3)).T, "is in column order; save np.ascontiguousarray of the array"),
        (np.zeros(3, ">f4"), "is in another machine's byte order; save it in this one's"),
        (np.zeros((3, 0)), "holds no numbers, its rows are of shape [0]"),
        (np.float32(1), "a single number has no rows; give a tensor of shape [n, …]"),
    ],
    ids=["object", "text", "order", "endian", "empty", "scalar"],
)
def test_arrays_that_can_not_be_mapped(here, array, said) -> None:
    np.save("x.npy", array)
    assert fault("x.npy") == f"x.npy: {said}"


def test_paths_and_names(here) -> None:
    Path("empty").mkdir()
    Path("x.csv").write_text("a\n1\n")
    np.save("x.npy", np.zeros(3))
    save_file({"a": X, "b": Y}, "two.safetensors")
    torch.save([X], "list.pt")
    torch.save(X, "one.pt")
    torch.save(X.T, "columns.pt")
    assert fault() == "no files given; give inputs and targets"
    assert fault("empty") == "empty: holds no .npy, .safetensors or .pt file"
    assert fault("x.csv") == "x.csv: can't be mapped; give .npy, .safetensors or .pt"
    assert fault("gone.npy") == (
        "gone.npy: file not found; paths are relative to the working directory"
    )
    assert fault(("x.npy", "x")) == "x.npy: an .npy file holds one array; leave the name 'x' out"
    assert fault("two.safetensors") == ("two.safetensors: holds a, b; say which, as (path, name)")
    assert fault(("two.safetensors", "c")) == "two.safetensors: has no 'c'; it holds a, b"
    assert fault("list.pt") == "list.pt: must hold a tensor or a dict of tensors"
    assert fault(("one.pt", "x")) == "one.pt: holds one tensor; leave the name 'x' out"
    assert fault("columns.pt") == ("columns.pt: is not stored row by row; save tensor.contiguous()")


def test_no_samples(here) -> None:
    np.save("x.npy", np.zeros((0, 3)))
    with pytest.raises(DataError) as error:
        BatchLoader(gdtrain.mapped("x.npy"))
    assert str(error.value) == "the data set is empty; at least one sample is needed"
