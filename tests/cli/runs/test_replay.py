"""The replay command: any update of a run, rebuilt from the nearest checkpoint, to the bit."""

import json
import math
from pathlib import Path

import pytest
import torch

from gdtrain import MiniBatchLoader
from gdtrain.cli.main import main
from gdtrain.output.run_directory import read_metrics

CONFIG = """\
seed: 4
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25}
model: {name: mlp, hidden: [8], dropout: 0.2, batch_norm: true}
loss: cross_entropy
loader: {name: minibatch, batch_size: 7}
optimizer: {lr: 0.1, momentum: 0.9}
scheduler: {name: exponential, gamma: 0.5, per: epoch}
clip_grad_norm: 0.5
log: {every_n_steps: 1, picture: false}
checkpoint: {every_n_steps: 3, keep_last: 2}
epochs: 4
"""
STEPS = 5 * 4  # 30 samples in batches of 7


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("replay")
    (directory / "a.yaml").write_text(CONFIG, "utf-8")
    arguments = ["--config", str(directory / "a.yaml"), "--output-dir", str(directory / "run")]
    assert main(arguments) == 0
    return directory / "run"


def replayed(capsys, run: Path, step: int) -> dict:
    assert main(["replay", str(run), "--step", str(step), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_update_has_the_loss_and_lr_of_the_log(capsys, run):
    logged = [r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "step"]
    assert len(logged) == STEPS
    for record in logged:
        update = replayed(capsys, run, record["step"])
        assert (update["loss"], update["lr"]) == (record["loss"], record["lr"])
        assert update["epoch"] == record["epoch"]
        assert 5 * (update["epoch"] - 1) + update["batch"] == record["step"]
        assert update["problem"] is None


def test_the_indices_are_those_of_the_order(capsys, run):
    x = torch.zeros(30, 1)
    plan = MiniBatchLoader((x, x), 7, seed=4).plan(2)
    assert replayed(capsys, run, 13)["indices"] == plan.batch_indices(2).tolist()


def test_the_nearest_checkpoint_before_it_is_used(capsys, run):
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-0000000018", "step-0000000020"]
    came = {
        step: (update["rebuilt_from"], update["replayed"])
        for step in (18, 19, 20)
        for update in [replayed(capsys, run, step)]
    }
    assert came == {18: (None, 17), 19: ("step-0000000018", 0), 20: ("step-0000000018", 1)}


def test_the_norms_are_those_of_the_gradient_before_clipping(capsys, run):
    update = replayed(capsys, run, 1)
    assert update["gradient_norm"] == pytest.approx(math.hypot(*update["gradient_norms"].values()))
    assert set(update["gradient_norms"]) == {
        *("0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias")
    }


def test_what_it_prints_for_people(capsys, run):
    assert main(["replay", str(run), "--step", "19"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 19: epoch 4, batch 4; rebuilt from step-0000000018 and 0 updates"
    assert lines[1].startswith("samples (7): ")
    assert lines[2].startswith("loss ")
    assert lines[3].startswith("gradient norm ")
    assert lines[4].startswith("  0.weight")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "21"], "--step: 21 can't be replayed; the run ends with step 20"),
        (["--step", "0"], "--step: must be >= 1, got 0"),
    ],
)
def test_steps_that_are_not_of_the_run(capsys, run, arguments, said):
    assert main(["replay", str(run), *arguments]) == 2
    assert capsys.readouterr().err == f"command line:1:1: {said}\n"


def test_a_directory_that_is_no_run(capsys, tmp_path):
    assert main(["replay", str(tmp_path), "--step", "1"]) == 2
    said = f"RUN: {tmp_path} holds no run; give the directory of a run"
    assert capsys.readouterr().err == f"command line:1:1: {said}\n"


def test_the_update_at_which_a_run_stopped_is_explained(capsys, tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text(
        "data: {source: linear_regression, num_samples: 30}\n"
        "model: linear\nloss: mse\nloader: batch\noptimizer: {lr: 1e6}\nepochs: 99\n",
        "utf-8",
    )
    assert main(["--config", str(config), "--output-dir", str(tmp_path / "run")]) == 3
    hint = capsys.readouterr().err.splitlines()[-1].split()
    step = int(hint[hint.index("--step") + 1])
    update = replayed(capsys, tmp_path / "run", step)
    assert update["problem"].startswith("loss is ")
    assert f"step {step}, with lr 1e+06" in update["problem"]
    earlier = replayed(capsys, tmp_path / "run", step - 1)
    assert earlier["problem"] is None
    assert math.isfinite(earlier["loss"])


def test_nothing_is_written(run):
    def state() -> dict[str, tuple[int, int]]:
        paths = (path for path in run.rglob("*") if path.is_file())
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}

    before = state()
    assert main(["replay", str(run), "--step", "19", "--json"]) == 0
    assert state() == before


def test_a_run_of_a_model_of_ones_own_needs_its_import(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_parts.py").write_text(
        "from torch import nn\n"
        "from gdtrain import register_model\n"
        "@register_model('own')\n"
        "def own(in_features: int, out_features: int):\n"
        "    return nn.Linear(in_features, out_features)\n",
        "utf-8",
    )
    Path("a.yaml").write_text(CONFIG.replace("{name: mlp, hidden: [8], dropout: 0.2, "
                                             "batch_norm: true}", "own"), "utf-8")  # fmt: skip
    assert main(["--config", "a.yaml", "--output-dir", "run", "--import", "own_parts"]) == 0
    capsys.readouterr()
    assert main(["replay", "run", "--step", "2", "--import", "own_parts"]) == 0


def test_monitors_of_the_run_do_not_look_and_say_nothing(capsys, caplog, tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text(CONFIG + "monitors: [gradient_norm, sharpness]\n", "utf-8")
    assert main(["--config", str(config), "--output-dir", str(tmp_path / "run")]) == 0
    said = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    assert "sharpness" in said
    capsys.readouterr()
    caplog.clear()
    assert main(["replay", str(tmp_path / "run"), "--step", "2"]) == 0
    out, err = capsys.readouterr()
    first, _, loss = out.splitlines()[:3]
    assert first == "step 2: epoch 1, batch 2; rebuilt from the start of the run and 1 update"
    logged = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r.get("step") == 2]
    assert loss.startswith(f"loss {logged[0]['loss']:.9g}, lr ")
    assert (err, caplog.messages) == ("", [])
