"""Checkpoints of a model that is split over processes: a file from each, taken up by any number."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks
from safetensors.numpy import load_file
from torch import nn

from gdtrain import BatchLoader, Checkpoints, Trainer
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.expected_tensors import share_of, tensor_check
from gdtrain.checkpoint.format import read_state, verify, write_shard, write_state
from gdtrain.cli.main import main
from gdtrain.errors import CheckpointError, ConfigError
from gdtrain.output.run_directory import read_metrics
from gdtrain.training.placement.sharding import Part, local, shard

CONFIG = """\
data: {source: npz, path: d.npz, validation_fraction: 0.25}
model: {name: mlp, hidden: [5], activation: tanh}
loss: cross_entropy
loader: {name: minibatch, batch_size: 10}
optimizer: {name: adam, lr: 0.05}
precision: fp64
strategy: shard
device: cpu
checkpoint: {keep_best: val_loss}
log: {picture: false}
epochs: 6
"""

splits = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch can't split models on CPUs"
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    np.savez("d.npz", x=draw.normal(size=(53, 4)), y=draw.integers(0, 3, 53))
    Path("run.yaml").write_text(CONFIG)


def train(_rank: int, *arguments: str) -> int:
    return main(["--config", "run.yaml", "--quiet", *arguments])


@splits
@pytest.mark.long
def test_a_run_goes_on_with_two_three_and_one_processes() -> None:
    """Five units are 3 + 2 rows, then 2 + 2 + 1: the losses are those of one process."""
    assert train(0, "--output-dir", "alone") == 0
    assert on_ranks(train, "--output-dir", "run", "epochs=2") == [0, 0]
    held = newest()
    assert [path.name for path in sorted(held.glob("shard-*"))] == [
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]
    assert load_file(held / "shard-00001.safetensors")["model.0.weight"].shape == (2, 4)
    assert "model.0.weight" not in load_file(held / "tensors.safetensors")
    more = ["--output-dir", "run", "--resume"]
    assert on_ranks(train, *more, "epochs=4", ranks=3) == [0, 0, 0]
    assert len(list(newest().glob("shard-*"))) == 3
    assert train(0, *more) == 0
    assert not list(newest().glob("shard-*"))
    expected, found = (epochs(name) for name in ("alone", "run"))
    assert len(expected) == 6
    for one, other in zip(expected, found, strict=True):
        for key in ("train_loss", "val_loss"):
            assert other[key] == pytest.approx(one[key], rel=1e-12, abs=1e-12)


def newest() -> Path:
    return max(path for path in Path("run/checkpoints").iterdir() if path.is_dir())


def epochs(run: str) -> list[dict[str, float]]:
    records = read_metrics(Path(run, "metrics.jsonl"))
    return [record for record in records if record["kind"] == "epoch"]


# ── what is read ────────────────────────────────────────────────────────────────────────────

ROWS, COLUMNS = 3000, 500  # 6 MB of weights, and as much momentum
SPARE = 1_000_000  # of bytes: biases, records, what the interpreter reads and takes besides


def wide_trainer() -> Trainer:
    model = nn.Linear(COLUMNS, ROWS)
    with torch.no_grad():  # numbers that tell the rows apart
        model.weight.copy_(torch.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) / 1e6)
    model = shard(model, torch.device("cpu"))
    data = torch.ones(6, COLUMNS), torch.zeros(6, ROWS)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return Trainer(model, "mse", optimizer, BatchLoader(data), progress=False)


def save_wide(_rank: int) -> int:
    trainer = wide_trainer()
    trainer.callbacks.append(Checkpoints("c"))
    trainer.fit(1)
    return sum(path.stat().st_size for path in Path("c/step-0000000001").iterdir())


def read_wide(rank: int) -> tuple[int, int, list[float]]:
    """The bytes that the system has read for a load, the memory it took, and the first column."""
    trainer = wide_trainer()
    store, check, share = CheckpointStore(Path("c")), tensor_check(trainer), share_of(trainer)
    before, taken = bytes_read(), memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    _, state, _ = store.load_newest(check, share=share)
    read, peak = bytes_read() - before, memory("VmHWM") - taken
    rows = local(state["model"]["weight"])
    trainer.load_state_dict({key: value for key, value in state.items() if key != "settings"})
    assert torch.equal(local(trainer.model.weight.detach()), rows)
    return read, peak, rows[:, 0].tolist()


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def memory(key: str) -> int:
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
    )
    return 1024 * int(line.split()[1])


@splits
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system is asked by /proc")
def test_a_load_reads_the_rows_that_it_needs() -> None:
    """And the files whose digests it computes: of two files among three, one half of all at most.

    As many processes as have written it read a file each; one alone reads each byte once.
    """
    whole, _ = on_ranks(save_wide)
    alone = read_wide(0)
    for ranks, most in ((2, whole / 2), (3, whole * 2 / 3)):
        found = on_ranks(read_wide, ranks=ranks)
        for read, peak, _ in found:
            assert read <= most + SPARE
            assert peak <= whole / ranks + 3 * SPARE
        assert [number for _, _, rows in found for number in rows] == alone[2]
    assert alone[0] <= whole + SPARE


def error_of(_rank: int) -> str:
    trainer = wide_trainer()
    with pytest.raises(CheckpointError) as raised:
        trainer.fit(2, resume="c")
    return str(raised.value)


@splits
def test_a_fault_that_one_process_finds_is_told_by_all() -> None:
    """The last byte is in rows that the third process needs, and the second one's to check."""
    on_ranks(save_wide)
    path = Path("c/step-0000000001/shard-00001.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    message = f"no checkpoint can be used: {path.absolute()} is damaged, or is not of one "
    message += "checkpoint with its state.json (its digest differs)"
    assert on_ranks(error_of, ranks=3) == [message] * 3


def message_without_events(_rank: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(torch.cpu.Stream, "record_event", raising=False)  # as in torch 2.6
        with pytest.raises(ConfigError) as raised:
            wide_trainer()
    return str(raised.value)


def test_a_torch_that_can_not_split_on_cpus_is_named() -> None:
    message = f"strategy: shard on CPUs needs torch >= 2.7, and this is {torch.__version__}; "
    assert on_ranks(message_without_events) == [message + "install it, or use replicate"] * 2


# ── the files ───────────────────────────────────────────────────────────────────────────────

WHOLE = torch.arange(12.0).reshape(4, 3)


def written(directory: Path, *starts: int) -> None:
    """A state of one tensor in parts that begin at these rows, as so many processes write it."""
    directory.mkdir()
    ends = [*starts[1:], 4]
    states = [
        {"w": Part(WHOLE[a:b], a, [4, 3]), "step": torch.tensor(7), "lr": 0.1}
        for a, b in zip(starts, ends, strict=True)
    ]
    digests = [write_shard(directory, number, state) for number, state in enumerate(states)]
    write_state(directory, states[0], digests)


@pytest.mark.parametrize("starts", [(0,), (0, 2), (0, 1, 4), (0, 0, 3, 3)])
def test_parts_are_put_together(starts: tuple[int, ...]) -> None:
    """Some processes may have no rows."""
    written(Path("c"), *starts)
    verify(Path("c"))
    state = read_state(Path("c"))
    assert torch.equal(state["w"], WHOLE)
    assert state["step"].item() == 7
    record = json.loads(Path("c/state.json").read_text().splitlines()[0])
    files = [Path(f"c/shard-{number:05d}.safetensors") for number in range(len(starts))]
    assert record["shards"] == [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


def test_shapes_are_checked_before_rows_are_read() -> None:
    written(Path("c"), 0, 2)
    seen = {}
    read_state(Path("c"), seen.update)
    assert seen == {"w": ("F32", [4, 3]), "step": ("I64", [])}


def missing(directory: Path) -> None:
    (directory / "shard-00001.safetensors").unlink()


def changed(directory: Path) -> None:
    path = directory / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def exchanged(directory: Path) -> None:
    one, two = (directory / f"shard-0000{number}.safetensors" for number in range(2))
    one.rename(directory / "aside")
    two.rename(one)
    (directory / "aside").rename(two)


def cut(directory: Path) -> None:
    state = {"w": Part(WHOLE[2:3], 2, [4, 3])}
    digests = [
        hashlib.sha256((directory / "shard-00000.safetensors").read_bytes()).hexdigest(),
    ]
    (directory / "shard-00001.safetensors").unlink()
    digests.append(write_shard(directory, 1, state))
    (directory / "state.json").unlink()
    (directory / "tensors.safetensors").unlink()
    write_state(directory, state, digests)


@pytest.mark.parametrize("fault", [missing, changed, exchanged, cut])
def test_a_fault_of_one_file_is_found(fault) -> None:
    """A record that lists other rows than there are, too."""
    written(Path("c"), 0, 2)
    fault(Path("c"))
    with pytest.raises(CheckpointError, match=r"shard-0000|rows of w are missing"):
        read_state(Path("c"))


@splits
def test_a_disk_that_fails_one_process_is_told_and_the_run_goes_on(capfd) -> None:
    """All processes agree that there is no checkpoint, and the model is left behind."""
    assert on_ranks(train_where_rank_1_can_not_write) == [1, 1]
    assert Path("run/model.safetensors").is_file()
    assert json.loads(Path("run/summary.json").read_text())["epochs"] == 2


def train_where_rank_1_can_not_write(rank: int) -> int:
    from gdtrain.checkpoint import checkpoints

    real, calls = checkpoints.write_shard, []

    def write(directory: Path, number: int, state: dict) -> str:
        calls.append(number)
        if rank == 1 and len(calls) > 1:  # the first one is before training
            raise OSError(5, "Input/output error", str(directory))
        return real(directory, number, state)

    checkpoints.write_shard = write
    try:
        return main(["--config", "run.yaml", "--output-dir", "run", "epochs=2"])
    finally:
        checkpoints.write_shard = real
