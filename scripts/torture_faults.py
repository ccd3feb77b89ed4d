"""Real faults against running jobs: disks, files, streams, signals; no run is lost silently.

Each trial draws a training job and a fault, lets the fault happen at a random moment, and looks at
what is left: the job ends in time, without a traceback; if it says that all is well, the model has
the bits of a run that was left alone; and after the fault is undone, --resume ends with these bits.
Of several processes a rank is killed or stopped, or the agent that has started them; of a data
loader, a worker. Of the other commands, which a signal ends, a file is left whole or not at all,
and a sweep goes on to all of its rows.

    python scripts/torture_faults.py --seconds 300
    python scripts/torture_faults.py --seconds 300 --of commands
    python scripts/torture_faults.py --trials 2000 --seed 7 --json counts.json

Linux only. Faults of mounts and immutable files need root, and are left out without it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 600.0  # that a job may take, on a busy machine too: only what hangs takes so long
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
SLOWED = "trainer: slowed\n"
COMMON = """
loss: mse
log: {picture: false, every_n_steps: 1}
checkpoint: {every_n_steps: 7}
epochs: 6
"""
LOADER = "loader: {name: minibatch, batch_size: 8}\noptimizer: {lr: 0.02, momentum: 0.9}\n"
CSV = "data: {source: csv, path: ../d.csv, target: y, validation_fraction: 0.2}\n"
MLP = "model: {name: mlp, hidden: [8], batch_norm: true, dropout: 0.2}\n"
JOBS = {
    "batch norm, dropout, momentum": CSV + MLP + LOADER,
    "averaging": CSV + MLP + LOADER + "averaging: {decay: 0.9}\n",
    "phases": CSV
    + MLP
    + "loader:\n- {name: minibatch, batch_size: 8, until_epoch: 3}\n- {name: batch}\n"
    + "optimizer: {lr: 0.02, momentum: 0.9}\n",
    "variance reduction": CSV
    + "model: linear\nvariance_reduction: svrg\n"
    + "loader: {name: minibatch, batch_size: 8}\noptimizer: {lr: 0.02}\n",
    "mapped": "data: {source: mapped, path: ../d}\n" + MLP + LOADER,
    "stream": "data: {source: stream, format: csv, path: ../d.csv, target: y}\n"
    + MLP.replace("batch_norm: true, ", "")
    + LOADER,
    "scan": CSV + "model: {name: mlp, hidden: [8]}\nengine: scan\n" + LOADER,
}
# Under several processes: none that BatchNorm keeps from being cut.
OF_RANKS = CSV + "model: {name: mlp, hidden: [8]}\nprocess_timeout: 300\n" + LOADER
# What commands look at.
OF_COMMANDS = CSV + "model: {name: mlp, hidden: [8]}\nmonitors: [trajectory]\n" + LOADER
EPOCHS = {"stream": 1, "scan": 400}
# Of each other command: what it is given, beside a finished run, and the file that it leaves.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "compare": (["a.yaml", "--loaders", "batch,minibatch", "--updates", "300"], ""),
    "convert": (["../d.csv", "out", "--target", "y"], ""),
    "evaluate": (["run", "../d.csv"], ""),
    "export": (["run", "--format", "torch_export", "--out", "out.pt2"], "out.pt2"),
    "landscape": (["run", "--out", "out.png"], "out.png"),
    "lr-range": (["--config", "a.yaml", "--updates", "60", "--out", "out.png"], "out.png"),
    "plot": (["run", "--out", "out.png"], "out.png"),
    "predict": (["run", "../d.csv", "--out", "out.csv"], "out.csv"),
    "replay": (["run", "--step", "9"], ""),
    "sweep": (["a.yaml", "optimizer.lr=0.01,0.02,0.03", "--output-dir", "out"], ""),
}
# Each update takes a little, so that a fault can come between two of them.
PARTS = """
import os
import time
from gdtrain import Trainer, register_trainer


