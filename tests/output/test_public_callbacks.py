"""From a script: checkpoints, logs, the bar and the best weights, as the command line has them."""

import contextlib
import os
import termios
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import gdtrain
from gdtrain import (
    BatchLoader,
    Callback,
    Checkpoints,
    KeepBest,
    MetricsCsv,
    MetricsLog,
    MiniBatchLoader,
    ProgressBar,
    Trainer,
)
from gdtrain.checkpoint.durable_files import make_directory
from gdtrain.errors import CheckpointError, ModelError, OutputError
from gdtrain.output.run_directory import read_metrics

X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def make(*callbacks, lr=0.1, **options):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loader = MiniBatchLoader((X, Y), 6)
    return Trainer(
        *(model, "mse", optimizer, loader),
        validation=BatchLoader((X, Y)),
        callbacks=callbacks,
        device="cpu",
        **options,
    )


class StopsAt(Callback):
    every_n_steps = 7

    def on_safe_point(self, trainer):
        trainer.stop("here")


def test_a_script_that_is_run_again_goes_on_to_the_same_bits(tmp_path):
    whole = make()
    whole.fit(4)
    kept, log = tmp_path / "run" / "checkpoints", tmp_path / "run" / "metrics.jsonl"
    first = make(StopsAt(), MetricsLog(log, 1), Checkpoints(str(kept), every_n_steps=2))
    first.fit(4)
    for directory in (kept, tmp_path / "run"):
        second = make(MetricsLog(log, 1), Checkpoints(kept, keep_last=2))
        second.fit(4, resume=directory)
        assert torch.equal(second.model.weight, whole.model.weight)
        timeless = [{**r, "seconds": 0} for r in second.history.epochs]
        assert timeless == [{**r, "seconds": 0} for r in whole.history.epochs]
    kinds = [record["kind"] for record in read_metrics(log)]
    assert kinds.count("epoch") == 4


def test_a_directory_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        make().fit(1, resume=tmp_path)


def test_checkpoints_of_another_run_are_not_removed(tmp_path):
    make(Checkpoints(tmp_path / "kept")).fit(3)
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError) as caught:
        make(Checkpoints(tmp_path / "kept")).fit(1)
    assert str(caught.value) == (
        f"{tmp_path}/kept/step-0000000012 is of another run, and would be removed; to continue "
        f"that run, fit with resume='{tmp_path}/kept', else give Checkpoints an empty directory"
    )
    assert sorted(tmp_path.rglob("*")) == there


def test_a_file_in_the_place_of_checkpoints_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    trainer = make(Checkpoints(tmp_path / "file"))
    with pytest.raises(OutputError) as caught:
        trainer.fit(1)
    assert str(caught.value) == (
        f"{tmp_path}/file is no directory, as checkpoints need; give another name"
    )
    assert trainer.step == 0


def test_two_threads_may_make_one_directory_at_once(tmp_path, monkeypatch):
    made = os.mkdir

    def faster(path, *rest):
        made(path)
        made(path, *rest)

    monkeypatch.setattr(os, "mkdir", faster)
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_logs_are_files_beside_each_other(tmp_path):
    log, table = tmp_path / "metrics.jsonl", tmp_path / "metrics.csv"
    history = make(MetricsLog(str(log), 4), MetricsCsv(str(log), str(table))).fit(2)
    head, *rows = table.read_text().splitlines()
    assert head.startswith("kind,step,epoch,")
    assert len(rows) == 4  # of 8 updates two, and two epochs
    assert [
        r["train_loss"] for r in read_metrics(log) if r["kind"] == "epoch"
    ] == history.train_loss


def test_the_weights_of_the_best_epoch_are_kept_and_training_goes_on():
    best = KeepBest("val_loss")
    trainer = make(best, lr=0.9)  # too large: the loss rises and falls
    trainer.fit(6)
    values = trainer.history.val_loss
    assert best.value == min(values)
    assert best.epoch == values.index(min(values)) + 1
    again = make(lr=0.9)
    again.fit(best.epoch)
    assert torch.equal(best.weights["weight"], again.model.weight)
    snapshot, other = trainer.state_dict(), KeepBest("val_loss")
    resumed = make(other, lr=0.9)
    resumed.load_state_dict(snapshot)
    assert torch.equal(other.weights["weight"], best.weights["weight"])
    other.put_back(resumed.model)
    assert torch.equal(resumed.model.weight, again.model.weight)
    with pytest.raises(ModelError, match="KeepBest: no epoch has had val_loss yet"):
        KeepBest().put_back(trainer.model)


# ── the bar ─────────────────────────────────────────────────────────────────────────────────


def read_to_the_end(controller):
    text = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed and all of it is read
        while part := os.read(controller, 1 << 16):
            text += part
    os.close(controller)
    return text.decode()


def shown(monkeypatch, fit):
    """What standard error gets, where it is a terminal."""
    controller, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    with ThreadPoolExecutor(1) as readers:
        screen = readers.submit(read_to_the_end, controller)
        with os.fdopen(terminal, "w") as stream, monkeypatch.context() as patch:
            patch.setattr("sys.stderr", stream)
            fit()
        return screen.result()


def test_terminals_get_a_bar_by_default_that_is_taken_away_again(monkeypatch):
    trainer = make()
    text = shown(monkeypatch, lambda: trainer.fit(3))
    assert "/12 [" in text
    assert "loss " in text
    assert "epoch 1/3" not in text
    assert text.split("\r")[-1].strip() == ""
    assert [type(callback).__name__ for callback in trainer.callbacks] == ["Validation"]


@pytest.mark.parametrize(
    "fit",
    [
        lambda: make(progress=False).fit(3),
        lambda: make().fit(3, progress=False),
        lambda: make(ProgressBar(max_lines=0)).fit(3),
    ],
    ids=["by the trainer", "by the fit", "one of its own"],
)
def test_there_is_none_where_none_is_wanted_and_not_a_second(monkeypatch, fit, request):
    text = shown(monkeypatch, fit)
    if "of its own" in request.node.name:
        assert "/12 [" in text
    else:
        assert text == ""


def test_the_bar_shows_the_terms_of_the_loss(monkeypatch):
    class Terms(Trainer):
        def compute_loss(self, batch):
            loss = (self.model(batch.inputs) - batch.targets).square().mean()
            return {"loss": loss, "half": loss / 2}

    model = nn.Linear(2, 1)
    trainer = Terms(model, None, "adam", MiniBatchLoader((X, Y), 6), device="cpu")
    assert "half " in shown(monkeypatch, lambda: trainer.fit(2))


def test_a_stream_that_is_no_terminal_gets_nothing(capsys):
    make().fit(2)
    assert capsys.readouterr() == ("", "")


def test_public_names_are_there():
    for name in ("Checkpoints", "MetricsLog", "MetricsCsv", "TensorBoard", "ProgressBar"):
        assert issubclass(getattr(gdtrain, name), Callback)
