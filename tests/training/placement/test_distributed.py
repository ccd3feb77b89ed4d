"""Several processes follow the trajectory of one, with shares that are unequal or empty."""

from __future__ import annotations

import importlib
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.faults.torture import start_run
from helpers.paths import CONFIGS
from helpers.ranks import on_ranks
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from gdtrain import (
    BatchLoader,
    Callback,
    EarlyStopping,
    MiniBatchLoader,
    SampleLoader,
    Trainer,
    Validation,
)
from gdtrain.cli.main import main
from gdtrain.errors import DataError, ModelError, ProcessError
from gdtrain.output.run_directory import read_metrics
from gdtrain.training.placement.distributed import join
from gdtrain.training.placement.sharding import shard

N = 103  # divisible by nothing
UPDATES = 22
draw = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=draw, dtype=torch.float64)
LABELS = torch.randint(3, (N,), generator=draw)
LABELS[::7] = -100
W = torch.tensor([0.2, 1.0, 2.5], dtype=torch.float64)
LOADERS = {
    "batch": lambda: BatchLoader((X, LABELS)),
    "sample": lambda: SampleLoader((X, LABELS.clamp(min=0))),
    "minibatch": lambda: MiniBatchLoader((X, LABELS), 10, seed=3),
}


class Weights(Callback):
    """The weights after every update."""

    every_n_steps = 1

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_safe_point(self, trainer: Trainer) -> None:
        flat = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        self.seen.append(flat.clone())
        if trainer.progress.step == UPDATES:
            trainer.stop("enough")


def make_trainer(form: str, **options) -> Trainer:
    torch.manual_seed(1 + (dist.get_rank() if dist.is_initialized() else 0))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    if not dist.is_initialized():
        torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    return Trainer(
        model,
        nn.CrossEntropyLoss(weight=W),
        optimizer,
        LOADERS[form](),
        device="cpu",
        scheduler=scheduler,
        scheduler_per="step",
        **options,
    )


def trajectory(form: str, **options) -> dict[str, torch.Tensor]:
    weights = Weights()
    held_out = BatchLoader((X[:37], LABELS[:37]))
    trainer = make_trainer(
        form,
        validation=Validation(held_out, every_n_steps=7),
        callbacks=[weights],
        clip_grad_norm=1.0,
        **options,
    )
    trainer.fit(100)
    return {
        "weights": torch.stack(weights.seen),
        "validation": torch.tensor([r["val_loss"] for r in trainer.callbacks[0].results]),
        "train_loss": torch.tensor(trainer.history.train_loss),
        "step": torch.tensor([trainer.progress.step, trainer.progress.samples]),
    }


def all_trajectories(rank: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "batch": trajectory("batch"),
        "sample": trajectory("sample"),
        "minibatch": trajectory("minibatch"),
        "microbatched": trajectory("minibatch", microbatch_size=2, accumulate_in="fp64"),
    }


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, torch.Tensor]]:
    return all_trajectories()


def stop_on_one_rank(rank: int) -> int:
    class StopOnRank1(Callback):
        def on_before_update(self, trainer: Trainer) -> None:
            if rank == 1 and trainer.progress.epoch == 2:
                trainer.should_stop = True

    trainer = make_trainer("minibatch", callbacks=[StopOnRank1()])
    trainer.fit(10)
    return trainer.progress.step


def early_stopping(rank: int) -> int:
    stopping = EarlyStopping("train_loss", patience=1, min_delta=10)
    trainer = make_trainer("minibatch", callbacks=[stopping])
    trainer.fit(10)
    return trainer.progress.epoch


