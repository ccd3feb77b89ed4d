"""The command ``compare``: what it writes and prints, what it refuses, and how it ends."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import start

from gdtrain.cli.main import main
from gdtrain.cli.options import import_modules
from gdtrain.config.comparison import load_forms
from gdtrain.config.load import load_config
from gdtrain.errors import ConfigError

MOONS = """\
data: {source: two_moons, num_samples: 60, validation_fraction: 0.25}
model: {name: mlp, hidden: [8]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 8}
optimizer: {lr: 0.1, momentum: 0.5}
scheduler: cosine
early_stopping: {patience: 1}
epochs: 3
log: {picture: false}
"""


@pytest.fixture(autouse=True)
def moons(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("moons.yaml").write_text(MOONS)


def result(directory: str):
    return json.loads(Path(directory, "compare.json").read_text("utf-8"))


def without_times(found):
    """What must be the same twice: everything that no clock decides."""
    for form in found["forms"]:
        del form["seconds"], form["samples_per_second"], form["curve"]["seconds"]
        del form["to_target"]["seconds"]
    del found["when_to_use"], found["command"]
    return found


def test_three_forms_of_one_configuration(capsys):
    assert main(["compare", "moons.yaml", "--loaders", "batch,sample,minibatch"]) == 0
    out, err = capsys.readouterr()
    found = result("runs/compare/1")
    assert (found["status"], found["budget"]) == ("done", {"epochs": 3})
    assert found["start"]["training"]["samples"] == 45
    assert found["start"]["validation"]["samples"] == 15
    assert [f["name"] for f in found["forms"]] == ["batch", "sample", "minibatch"]
    assert [f["batch_sizes"] for f in found["forms"]] == [[45], [1], [8]]
    assert [f["updates"] for f in found["forms"]] == [3, 135, 18]  # early stopping plays no part
    assert all(set(f["final"]) == {"full_loss", "val_loss", "val_accuracy"} for f in found["forms"])
    lines = out.splitlines()
    assert lines[0].split() == ["batch", "sample", "minibatch"]
    assert lines[-1] == found["when_to_use"]
    assert err.splitlines()[0] == (
        "comparing batch, sample, minibatch for 3 epochs each, on 45 samples and cpu; "
        "results go to runs/compare/1"
    )
    assert sorted(p.name for p in Path("runs/compare/1").iterdir()) == [
        "compare.json",
        "report.html",
    ]
    Path("again.yaml").write_text(found["configs"]["sample"])
    config, _ = load_config("again.yaml")
    assert (config.loader.name, config.optimizer.lr) == ("sample", 0.1)


def test_everything_but_time_is_the_same_twice(capsys):
    arguments = ["compare", "moons.yaml", "--loaders", "sample,minibatch:5"]
    for directory in ("one", "two"):
        assert main([*arguments, "--samples", "100", "--output-dir", directory]) == 0
    assert without_times(result("one")) == without_times(result("two"))
    assert [f["updates"] for f in result("one")["forms"]] == [100, 20]


def test_a_schedule_is_as_long_as_the_budget(capsys):
    arguments = ["compare", "moons.yaml", "--loaders", "minibatch"]
    assert main([*arguments, "--updates", "36", "--output-dir", "long"]) == 0
    assert main([*arguments, "epochs=6", "--output-dir", "same"]) == 0
    long, same = result("long")["forms"][0], result("same")["forms"][0]
    assert long["updates"] == same["updates"] == 36
    assert long["curve"]["full_loss"] == same["curve"]["full_loss"]
    rates = long["curve"]["lr"]
    assert rates[-1] < rates[18] < rates[0] == 0.1


def test_rates_are_tried_for_each_form(capsys):
    arguments = ["compare", "moons.yaml", "--loaders", "batch,sample", "--lr-grid", "0.01,1,0.1"]
    assert main([*arguments, "--epochs", "5"]) == 0
    found = result("runs/compare/1")
    for form in found["forms"]:
        assert [run["learning_rate"] for run in form["tried"]] == [0.01, 0.1, 1.0]
        best = min(form["tried"], key=lambda run: run["full_loss"])
        assert form["learning_rate"] == best["learning_rate"]
    out, err = capsys.readouterr()
    assert f"chooses learning rate {found['forms'][0]['learning_rate']:g}" in err
    assert "learning rate" in out


def test_seeds_are_those_from_the_configuration_on(capsys):
    arguments = ["compare", "moons.yaml", "--loaders", "batch,minibatch", "seed=3"]
    assert main([*arguments, "--seeds", "2"]) == 0
    out, _ = capsys.readouterr()
    found = result("runs/compare/1")
    assert found["statistics"]["seeds"] == [3, 4]
    assert main([*arguments[:-1], "seed=4"]) == 0  # each row is the run alone, its split included
    alone = result("runs/compare/2")
    for form, other in zip(found["forms"], alone["forms"], strict=True):
        assert form["runs"][1]["final"] == other["final"]
    assert "with 2 seeds this is not conclusive, use at least 5." in out


def test_several_configurations_of_one_problem(capsys):
    Path("adam.yaml").write_text(
        MOONS.replace("{lr: 0.1, momentum: 0.5}", "{name: adam}").replace("scheduler: cosine\n", "")
    )
    assert main(["compare", "moons.yaml", "adam.yaml", "--output-dir", "both"]) == 0
    forms = result("both")["forms"]
    assert [f["name"] for f in forms] == ["moons", "adam"]
    assert [f["optimizer"] for f in forms] == ["SGD", "Adam"]
    assert [f["learning_rate"] for f in forms] == [0.1, 0.001]


def test_what_is_not_one_problem_is_refused_with_its_place(capsys):
    Path("other.yaml").write_text(
        "seed: 1\n" + MOONS.replace("[8]", "[8, 4]").replace("loss: cross", "loss: \n  name: cross")
    )
    Path("deep.yaml").write_text(MOONS.replace("60,", "60, standardize: true,"))
    assert main(["compare", "moons.yaml", "other.yaml", "deep.yaml"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "other.yaml:1:7: seed: must be 0 as in moons.yaml, got 1; compare on one problem",
        "other.yaml:3:28: model.hidden: must be [8] as in moons.yaml, got [8, 4]; "
        "compare on one problem",
        "deep.yaml:1:57: data.standardize: must be false as in moons.yaml, got true; "
        "compare on one problem",
    ]
    Path("long.yaml").write_text(MOONS.replace("epochs: 3", "epochs: 4"))
    assert main(["compare", "moons.yaml", "long.yaml"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "long.yaml:8:9: epochs: must be 3 as in moons.yaml, got 4; "
        "or give all the same budget, such as --epochs 20"
    ]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [],
            "command line:1:1: --loaders: missing; name what to compare, such as "
            "batch,sample,minibatch",
        ),
        (
            ["--loaders", "batch,sampel"],
            "command line:1:1: --loaders: must be one of batch, sample, minibatch, "
            "poisson_sampling; got 'sampel'; did you mean sample?",
        ),
        (
            ["--loaders", "batch:7"],
            "command line:1:1: --loaders: batch has no batch size; write batch alone",
        ),
        (
            ["--loaders", "minibatch:x"],
            "command line:1:1: --loaders: minibatch:B needs a whole number B >= 1, got 'x'",
        ),
        (
            ["--loaders", "batch,batch"],
            "command line:1:1: --loaders: names batch twice; name each form once",
        ),
        (
            ["--loaders", "batch", "--epochs", "1", "--seconds", "2"],
            "command line:1:1: --seconds: can't be given together with --epochs; remove one",
        ),
        (
            ["--loaders", "batch", "--updates", "0"],
            "command line:1:1: --updates: must be > 0, got 0",
        ),
        (
            ["--loaders", "batch", "--tune", "--lr-grid", "1"],
            "command line:1:1: --tune: has no effect beside --lr-grid; remove one of the two",
        ),
        (
            ["--loaders", "batch", "--lr-grid", "0"],
            "command line:1:1: --lr-grid: must hold numbers > 0, got 0",
        ),
        (
            ["--loaders", "batch", "--looks", "1"],
            "command line:1:1: --looks: must be >= 2, got 1",
        ),
        (
            ["--loaders", "batch", "--seeds", "0"],
            "command line:1:1: --seeds: must be >= 1, got 0",
        ),
        (
            ["--loaders", "batch", "optimizer.lr=-1"],
            "command line:1:14: optimizer.lr: must be > 0, got -1",
        ),
        (
            ["--loaders", "sample", "model.batch_norm=true"],
            "command line:1:18: model.batch_norm: needs batches of at least 2 samples, and this ",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, said, capsys):
    assert main(["compare", "moons.yaml", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith(said)
    assert not Path("runs").exists()


def test_another_run_is_never_overwritten(capsys):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    arguments = ["compare", "moons.yaml", "--loaders", "batch", "--output-dir", "mine"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        "command line:1:1: --output-dir: mine is not empty; choose another --output-dir\n"
    )
    assert [p.name for p in Path("mine").iterdir()] == ["notes.txt"]


def test_a_stream_is_refused(capsys):
    Path("rows.csv").write_text("a,b\n1,2\n")
    Path("stream.yaml").write_text(
        "data: {source: stream, format: csv, path: rows.csv, target: b}\n"
        "model: {name: mlp, hidden: []}\nloss: mse\nloader: sample\n"
        "optimizer: {lr: 0.1}\nepochs: 1\n"
    )
    assert main(["compare", "stream.yaml", "--loaders", "sample"]) == 2
    assert "a stream can't be evaluated as a whole" in capsys.readouterr().err


def test_torchrun_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare", "moons.yaml", "--loaders", "batch"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_an_interrupted_comparison_writes_what_is_done(signum):
    command = [
        "compare",
        "moons.yaml",
        "--loaders",
        "batch,sample,minibatch",
        "--output-dir",
        "cut",
    ]
    budget = ["--seconds", "600", "--looks", "1000", "scheduler=null"]
    with start("-m", "gdtrain", *command, *budget) as running:
        running.wait_for(lambda: "results go to cut" in running.err)
        running.send_signal(signum)
        assert running.wait() == 128 + signum
        assert "Traceback" not in running.err
        assert running.err.splitlines()[-1] == "interrupted; what was done is written"
        assert running.out
    found = result("cut")
    assert found["status"] == "interrupted"
    assert [form["status"] for form in found["forms"]] in ([], ["interrupted"])
    assert "Interrupted" in Path("cut/report.html").read_text("utf-8")


def test_help_and_faults_do_not_wait_for_torch():
    look = (
        "import sys\nfrom gdtrain.cli.main import main\n"
        "try:\n    main(['compare', '--help'])\nexcept SystemExit:\n    pass\n"
        "for more in (['--loaders', 'nonsense'], ['--loaders', 'batch', 'epochs=x'], []):\n"
        "    assert main(['compare', 'moons.yaml', *more]) == 2\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "[]"


REGISTERED = """
from torch import nn
from gdtrain import register_model

@register_model("start")
class Start(nn.Linear):
    def __init__(self, in_features: int, out_features: int, scale: float = 1.0):
        super().__init__(in_features, out_features)
"""


def test_two_files_with_one_registered_model_are_one_problem(tmp_path, monkeypatch):
    """Its settings have a type for each file that is read; what counts is what they say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "started_parts.py").write_text(REGISTERED)
    text = (
        "data: {source: digits}\nmodel: {name: start, scale: SCALE}\nloss: cross_entropy\n"
        "loader: LOADER\noptimizer: {lr: 0.1}\nepochs: 1\n"
    )
    for name, scale, loader in (("a", 1, "batch"), ("b", 1, "sample"), ("c", 2, "batch")):
        content = text.replace("SCALE", str(scale)).replace("LOADER", loader)
        (tmp_path / f"{name}.yaml").write_text(content)
    import_modules(["started_parts"])
    load_forms(["a.yaml", "b.yaml"], [], [])
    with pytest.raises(ConfigError, match=r"^c.yaml:2:\d+: model.scale: must be 1.0 as in a.yaml"):
        load_forms(["a.yaml", "c.yaml"], [], [])
