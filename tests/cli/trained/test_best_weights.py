"""The weights of the best epoch: what a run that ended there would have left."""

import json

import pytest
import torch

from gdtrain import load_run
from gdtrain.cli.main import main
from gdtrain.errors import ConfigError

CONFIG = """\
data: {source: csv, path: table.csv, target: y, validation_fraction: 0.5}
model: {name: mlp, hidden: [32]}
loss: mse
loader: batch
optimizer: {name: adam, lr: 0.05}
checkpoint: {keep_best: val_loss}
"""


@pytest.fixture
def best(tmp_path, monkeypatch) -> int:
    """The best epoch of a run that is too long, in ``run``; ``short`` ended there."""
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 4, generator=draw).tolist()
    lines = [",".join(map(repr, row)) for row in rows]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,c,y", *lines, ""]))
    (tmp_path / "run.yaml").write_text(CONFIG)
    assert main(["--config", "run.yaml", "epochs=60", "--output-dir", "run"]) == 0
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = {r["epoch"]: r["val_loss"] for r in records if "val_loss" in r}
    best = min(losses, key=lambda epoch: losses[epoch])
    assert 1 < best < 60
    assert main(["--config", "run.yaml", f"epochs={best}", "--output-dir", "short"]) == 0
    return best


def printed(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def test_a_run_predicts_and_is_evaluated_with_them(best, capsys) -> None:
    for command in ("predict", "evaluate"):
        there = printed(capsys, command, "run", "table.csv", "--best")
        assert there == printed(capsys, command, "short", "table.csv")
        assert there != printed(capsys, command, "run", "table.csv")


def test_python_reads_them_from_a_run_that_was_killed(best, tmp_path) -> None:
    (tmp_path / "run" / "model.safetensors").unlink()
    found = load_run("run", best=True).model.state_dict()
    expected = load_run("short").model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_a_run_has_not_kept_is_refused(best, capsys) -> None:
    assert main(["--config", "run.yaml", "epochs=1", "checkpoint=null", "--output-dir", "x"]) == 0
    capsys.readouterr()
    assert main(["predict", "x", "table.csv", "--best"]) == 2
    assert capsys.readouterr().err == (
        "command line:1:1: RUN: x has no checkpoint of a best epoch; train with "
        "checkpoint: {keep_best: val_loss}\n"
    )
    with pytest.raises(ConfigError, match="best: can't be set together with averaged"):
        load_run("run", averaged=True, best=True)
