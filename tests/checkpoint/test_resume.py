"""Saved and resumed at every step: the bits of a run that was left alone; or a clear refusal."""

from __future__ import annotations

import functools
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.faults.interruptions import StopAfter
from helpers.processes import run
from torch import nn

from gdtrain import BatchLoader, Callback, MiniBatchLoader, SampleLoader, Trainer
from gdtrain.checkpoint.checkpoints import Checkpoints, CheckpointStore
from gdtrain.checkpoint.expected_tensors import tensor_check
from gdtrain.cli.main import main
from gdtrain.errors import CheckpointError

N = 11
draw = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=draw)
Y = torch.randint(2, (N,), generator=draw)
EPOCHS = 3
LOADERS = {
    "batch": lambda: BatchLoader((X, Y), order="reshuffle", seed=2),
    "sample": lambda: SampleLoader((X, Y), order="replacement", seed=2),
    "minibatch": lambda: MiniBatchLoader((X, Y), 4, seed=2),  # 4, 4 and 3 samples
}


class NoisyTrainer(Trainer):
    """Draws from Python's and numpy's generators too."""

    def compute_loss(self, batch):
        import random

        noise = random.gauss(0, 1) + float(np.random.standard_normal())
        return super().compute_loss(batch) * (1 + 0.01 * noise)


def build(form: str, *callbacks: Callback) -> Trainer:
    torch.manual_seed(5)
    norm: nn.Module = nn.LayerNorm(6) if form == "sample" else nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Linear(3, 6), norm, nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    return NoisyTrainer(
        model,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer,
        LOADERS[form](),
        device="cpu",
        scheduler=scheduler,
        scheduler_per="step",
        validation=BatchLoader((X[:4], Y[:4])),
        callbacks=callbacks,
    )


def start_anew(seed: int) -> None:
    import random

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def bits(trainer: Trainer) -> dict[str, torch.Tensor]:
    momentum = {
        f"momentum.{n}": s["momentum_buffer"]
        for n, s in trainer.optimizer.state_dict()["state"].items()
    }
    return {**trainer.model.state_dict(), **momentum, "rng": torch.get_rng_state()}


@pytest.mark.few(1)
@pytest.mark.parametrize("form", LOADERS)
def test_interrupted_at_each_step_in_turn_and_twice_in_a_row(form, tmp_path):
    start_anew(1)
    whole = build(form)
    start_anew(1)
    whole.fit(EPOCHS)
    expected, history = bits(whole), whole.history.epochs
    steps = whole.progress.step
    for step in range(1, steps):
        start_anew(1)
        trainer, folder = build(form, StopAfter(step)), tmp_path / str(step)
        start_anew(1)
        for last in (step, min(step + 1, steps - 1), steps):
            trainer.callbacks[-1].last = last if last < steps else -1
            trainer.fit(EPOCHS)
            store = CheckpointStore(folder)
            store.save(trainer.progress.step, trainer.state_dict())
            start_anew(99)  # whatever a new process would have drawn meanwhile
            trainer = build(form, StopAfter(-1))
            start_anew(98)
            trainer.load_state_dict(store.load_newest(tensor_check(trainer))[1])
        found = bits(trainer)
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
        kept = [{k: v for k, v in r.items() if k != "seconds"} for r in trainer.history.epochs]
        assert kept == [{k: v for k, v in r.items() if k != "seconds"} for r in history]
        shutil.rmtree(folder)


def test_optimizer_state_goes_by_name_not_by_place():
    trainer = build("minibatch")
    trainer.fit(1)
    snapshot = trainer.state_dict()
    other = build("minibatch")
    parameters = list(other.model.parameters())[::-1]
    other.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
    other.schedule.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(other.optimizer, 40)
    other.load_state_dict(snapshot)
    for mine, theirs in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        buffers = [t.optimizer.state[p]["momentum_buffer"] for t, p in
                   ((trainer, mine), (other, theirs))]  # fmt: skip
        assert torch.equal(*buffers)


def state_of(form: str = "minibatch") -> dict:
    trainer = build(form)
    trainer.fit(1)
    return trainer.state_dict()


