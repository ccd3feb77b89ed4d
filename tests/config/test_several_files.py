"""Several configuration files are one: later ones win, and faults stand in the right file."""

import io
import sys
from pathlib import Path

import pytest

from gdtrain.config.load import load_config
from gdtrain.errors import ConfigError

BASE = """\
seed: 7
data: {source: linear_regression, num_samples: 40}
model: {name: mlp, hidden: [8]}
loss: mse
loader: {name: minibatch, batch_size: 10}
optimizer: {lr: 0.05, momentum: 0.9}
epochs: 3
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)


def merged(text: str, *overrides: str):
    Path("over.yaml").write_text(text)
    return load_config(["base.yaml", "over.yaml"], overrides)[0]


def test_settings_are_merged_key_by_key() -> None:
    config = merged("optimizer: {lr: 0.01}\nepochs: 9\nmodel: {hidden: [4, 4]}\n")
    assert (config.seed, config.epochs) == (7, 9)
    assert (config.optimizer.lr, config.optimizer.momentum) == (0.01, 0.9)
    assert (config.model.name, config.model.hidden) == ("mlp", [4, 4])


def test_settings_on_the_command_line_come_last() -> None:
    assert merged("optimizer: {lr: 0.01}\n", "optimizer.lr=0.02").optimizer.lr == 0.02


def test_another_form_takes_the_place_of_the_section() -> None:
    config = merged(
        "optimizer: {name: adam}\nmodel: linear\nloader: sample\ndata: {source: digits}\n"
    )
    assert (config.optimizer.name, config.optimizer.lr) == ("adam", 1e-3)
    assert (config.model.name, config.loader.name) == ("linear", "sample")
    assert config.data.source == "digits"
    assert not hasattr(config.data, "num_samples")


def test_the_same_form_named_again_is_merged() -> None:
    config = merged(
        "optimizer: {name: sgd, lr: 0.01}\ndata: {source: linear_regression, noise: 0.2}\n"
    )
    assert config.data.num_samples == 40
    assert config.data.noise == 0.2
    # base.yaml names no optimizer, which is sgd by default: another name takes its place.
    assert config.optimizer.lr == 0.01


def test_a_short_form_takes_settings() -> None:
    Path("base.yaml").write_text(BASE.replace("loss: mse", "loss: huber"))
    assert merged("loss: {delta: 2.0}\n").loss.delta == 2.0


def test_lists_are_replaced() -> None:
    config = merged("loader: [{name: sample, until_epoch: 1}, {name: batch}]\n")
    assert [form.name for form in config.loader] == ["sample", "batch"]


def test_faults_stand_in_the_file_that_has_them() -> None:
    Path("base.yaml").write_text(BASE.replace("epochs: 3", "epochs: 0"))
    with pytest.raises(ConfigError) as error:
        merged("optimizer:\n  lr: -1\nmodle: linear\n")
    assert str(error.value).splitlines() == [
        "base.yaml:7:9: epochs: must be >= 1, got 0",
        "over.yaml:2:7: optimizer.lr: must be > 0, got -1",
        "over.yaml:3:1: modle: unknown key; did you mean model?",
    ]


def test_a_file_that_wins_mends_the_fault_of_the_first() -> None:
    Path("base.yaml").write_text(BASE.replace("epochs: 3", "epochs: 0"))
    assert merged("epochs: 2\n").epochs == 2


def test_standard_input(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"epochs: 5\nseed: x\n")))
    with pytest.raises(ConfigError) as error:
        load_config(["base.yaml", "-"])
    assert str(error.value) == "standard input:2:7: seed: must be a whole number, got 'x'"