@register_trainer("slowed")
class Slowed(Trainer):
    def compute_loss(self, batch):
        time.sleep(float(os.environ.get("SLOWED", "0")))
        return super().compute_loss(batch)

    def loss_weight(self, batch):
        return len(batch)


if os.environ.get("CLOCK"):
    real, started = time.time, time.time()
    time.time = lambda: started + 3600 * ((real() - started) * 40 % 2 - 1)
"""


# Trains on a Dataset that two processes read; after an update one of them is ended.
OF_WORKERS = """
import os, sys
import torch
from safetensors.torch import save_file
from torch import nn
from gdtrain import Callback, Checkpoints, MiniBatchLoader, Trainer
from gdtrain.errors import GdtrainError


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 96

    def __getitem__(self, number):
        x = torch.arange(3.0) + number
        return x.sin(), x.sum(0, keepdim=True).cos()


class Kill(Callback):
    def on_safe_point(self, trainer):
        moment, signum = map(int, sys.argv[1:])
        here = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
        workers = [int(pid) for pid in open(here).read().split()]
        if trainer.step == moment and workers:
            os.kill(workers[-1], signum)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
loader = MiniBatchLoader(Rows(), 8, num_workers=2)
callbacks = [Kill(every_n_steps=1), Checkpoints("kept", every_n_steps=7)]
trainer = Trainer(model, "mse", optimizer, loader, callbacks=callbacks, progress=False)
try:
    trainer.fit(6, resume="kept" if os.path.isdir("kept") else None)
except GdtrainError as error:
    sys.exit(f"{type(error).__name__}: {error}")
save_file(model.state_dict(), "model.safetensors")
"""


@dataclass
class Outcome:
    """A job that has ended. code: as the shell has it. hangs: it had to be killed.

    killed: by a signal, before it could say anything.
    """

    code: int
    said: str
    hangs: bool = False
    killed: bool = False


@dataclass
class Trial:
    """One job with one fault. folder: of its own, or a small disk; moment: 0 … 1."""

    folder: Path
    job: str
    fault: str
    moment: float
    draw: random.Random
    undo: list[Callable[[], object]] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def lines(self) -> int:
        """Lines of the log so far."""
        with suppress(OSError):
            return (self.run / "metrics.jsonl").read_bytes().count(b"\n")
        return 0


def arguments(*more: str) -> list[str]:
    return ["--config", "a.yaml", "--import", "parts", "--output-dir", "run", *more]


class Child:
    """A command as a fork of this process, which has imported what takes a while, like Popen."""

    def __init__(self, folder: Path, given: list[str], env: dict[str, str], stderr: int) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                code = _become(folder, given, env, stderr)
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, seconds: float) -> int:
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("gdtrain", seconds)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)


def _become(folder: Path, given: list[str], env: dict[str, str], stderr: int) -> int:
    """Be ``python -m gdtrain`` in a folder; return the exit code."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    os.dup2(stderr, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if env.get("CLOSED"):  # as of a process whose parent has closed them
        os.closerange(0, 3)
        sys.stdin = sys.stdout = sys.stderr = None
    os.chdir(folder)
    os.environ.update(env)
    sys.argv = ["gdtrain", *given]
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from gdtrain.__main__ import run

    try:
        run()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    return 1


def import_all() -> float:
    """Import here what each job would import; return the seconds that it took."""
    began = time.monotonic()
    import torch

    import gdtrain.cli.runs.train_job  # noqa: F401

    torch.set_num_threads(1)
    return time.monotonic() - began


def start(
    folder: Path, *more: str, slowed: float = 0.0, whole: bool = False, **options: Any
) -> Any:
    """A job in a folder, as :func:`start_command` starts it."""
    return start_command(folder, arguments(*more), slowed, whole, **options)


