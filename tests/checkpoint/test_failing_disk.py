"""A disk that fails: it is said, the old checkpoint stays, and saving works once the disk does."""

import contextlib
import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.faults.failing_disks import WAYS, Figures, fail_fits, fail_saves
from helpers.faults.fake_disk import Failing
from helpers.faults.power_cuts import state_of
from helpers.processes import run, start

from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.cli.main import main

CONFIG = """\
data: {source: digits}
model: {name: mlp, hidden: [64]}
loss: cross_entropy
loader: {name: minibatch, batch_size: 64}
optimizer: {lr: 0.1, momentum: 0.9}
engine: eager
epochs: 100000
checkpoint: {every_n_steps: 20}
log: {every_n_steps: 1, picture: false}
"""


def assert_none_silent(figures: Figures) -> None:
    assert figures.silent == 0, figures.first
    assert figures.calls > 50
    assert figures.cases >= figures.calls / 2
    assert figures.told > figures.cases / 2


def test_a_save_whose_nth_call_fails_says_so_and_harms_nothing() -> None:
    assert_none_silent(fail_saves(lambda n: [WAYS[n % 9], WAYS[(n + 4) % 9]]))


def test_a_fit_with_a_failing_call_raises_or_ends_well_saved() -> None:
    assert_none_silent(
        fail_fits(
            lambda n: [WAYS[n // 3 % 9]] if n % 12 in (0, 1, 3, 6, 9) else [(0, True)][n % 4 :]
        )
    )


@pytest.mark.long
@pytest.mark.parametrize("fail", [fail_saves, fail_fits])
def test_every_call_fails_in_every_way(fail: Callable[..., Figures]) -> None:
    assert_none_silent(fail(lambda n: WAYS))


# Small tensors go to the disk in one call, after that which makes the file; of large ones the
# third writes the first of them.
@pytest.mark.parametrize(
    ("state", "number"),
    [(state_of(2), 2), ({"a": torch.ones(200_000), "b": torch.ones(100_000)}, 3)],
    ids=["small", "large"],
)
def test_the_room_of_an_unfinished_checkpoint_is_given_back(
    tmp_path: Path, state: dict[str, Any], number: int
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, state_of(1))
    said = r"^\[Errno 28\] No space left on device: '.*/\.unfinished-step-0000000002/tensors"
    with (
        Failing(tmp_path, number, errno.ENOSPC).active() as failing,
        pytest.raises(OSError, match=said),
    ):
        store.save(2, state)
    assert failing.failed[0].startswith("write ")
    assert [path.name for path in store.directory.iterdir()] == ["step-0000000001"]


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A file system of its own, in memory."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting takes more rights than these")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def command(config: Path, directory: Path, *more: str) -> list[str]:
    config.write_text(CONFIG)
    return ["--config", str(config), "--output-dir", str(directory), *more]


def test_a_disk_that_fills_up_ends_a_run_with_what_was_saved(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=2m") as disk:
        place = disk / "run"
        with start("-m", "gdtrain", *command(tmp_path / "c.yaml", place)) as program:
            # Any after the first: each is there for three more of them, which is soon over.
            program.wait_for(lambda: [*(place / "checkpoints").glob("step-*[1-9]*")])
            filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
            with contextlib.suppress(OSError):
                while os.write(filler, bytes(4096)):
                    pass
            os.close(filler)
            assert program.wait() == 1, program.err
            said = program.err
        assert "Traceback" not in said
        assert "No space left on device" in said.splitlines()[-1]
        _, state, skipped = CheckpointStore(place / "checkpoints").load_newest()
        assert state["progress"]["step"] >= 20
        assert skipped == []
        (disk / "filler").unlink()
        epochs = f"epochs={state['progress']['epoch'] + 2}"
        resumed = command(tmp_path / "c.yaml", place, "--resume", epochs)
        assert main(resumed) == 0


def test_a_run_on_a_read_only_disk_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        assert main(command(tmp_path / "c.yaml", disk / "run")) == 2
    assert capsys.readouterr().err == (
        f"command line:1:1: --output-dir: {disk / 'run'} can't be made: "
        "Read-only file system; choose another\n"
    )


@pytest.mark.long
def test_files_that_may_not_grow_end_the_run_at_its_first_save(tmp_path: Path) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20000, 20000))
    started = command(tmp_path / "c.yaml", tmp_path / "run")
    done = run("-m", "gdtrain", *started, before=limit)
    assert done.returncode == 1
    assert "Traceback" not in done.err
    assert "File too large" in done.err.splitlines()[-1]
