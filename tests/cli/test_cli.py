"""The command line: commands, exit codes, output directories, interruption and resumption."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.processes import start
from safetensors.torch import load_file

import gdtrain
from gdtrain.cli.main import COMMANDS, main
from gdtrain.config.json_schema import json_schema
from gdtrain.output.run_directory import read_metrics

CONFIG = """\
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25}
model: {name: mlp, hidden: [8], dropout: 0.1}
loss: cross_entropy
loader: {name: minibatch, batch_size: 8}
optimizer: {lr: 0.1, momentum: 0.9}
epochs: 2
log: {picture: false}
"""
START_ANEW = "resume with the run's own settings, or start a new run"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory with moons.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("moons.yaml").write_text(CONFIG, "utf-8")
    return tmp_path


def run(*arguments: str) -> int:
    return main(["--config", "moons.yaml", *arguments])


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def names(directory: str) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


def summary(directory: str) -> dict:
    return json.loads(Path(directory, "summary.json").read_text("utf-8"))


def weights(directory: str) -> bytes:
    return Path(directory, "model.safetensors").read_bytes()


def test_training_says_what_it_does_on_plain_lines(capsys):
    assert run() == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == (
        f"training on {summary('runs/moons/1')['device']} with engine eager, "
        "30 samples, 4 updates an epoch; "
        "results go to runs/moons/1"
    )
    assert [line.split("  ")[0] for line in lines[1:3]] == ["epoch 1/2", "epoch 2/2"]
    assert all(word in lines[1] for word in ("train_loss", "val_accuracy", "lr 0.1", "samples/s"))
    assert lines[3].startswith("done: 2 epochs, 8 updates in ")
    assert len(lines) == 4
    assert "\r" not in err


def test_runs_are_numbered_and_never_overwritten(capsys):
    assert run() == run("seed=1") == 0
    Path("runs/moons/7").mkdir()
    Path("runs/moons/notes").mkdir()
    assert run() == 0
    assert names("runs/moons") == ["1", "2", "7", "8", "notes"]
    assert weights("runs/moons/1") == weights("runs/moons/8")
    assert weights("runs/moons/1") != weights("runs/moons/2")
    capsys.readouterr()
    before = weights("runs/moons/1")
    assert run("--output-dir", "runs/moons/1", "seed=2") == 2
    assert capsys.readouterr().err == (
        "command line:1:1: --output-dir: runs/moons/1 is not empty; choose another --output-dir, "
        "or give --resume to continue the run in it\n"
    )
    assert weights("runs/moons/1") == before
    assert run("--output-dir", "runs/moons") == 2, "in which there are runs, but no run itself"
    assert capsys.readouterr().err == (
        "command line:1:1: --output-dir: runs/moons is not empty; choose another --output-dir\n"
    )


def test_an_empty_output_directory_is_used_and_may_have_any_name():
    Path("my rüns/a b").mkdir(parents=True)
    assert run("--output-dir", "my rüns/a b") == 0
    assert summary("my rüns/a b")["status"] == "done"


@pytest.mark.parametrize(
    ("directory", "reason"),
    [("moons.yaml", "File exists"), ("moons.yaml/out", "Not a directory")],
)
def test_an_output_directory_that_cannot_be_made(capsys, directory, reason):
    assert run("--output-dir", directory) == 2
    assert capsys.readouterr().err == (
        f"command line:1:1: --output-dir: {directory} can't be made: {reason}; choose another\n"
    )
    assert files() == ["moons.yaml"]


def test_an_output_directory_that_cannot_be_written(capsys, monkeypatch):
    Path("out").mkdir(mode=0o555)
    if os.geteuid() == 0:  # who may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    assert run("--output-dir", "out") == 2
    assert capsys.readouterr().err == (
        "command line:1:1: --output-dir: out can't be written to; choose another\n"
    )
    assert files() == ["moons.yaml"]


def test_overrides_stand_before_and_after_options():
    arguments = ["epochs=1", "--config", "moons.yaml", "loader.batch_size=15", "--output-dir"]
    assert main([*arguments, "out", "seed=4"]) == 0
    assert (summary("out")["epochs"], summary("out")["steps"]) == (1, 2)
    assert yaml.safe_load(Path("out/config.yaml").read_text("utf-8"))["seed"] == 4


def test_print_config_prints_every_setting_and_writes_nothing(capsys):
    assert run("--print-config", "optimizer.lr=1e-3", "loader=sample") == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["optimizer"]["lr"] == 1e-3
    assert yaml.safe_load(printed)["loader"] == {"name": "sample", "order": "reshuffle"}
    Path("printed.yaml").write_text(printed, "utf-8")
    assert main(["--config", "printed.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert files() == ["moons.yaml", "printed.yaml"]


def test_dry_run_makes_one_update_and_writes_nothing(capsys):
    assert run("--dry-run") == 0
    out, err = capsys.readouterr()
    assert err == ""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert out.startswith(f"dry run on {device}: 42 parameters; one update of 8 samples: loss ")
    assert "; one validation batch of 10: loss " in out
    assert out.endswith("; nothing written\n")
    assert files() == ["moons.yaml"]


def test_schema_prints_the_json_schema(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_train_is_a_name_for_training():
    assert main(["train", "--config", "moons.yaml", "epochs=1", "--output-dir", "named"]) == 0
    assert main(["--config", "moons.yaml", "epochs=1", "--output-dir", "plain"]) == 0
    named, plain = (Path(folder, "model.safetensors") for folder in ("named", "plain"))
    assert named.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(("lr", "loss"), [("0.1", 0), ("1e30", 3)])
def test_a_dry_run_whose_validation_loss_is_not_finite_ends_with_3(capsys, lr, loss):
    """A tanh keeps it finite however large the weights are, a linear model does not."""
    data = "data={source: linear_regression, num_samples: 40, validation_fraction: 0.25}"
    arguments = ["--config", "moons.yaml", data, "model=linear", "loss=mse", "metrics=null"]
    assert main([*arguments, f"optimizer.lr={lr}", "--dry-run"]) == loss
    assert ("loss inf" in capsys.readouterr().out) == (loss == 3)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("compair", "did you mean compare?"),
        ("lr_range", "did you mean lr-range?"),
        ("moons.yaml", "to train with it: --config moons.yaml"),
        (
            "minimise",
            "to train, start with --config FILE; the commands are compare, convert, evaluate, "
            "export, init, landscape, list, lr-range, plot, predict, replay, schema, sweep, train, "
            "verify",
        ),
    ],
)
def test_a_first_word_that_is_no_command(capsys, word, hint):
    assert main([word, "--config", "moons.yaml"]) == 2
    assert capsys.readouterr().err == f"command line:1:1: {word!r} is not a command; {hint}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["--help"],
            0,
            "Exit codes: 0 done, 2 bad input, 3 loss not finite, 129/130/131/143 ",
        ),
        (["--version"], 0, gdtrain.__version__),
        (["schema", "--help"], 0, "Print the JSON Schema of configurations"),
        ([], 2, "commands (COMMAND --help shows the options of each):\n  compare "),
        (["epochs=2"], 2, "error: the following arguments are required: --config"),
        (
            ["--config", "moons.yaml", "--resum"],
            2,
            "error: unrecognized arguments: --resum; did you mean --resume?",
        ),
        (
            ["--config", "moons.yaml", "--epochs", "3"],
            2,
            "error: unrecognized arguments: --epochs; settings are written without dashes, such as "
            "epochs=20",
        ),
        (["schema", "extra"], 2, "error: unrecognized arguments: extra"),
        (
            ["predict", "--run", "out", "a.csv"],
            2,
            "error: unrecognized arguments: --run; RUN is given without an option before it",
        ),
        (
            ["sweep", "--config", "a.yaml"],
            2,
            "error: unrecognized arguments: --config; CONFIG is given without an option before it",
        ),
        (
            ["lr-range", "a.yaml"],
            2,
            "error: the following arguments are required: --config; write --config FILE",
        ),
    ],
)
def test_answers_of_the_argument_parser(capsys, arguments, code, said):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == code
    assert said in (err if code else out)


def test_a_batch_size_over_n_is_one_batch_and_is_said(capsys):
    assert run("loader.batch_size=31", "epochs=1") == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first == ("note: batch_size 31 is over the 30 samples: each epoch is one batch of 30")
    assert summary("runs/moons/1")["steps"] == 1


def test_a_diverging_run_ends_with_3_and_no_weights(capsys):
    assert run("loss=mse", "data=teaching", "model=linear", "optimizer.lr=1e5", "epochs=50") == 3
    said, hint = capsys.readouterr().err.splitlines()[-2:]
    assert said.startswith("gdtrain: loss is ")
    assert said.endswith("try a smaller lr, clip_grad_norm, or standardised inputs")
    step = summary("runs/moons/1")["steps"] + 1
    assert hint == (
        f"look at that update with: python -m gdtrain replay --step {step} runs/moons/1"
    )
    assert summary("runs/moons/1")["status"] == "non_finite"
    assert not Path("runs/moons/1/model.safetensors").exists()
    assert "NaN" not in Path("runs/moons/1/metrics.jsonl").read_text("utf-8")


def test_early_stopping_is_said_and_summed_up(capsys):
    stopping = "early_stopping={monitor: train_loss, patience: 1, min_delta: 100}"
    assert run("epochs=9", stopping) == 0
    done = summary("runs/moons/1")
    assert (done["status"], done["epochs"]) == ("stopped", 2)
    assert done["reason"] == "train_loss did not improve for 1 epoch"
    assert "stopped (train_loss did not improve for 1 epoch): 2 epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        ["scheduler={name: inverse_time, b: 5, warmup: 3}"],
        ["optimizer.nesterov=true", "model.batch_norm=true", "microbatch_size=null"],
        ["optimizer=adamw", "loader=sample", "data.standardize=true", "clip_grad_norm=0.1"],
        ["optimizer=lbfgs", "loader={name: batch, order: replacement}"],
        ["early_stopping={patience: 3}", "precision=fp64", "microbatch_size=3"],
    ],
)
def test_a_run_in_two_parts_has_the_bits_of_one(settings):
    assert run("--output-dir", "whole", "epochs=4", *settings) == 0
    assert run("--output-dir", "parts", "epochs=2", *settings) == 0
    assert run("--output-dir", "parts", "--resume", "epochs=4", *settings) == 0
    assert weights("parts") == weights("whole")
    assert read_without_times("parts") == read_without_times("whole")
    assert summary("parts")["validation"] == summary("whole")["validation"]


def read_without_times(directory: str) -> list[dict]:
    records = read_metrics(Path(directory, "metrics.jsonl"))
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


def test_resume_takes_the_newest_run_and_its_newest_checkpoint(capsys):
    every = "checkpoint={every_n_steps: 3, keep_last: 9}"
    assert run(every) == run(every) == 0
    assert names("runs/moons/2/checkpoints") == [
        "step-0000000003",
        "step-0000000006",
        "step-0000000008",
    ]
    finished = weights("runs/moons/2")
    newest = Path("runs/moons/2/checkpoints/step-0000000008/state.json")
    newest.write_bytes(newest.read_bytes()[:-9])
    capsys.readouterr()
    assert run(every, "--resume") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "skipped a checkpoint: runs/moons/2/checkpoints/step-0000000008/state.json is damaged "
        "(its digest differs)"
    )
    assert lines[1] == "resuming from runs/moons/2/checkpoints/step-0000000006"
    assert weights("runs/moons/2") == finished


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            ["seed=5"],
            "--resume: out was started with other settings: "
            "seed is 0 there and 5 here; " + START_ANEW,
        ),
        (
            ["early_stopping.patience=3"],
            "--resume: out was started with other settings: "
            "early_stopping is nothing there and "
            "{'monitor': 'val_loss', 'patience': 3, 'min_delta': 0.0, … here; " + START_ANEW,
        ),
        (
            ["loader=sample", "optimizer.lr=1"],
            "--resume: out was started with other settings: "
            "loader.name is 'minibatch' there and 'sample' here; "
            "optimizer.lr is 0.1 there and 1.0 here; " + START_ANEW,
        ),
        (
            ["validation.every_n_epochs=2"],
            "--resume: out was started with other settings: "
            "validation.every_n_epochs is nothing there and 2 here; " + START_ANEW,
        ),
        (
            ["--output-dir", "nowhere"],
            "--output-dir: nowhere holds no run; omit --resume to start one",
        ),
        (
            ["--output-dir", "."],
            "--output-dir: . holds no run; omit --resume to start one",
        ),
        (
            ["--output-dir", "unsaved"],
            "--resume: unsaved/checkpoints: holds no checkpoint to resume from",
        ),
    ],
)
def test_what_cannot_be_resumed(capsys, arguments, fault):
    assert run("--output-dir", "out", "epochs=1") == 0
    Path("unsaved").mkdir()
    Path("unsaved/config.yaml").write_bytes(Path("out/config.yaml").read_bytes())
    capsys.readouterr()
    assert run("--output-dir", "out", "epochs=1", "--resume", *arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"command line:1:1: {fault}"


@pytest.mark.parametrize("step", [8, 6])  # at the end of the second epoch, and within it
def test_a_run_is_not_resumed_to_fewer_epochs_than_it_has_begun(capsys, step):
    assert run("--output-dir", "out", "checkpoint={every_n_steps: 3, keep_last: 9}") == 0
    for path in Path("out/checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    before = Path("out/config.yaml").read_bytes()
    capsys.readouterr()
    assert run("--output-dir", "out", "--resume", "epochs=1") == 2
    said = f"--resume: out/checkpoints/step-{step:010d} is of epoch 2, and epochs, which counts "
    assert capsys.readouterr().err == (
        f"command line:1:1: {said}from the start of the run, is 1; give at least 2\n"
    )
    assert Path("out/config.yaml").read_bytes() == before


def test_the_configuration_in_a_runs_directory_is_no_name_of_it(capsys):
    assert run("--output-dir", "my run", "epochs=1") == 0
    capsys.readouterr()
    assert main(["--config", "my run/config.yaml", "--resume"]) == 2
    assert capsys.readouterr().err == (
        "command line:1:1: --output-dir: missing, and my run/config.yaml is the configuration of a "
        "run; resume it with --output-dir 'my run' --resume\n"
    )


def test_the_last_epoch_is_validated_though_none_is_due_then(capsys):
    assert run("--output-dir", "each", "epochs=3") == 0
    assert run("--output-dir", "seldom", "epochs=3", "validation.every_n_epochs=2") == 0
    assert summary("seldom")["validation"] == summary("each")["validation"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"val_loss {summary('each')['validation']['loss']:.4g}" in last


def test_resume_without_any_run(capsys):
    assert run("--resume") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "command line:1:1: --output-dir: runs/moons holds no run to resume; "
        "give --output-dir, or omit --resume"
    )


def test_targets_that_are_hardly_labels_are_told(capsys):
    prices = [3 * number for number in range(20)]
    Path("houses.csv").write_text("area,price\n" + "".join(f"70,{p}\n" for p in prices))
    data = "data={source: csv, path: houses.csv, target: price}"
    assert run(data, "epochs=1", "model=linear", "loader=batch", "--dry-run") == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "note: the largest label, 57, makes more classes than there are samples (20); if the "
        "targets are no labels, use a loss for numbers, such as mse"
    )


def test_a_cosine_schedule_is_of_a_number_of_epochs(capsys):
    assert run("--output-dir", "out", "scheduler=cosine") == 0
    assert run("--output-dir", "out", "scheduler=cosine", "--resume", "epochs=3") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "command line:1:1: --resume: out was started with other settings: "
        "epochs is 2 there and 3 here, by which the schedule cosine computes its rates; "
        + START_ANEW
    )


# ── real processes ──────────────────────────────────────────────────────────────────────────


def process(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, capture_output=True, timeout=300, check=False, **options)


LOOK = """\
import sys, time
from gdtrain.cli.main import main
for arguments in ARGUMENTS:
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    print("code", code, file=sys.stderr)
heavy = sorted({"torch", "numpy", "safetensors", "tqdm"} & set(sys.modules))
print("imported", heavy, file=sys.stderr)
"""


def test_light_commands_answer_without_torch():
    arguments = [
        ["--help"],
        ["schema"],
        ["list", "order"],
        ["--config", "moons.yaml", "--print-config"],
        ["--config", "moons.yaml", "epochs=x"],
        ["--config", "missing.yaml"],
    ]
    before = os.times().children_user
    done = process("-c", LOOK.replace("ARGUMENTS", repr(arguments)), text=True)
    assert os.times().children_user - before < 5  # whatever else the machine does
    assert done.stderr.splitlines() == [
        "code 0",
        "code 0",
        "code 0",
        "code 0",
        "command line:1:8: epochs: must be a whole number, got 'x'",
        "code 2",
        "missing.yaml:1:1: file not found; check the path",
        "code 2",
        "imported []",
    ]


def test_a_reader_that_goes_away_and_closed_streams_are_borne():
    command = f"exec {sys.executable} -m gdtrain schema | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=300, check=False)
    assert done.returncode in (0, 1)  # 0 where everything fitted into the pipe
    assert done.stderr == b""
    command = f"exec {sys.executable} -m gdtrain --config moons.yaml epochs=0 >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], timeout=300, check=False).returncode == 2


@pytest.mark.few(1)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_resumes_to_the_same_bits(signum):
    long = ["epochs=150", "data.num_samples=2000", "loader.batch_size=2", "log.every_n_steps=1"]
    arguments = ["-m", "gdtrain", "--config", "moons.yaml", *long, "--output-dir", "parts"]
    metrics = Path("parts/metrics.jsonl")
    with start(*arguments) as running:
        running.wait_for(lambda: metrics.exists() and metrics.stat().st_size > 200)
        running.send_signal(signum)
        assert running.wait() == 128 + signum
        assert (
            running.err.splitlines()[-1]
            == "interrupted; to go on, give the same command with --output-dir parts --resume"
        )
        assert "Traceback" not in running.err
    stopped = summary("parts")
    assert (stopped["status"], stopped["reason"]) == ("interrupted", signum.name)
    assert stopped["epochs"] < 150
    assert not Path("parts/model.safetensors").exists()
    shorter = [*long, f"epochs={stopped['epochs'] + 1}"]
    assert run(*shorter, "--output-dir", "parts", "--resume") == 0
    assert run(*shorter, "--output-dir", "whole") == 0
    assert weights("parts") == weights("whole")
    assert read_without_times("parts") == read_without_times("whole")
    assert set(load_file("parts/model.safetensors")) == {
        *("0.weight", "0.bias", "3.weight", "3.bias"),
    }


class Interrupts:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass


def test_a_signal_ends_the_command_though_python_made_another_error_of_it(monkeypatch, capsys):
    """What is raised in the body of a class becomes a RuntimeError before Python 3.12."""

    def in_a_class(_):
        type("Body", (), {"field": Interrupts()})
        return 0

    monkeypatch.setitem(COMMANDS, "list", in_a_class)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "gdtrain: ended by SIGINT\n"
