"""The options --quiet and --json: what goes to which stream, and nothing else."""

import json
from pathlib import Path

import pytest

from gdtrain.cli.main import main

CONFIG = """\
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25}
model: linear
loss: cross_entropy
loader: {name: minibatch, batch_size: 8}
optimizer: {lr: 0.1}
epochs: 2
log: {picture: false}
"""
TALKATIVE = """\
from torch import nn
from gdtrain import register_model

print("imported")

@register_model("talkative")
class Talkative(nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
    def forward(self, x):
        print("forward")
        return super().forward(x)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A directory with moons.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("moons.yaml").write_text(CONFIG, "utf-8")
    return tmp_path


def run(*arguments: str) -> int:
    return main(["--config", "moons.yaml", "--output-dir", "out", *arguments])


def test_a_quiet_run_says_nothing(capsys):
    assert run("--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run("--quiet", "--resume", "epochs=3") == 0
    assert capsys.readouterr() == ("", "")
    assert json.loads(Path("out/summary.json").read_text())["epochs"] == 3


def test_a_quiet_run_keeps_notes_to_itself(capsys):
    """Such as that a second phase is never reached."""
    phases = "loader=[{name: batch, until_epoch: 9}, {name: sample}]"
    assert run(phases) == 0
    assert "never reached" in capsys.readouterr().err
    assert main(["--config", "moons.yaml", "--output-dir", "two", "--quiet", phases]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_quiet_run_says_what_went_wrong(capsys):
    assert run("--quiet", "optimizer.lr=0") == 2
    assert capsys.readouterr().err == ("command line:1:14: optimizer.lr: must be > 0, got 0\n")
    assert run("--quiet", "optimizer.lr=1e38", "loss=multi_margin", "loss.p=2") == 3
    assert "gdtrain: " in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--quiet",)], ids=["aloud", "quiet"])
def test_json_is_the_summary_in_one_line(capsys, more):
    assert run("--json", *more) == 0
    out, err = capsys.readouterr()
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    expected = json.loads(Path("out/summary.json").read_text())
    assert json.loads(out) == {"directory": "out"} | expected
    assert bool(err) == (not more)


def test_what_a_model_prints_is_kept_out_of_the_json(capsys, here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    Path("talkative.py").write_text(TALKATIVE)
    assert run("--json", "--import", "talkative", "model=talkative") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "done"
    assert "imported\n" in err
    assert "forward\n" in err


def test_json_of_a_run_that_stopped_on_a_loss_that_is_not_finite(capsys):
    assert run("--json", "optimizer.lr=1e38", "loss=multi_margin", "loss.p=2") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "non_finite"


def test_json_of_bad_input_is_nothing(capsys):
    assert run("--json", "optimizer.lr=0") == 2
    assert capsys.readouterr().out == ""


def test_json_of_a_dry_run(capsys):
    assert run("--json", "--dry-run") == 0
    found = json.loads(capsys.readouterr().out)
    # One update of 8 samples by a linear layer from 2 numbers to 2 classes.
    assert found["parameters"] == 6
    assert (found["samples"], found["validation_samples"]) == (8, 10)
    assert found["status"] == "dry_run"
    assert found["loss"] > 0
    assert not Path("out").exists()
    assert run("--quiet", "--dry-run") == 0
    assert capsys.readouterr() == ("", "")


def test_json_has_no_effect_beside_the_configuration_in_yaml(capsys):
    assert run("--json", "--print-config") == 2
    assert capsys.readouterr().err == (
        "command line:1:1: --json: has no effect with --print-config, which prints YAML; remove "
        "one of the two\n"
    )


def test_a_comparison_as_json(capsys):
    command = ["compare", "moons.yaml", "--loaders", "batch,sample", "--updates", "3"]
    assert main([*command, "--json", "--quiet", "--output-dir", "both"]) == 0
    out, err = capsys.readouterr()
    expected = json.loads(Path("both/compare.json").read_text())
    assert json.loads(out) == {"directory": "both"} | expected
    assert out.count("\n") == 1
    assert err == ""


@pytest.mark.long  # it starts processes
def test_a_verification_as_json(capsys):
    command = ["verify", "--config", "moons.yaml", "--samples", "5", "--updates", "2"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is True
    assert found["gradient"]["num_samples"] == 5
    assert found["plain_loop"]["updates"] == 2


def test_a_run_says_where_its_picture_is(capsys):
    assert run("log.picture=true") == 0
    assert capsys.readouterr().err.splitlines()[-1] == "drawn: out/loss.png"
