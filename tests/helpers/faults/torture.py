"""Runs in processes that are killed, signalled and resumed, and what must come of them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import signal
import socket
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.output.run_directory import read_metrics
from helpers.processes import SECONDS, Program, start

READY = "here the program starts\n"

# Ragged batches, momentum, a schedule, clipping, dropout; BatchNorm where batches are not cut.
CONFIG = """\
seed: {seed}
device: cpu
data: {{source: two_moons, num_samples: 53, validation_fraction: 0.25, standardize: true}}
model: {{name: mlp, hidden: [8, 8], dropout: 0.2, batch_norm: {batch_norm}}}
loss: cross_entropy
loader: {loader}
optimizer: {{lr: 0.05, momentum: 0.9, weight_decay: 0.001}}
scheduler: {{name: cosine, warmup: 3}}
clip_grad_norm: 1.0
validation: {{every_n_epochs: 2}}
early_stopping: {{monitor: train_loss, patience: 1000}}
log: {{every_n_steps: 1, picture: false}}
checkpoint: {{every_n_steps: {every}, keep_last: 2, keep_best: val_loss}}
process_timeout: 60
epochs: {epochs}
"""
# form -> (loader, batch_norm if there is one process, epochs, steps between checkpoints)
FORMS: dict[str, tuple[str, bool, int, int]] = {
    "batch": ("{name: batch, order: reshuffle}", True, 60, 3),
    "sample": ("sample", False, 3, 5),
    "minibatch": ("{name: minibatch, batch_size: 6}", True, 12, 2),
}


@dataclass
class Ended:
    """How the processes of a run ended: their exit codes (negative: the signal), by rank."""

    codes: list[int]
    seconds: float
    log: str


def start_run(arguments: list[str], folder: Path, ranks: int = 1, die_at: int | None = None) -> Run:
    """Start ``python -m gdtrain arguments`` in ``folder``, on so many ranks.

    die_at: the number of the disk call in which rank 0 kills itself; 0: its calls are counted.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / f"log-{time.monotonic_ns()}"
    programs = []
    for rank in range(ranks):
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if ranks > 1 else {}
        if ranks > 1:
            env |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        before = functools.partial(_begin, die_at if rank == 0 else None)
        programs.append(
            start("-m", "gdtrain", *arguments, cwd=folder, env=env, log=log, before=before)
        )
    return Run(programs, log, time.monotonic())