def _other_data(state):
    state["data"]["data"] += 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s["model"].update({"0.weight": torch.zeros(6, 4)}),
            "model: 0.weight is float32 [6, 4] in the state and float32 [6, 3] here",
        ),
        (lambda s: s["model"].pop("4.bias"), "model: the state lacks 4.bias"),
        (
            lambda s: s["model"].update({"9.bias": torch.zeros(1)}),
            "model: the state has 9.bias, which is not in this model",
        ),
        (
            lambda s: s["data"].update(samples=12, seed=3),
            "the data or loader is another: samples 12 in the state, 11 here; "
            "seed 3 in the state, 2 here",
        ),
        (
            lambda s: s["optimizer"]["state"].update({"7.weight": {}}),
            "optimizer: the state is of a parameter 7.weight, not here",
        ),
        (
            lambda s: s["optimizer"]["groups"][0].update(foreign=1),
            "optimizer: the state's is another, with other settings than here",
        ),
        (lambda s: s["progress"].update(step=-1), "progress: step is not a whole number >= 0"),
        (lambda s: s.update(lr="high"), "lr is not a number"),
        (
            lambda s: s["rng"][0].update(numpy=s["rng"][0]["numpy"] + 10**6),
            "rng: a generator's state is out of its range",
        ),
        (
            lambda s: s["callbacks"].update(Nobody={}),
            "the state has a callback Nobody that this trainer lacks",
        ),
        (lambda s: s.pop("rng"), "it is not a trainer's state"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, said):
    state = state_of()
    change(state)
    trainer = build("minibatch")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        trainer.load_state_dict(state)
    assert str(caught.value) == said
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
    assert trainer.progress.step == 0


def test_other_conditions_are_told(caplog):
    state = state_of()
    state["made_by"]["threads"] = 64
    state["made_by"]["torch"] = "1.0"
    build("minibatch").load_state_dict(state)
    assert caplog.messages == [
        f"resumed under other conditions (torch 1.0 then, {torch.__version__} now; threads 64 "
        f"then, {torch.get_num_threads()} now): the same samples in the same order, but the "
        "last bits may differ from an undisturbed run's"
    ]


# ── the callback ────────────────────────────────────────────────────────────────────────────


def test_checkpoints_by_steps_epochs_and_the_best_epoch(tmp_path):
    class Scores(Callback):
        """A metric that is best in the second epoch."""

        def on_epoch_end(self, trainer, record):
            record["score"] = [0.5, 0.9, 0.7, 0.1][record["epoch"] - 1]

    store = CheckpointStore(tmp_path / "c", keep_last=1)
    saving = Checkpoints(store, every_n_epochs=1, keep_best="score", mode="max")
    trainer = build("minibatch", Scores(), saving)
    trainer.fit(4)
    assert sorted(path.name for path in store.directory.iterdir()) == [
        *("best.json", "step-0000000006", "step-0000000012-1")
    ]
    assert store.best() == store.directory / "step-0000000006"
    assert saving.best == -0.9


def test_a_save_that_is_asked_for_comes_at_the_next_safe_point(tmp_path, caplog):
    store = CheckpointStore(tmp_path / "c")
    saving = Checkpoints(store)

    class Asks(Callback):
        every_n_steps = 1

        def on_safe_point(self, trainer):
            if trainer.progress.step == 4:
                saving.save_soon()

    build("minibatch", Asks(), saving).fit(3)
    assert sorted(path.name for path in store.directory.iterdir()) == [
        *("step-0000000004", "step-0000000009")
    ]
    assert caplog.messages == ["saving the checkpoint of step 4, as asked"]


# ── the command ─────────────────────────────────────────────────────────────────────────────