def faults(rank: int) -> list[str]:
    said = []
    loader = MiniBatchLoader((X + rank, LABELS), 10)
    model = nn.Linear(4, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        Trainer(model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu").fit(1)
    except DataError as error:
        said.append(str(error))
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = LOADERS["minibatch"]()
    try:
        Trainer(model, nn.CrossEntropyLoss(), optimizer, loader, device="cpu").fit(1)
    except ModelError as error:
        said.append(str(error))
    return said


def test_all_ranks_stop_together() -> None:
    first, second = on_ranks(stop_on_one_rank)
    assert first == second
    assert 22 < first < 110
    assert on_ranks(early_stopping) == [2, 2]


class Pairs(Dataset):
    """Two inputs and a class by row, of which the first row is missing."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int):
        return None if i == 0 else (X[i], -X[i], LABELS[i])


def without_missing(items):
    one, other, labels = zip(*(item for item in items if item is not None), strict=True)
    return (torch.stack(one), torch.stack(other)), torch.stack(labels)


class Difference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, one, other):
        return self.layer(one - other)


def of_shares_of_one_and_two(rank: int) -> list[str]:
    """Two tensors of two rows may be a row of two samples: rank 1 alone sees that."""
    said = []
    for size in ("auto", 1):
        model = Difference()
        loader = MiniBatchLoader(Pairs(), 4, order="sequential", collate_fn=without_missing)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, "cross_entropy", optimizer, loader, microbatch_size=size)
        with pytest.raises(DataError) as caught:
            trainer.fit(1)
        said.append(str(caught.value))
    return said


def test_all_ranks_refuse_a_batch_of_which_one_cannot_cut_its_share() -> None:
    first, second = on_ranks(of_shares_of_one_and_two)
    assert first == second
    for text in first:
        assert text.startswith("inputs (a tuple): has 2 items in a batch of 2 samples")


def test_all_ranks_see_the_same_faults() -> None:
    first, second = on_ranks(faults)
    assert first == second
    data_fault, model_fault = first
    assert data_fault.startswith("the processes see different data: data digest ")
    assert data_fault.endswith(" on rank 1; give all of them the same")
    assert model_fault.startswith(
        "several processes: layer '1' (BatchNorm1d) computes its statistics over the batch"
    )


def split_trajectory(rank: int = 0) -> dict[str, torch.Tensor]:
    """A model that FSDP has split, trained for a while, saved, and taken up by another."""

    def build() -> Trainer:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        model = shard(model, torch.device("cpu"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        loader = MiniBatchLoader((X, LABELS), 10, seed=3)
        loss = nn.CrossEntropyLoss(weight=W)
        options = {"device": "cpu", "clip_grad_norm": 1.0, "microbatch_size": 2}
        return Trainer(model, loss, optimizer, loader, **options)

    first = build()
    first.fit(2)
    second = build()
    second.load_state_dict(first.state_dict())
    second.fit(4)
    evaluated = second.evaluate(MiniBatchLoader((X[:31], LABELS[:31]), 4))["loss"]
    return {**second.state_dict()["model"], "loss": torch.tensor(evaluated)}


@pytest.mark.long
def test_a_split_model_follows_one_process_through_a_snapshot() -> None:
    alone = split_trajectory()
    for mine in on_ranks(split_trajectory):
        assert mine.keys() == alone.keys()
        for name, expected in alone.items():
            assert (mine[name] - expected).abs().max() <= 1e-12, name


@pytest.mark.parametrize(
    "ranks", [pytest.param(2, marks=pytest.mark.long), 3, pytest.param(4, marks=pytest.mark.long)]
)
def test_ranks_follow_one_process_to_1e_10(ranks: int, alone) -> None:
    for mine in on_ranks(all_trajectories, ranks=ranks):
        for name, expected in alone.items():
            # One process stops on its own last update, as all ranks together do.
            assert torch.equal(mine[name]["step"], expected["step"])
            for what in ("weights", "validation", "train_loss"):
                assert mine[name][what].shape == expected[what].shape
                differences = (mine[name][what] - expected[what]).abs()
                assert (differences <= 1e-10).all(), (name, what)


def test_a_first_process_that_is_not_there_is_given_up_in_time(monkeypatch) -> None:
    """Even where torch sleeps between two attempts, as it does for up to twice the time."""
    asleep = threading.Event()
    module = importlib.import_module("torch.distributed.rendezvous")  # a function has this name too
    monkeypatch.setattr(module, "rendezvous", lambda *_, **__: asleep.wait(60))
    monkeypatch.setenv("WORLD_SIZE", "2")
    started = time.monotonic()
    try:
        with pytest.raises(ProcessError, match=r"connected: not all .* within 0\.1 s$"):
            join("cpu", 0.1)
        assert time.monotonic() - started < 20
    finally:
        asleep.set()


def test_the_command_on_two_ranks_gives_what_it_gives_alone(tmp_path: Path) -> None:
    config = CONFIGS / "minibatch.yaml"
    settings = ["epochs=2", "model.dropout=0", "precision=fp64", "device=cpu"]
    assert main(["--config", str(config), *settings, "--output-dir", str(tmp_path / "one")]) == 0
    arguments = ["--config", str(config), *settings, "--output-dir", str(tmp_path / "two")]
    ended = start_run(arguments, tmp_path, ranks=2).end()
    assert ended.codes == [0, 0], ended.log
    assert ended.log.count("done: 2 epochs, 46 updates") == 1  # rank 0 alone prints
    one, two = (read_metrics(tmp_path / n / "metrics.jsonl")[-1] for n in ("one", "two"))
    for key in ("step", "samples", "train_loss", "val_loss", "val_accuracy", "lr"):
        assert two[key] == pytest.approx(one[key], rel=1e-12)
    weights = [load_file(tmp_path / n / "model.safetensors") for n in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() <= 1e-12