@dataclass
class Run:
    """The processes of a run that has been started."""

    programs: list[Program]
    log: Path
    started: float

    def alive(self) -> list[int]:
        """The ranks that have not ended."""
        return [rank for rank, one in enumerate(self.programs) if one.returncode is None]

    def send(self, signum: int, ranks: list[int] | None = None) -> None:
        """Send a signal to some of the processes, or all of them, that have not ended."""
        for rank in self.alive():
            if ranks is None or rank in ranks:
                self.programs[rank].send_signal(signum)

    def wait_until(self, moment: float) -> bool:
        """Sleep until so many seconds after the start; whether somebody is alive then."""
        left = self.started + moment - time.monotonic()
        for one in self.programs:
            one.join(max(0.0, left))
            left = self.started + moment - time.monotonic()
        return bool(self.alive())

    def wait_for_one(self) -> None:
        """Wait until one of them has ended."""
        ends = {one.sentinel for one in self.programs}
        assert wait(ends, SECONDS), self.text()

    def end(self) -> Ended:
        """Wait for all of them; a hang is an AssertionError, after which nobody is left."""
        try:
            codes = [one.wait() for one in self.programs]
        finally:
            for one in self.programs:
                one.close()
        return Ended(codes, time.monotonic() - self.started, self.text())

    def text(self) -> str:
        """What all of them have printed."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


# ── what is left of a run ───────────────────────────────────────────────────────────────────


def write_config(folder: Path, form: str, ranks: int, seed: int = 0) -> list[str]:
    """Write the configuration of a form; the arguments that train it into ``folder/out``."""
    loader, batch_norm, epochs, every = FORMS[form]
    text = CONFIG.format(
        seed=seed,
        loader=loader,
        batch_norm="true" if batch_norm and ranks == 1 else "false",
        epochs=epochs,
        every=every,
    )
    (folder / "a.yaml").write_text(text, "utf-8")
    return ["--config", "a.yaml", "--output-dir", "out"]


def digest(out: Path) -> str:
    """Of every bit that training has made: parameters, buffers, optimizer, and the weights file."""
    path, _, skipped = CheckpointStore(out / "checkpoints").load_newest()
    assert skipped == []
    found = hashlib.sha256((out / "model.safetensors").read_bytes())
    for name, tensor in sorted(load_file(path / "tensors.safetensors").items()):
        found.update(name.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def step_log(out: Path) -> list[dict[str, Any]]:
    """The records of a run, without what the clock has put there."""
    records = read_metrics(out / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def resumes_by_epoch(out: Path) -> dict[int, int]:
    """How often the run was taken up in each epoch."""
    counts: dict[int, int] = {}
    for line in (out / "metrics.jsonl").read_text("utf-8").splitlines():
        if '"resume"' in line:
            epoch = json.loads(line)["epoch"]
            counts[epoch] = counts.get(epoch, 0) + 1
    return counts


@dataclass
class Undisturbed:
    """A run that was left alone: what every other one must come to."""

    digest: str
    log: list[dict[str, Any]]
    seconds: float
    disk_calls: int


def undisturbed(folder: Path, form: str, ranks: int) -> Undisturbed:
    """Train without disturbance, and count the calls that reach for the disk."""
    folder.mkdir(parents=True)
    arguments = write_config(folder, form, ranks)
    ended = start_run(arguments, folder, ranks, die_at=0).end()
    assert set(ended.codes) == {0}, ended.log
    calls = (folder / "disk-calls").stat().st_size
    return Undisturbed(digest(folder / "out"), step_log(folder / "out"), ended.seconds, calls)


def arguments_now(arguments: list[str], folder: Path) -> list[str]:
    """With ``--resume`` if the run has begun, as a person would see by its config.yaml."""
    return [*arguments, "--resume"] if (folder / "out" / "config.yaml").exists() else arguments


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class Kill:
    """One kill: at a time after the start, or in a disk call of rank 0; whom it hits."""

    seconds: float = 0.0
    disk_call: int = 0
    ranks: list[int] | None = None


def draw_kills(
    draw: random.Random, clean: Undisturbed, ranks: int, inside: bool, count: int
) -> list[Kill]:
    """``count`` kills for one run; several fall into one epoch, if that is a few saves long.

    They do so since no more than two of them let a save come to its end: after the first, which is
    in an early save, and one that hits while the next save removes what is too old.
    """
    kills = []
    pruning = draw.randrange(1, count) if count > 1 else None
    for number in range(count):
        whom = draw.choice([None, [0], [1]]) if ranks > 1 else None
        if inside:
            first, last = 1, clean.disk_calls
            if count > 1:
                # Calls of a run from its start, and of one that goes on: to its first save and
                # in it, up to the renaming, or after it.
                first, last = (85, 128) if number == 0 else (28, 45)
                if number == pruning:
                    first, last = 51, 60
            kills.append(Kill(disk_call=draw.randint(first, last)))
        else:
            kills.append(Kill(seconds=draw.uniform(0.0, clean.seconds), ranks=whom))
    return kills


def killed_run(folder: Path, form: str, ranks: int, kills: list[Kill]) -> tuple[int, list[float]]:
    """Train to the end through all the kills.

    Returns how many of them hit a living run, and how long survivors took to end.
    """
    folder.mkdir(parents=True)
    arguments = write_config(folder, form, ranks)
    hits, survived = 0, []
    for kill in kills:
        run = start_run(arguments_now(arguments, folder), folder, ranks, kill.disk_call or None)
        if kill.disk_call:
            run.wait_for_one()
        elif run.wait_until(kill.seconds):
            run.send(signal.SIGKILL, kill.ranks)
        moment = time.monotonic()
        ended = run.end()
        hits += -signal.SIGKILL in ended.codes
        if ranks > 1 and ended.codes.count(-signal.SIGKILL) == 1:
            assert 0 not in ended.codes, ended.log
            survived.append(time.monotonic() - moment)
    ended = start_run(arguments_now(arguments, folder), folder, ranks).end()
    assert set(ended.codes) == {0}, ended.log
    return hits, survived


def check_same(folder: Path, clean: Undisturbed) -> None:
    """The run in ``folder`` came to the bits and the log of the undisturbed one."""
    assert digest(folder / "out") == clean.digest
    assert step_log(folder / "out") == clean.log
    left = [path.name for path in (folder / "out" / "checkpoints").iterdir()]
    assert not [name for name in left if name.startswith(".")], left


# ── signals ─────────────────────────────────────────────────────────────────────────────────


def signalled_run(
    folder: Path,
    form: str,
    ranks: int,
    signum: int,
    moment: float,
    whom: list[int] | None,
) -> str:
    """Send one signal at a moment, look at what is promised, and train to the end.

    Returns what happened: ``early`` (before training), ``stopped``, ``saved`` or ``over``.
    """
    folder.mkdir(parents=True)
    arguments, out = write_config(folder, form, ranks), folder / "out"
    run = start_run(arguments, folder, ranks)
    for one in run.programs:  # from here on each is our program, and not the interpreter's start
        one.wait_for(lambda: run.text().count(READY) == ranks)
    begun = time.monotonic() - run.started
    if not run.wait_until(begun + moment):
        happened = "over"
    else:
        happened = "stopped" if "training on" in run.text() else "early"
        run.send(signum, whom)
    ended = run.end()
    if signum == signal.SIGUSR1:
        assert set(ended.codes) == {0}, (ended.codes, ended.log)
        return "saved" if "as asked" in ended.log else "over"
    if set(ended.codes) == {0}:
        return "over"  # the signal came when all was done
    if not (out / "config.yaml").exists():
        # Before training, those that had the signal end by it: in order, or, in the first
        # moment of the interpreter, by the signal itself. The others miss them.
        by_it = [code in (128 + signum, -signum) for code in ended.codes]
        assert happened == "early", (ended.codes, ended.log)
        assert all(by_it) or (whom is not None and any(by_it)), (ended.codes, ended.log)
    else:
        assert set(ended.codes) == {128 + signum}, (ended.codes, ended.log)
        assert json.loads((out / "summary.json").read_text("utf-8"))["status"] == "interrupted"
        steps = json.loads((out / "summary.json").read_text("utf-8"))["steps"]
        saved, _, skipped = CheckpointStore(out / "checkpoints").load_newest()
        assert (saved.name.split("-")[1], skipped) == (f"{steps:010d}", [])
        happened = "stopped"
    ended = start_run(arguments_now(arguments, folder), folder, ranks).end()
    assert set(ended.codes) == {0}, (ended.codes, ended.log)
    return happened


# ── in the processes of a run ───────────────────────────────────────────────────────────────


def _begin(die_at: int | None) -> None:
    """What a process does before it is our program."""
    from gdtrain.checkpoint import checkpoints, format
    from gdtrain.checkpoint import durable_files as disk
    from gdtrain.training.safety.signals import hold

    if die_at is not None:
        disk.os = format.os = checkpoints.os = _CountedDisk(die_at)  # type: ignore[attr-defined]
    hold()  # as our program does at once
    os.write(1, READY.encode())


class _CountedDisk:
    """The os module as the checkpoint room sees it; each call that changes the disk counts.

    The size of the file ``disk-calls`` is their number.
    """

    COUNTED = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir", "close")

    def __init__(self, die_at: int) -> None:
        self.calls, self.die_at = 0, die_at
        self.count = os.open("disk-calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.COUNTED:
            return real

        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            os.write(self.count, b".")
            if self.calls == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return counted