CONFIG = """\
data: {source: two_moons, num_samples: 40, validation_fraction: 0.25}
model: {name: mlp, hidden: [8], dropout: 0.1}
loss: cross_entropy
loader: {name: minibatch, batch_size: 8}
optimizer: {lr: 0.1, momentum: 0.9}
checkpoint: {every_n_steps: 2}
epochs: 2
log: {picture: false}
"""


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    """The directory of a finished run of 8 updates, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(CONFIG, "utf-8")
    assert main(["--config", "a.yaml", "--output-dir", "out"]) == 0
    return Path("out")


def resumed(*arguments: str) -> int:
    return main(["--config", "a.yaml", "--output-dir", "out", "--resume", *arguments])


def test_when_no_checkpoint_is_left_the_run_does_not_start_from_zero(out, capsys):
    capsys.readouterr()
    damaged = list((out / "checkpoints").glob("*/state.json"))
    assert len(damaged) == 3
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1])
    weights = (out / "model.safetensors").read_bytes()
    assert resumed("epochs=3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("command line:1:1: --resume: no checkpoint can be used: ")
    assert all(f"{path} is damaged" in line for path in damaged)
    assert (out / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoints", "metrics.jsonl", "config.yaml", "summary.json", "model.safetensors"),
        *("averaged.safetensors", "loss.png"),
    ],
)
def test_links_in_a_run_that_lead_out_of_it_are_not_followed(out, capsys, name, tmp_path):
    outside = tmp_path / "outside"
    if (out / name).exists():
        (out / name).rename(outside)
    (out / name).symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert resumed("epochs=3") == 2
    assert capsys.readouterr().err == (
        f"command line:1:1: --output-dir: out/{name} is a symbolic link, which can lead out of "
        "the directory; replace it by what it points to\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_under_the_name_of_an_unfinished_file_is_removed_not_followed(out, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine", "utf-8")
    for name in ("config.yaml", "summary.json", "model.safetensors"):
        (out / f".unfinished-{name}").symlink_to(precious)
    (out / "checkpoints" / ".unfinished-step-0000000012").symlink_to(tmp_path)
    assert resumed("epochs=3") == 0
    assert precious.read_text("utf-8") == "mine"
    assert not [path for path in out.rglob("*") if path.is_symlink()]


def test_a_linked_checkpoints_folder_is_no_remains_of_a_run(out, tmp_path, capsys):
    outside = tmp_path / "outside"
    (outside / ".unfinished-step-0000000000").mkdir(parents=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "checkpoints").symlink_to(outside)
    assert main(["--config", "a.yaml", "--output-dir", "new"]) == 2
    assert "new is not empty" in capsys.readouterr().err
    assert (outside / ".unfinished-step-0000000000").is_dir()


def test_two_processes_do_not_train_in_one_directory(out, capsys):
    holder = "import fcntl, os, sys, time; fcntl.flock(os.open('out', 0), fcntl.LOCK_EX); "
    command = [sys.executable, "-c", holder + "print('held', flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert resumed("epochs=3") == 2
        other.communicate()
    assert capsys.readouterr().err.splitlines()[-1] == (
        "command line:1:1: --output-dir: another process is training in out; wait for it, or end it"
    )
    assert resumed("epochs=3") == 0


def test_what_a_run_left_that_had_not_begun_does_not_block_the_next(out, tmp_path):
    ended_early = tmp_path / "early"
    shutil.copytree(out, ended_early)
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "model.safetensors"):
        (ended_early / name).unlink()
    shutil.rmtree(ended_early / "checkpoints")
    (ended_early / "checkpoints" / ".unfinished-step-0000000000").mkdir(parents=True)
    (ended_early / ".unfinished-config.yaml").touch()
    assert main(["--config", "a.yaml", "--output-dir", "early"]) == 0
    assert (ended_early / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()


def test_a_folder_called_checkpoints_with_other_things_is_left_alone(out, tmp_path, capsys):
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine" / "checkpoints" / "thesis").touch()
    assert main(["--config", "a.yaml", "--output-dir", "mine"]) == 2
    assert "mine is not empty" in capsys.readouterr().err
    assert (tmp_path / "mine" / "checkpoints" / "thesis").exists()


def test_a_disk_that_is_full_at_the_end_is_an_error(out):
    """The file size limit of the process stands for a full disk: the same error of write."""
    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (3000, 3000))
    given = ["--config", "a.yaml", "--output-dir", "out", "--resume", "epochs=3"]
    done = run("-m", "gdtrain", *given, before=full)
    assert done.returncode == 1
    assert "a checkpoint could not be saved, older ones stay: [Errno 27]" in done.err
    assert "Traceback" not in done.err
    assert json.loads((out / "summary.json").read_text("utf-8"))["status"] in ("done", "failed")
    assert resumed("epochs=3") == 0
