"""engine: auto chooses by a fixed rule, says what it took, and a run keeps its engine."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gdtrain import Averaging, EarlyStopping, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.errors import ConfigError
from gdtrain.training import models
from gdtrain.training.engines import obstacles, selection

N = 50
HAS_JAX = obstacles.is_installed()
LONG = selection.MIN_UPDATES // N  # epochs
needs_jax = pytest.mark.skipif(not HAS_JAX, reason="gdtrain[xla] is not installed")


def build(model=None, kind=Trainer, size=1, **options) -> Trainer:
    torch.manual_seed(0)
    model = model or models.mlp([2], 1, hidden=[4])
    X = torch.randn(N, 2)
    loader = SampleLoader((X, X[:, :1])) if size == 1 else MiniBatchLoader((X, X[:, :1]), size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return kind(model, nn.MSELoss(), optimizer, loader, device="cpu", **options)


def chosen(trainer: Trainer, epochs: int) -> str:
    trainer.choice.settle(epochs)
    return trainer.engine.name


def test_short_runs_are_eager_and_import_no_jax() -> None:
    loaded = "jax" in sys.modules
    assert chosen(build(), LONG - 1) == "eager"
    assert ("jax" in sys.modules) == loaded


@pytest.mark.long
@needs_jax
def test_long_runs_of_small_models_of_torch_layers_are_compiled() -> None:
    class OwnLayer(nn.Linear):
        """Python code of somebody's own, which a capture would run once."""

        def forward(self, x):
            return super().forward(x)

    class OwnLoss(Trainer):
        def compute_loss(self, batch):
            return super().compute_loss(batch)

    assert chosen(build(), LONG) == "scan"
    assert chosen(build(OwnLayer(2, 1)), LONG) == "eager"
    assert chosen(build(kind=OwnLoss), LONG) == "eager"
    assert chosen(build(kind=OwnLoss, engine="scan"), 1) == "scan"
    assert chosen(build(models.mlp([2], 1, dropout=0.1)), LONG) == "eager"
    assert chosen(build(models.mlp([2], 1, hidden=[4000]), size=7), 100 * LONG) == "scan"
    assert chosen(build(models.mlp([2], 1, hidden=[3000, 3000]), size=7), 100 * LONG) == "eager"


@pytest.mark.long
@needs_jax
def test_a_callback_that_looks_all_the_time_is_better_served_eagerly() -> None:
    for every, engine in (
        (1, "eager"),
        (selection.MIN_BLOCK - 1, "eager"),
        (selection.MIN_BLOCK, "scan"),
    ):
        averaging = Averaging(start_epoch=5, every_n_steps=every)
        assert chosen(build(callbacks=[averaging]), LONG) == engine
        assert chosen(build(callbacks=[averaging], engine="scan"), LONG) == "scan"


@pytest.mark.few(1)
@needs_jax
@pytest.mark.parametrize(
    ("size", "callbacks", "engine"),
    [
        (N, [], "scan"),
        (N, [EarlyStopping("train_loss", patience=10)], "eager"),
        (N, [EarlyStopping("val_loss", patience=10)], "scan"),
        (20, [EarlyStopping("train_loss", patience=10)], "eager"),
        (10, [EarlyStopping("train_loss", patience=10)], "scan"),
    ],
)
def test_who_looks_after_each_epoch_counts_by_the_updates_of_one(size, callbacks, engine) -> None:
    assert chosen(build(size=size, callbacks=callbacks), 100_000) == engine


def test_a_small_run_of_a_hundred_epochs_is_eager() -> None:
    X = torch.randn(500, 2)
    model = models.mlp([2], 1, hidden=[4])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader((X, X[:, :1]), 64)
    assert chosen(Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu"), 100) == "eager"


@needs_jax
def test_the_choice_is_kept_by_further_fits_and_by_snapshots() -> None:
    trainer = build()
    trainer.choice.settle(LONG)
    trainer.fit(2)
    assert trainer.engine.name == "scan"
    resumed = build()
    resumed.load_state_dict(trainer.state_dict())
    resumed.fit(3)
    trainer.fit(3)
    assert resumed.engine.name == "scan"
    pairs = zip(trainer.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    by_hand = build(engine="eager")
    by_hand.load_state_dict(trainer.state_dict())
    by_hand.fit(4)
    assert by_hand.engine.name == "eager"


def test_without_jax_a_long_run_says_what_it_would_gain(monkeypatch, caplog) -> None:
    monkeypatch.setattr(obstacles, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, "gdtrain"):
        assert chosen(build(), 100_000 // N) == "eager"
        assert chosen(build(), LONG) == "eager"  # about as long with jax
        assert chosen(build(), 1) == "eager"
    assert [record.getMessage() for record in caplog.records] == [
        "engine: eager; pip install 'gdtrain[xla]', and engine scan makes these 100,000 updates "
        "in about 2 s instead of 8 s, to rounding the same"
    ]
    with pytest.raises(ConfigError) as caught:
        build(engine="scan")
    assert str(caught.value) == (
        "engine: scan can't run this: jax is not installed; pip install 'gdtrain[xla]'; use eager"
    )


@needs_jax
def test_what_can_not_be_captured_is_run_eagerly_with_a_notice(monkeypatch, caplog) -> None:
    from gdtrain.training.engines.xla.lowering import graph as lowering

    monkeypatch.delitem(lowering.LOWERINGS, "relu")
    monkeypatch.delitem(lowering.LOWERINGS, "where")
    model = models.mlp([2], 1, hidden=[11])  # of which no other test has a program
    with caplog.at_level(logging.WARNING, "gdtrain"):
        assert chosen(build(model), LONG) == "eager"
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "engine: eager, since scan can't run this: there is no lowering of "
    )


CONFIG = """
data: {source: two_moons, num_samples: 60, validation_fraction: 0.5}
model: {name: mlp, hidden: [4]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 8}
optimizer: {lr: 0.1, momentum: 0.5}
epochs: 4
log: {picture: false}
"""


@needs_jax
def test_the_command_says_which_engine_it_took(tmp_path, monkeypatch, capsys) -> None:
    from gdtrain.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(CONFIG)
    losses = {}
    for engine in ("eager", "scan"):
        arguments = [f"engine={engine}", "device=cpu", "--output-dir", engine]
        assert main(["--config", "run.yaml", *arguments]) == 0
        assert f"training on cpu with engine {engine}, " in capsys.readouterr().err
        summary = json.loads(Path(engine, "summary.json").read_text())
        assert summary["engine"] == engine
        losses[engine] = (summary["train"]["loss"], summary["validation"]["loss"])
    assert losses["scan"] == pytest.approx(losses["eager"], rel=1e-5)
    code = main(["--config", "run.yaml", "engine=eager", "--output-dir", "scan", "--resume"])
    assert code == 2
    assert "engine is 'scan' there and 'eager' here" in capsys.readouterr().err


def test_a_wrong_engine_is_a_fault_with_its_place(tmp_path, monkeypatch, capsys) -> None:
    from gdtrain.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(CONFIG.replace("{lr: 0.1, momentum: 0.5}", "{name: adam}"))
    assert main(["--config", "run.yaml", "device=cpu", "engine=scan"]) == 2
    assert not Path("runs").exists()
    assert "engine: scan can't run this: " in capsys.readouterr().err
