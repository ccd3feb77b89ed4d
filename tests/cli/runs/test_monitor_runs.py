"""Monitors asked for in YAML: their lines in the log, the console, and resumed runs."""

import json
from pathlib import Path

import pytest

from gdtrain import registry
from gdtrain.cli.main import main
from gdtrain.config.build import build
from gdtrain.config.load import dump, parse_config
from gdtrain.config.yaml_source import read_text
from gdtrain.output.run_directory import read_metrics

NAMES = registry.names("monitor")

CONFIG = """\
data: {source: teaching, num_samples: 23}
model: {name: mlp, hidden: [4], activation: tanh}
loss: mse
loader: {name: minibatch, batch_size: 5}
optimizer: {lr: 0.05, momentum: 0.9}
log: {every_n_steps: 4, picture: false}
monitors:
  gradient_norm: {every_n_steps: 3}
  update_ratio: {every_n_steps: 6}
  full_loss: {every_n_epochs: 2}
  sample_gradients: {every_n_epochs: 2, count: 2}
epochs: 4
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(CONFIG, "utf-8")
    return tmp_path


def lines(run: str) -> list[dict]:
    """What the log holds, without times."""
    records = read_metrics(Path(run) / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_a_number_is_written_at_the_step_at_which_it_was_measured_and_nowhere_else(here) -> None:
    assert main(["--config", "a.yaml", "--output-dir", "run"]) == 0
    steps = [r for r in lines("run") if r["kind"] == "step"]
    assert [r["step"] for r in steps] == [3, 4, 6, 8, 9, 12, 15, 16, 18, 20]
    for record in steps:
        assert ("gradient_norm" in record) == (record["step"] % 3 == 0)
        assert ("update_ratio" in record) == (record["step"] % 6 == 0)
        assert "full_loss" not in record
    epochs = [r for r in lines("run") if r["kind"] == "epoch"]
    for record in epochs:
        measured = {"full_loss", "sample_gradient_max", "largest_samples", "largest_norms"}
        assert measured <= set(record) or record["epoch"] % 2
        assert not measured & set(record) or record["epoch"] % 2 == 0
        assert "gradient_norm" not in record
    assert len(epochs[-1]["largest_samples"]) == 2


def test_the_console_shows_the_newest_numbers(here, capsys) -> None:
    assert main(["--config", "a.yaml", "--output-dir", "run"]) == 0
    (last,) = [line for line in capsys.readouterr().err.splitlines() if "epoch 4/4" in line]
    record = [r for r in lines("run") if r["kind"] == "epoch"][-1]
    assert f"full_loss {record['full_loss']:.4g}" in last
    assert f"largest_sample {record['largest_sample']}" in last
    assert "gradient_norm " in last
    assert "update_ratio " in last


def test_a_resumed_run_has_the_log_of_one_left_alone(here) -> None:
    assert main(["--config", "a.yaml", "--output-dir", "whole"]) == 0
    assert main(["--config", "a.yaml", "--output-dir", "parts", "epochs=1"]) == 0
    for epochs in (3, 4):
        arguments = ["--config", "a.yaml", "--output-dir", "parts", f"epochs={epochs}"]
        assert main([*arguments, "--resume"]) == 0
    assert lines("parts") == lines("whole")


def test_weights_and_losses_are_those_of_a_run_without(here) -> None:
    assert main(["--config", "a.yaml", "--output-dir", "with"]) == 0
    assert main(["--config", "a.yaml", "--output-dir", "without", "monitors=null"]) == 0
    weights = [Path(run, "model.safetensors").read_bytes() for run in ("with", "without")]
    assert weights[0] == weights[1]
    losses = [json.loads(Path(r, "summary.json").read_text())["train"] for r in ("with", "without")]
    assert losses[0] == losses[1]


def config(monitors: object) -> dict:
    data = read_text(CONFIG, "a.yaml").data
    return data | {"monitors": monitors}


@pytest.mark.parametrize("written", [NAMES, {name: {} for name in NAMES}])
def test_names_alone_ask_for_every_monitor_at_its_default(written) -> None:
    parsed = parse_config(config(written))
    assert parse_config(read_text(dump(parsed), "").data) == parsed
    monitors = [c for c in build(parsed).trainer.callbacks if getattr(c, "name", None) in NAMES]
    assert [monitor.name for monitor in monitors] == NAMES


def test_options_reach_the_monitors() -> None:
    options = {
        "noise_scale": {"every_n_steps": 7, "num_samples": 9, "batch_size": 2},
        "sharpness": {"every_n_epochs": 3, "tolerance": 0.5, "max_products": 4},
        "sample_gradients": {"count": 6},
    }
    found = {
        getattr(c, "name", ""): c for c in build(parse_config(config(options))).trainer.callbacks
    }
    for name, section in options.items():
        assert {key: getattr(found[name], key) for key in section} == section
