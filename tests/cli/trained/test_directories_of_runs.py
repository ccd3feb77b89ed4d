"""The directory above runs is none: every command that reads a run names the one likely meant."""

import shutil
from pathlib import Path

import pytest

from gdtrain.cli.main import main

SETTINGS = ["epochs=1", "log.picture=false", "--quiet", "--output-dir"]
BEGINS = {
    "predict": (["above", "x.csv"], "RUN: above is not a finished run: it has no config.yaml"),
    "evaluate": (["above", "x.csv"], "RUN: above is not a finished run: it has no config.yaml"),
    "export": (["above", "--format", "onnx"], "RUN: above is not a finished run: it has no config"),
    "plot": (["above"], "RUN: above holds no run: metrics.jsonl: No such file or directory"),
    "landscape": (["above"], "RUN: above has no trajectory.npz"),
    "replay": (["above", "--step", "1"], "RUN: above holds no run"),
    "train": (
        ["--config", "minibatch.yaml", "--resume", "--output-dir", "above"],
        "--output-dir: above holds no run",
    ),
}


@pytest.mark.parametrize("command", BEGINS)
def test_the_newest_run_in_it_is_named(command, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    main(["init"])
    Path("above").mkdir()
    for number in (2, 10):
        assert main(["--config", "minibatch.yaml", *SETTINGS, f"above/{number}"]) == 0
    Path("above", "11").mkdir()  # no run yet
    arguments, begins = BEGINS[command]
    capsys.readouterr()
    assert main([command, *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"command line:1:1: {begins}")
    assert told.endswith("; did you mean above/10, the newest run in it?\n")
    shutil.rmtree("above")
    Path("above").mkdir()
    assert main([command, *arguments]) == 2
    assert "did you mean" not in capsys.readouterr().err