def start_command(
    folder: Path, given: list[str], slowed: float = 0.0, whole: bool = False, **options: Any
) -> Any:
    """A command in a folder. whole: a process from its first moment on, and no fork of this one.

    ranks: so many processes, started by an agent, which is what is given back.
    """
    env = {"OMP_NUM_THREADS": "1", "SLOWED": str(slowed), **options.get("env", {})}
    stderr = options.get("stderr")
    opened = os.open(folder.parent / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        stderr = opened if stderr is None else stderr
        ranks = options.get("ranks", 1)
        if not whole and ranks == 1:
            return Child(folder, given, env, stderr)
        agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *(agent if ranks > 1 else []), "-m", "gdtrain", *given]
        null = subprocess.DEVNULL
        settings = {"stdin": null, "stdout": null, "stderr": stderr, "env": os.environ | env}
        return subprocess.Popen(command, cwd=folder, preexec_fn=_usual_signals, **settings)
    finally:
        os.close(opened)


def _usual_signals() -> None:
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_DFL)


def end(process: Any, folder: Path) -> Outcome:
    hangs = False
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        code, hangs = process.wait(SECONDS), True
    said = (folder.parent / "said").read_text(errors="replace")
    return Outcome(128 - code if code < 0 else code, said, hangs, killed=code < 0)


# ── faults: each is given a trial and the process, and returns when it has happened ─────────────


def wait_for(trial: Trial, process: Any, line: int) -> None:
    """Until the log has so many lines, or the process has ended."""
    while process.poll() is None and trial.lines() < line:
        time.sleep(0.002)


def fill(trial: Trial, _process: Any) -> None:
    hog = trial.folder / "hog"
    trial.undo.append(lambda: hog.unlink(missing_ok=True))
    with suppress(OSError), hog.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def read_only(trial: Trial, _process: Any) -> None:
    def remount(how: str) -> None:
        command = ["mount", "-o", f"remount,{how}", str(trial.folder)]
        subprocess.run(command, check=False, capture_output=True)

    remount("ro")
    trial.undo.append(lambda: remount("rw"))


def immutable(trial: Trial, _process: Any) -> None:
    there = [trial.run / "metrics.jsonl", *(trial.run / "checkpoints").glob("step-*")]
    chosen = trial.draw.choice(there)
    subprocess.run(["chattr", "+i", chosen], check=False, capture_output=True)
    trial.undo.append(
        lambda: subprocess.run(["chattr", "-R", "-i", trial.run], check=False, capture_output=True)
    )


def vanish(trial: Trial, _process: Any) -> None:
    with suppress(OSError):
        away = trial.folder / "away"
        trial.run.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def lose_file(trial: Trial, _process: Any) -> None:
    with suppress(OSError):
        files = [path for path in trial.run.iterdir() if path.is_file()]
        trial.draw.choice(files).unlink()


def cut_log(trial: Trial, _process: Any) -> None:
    with suppress(OSError):
        log = trial.run / "metrics.jsonl"
        os.truncate(log, trial.draw.randrange(log.stat().st_size + 1))


def block_checkpoints(trial: Trial, _process: Any) -> None:
    place, aside = trial.run / "checkpoints", trial.run / ".aside"

    def put_back() -> None:
        if aside.exists():
            place.unlink(missing_ok=True)
            aside.rename(place)

    with suppress(OSError):
        place.rename(aside)
        trial.draw.choice([Path.touch, lambda p: p.symlink_to(aside)])(place)
    trial.undo.append(put_back)


def send(*signals: int, times: int = 1) -> Callable[[Trial, Any], None]:
    def fault(trial: Trial, process: Any) -> None:
        for _ in range(times):
            if process.poll() is None:
                process.send_signal(trial.draw.choice(signals))
                time.sleep(0.05 if times > 1 else 0)

    return fault


def to_rank(*signals: int) -> Callable[[Trial, Any], None]:
    def fault(trial: Trial, process: Any) -> None:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with suppress(OSError, IndexError):
            rank = trial.draw.choice(found.read_text("ascii").split())
            os.kill(int(rank), trial.draw.choice(signals))

    return fault


