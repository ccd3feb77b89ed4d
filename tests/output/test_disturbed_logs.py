"""A log that can't be written, or that somebody cuts, replaces or removes: all of it is told."""

import errno
import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from helpers.faults.fake_disk import Failing
from torch import nn

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.checkpoint.durable_files import LOG, DiskFaults
from gdtrain.errors import StorageError
from gdtrain.output import metrics_log
from gdtrain.output.metrics_log import MetricsLog
from gdtrain.output.run_directory import read_metrics

EPOCHS, BATCHES = 4, 3


class At(Callback):
    """Does something at a safe point, once, before the log is written."""

    def __init__(self, step: int, do) -> None:
        super().__init__(every_n_steps=1)
        self.step, self.do = step, do

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.step:
            self.do()


def trainer_with(*callbacks: Callback) -> Trainer:
    torch.manual_seed(0)
    x = torch.arange(9.0).view(9, 1) / 9
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = MiniBatchLoader((x, x), 3)
    return Trainer(
        model, nn.MSELoss(), optimizer, loader, callbacks=callbacks, device="cpu", engine="eager"
    )


def lines(path: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in read_metrics(path)]


def whole() -> list[tuple[str, int]]:
    steps = range(1, EPOCHS * BATCHES + 1)
    kinds = [("step", "epoch") if n % BATCHES == 0 else ("step",) for n in steps]
    return [(kind, n) for n, of_step in zip(steps, kinds, strict=True) for kind in of_step]


def test_a_new_directory_is_made_without_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gdtrain"):
        trainer_with(MetricsLog(tmp_path / "new" / "metrics.jsonl", 1)).fit(EPOCHS)
    assert lines(tmp_path / "new" / "metrics.jsonl") == whole()
    assert not caplog.messages


class Reports(Callback):
    """Has something to report of each update."""

    def report(self) -> dict[str, float]:
        return {"extra": 1.0}


