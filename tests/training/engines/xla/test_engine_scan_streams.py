"""The scan engine on streams: the weights of the eager engine, windows, indices and resumption."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.cli.main import main
from gdtrain.config.build import build
from gdtrain.config.load import load_config
from gdtrain.data.streams import lines
from gdtrain.errors import ConfigError

pytest.importorskip("jax")

CONFIG = """\
data: {source: stream, format: csv, path: s.csv, target: y}
model: {name: mlp, hidden: [5], activation: tanh}
loss: mse
loader: {name: minibatch, batch_size: 3}
optimizer: {lr: 0.05, momentum: 0.9}
epochs: 1
log: {picture: false}
"""
N = 500


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory with s.yaml and s.csv; small blocks of the file, small windows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lines, "READ_BYTES", 1000)
    monkeypatch.setattr("gdtrain.training.engines.xla.window.MAX_SHORT_STEPS", 16)
    rows = np.random.default_rng(0).standard_normal((N, 3)).round(4).tolist()
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    Path("s.csv").write_text("a,b,y\n" + text)
    Path("s.yaml").write_text(CONFIG)


def trained(engine: str, *overrides: str, epochs: int = 2) -> Trainer:
    settings = ["device=cpu", "precision=fp64", f"engine={engine}", *overrides]
    trainer = build(load_config("s.yaml", settings)[0]).trainer
    trainer.fit(epochs)
    assert trainer.engine.name == engine
    return trainer


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loader=sample", "optimizer.lr=0.005"],
        ["loader.batch_size=1000"],
        ["loader.batch_size=7", "loader.drop_last=true"],
        ["scheduler={name: inverse_time, b: 100}", "clip_grad_norm=0.5"],
        ["clip_grad_value=0.1", "optimizer.momentum=0"],
    ],
)
def test_weights_and_losses_are_those_of_the_eager_engine(overrides: list[str]) -> None:
    eager, scan = trained("eager", *overrides), trained("scan", *overrides)
    for one, two in zip(eager.model.parameters(), scan.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)
    assert scan.history.train_loss == pytest.approx(eager.history.train_loss, rel=1e-9)
    assert scan.history.prequential_loss == pytest.approx(eager.history.prequential_loss, rel=1e-9)
    assert scan.progress.samples == eager.progress.samples
    assert scan.progress.step == eager.progress.step


class Indexed(Trainer):
    """A loss that looks at the samples' numbers."""

    def compute_loss(self, batch):
        weight = 1 + batch.indices.to(batch.inputs.dtype) / N
        return (weight * (self.model(batch.inputs) - batch.targets)[:, 0] ** 2).mean()


def test_the_samples_of_a_stream_are_numbered_from_its_start() -> None:
    made = []
    for engine in ("eager", "scan"):
        loader = build(load_config("s.yaml")[0]).loader
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1).double()
        sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        Indexed(model, None, sgd, loader, device="cpu", engine=engine).fit(1)
        made.append(model.weight.detach())
    torch.testing.assert_close(*made, rtol=1e-10, atol=1e-12)


class Stop(Callback):
    def __init__(self, step: int) -> None:
        super().__init__(every_n_steps=step)

    def on_safe_point(self, trainer) -> None:
        trainer.stop("enough")


@pytest.mark.long
def test_a_stopped_stream_goes_on_where_it_was() -> None:
    whole = trained("scan", epochs=1)
    settings = ["device=cpu", "precision=fp64", "engine=scan"]
    first = build(load_config("s.yaml", settings)[0], [Stop(77)]).trainer
    first.fit(1)
    assert first.progress.step == 77
    second = build(load_config("s.yaml", settings)[0]).trainer
    second.load_state_dict(first.state_dict())
    second.fit(1)
    for one, two in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)
    assert second.progress.samples == N


def test_a_bad_update_ends_the_run_before_it_under_both_engines(capsys) -> None:
    text = Path("s.csv").read_text().splitlines()
    text[300] = "1e30,1e30,1e30"
    Path("s.csv").write_text("\n".join(text) + "\n")
    said = []
    for engine in ("eager", "scan"):
        overrides = ["device=cpu", f"engine={engine}", "model=linear", "loader=sample"]
        assert main(["--config", "s.yaml", "optimizer.lr=0.005", *overrides]) == 3
        said.append([line for line in capsys.readouterr().err.splitlines() if "299" in line])
    assert len(said[0]) == len(said[1]) == 1


class Rows(IterableDataset):
    def __iter__(self):
        return ((torch.ones(2), torch.ones(1)) for _ in range(9))


def test_a_dataset_is_collated_batch_by_batch_and_refused() -> None:
    model = torch.nn.Linear(2, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = MiniBatchLoader(Rows(), 2)
    message = "^engine: scan can't run this: the stream of Rows arrives batch by batch; use eager$"
    with pytest.raises(ConfigError, match=message):
        Trainer(model, torch.nn.MSELoss(), sgd, loader, device="cpu", engine="scan")