def second(trial: Trial, process: Any) -> None:
    """Another process in the same directory, which must be refused while the first one runs."""
    said = os.open(trial.folder.parent / "said by the second", os.O_RDWR | os.O_CREAT)
    other = Child(trial.folder, arguments("--resume"), {}, said)
    code = other.wait(SECONDS)
    text = os.pread(said, 10_000, 0).decode()
    os.close(said)
    if process.poll() is None and (code != 2 or "Traceback" in text):
        raise AssertionError(f"a second process ended with {code}: {text}")


def nothing(_trial: Trial, _process: Any) -> None:
    """The fault is there from the start."""


FAULTS: dict[str, Callable[[Trial, Any], None]] = {
    "full disk": fill,
    "read-only disk": read_only,
    "immutable": immutable,
    "directory removed": vanish,
    "file removed": lose_file,
    "log cut": cut_log,
    "checkpoints blocked": block_checkpoints,
    "killed": send(signal.SIGKILL),
    "stopped": send(*STOPPING),
    "asked to save": send(signal.SIGUSR1),
    "twenty signals": send(*STOPPING, signal.SIGUSR1, times=20),
    "early signal": send(*STOPPING),
    "second process": second,
    "full standard error": nothing,
    "reader gone": nothing,
    "closed streams": nothing,
    "clock jumps": nothing,
}
RANKS, SMALL, WORKERS = "two processes", "a run for other commands", "two workers"
KILLING = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)  # which end a worker
# What happens to one of several processes, or to the agent.
FAULTS_OF_RANKS: dict[str, Callable[[Trial, Any], None]] = {
    "rank killed": to_rank(signal.SIGKILL),
    "rank stopped": to_rank(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    "agent stopped": send(signal.SIGTERM, signal.SIGINT),
    "agent killed": send(signal.SIGKILL),
}
MOUNTED = {"full disk", "read-only disk"}
ROOT = {*MOUNTED, "immutable"}
SILENT = {"full standard error", "reader gone", "closed streams"}


# ── a trial ─────────────────────────────────────────────────────────────────────────────────────


class Torture:
    """Draws trials and counts what became of them."""

    def __init__(self, place: Path, seed: int, starting: float = 0.0) -> None:
        self.place = place
        self.starting = starting  # seconds that a process takes for its imports
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._clean: dict[str, tuple[bytes, int, float]] = {}
        self._commands: dict[str, tuple[bytes, float]] = {}
        self._finished: Path | None = None  # a folder with a run that other commands look at
        rows = random.Random(0)
        table = [[rows.gauss(0, 1) for _ in range(3)] for _ in range(96)]
        lines = [",".join(map(repr, [*row, sum(row) + rows.gauss(0, 0.1)])) for row in table]
        (place / "d.csv").write_text("\n".join(["a,b,c,y", *lines]) + "\n")
        convert = [sys.executable, "-m", "gdtrain", "convert", "d.csv", "d", "--target", "y"]
        subprocess.run(convert, cwd=place, check=True, capture_output=True)

    def clean(self, job: str) -> tuple[bytes, int, float]:
        """Of a run left alone: its model, the lines of its log, and the seconds it took."""
        if job not in self._clean:
            folder = self._folder(job)
            began = time.monotonic()
            ended = end(start(folder, ranks=2 if job == RANKS else 1), folder)
            assert ended.code == 0, ended.said
            lines = (folder / "run" / "metrics.jsonl").read_bytes().count(b"\n")
            model = (folder / "run" / "model.safetensors").read_bytes()
            self._clean[job] = model, lines, time.monotonic() - began
            shutil.rmtree(folder)
        return self._clean[job]

    def trial(self) -> None:
        """One job, one fault, one moment."""
        known = [name for name in FAULTS if name not in ROOT or os.geteuid() == 0]
        fault, job = self.draw.choice(known), self.draw.choice(list(JOBS))
        model, lines, seconds = self.clean(job)
        trial = Trial(self._folder(job), job, fault, self.draw.random(), self.draw)
        mounted = fault in MOUNTED and self._mount(trial)
        if fault in MOUNTED and not mounted:
            self.counts[f"{fault}: can't be mounted here"] += 1
            return
        try:
            self._judge(trial, self._with_fault(trial, lines, seconds), model, lines)
        except (AssertionError, OSError) as error:
            self._blame(trial, str(error))
        finally:
            for undo in reversed(trial.undo):
                undo()
            if mounted:
                subprocess.run(["umount", "-l", str(trial.folder)], check=False)
            shutil.rmtree(trial.folder, ignore_errors=True)

    def trial_of_ranks(self) -> None:
        """Two processes, of which one is killed or stopped, or their agent."""
        fault = self.draw.choice(list(FAULTS_OF_RANKS))
        model, lines, _ = self.clean(RANKS)
        trial = Trial(self._folder(RANKS), RANKS, fault, self.draw.random(), self.draw)
        try:
            process = start(trial.folder, slowed=0.01, ranks=2)
            wait_for(trial, process, 1 + int(trial.moment * (lines - 2)))
            ranks = _descendants(process.pid)
            FAULTS_OF_RANKS[fault](trial, process)
            ended = end(process, trial.folder)
            self._wait_for_all(ranks)  # whom a killed agent leaves behind
            self._judge(trial, ended, model, lines, ranks=2)
        except (AssertionError, OSError) as error:
            self._blame(trial, str(error))
        finally:
            shutil.rmtree(trial.folder, ignore_errors=True)

    def _wait_for_all(self, ranks: list[int]) -> None:
        until = time.monotonic() + SECONDS
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            assert time.monotonic() < until, "a rank outlives its agent"
            time.sleep(0.01)

    def trial_of_command(self) -> None:
        """A command that a signal ends at a random moment: its file is whole, or not there."""
        command = self.draw.choice(list(COMMANDS))
        given, leaves = COMMANDS[command]
        folder, signum = self._with_run(), self.draw.choice(STOPPING)
        trial = Trial(folder, command, signal.Signals(signum).name, self.draw.random(), self.draw)
        try:
            content, seconds = self._clean_command(command)
            given = [command, *given]
            whole = self.draw.random() < 0.2
            process = start_command(folder, given, whole=whole)
            time.sleep(trial.moment * (seconds + self.starting * whole))
            process.send_signal(signum)
            ended = end(process, folder)
            self.counts[f"{command}: exit {ended.code}"] += 1
            assert not ended.hangs, "hangs"
            early = whole and "KeyboardInterrupt" in ended.said  # of Python's own first moments
            assert early or "Traceback" not in ended.said, ended.said[-2000:]
            assert early or ended.code in (0, 128 + signum), f"exit {ended.code}: {ended.said}"
            if leaves and (folder / leaves).exists():
                same = (folder / leaves).read_bytes() == content
                assert same, f"{leaves} is another than that of a command left alone"
            elif leaves:
                assert ended.code, "exit 0 without a file"
            if command == "sweep" and ended.code:
                self._check_sweep(folder, given)
        except (AssertionError, OSError) as error:
            self._blame(trial, str(error))
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _check_sweep(self, folder: Path, given: list[str]) -> None:
        """One that was ended goes on to all of its rows, each once."""
        more = ["--resume"] if (folder / "out" / "sweep.json").exists() else []
        again = end(start_command(folder, [*given, *more]), folder)
        assert again.code == 0, f"resumed with {again.code}: {again.said}"
        rows = (folder / "out" / "rows.csv").read_text().splitlines()
        assert len(rows) == 4, rows

    def trial_of_workers(self) -> None:
        """One that reads ahead for a data loader is killed; resumed, the bits are the same."""
        folder, signum = self._folder_of_workers(), self.draw.choice(KILLING)
        trial = Trial(folder, "two workers", signal.Signals(signum).name, 0.0, self.draw)
        try:
            if WORKERS not in self._clean:
                self._end_of_workers(clean := self._folder_of_workers(), 0, 0)
                self._clean[WORKERS] = (clean / "model.safetensors").read_bytes(), 0, 0.0
            moment = self.draw.randrange(1, 72)  # the update after which it is killed
            ended = self._end_of_workers(folder, moment, signum)
            self.counts[f"worker {trial.fault}: exit {ended.code}"] += 1
            assert not ended.hangs, "hangs"
            assert "Traceback" not in ended.said, ended.said[-2000:]
            if ended.code:
                assert "a DataLoader worker has died" in ended.said, ended.said
                again = self._end_of_workers(folder, 0, 0)
                assert again.code == 0, f"resumed with {again.code}: {again.said}"
            same = (folder / "model.safetensors").read_bytes() == self._clean[WORKERS][0]
            assert same, "the model has other bits than that of a run left alone"
        except (AssertionError, OSError) as error:
            self._blame(trial, str(error))
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _folder_of_workers(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.place)) / "w"
        folder.mkdir()
        (folder / "job.py").write_text(OF_WORKERS)
        return folder

    def _end_of_workers(self, folder: Path, moment: int, signum: int) -> Outcome:
        with (folder.parent / "said").open("w") as said:
            command = [sys.executable, "job.py", str(moment), str(signum)]
            process = subprocess.Popen(command, cwd=folder, stderr=said, preexec_fn=_usual_signals)
        return end(process, folder)

    def _with_run(self) -> Path:
        """A folder with a finished run and its configuration: a copy of the first one's."""
        folder = Path(tempfile.mkdtemp(dir=self.place)) / "w"
        if self._finished is None:
            self._finished = self._folder(SMALL)
            ended = end(start(self._finished), self._finished)
            assert ended.code == 0, ended.said
        shutil.copytree(self._finished, folder)
        (folder.parent / "d.csv").symlink_to(self.place / "d.csv")
        return folder

    def _clean_command(self, command: str) -> tuple[bytes, float]:
        """Of a command left alone: its file, and the seconds it took."""
        if command not in self._commands:
            folder, (given, leaves) = self._with_run(), COMMANDS[command]
            began = time.monotonic()
            ended = end(start_command(folder, [command, *given]), folder)
            assert ended.code == 0, ended.said
            content = (folder / leaves).read_bytes() if leaves else b""
            self._commands[command] = content, time.monotonic() - began
            shutil.rmtree(folder.parent)
        return self._commands[command]

    def _with_fault(self, trial: Trial, lines: int, seconds: float) -> Outcome:
        options: dict[str, Any] = {}
        reader = -1
        if trial.fault == "full standard error":
            options["stderr"] = os.open("/dev/full", os.O_WRONLY)
        elif trial.fault == "reader gone":
            reader, options["stderr"] = os.pipe()
        elif trial.fault == "closed streams":
            options["env"] = {"CLOSED": "1"}
        elif trial.fault == "clock jumps":
            options["env"] = {"CLOCK": "1"}
        (trial.folder.parent / "said").write_bytes(b"")
        early = trial.fault == "early signal"
        process = start(trial.folder, slowed=0.01, whole=early, **options)
        if "stderr" in options:
            os.close(options["stderr"])
        if reader >= 0:
            os.read(reader, 10)
            os.close(reader)
        if early:
            time.sleep(trial.moment * (self.starting + seconds))
        else:
            wait_for(trial, process, 1 + int(trial.moment * (lines - 2)))
        FAULTS[trial.fault](trial, process)
        return end(process, trial.folder)

    def _judge(
        self, trial: Trial, ended: Outcome, model: bytes, lines: int, ranks: int = 1
    ) -> None:
        self.counts[f"{trial.fault}: exit {ended.code}"] += 1
        assert not ended.hangs, "hangs"
        # The agent says with a traceback of its own that a process or itself was ended.
        assert ranks > 1 or "Traceback" not in ended.said, ended.said[-2000:]
        silent = ended.killed or trial.fault in SILENT
        told = bool(ended.said.strip()) or silent
        assert ended.code == 0 or told, f"exit {ended.code} without a word"
        assert ended.code != 2, ended.said
        if ended.code == 0:
            self._check_done(trial, model)
            return
        for undo in reversed(trial.undo):
            undo()
        trial.undo.clear()
        begun = (trial.run / "config.yaml").exists()
        more = ["--resume"] if begun else []
        again = end(start(trial.folder, *more, ranks=ranks), trial.folder)
        assert again.code == 0, f"after exit {ended.code}, resumed with {again.code}: {again.said}"
        self._check_done(trial, model)

    def _check_done(self, trial: Trial, model: bytes) -> None:
        same = (trial.run / "model.safetensors").read_bytes() == model
        assert same, "the model has other bits than that of a run left alone"
        summary = json.loads((trial.run / "summary.json").read_text())
        assert summary["status"] == "done", summary
        epochs = {
            record["epoch"]
            for line in (trial.run / "metrics.jsonl").read_text().splitlines()
            if (record := _record(line)).get("kind") == "epoch"
        }
        expected = set(range(1, summary["epochs"] + 1))
        assert epochs >= expected, f"the log lacks epochs {sorted(expected - epochs)}"

    def _folder(self, job: str) -> Path:
        own = Path(tempfile.mkdtemp(dir=self.place))
        folder = own / "w"
        folder.mkdir()
        self._fill(folder, job)
        return folder

    def _fill(self, folder: Path, job: str) -> None:
        text = {RANKS: OF_RANKS, SMALL: OF_COMMANDS}.get(job) or JOBS[job]
        text += COMMON
        text = text.replace("../d", str(self.place / "d"))
        text = text.replace("epochs: 6", f"epochs: {EPOCHS.get(job, 6)}")
        text += "" if job in ("scan", SMALL) else SLOWED
        (folder / "a.yaml").write_text(text)
        (folder / "parts.py").write_text(PARTS)

    def _mount(self, trial: Trial) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", "size=3M", "none", str(trial.folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return False
        self._fill(trial.folder, trial.job)
        return True

    def _blame(self, trial: Trial, what: str) -> None:
        said = f"{trial.fault} at {trial.moment:.3f} of {trial.job}: {what}"
        self.wrong.append(said)
        print(said, file=sys.stderr, flush=True)


def _record(line: str) -> dict[str, object]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _descendants(pid: int) -> list[int]:
    """The processes that an agent has started."""
    with suppress(OSError):
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


OF = {
    "training": Torture.trial,
    "ranks": Torture.trial_of_ranks,
    "commands": Torture.trial_of_command,
    "workers": Torture.trial_of_workers,
}


def torture(
    seconds: float, trials: int, seed: int, of: tuple[str, ...] = ("training",)
) -> dict[str, object]:
    """Trials until so many are done or the time is up; the counts, and what went wrong.

    of: what the trials are of, one after the other.
    """
    starting = import_all()
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        one, until, done = Torture(Path(place), seed, starting), time.monotonic() + seconds, 0
        while done < trials and time.monotonic() < until:
            OF[of[done % len(of)]](one)
            done += 1
        return {"trials": done, "wrong": one.wrong, "counts": dict(sorted(one.counts.items()))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--trials", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--of", choices=list(OF), action="append", help="default: all of them")
    parser.add_argument("--json", type=Path, help="where the counts go, besides standard output")
    options = parser.parse_args()
    of = tuple(options.of or OF)
    result = torture(options.seconds, options.trials, options.seed, of)
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