def test_callbacks_that_come_in_mid_run_are_reported(tmp_path):
    """The list may be another one, not only a longer one."""
    path = tmp_path / "metrics.jsonl"
    trainer: Trainer

    def rebind() -> None:
        trainer.callbacks = [*trainer.callbacks, Reports()]

    trainer = trainer_with(At(8, rebind), MetricsLog(path, every_n_steps=1))
    trainer.fit(EPOCHS)
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step" and "extra" in r] == list(
        range(8, EPOCHS * BATCHES + 1)
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("first", [0, 5, 17])
def test_lines_that_cant_be_written_wait_until_they_can(tmp_path, caplog, code, first):
    """Seven calls on the disk fail from the n-th on: every line is there in the end, in order."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, every_n_steps=1)
    failing = Failing(path, first, code, forever=True)
    trainer = trainer_with(At(8, lambda: setattr(failing, "nth", -1)), log)
    with failing.active(), caplog.at_level(logging.WARNING, "gdtrain"):
        trainer.fit(EPOCHS)
    assert lines(path) == whole()
    said = f"the log could not be written: [Errno {code}] {os.strerror(code)}: '{path}'; training "
    assert [m for m in caplog.messages if m.startswith(said)], caplog.messages
    assert caplog.messages[-1] == "the log can be written again"


def test_half_a_line_on_a_full_disk_is_made_whole(tmp_path):
    """A write that took some bytes and then failed goes on with the rest of them."""
    path = tmp_path / "metrics.jsonl"
    real, left = os.write, [1000]

    def write(handle: int, content: bytes) -> int:
        if Path(f"/proc/self/fd/{handle}").readlink() != path:
            return real(handle, content)
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = real(handle, bytes(content)[: left[0]])
        left[0] -= taken
        return taken

    trainer = trainer_with(
        At(11, lambda: left.__setitem__(0, 1 << 20)), MetricsLog(path, every_n_steps=1)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        trainer.fit(EPOCHS)
    assert lines(path) == whole()
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_log_that_can_never_be_written_is_an_error_when_all_is_trained(tmp_path):
    path = tmp_path / "metrics.jsonl"
    trainer = trainer_with(MetricsLog(path, every_n_steps=1))
    said = r"^the log could not be written: \[Errno 28\] No space left on device: '.*metrics.jsonl'"
    with (
        Failing(path, 5, errno.ENOSPC, forever=True).active(),
        pytest.raises(StorageError, match=said),
    ):
        trainer.fit(EPOCHS)
    assert trainer.progress.step == EPOCHS * BATCHES


def test_lines_that_wait_are_bounded_and_those_lost_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log, "MAX_KEPT_BYTES", 500)
    path = tmp_path / "metrics.jsonl"
    failing = Failing(path, 0, errno.ENOSPC, forever=True)
    trainer = trainer_with(
        At(11, lambda: setattr(failing, "nth", -1)), MetricsLog(path, every_n_steps=1)
    )
    with failing.active(), pytest.raises(StorageError, match=r"\d+ lines of .* are lost$") as told:
        trainer.fit(EPOCHS)
    lost = int(str(told.value).split(": ")[1].split()[0])
    assert len(lines(path)) + lost == len(whole())


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text('{"kind": "step", "epoch": 1, "step": 1}\n')
    other.rename(path)


def remove_folder(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


DISTURBED = {"cut": cut, "removed": Path.unlink, "replaced": replace, "folder": remove_folder}


@pytest.mark.parametrize("kind", DISTURBED)
def test_a_log_that_is_disturbed_in_mid_run_gets_its_epochs_back(tmp_path, caplog, kind):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    trainer = trainer_with(At(8, lambda: DISTURBED[kind](path)), MetricsLog(path, every_n_steps=1))
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer.fit(EPOCHS)
    told = [m for m in caplog.messages if "was cut, replaced or removed: lines of steps" in m]
    assert len(told) == 1, caplog.messages
    assert str(path) in told[0]
    found = lines(path)
    assert [step for kind_, step in found if kind_ == "epoch"] == [3, 6, 9, 12]
    assert [step for kind_, step in found if kind_ == "step"][-5:] == [8, 9, 10, 11, 12]
    records = {r["epoch"]: r for r in read_metrics(path) if r["kind"] == "epoch"}
    for record in trainer.history.epochs:
        assert records[record["epoch"]]["train_loss"] == record["train_loss"]


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("put", [put_pipe, put_link, put_folder])
def test_what_is_no_file_in_the_place_of_a_log_costs_no_update(tmp_path, put):
    """Nobody reads from the pipe, which must not be waited for; gone, the epochs come back."""
    path = tmp_path / "metrics.jsonl"
    faults = DiskFaults()
    gone = At(11, lambda: path.rmdir() if path.is_dir() else path.unlink())
    trainer = trainer_with(At(4, lambda: put(path)), gone, MetricsLog(path, 1, faults=faults))
    trainer.fit(EPOCHS)
    assert trainer.step == 12
    assert faults.error is None
    assert [step for kind, step in lines(path) if kind == "epoch"] == [3, 6, 9, 12]


def test_a_pipe_that_stays_in_the_place_of_a_log_is_told_of_by_name(tmp_path):
    path = tmp_path / "metrics.jsonl"
    trainer = trainer_with(At(4, lambda: put_pipe(path)), MetricsLog(path, 1))
    with pytest.raises(StorageError) as raised:
        trainer.fit(EPOCHS)
    said = r"^the log could not be written: \[Errno \d+\] (Not a regular file|No such device).*: "
    assert re.match(f"{said}'{re.escape(str(path))}'$", str(raised.value))
    assert trainer.step == 12


@pytest.mark.parametrize("kind", ["cut", "removed", "whole"])
def test_a_log_that_lost_lines_before_a_fit_goes_on_is_told_of(tmp_path, caplog, kind):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, every_n_steps=1)
    trainer = trainer_with(log)
    trainer.fit(2)
    if kind != "whole":
        DISTURBED[kind](path)
    log = MetricsLog(path, every_n_steps=1)
    log.least_bytes = trainer.callbacks[-1].state.size
    trainer.callbacks[:] = [log]
    with caplog.at_level(logging.WARNING, "gdtrain"):
        trainer.fit(EPOCHS)
    assert [step for kind_, step in lines(path) if kind_ == "epoch"] == [3, 6, 9, 12]
    told = [m for m in caplog.messages if str(path) in m]
    assert len(told) == (kind != "whole"), caplog.messages


def test_the_first_cause_is_told_and_the_others_named() -> None:
    faults = DiskFaults()

    def fail(code: int, name: str) -> None:
        raise OSError(code, os.strerror(code), name)

    assert not faults.attempt(LOG, lambda: fail(errno.EIO, "metrics.jsonl"))
    assert not faults.attempt("summary.json", lambda: fail(errno.ENOSPC, "summary.json"))
    assert not faults.attempt("model.safetensors", lambda: fail(errno.ENOSPC, "model.safetensors"))
    assert not faults.attempt(LOG, lambda: fail(errno.EIO, "metrics.jsonl"))  # tried again
    assert str(faults.error) == (
        "the log could not be written: [Errno 5] Input/output error: 'metrics.jsonl' "
        "(nor could be written: summary.json, model.safetensors)"
    )
    for what in (LOG, "summary.json", "model.safetensors"):
        assert faults.attempt(what, lambda: None)
    assert faults.error is None


def test_a_full_disk_is_tried_again_as_often_as_room_is_made() -> None:
    rooms, tried = [True, True, False], []

    def job() -> None:
        tried.append(1)
        raise OSError(errno.ENOSPC, "full")

    assert not DiskFaults(lambda: rooms.pop(0)).attempt("x", job)
    assert (len(tried), rooms) == (3, [])
