"""Checkpoints of a model that is split over processes: a file from each, taken up by any number."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks
from safetensors.numpy import load_file

from gdtrain.checkpoint.format import read_state, verify, write_state
from gdtrain.checkpoint.shard_files import write_shard
from gdtrain.cli.main import main
from gdtrain.errors import CheckpointError
from gdtrain.output.metrics_file import read_metrics
from gdtrain.training.placement.sharding import Part

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


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    np.savez("d.npz", x=draw.normal(size=(53, 4)), y=draw.integers(0, 3, 53))
    Path("run.yaml").write_text(CONFIG)


def train(_rank: int, *arguments: str) -> int:
    return main(["--config", "run.yaml", "--quiet", *arguments])


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
