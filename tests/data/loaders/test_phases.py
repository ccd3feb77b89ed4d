"""Loaders that change in mid-run: their form, their batch size; orders, counts, resumed runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.faults.interruptions import StopAfter
from helpers.hostile.schema_errors import SCHEMA, errors
from torch import Tensor, nn
from torch.utils.data import Dataset

from gdtrain import (
    BatchLoader,
    BatchSizes,
    Callback,
    MiniBatchLoader,
    PhasedLoader,
    SampleLoader,
    Trainer,
)
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.cli.main import main
from gdtrain.config.build import build
from gdtrain.config.load import parse_config
from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import CheckpointError, ConfigError
from gdtrain.training.engines.obstacles import is_installed
from gdtrain.training.engines.selection import MIN_UPDATES

draw = torch.Generator().manual_seed(0)
X = torch.randn(7, 2, generator=draw, dtype=torch.float64)
Y = torch.randn(7, 1, generator=draw, dtype=torch.float64)


def phased() -> PhasedLoader:
    return PhasedLoader(
        [
            (2, SampleLoader((X, Y), seed=3)),
            (4, MiniBatchLoader((X, Y), [(3, 2), (None, 3)], seed=4)),
            (None, BatchLoader((X, Y), order="reshuffle", seed=5)),
        ]
    )


def order(loader: Loader, epoch: int) -> list[list[int]]:
    loader.set_epoch(epoch)
    return [batch.indices.tolist() for batch in loader]


def test_each_epoch_has_the_batches_that_its_own_loader_gives_in_that_epoch() -> None:
    loader = phased()
    alone = {
        **dict.fromkeys((0, 1), SampleLoader((X, Y), seed=3)),
        2: MiniBatchLoader((X, Y), 2, seed=4),
        3: MiniBatchLoader((X, Y), 3, seed=4),
        **dict.fromkeys((4, 5, 99), BatchLoader((X, Y), order="reshuffle", seed=5)),
    }
    for epoch, form in alone.items():
        assert order(loader, epoch) == order(form, epoch)
        assert len(loader) == len(form) == len(loader.plan(epoch))


def test_turns_updates_and_sizes_are_those_of_the_plans() -> None:
    loader = phased()
    assert loader.turns(99) == [0, 2, 3, 4]
    assert loader.turns(3) == [0, 2]
    for epochs in range(1, 8):
        plans = [loader.plan(epoch) for epoch in range(epochs)]
        assert loader.updates(epochs) == sum(map(len, plans))
        sizes = [size for plan in plans for size in plan.batch_sizes(0, len(plan))]
        assert loader.smallest_batch(epochs) == min(sizes)
        assert loader.largest_batch(epochs) == max(sizes)
    assert loader.updates(6) == 7 + 7 + 4 + 3 + 1 + 1
    assert loader.extent == "7 samples, 7 updates in the first epoch"


def test_growing_batch_sizes_follow_their_formula() -> None:
    sizes = BatchSizes.growing(3, factor=1.5, every_n_epochs=2, largest=40)
    for epoch in range(40):
        assert sizes.at(epoch) == min(40, math.floor(3 * 1.5 ** (epoch // 2)))
    assert BatchSizes.growing(1, factor=1.01, largest=3).at(69) == 1  # 1.01^69 = 1.987
    assert BatchSizes.growing(1, factor=1.01, largest=3).at(70) == 2
    assert BatchSizes.growing(8, largest=8).pairs == ((None, 8),)
    for factor in (1.0, math.inf, math.nan):
        with pytest.raises(ConfigError) as error:
            BatchSizes.growing(3, factor=factor, largest=40)
        assert str(error.value) == f"factor: must be >= 1.01 and finite, got {factor}"


WRONG = [
    ([], "phases: is empty; at least one phase is needed"),
    ([(1, None)], "phases[0].until_epoch: must be left out in the last phase, which goes on to "
     "the end"),
    ([(None, 1), (None, 2)], "phases[0].until_epoch: missing; every phase but the last says with "
     "which epoch it ends"),
    ([(4, 1), (4, 2), (None, 3)], "phases[1].until_epoch: must be > 4, where the phase before it "
     "ends; got 4"),
    ([(0, 1), (None, 3)], "phases[0].until_epoch: must be >= 1, got 0"),
    ([(1.5, 1), (None, 3)], "phases[0].until_epoch: must be a whole number, got 1.5"),
    ([1, 2], "phases: must be a list of pairs (until_epoch, value), got [1, 2]"),
    ([(1, 0), (None, 3)], "phases[0].value: must be >= 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("pairs", "said"), WRONG)
def test_phases_that_do_not_follow_each_other_are_named(pairs: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        MiniBatchLoader((X, Y), pairs)
    assert str(error.value) == said.replace("phases", "batch_size")
    if ".value" not in said and pairs != [1, 2]:
        with pytest.raises(ConfigError) as error:
            PhasedLoader([(end, SampleLoader((X, Y))) for end, _ in pairs])
        assert str(error.value) == said


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> Any:
        return X[row], Y[row]


def noisy(sample: Any, numbers: torch.Generator) -> Any:
    x, y = sample
    return x + torch.randn(2, generator=numbers, dtype=x.dtype), y


def doubled(items: list[Any]) -> Any:
    x, y = zip(*items, strict=True)
    return 2 * torch.stack(x), torch.stack(y)


READINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"transform": noisy}, {}),
    ({}, {"transform": noisy}),
    ({"transform": noisy, "seed": 1}, {"transform": noisy, "seed": 2}),
    ({"transform": noisy}, {"transform": noisy}),
    ({"transform": noisy, "collate_fn": doubled}, {"transform": noisy}),
]


@pytest.mark.parametrize("data", [(X, Y), Rows()], ids=["tensors", "dataset"])
@pytest.mark.parametrize(("first", "then"), READINGS)
def test_each_phase_reads_the_data_with_its_own_settings(
    data: Any, first: dict[str, Any], then: dict[str, Any]
) -> None:
    """They were those of the first phase: a transform that the last phase lacked was applied."""
    parts = [MiniBatchLoader(data, 3, **first), MiniBatchLoader(data, 2, **then)]
    loader = PhasedLoader([(2, parts[0]), (None, parts[1])])
    for epoch, alone in ((0, parts[0]), (1, parts[0]), (2, parts[1])):
        for each in (loader, alone):
            each.set_epoch(epoch)
        for got, wanted in zip(loader, alone, strict=True):
            assert torch.equal(got.inputs, wanted.inputs)
            assert torch.equal(got.targets, wanted.targets)


def test_training_applies_the_transform_of_the_phase_and_is_resumed_to_the_bit() -> None:
    def made() -> Trainer:
        torch.manual_seed(0)
        model = nn.Linear(2, 1, dtype=torch.float64)
        rows = Rows()
        forms = [(2, MiniBatchLoader(rows, 3, transform=noisy)), (None, BatchLoader(rows))]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Trainer(model, "mse", optimizer, PhasedLoader(forms), device="cpu")

    trainer, again = made(), made()
    trainer.fit(1)
    again.load_state_dict(trainer.state_dict())
    trainer.fit(3)
    again.fit(3)
    hand = made()
    loader = MiniBatchLoader(Rows(), 3, transform=noisy)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            step(hand, batch.inputs, batch.targets)
    step(hand, X, Y)
    for ours in (trainer, again):
        assert all(map(torch.equal, ours.model.parameters(), hand.model.parameters()))


def step(hand: Trainer, inputs: Tensor, targets: Tensor) -> None:
    hand.optimizer.zero_grad()
    nn.functional.mse_loss(hand.model(inputs), targets).backward()
    hand.optimizer.step()


def test_all_phases_are_over_the_same_data() -> None:
    other = MiniBatchLoader((X + 1, Y), 2)
    with pytest.raises(ConfigError, match=r"^phases\[1\]: is over other data than the first"):
        PhasedLoader([(1, SampleLoader((X, Y))), (None, other)])
    with pytest.raises(ConfigError, match=r"^phases\[1\]: must be a loader, got a list$"):
        PhasedLoader([(1, SampleLoader((X, Y))), (None, [])])  # type: ignore[list-item]
    PhasedLoader([(1, SampleLoader((X, Y))), (None, MiniBatchLoader((X.clone(), Y), 2))])


class Rates(Callback):
    """The learning rate of every update."""

    every_n_steps = 1

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_safe_point(self, trainer: Trainer) -> None:
        self.rates.append(trainer.progress.lr)  # of the update that was made


def trainer_of(loader: Loader, *callbacks: Callback, engine: Any = "eager") -> Trainer:
    torch.manual_seed(1)
    model = nn.Linear(2, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    return Trainer(
        model, nn.MSELoss(), optimizer, loader, device="cpu", callbacks=callbacks, engine=engine
    )


def by_hand(loader: Loader, epochs: int) -> Tensor:
    """The weights of the hand-written loop over a loader's epochs."""
    torch.manual_seed(1)
    model = nn.Linear(2, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    for epoch in range(epochs):
        for indices in order(loader, epoch):
            optimizer.zero_grad()
            nn.MSELoss()(model(X[indices]), Y[indices]).backward()
            optimizer.step()
    return torch.cat([model.weight[0], model.bias]).detach()


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([trainer.model.weight[0], trainer.model.bias]).detach()  # type: ignore[index, list-item]


def test_the_form_changes_with_the_bits_of_the_hand_written_loop() -> None:
    trainer = trainer_of(phased())
    history = trainer.fit(6)
    assert torch.equal(weights(trainer), by_hand(phased(), 6))
    assert [record["step"] for record in history.epochs] == [7, 14, 18, 21, 22, 23]
    assert trainer.progress.samples == 6 * 7


def test_a_last_batch_that_grows_to_the_whole_set_is_read_anew() -> None:
    """In sequence and with drop_last, one batch an epoch: first of 5 samples, then of all 7."""
    loader = MiniBatchLoader((X, Y), [(2, 5), (None, 7)], order="sequential", drop_last=True)
    trainer = trainer_of(loader)
    trainer.fit(4)
    assert torch.equal(weights(trainer), by_hand(loader, 4))
    assert trainer.progress.samples == 5 + 5 + 7 + 7


@pytest.mark.skipif(not is_installed(), reason="engine scan needs jax")
def test_the_scan_engine_follows_the_phases() -> None:
    scan, eager = (trainer_of(phased(), engine=engine) for engine in ("scan", "eager"))
    scan.fit(6)
    eager.fit(6)
    assert scan.engine.name == "scan"
    assert torch.allclose(weights(scan), weights(eager), rtol=0, atol=1e-12)
    assert scan.history.train_loss == pytest.approx(eager.history.train_loss, abs=1e-12)


def test_interrupted_at_each_step_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = trainer_of(phased())
    whole.fit(6)
    for step in range(1, 23):
        first, store = trainer_of(phased(), StopAfter(step)), CheckpointStore(tmp_path / str(step))
        first.fit(6)
        store.save(first.progress.step, first.state_dict())
        second = trainer_of(phased(), StopAfter(-1))
        second.load_state_dict(store.load_newest(tensor_check(second))[1])
        second.fit(6)
        assert torch.equal(weights(second), weights(whole))
        assert second.history.train_loss == whole.history.train_loss


def test_a_state_of_other_phases_is_refused() -> None:
    snapshot = trainer_of(phased()).state_dict()
    other = PhasedLoader([(2, SampleLoader((X, Y), seed=3)), (None, BatchLoader((X, Y)))])
    with pytest.raises(CheckpointError, match="the data or loader is another: phase 2 batch_size"):
        trainer_of(other).load_state_dict(snapshot)
    with pytest.raises(CheckpointError, match="batch_size None in the state, 2 here"):
        trainer_of(MiniBatchLoader((X, Y), 2)).load_state_dict(snapshot)


CONFIG: dict[str, Any] = {
    "data": {"source": "linear_regression", "num_samples": 30, "validation_fraction": 0.2},
    "model": {"name": "linear"},
    "loss": "mse",
    "loader": [
        {"until_epoch": 2, "name": "sample"},
        {
            "until_epoch": 6,
            "name": "minibatch",
            "batch_size": {"initial": 2, "factor": 3, "largest": 12},
        },
        {"name": "batch"},
    ],
    "optimizer": {"lr": 0.01},
    "scheduler": {"name": "cosine"},
    "epochs": 8,
    "log": {"picture": False},
    "device": "cpu",
}
# of 24 samples in epochs 1 … 8; in the third, 2 · 3^2 > 12
UPDATES = [24, 24, 2, 2, 2, 2, 1, 1]


def test_a_cosine_falls_over_the_updates_of_all_phases() -> None:
    rates = Rates()
    trainer = build(parse_config(CONFIG), [rates]).trainer
    history = trainer.fit(8)
    assert [record["step"] for record in history.epochs] == [
        sum(UPDATES[: i + 1]) for i in range(8)
    ]
    total = sum(UPDATES)
    expected = [0.01 * (1 + math.cos(math.pi * t / total)) / 2 for t in range(total)]
    assert rates.rates == pytest.approx(expected, rel=1e-12)


def test_the_json_schema_takes_phases_and_batch_sizes() -> None:
    assert errors(CONFIG, SCHEMA) == []
    listed = [{"until_epoch": 2, "value": 3}, {"value": 9}]
    loader = {"name": "minibatch", "batch_size": listed}
    assert errors(CONFIG | {"loader": loader}, SCHEMA) == []
    assert errors(CONFIG | {"loader": [loader, "batch"]}, SCHEMA) == []
    for wrong in ([], [{"until_epoch": 2}], loader | {"batch_size": [3]}, loader | {"until": 2}):
        assert errors(CONFIG | {"loader": wrong}, SCHEMA) != []


@pytest.mark.skipif(not is_installed(), reason="without jax, auto is eager anyway")
def test_auto_counts_the_updates_of_all_phases() -> None:
    """The first epoch has 7 updates and each later one has 1: 25,000 in 24,994 epochs."""
    few = PhasedLoader([(1, SampleLoader((X, Y))), (None, BatchLoader((X, Y)))])
    for epochs, engine in ((MIN_UPDATES - 7, "eager"), (MIN_UPDATES - 6, "scan")):
        trainer = trainer_of(few, engine="auto")
        trainer.choice.settle(epochs)
        assert trainer.engine.name == engine


def write(folder: Path, **changes: Any) -> str:
    path = folder / "phases.yaml"
    path.write_text(json.dumps(CONFIG | changes))  # JSON is YAML
    return str(path)


def test_the_command_trains_resumes_and_tells_of_phases_that_are_never_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = write(tmp_path, scheduler=None)
    assert main(["--config", config, "--output-dir", str(whole)]) == 0
    assert "24 samples, 24 updates in the first epoch" in capsys.readouterr().err
    for epochs in (1, 2, 4, 8):
        more = ["--resume"] if epochs > 1 else []
        run = ["--config", config, f"epochs={epochs}", "--output-dir", str(parts), *more]
        assert main(run) == 0
        told = capsys.readouterr().err
        said = {1: 1, 2: 1, 4: 2, 8: None}[epochs]
        note = f"note: loader[{said}] is never reached: training ends with epoch {epochs}\n"
        assert (note in told) == (said is not None)
    final = [(run / "model.safetensors").read_bytes() for run in (whole, parts)]
    assert final[0] == final[1]
    assert json.loads((parts / "summary.json").read_text())["steps"] == sum(UPDATES)
    assert main(["--config", config, "loader.batch_size=3"]) == 2
    said = "command line:1:1: loader.batch_size: is part of a list; give all of loader\n"
    assert capsys.readouterr().err == said
    other = write(tmp_path, scheduler=None, loader=CONFIG["loader"][:1])
    assert main(["--config", other, "--output-dir", str(parts), "--resume"]) == 2
    other = write(tmp_path, scheduler=None, loader="batch")
    assert main(["--config", other, "--output-dir", str(parts), "--resume"]) == 2
    assert "other settings: loader is [{" in capsys.readouterr().err


def test_a_stream_has_one_loader_and_one_batch_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("a,b\n1,2\n3,4\n")
    data = {"source": "stream", "format": "csv", "path": "rows.csv", "target": "b"}
    alone = {"data": data, "scheduler": None, "epochs": 1}
    for loader, said in (
        (["sample"], "loader: must be one loader on a stream, which is one epoch"),
        (
            {"name": "minibatch", "batch_size": [{"value": 3}]},
            "loader: batch_size must be one number on a stream, which is one epoch",
        ),
    ):
        assert main(["--config", write(tmp_path, **alone, loader=loader)]) == 2
        assert said in capsys.readouterr().err
