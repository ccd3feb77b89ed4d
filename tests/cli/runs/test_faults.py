"""Faults of disks, files, pipes and processes: nothing is lost, and nothing fails silently."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import run
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SECONDS = 300  # what a child process may take, on a busy machine too
FOREIGN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
ENV = {key: value for key, value in os.environ.items() if key not in FOREIGN} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # the loop by hand is the CPU's
}

# A module for --import: models whose first weights are known, and a trainer to which something
# happens right before its n-th update, once.
PARTS = """
import os
import shutil
import signal
import subprocess
import time

import torch
from torch import nn

from gdtrain import Trainer, register_model, register_trainer


def fill(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    return model


@register_model("start")
class Start(nn.Linear):
    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        fill(self)


@register_model("wide")
class Wide(nn.Sequential):
    def __init__(self, in_features: int, out_features: int, width: int = 20000):
        super().__init__(nn.Linear(in_features, width), nn.Linear(width, out_features))
        fill(self)
        with torch.no_grad():
            self[1].weight.fill_(0.1 / width)


calls = 0


@register_trainer("faulty")
class Faulty(Trainer):
    def compute_loss(self, batch):
        global calls
        if torch.is_grad_enabled():
            calls += 1
            if calls == AT and os.environ.get("FAULT") != "off":
                fault()
        return super().compute_loss(batch)

    def loss_weight(self, batch):
        return len(batch)


def until(there):
    for _ in range(1000):
        if there():
            return
        time.sleep(0.01)


"""

CONFIG = """
data: {source: csv, path: d.csv, target: y}
model: start
loss: mse
loader: {name: minibatch, batch_size: 10, order: sequential}
optimizer: {lr: 0.05, momentum: 0.9}
trainer: faulty
log: {picture: false, every_n_steps: 1}
checkpoint: {every_n_steps: 10}
epochs: 10
"""


with_full_device = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs the device /dev/full"
)


def table(num_rows: int, num_columns: int = 3, seed: int = 0) -> np.ndarray:
    """Rows of normal inputs, and a last column that follows from them and a little noise."""
    draw = np.random.default_rng(seed)
    inputs = draw.standard_normal((num_rows, num_columns))
    noise = 0.1 * draw.standard_normal(num_rows)
    targets = inputs @ np.linspace(2.0, -1.0, num_columns) + 0.5 + noise
    return np.column_stack([inputs, targets])


def csv_text(rows: np.ndarray) -> str:
    """The rows below a header a, b, …, y."""
    names = [chr(97 + number) for number in range(rows.shape[1] - 1)] + ["y"]
    lines = [",".join(names), *(",".join(map(repr, row)) for row in rows.tolist())]
    return "\n".join(lines) + "\n"


def prepare(
    folder: Path, at: int = 0, fault: str = "pass", config: str = CONFIG, rows: Any = None
) -> np.ndarray:
    """Write d.csv, a.yaml and parts.py, in which ``fault`` is run before update number ``at``."""
    rows = table(60) if rows is None else rows
    (folder / "d.csv").write_text(csv_text(rows))
    (folder / "a.yaml").write_text(config)
    body = textwrap.indent(textwrap.dedent(fault), "    ")
    (folder / "parts.py").write_text(f"{PARTS}AT = {at}\n\n\ndef fault():\n{body}\n")
    return rows


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gdtrain", *map(str, arguments)]


def gdtrain(
    folder: Path, *arguments: str, fresh: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder`` to its end, and fail if that does not come.

    fresh: in an interpreter that has imported nothing, as wherever there are other options than
    the environment.
    """
    if not fresh and options.keys() <= {"env"}:
        done = run("-m", "gdtrain", *map(str, arguments), cwd=folder, env=options.get("env", ENV))
        assert done.returncode is not None
        return subprocess.CompletedProcess(arguments, done.returncode, done.out, done.err)
    options = {"env": ENV, "timeout": SECONDS, "stdin": subprocess.DEVNULL} | options
    if "stdout" not in options:
        options["stdout"] = subprocess.PIPE
    if "stderr" not in options:
        options["stderr"] = subprocess.PIPE
    return subprocess.run(
        command(*arguments), cwd=folder, text=True, errors="replace", check=False, **options
    )


def train(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    given = ("--config", "a.yaml", "--import", "parts", "--output-dir", "run", *arguments)
    return gdtrain(folder, *given, **options)


def go_on(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Resume, with nothing more happening."""
    return train(folder, "--resume", *arguments, env=ENV | {"FAULT": "off"}, **options)


def filled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    return model


def by_hand(
    rows: np.ndarray,
    epochs: int,
    batch_size: int,
    *,
    model: nn.Module | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    steps: int | None = None,
    **settings: float,
) -> nn.Module:
    """The model after a plain loop over the rows in their order."""
    torch.set_num_threads(1)
    settings = settings or {"lr": 0.05, "momentum": 0.9}
    held = torch.tensor(rows, dtype=torch.float64).float()
    inputs, targets = held[:, :-1], held[:, -1:]
    if model is None:
        model = filled(nn.Linear(inputs.shape[1], 1))
    updates = optimizer(model.parameters(), **settings)
    done = 0
    for _ in range(epochs):
        for first in range(0, len(held), batch_size):
            if steps is not None and done == steps:
                return model
            chosen = slice(first, first + batch_size)
            updates.zero_grad()
            nn.functional.mse_loss(model(inputs[chosen]), targets[chosen]).backward()
            updates.step()
            done += 1
    return model


def wide() -> nn.Module:
    model = filled(nn.Sequential(nn.Linear(3, 20000), nn.Linear(20000, 1)))
    with torch.no_grad():
        model[1].weight.fill_(0.1 / 20000)
    return model


def has_weights(run: Path, model: nn.Module, name: str = "model.safetensors") -> bool:
    """Whether a run has left a model's weights, to the bit."""
    held, expected = load_file(run / name), model.state_dict()
    return held.keys() == expected.keys() and all(
        torch.equal(held[key], expected[key]) for key in expected
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without_traceback(done: subprocess.CompletedProcess[str]) -> bool:
    return "Traceback" not in done.stderr


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[Path]:
    """A folder in which chattr +i works, and is undone."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for chattr +i")
    if shutil.which("chattr") is None:
        pytest.skip("needs chattr")
    (tmp_path / "probe").touch()
    tried = subprocess.run(["chattr", "+i", tmp_path / "probe"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("the file system has no immutable files")
    yield tmp_path
    subprocess.run(["chattr", "-R", "-i", tmp_path], capture_output=True, check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a disk of a few megabytes, of its own, as ``disk`` in the test's folder."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str = "size=3M") -> Path:
        given = ["mount", "-t", "tmpfs", "-o", options, "none", str(disk)]
        if subprocess.run(given, capture_output=True, check=False).returncode:
            pytest.skip("a tmpfs can't be mounted here")
        return disk

    yield mount
    subprocess.run(["umount", "-l", str(disk)], capture_output=True, check=False)


FILL = """
with open("disk/hog", "wb", buffering=0) as hog:
    try:
        while True:
            hog.write(b"x" * 4096)
    except OSError:
        pass
"""


# Checkpoints that are edited: state.json has two lines, a header with digests and nested lists
# ["dict", [key, value], …]; a tensor's place holds its name in tensors.safetensors.

Edit = Callable[[Any, dict[str, Tensor]], None]


def entry(node: Any, *keys: str) -> list[Any]:
    """The pair [key, value] that is reached by the keys."""
    for key in keys[:-1]:
        node = next(pair for pair in node[1:] if pair[0] == key)[1]
    return next(pair for pair in node[1:] if pair[0] == keys[-1])


def edit(run: Path, change: Edit) -> None:
    """Change the newest checkpoint, and make its digests true again; remove all others."""
    *others, newest = sorted((run / "checkpoints").glob("step-*"))
    for other in others:
        shutil.rmtree(other)
    file = newest / "tensors.safetensors"
    try:
        header, values = (newest / "state.json").read_bytes().splitlines()
        number = json.loads(header)["gdtrain checkpoint"]
        state, tensors = json.loads(values), load_file(file)
        known = json.loads(header) == json.loads(header_of(number, file, values))
        change(state, tensors)
    except (LookupError, StopIteration, TypeError, ValueError, OSError) as error:
        pytest.skip(f"checkpoints are laid out otherwise, {error!r}: edit() has to learn how")
    if not known:
        pytest.skip("the digests of checkpoints are made otherwise: edit() has to learn how")
    save_file(tensors, file)
    values = json.dumps(state).encode()
    header = header_of(number, file, values)
    (newest / "state.json").write_bytes(header + b"\n" + values + b"\n")


def header_of(number: int, file: Path, values: bytes) -> bytes:
    """The first line of state.json: digests of the tensors' file, and of all."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    both = hashlib.sha256(f"{number} {digest}\n".encode() + values).hexdigest()
    held = {"gdtrain checkpoint": number, "tensors.safetensors": digest, "sha256": both}
    return json.dumps(held).encode()


def real(value: float) -> list[str]:
    return ["float", float(value).hex()]


# Data that changed


def write_data(folder: Path, kind: str, rows: np.ndarray) -> None:
    """d.csv, or d.npz, or the folder d that ``convert`` makes."""
    if kind == "npz":
        held = rows.astype(np.float32)
        np.savez(folder / "d.npz", x=held[:, :-1], y=held[:, -1:])
        return
    (folder / "d.csv").write_text(csv_text(rows))
    if kind == "mapped":
        shutil.rmtree(folder / "d", ignore_errors=True)
        done = gdtrain(folder, "convert", "d.csv", "d", "--target", "y")
        assert done.returncode == 0, done.stderr


SOURCES = {
    "csv": "{source: csv, path: d.csv, target: y}",
    "npz": "{source: npz, path: d.npz}",
    "mapped": "{source: mapped, path: d}",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Folders with a data set and a run of one epoch over it, by format and number of rows."""
    known: dict[tuple[str, int], Path] = {}

    def of(kind: str, num_rows: int) -> Path:
        if (kind, num_rows) not in known:
            folder = tmp_path_factory.mktemp(f"{kind}-{num_rows}")
            write_data(folder, kind, table(num_rows, 1))
            (folder / "a.yaml").write_text(
                f"data: {SOURCES[kind]}\nmodel: linear\nloss: mse\n"
                "loader: {name: minibatch, batch_size: 500}\noptimizer: {lr: 0.01}\n"
                "log: {picture: false}\nepochs: 1\n"
            )
            done = gdtrain(folder, "--config", "a.yaml", "--output-dir", "run")
            assert done.returncode == 0, done.stderr
            known[kind, num_rows] = folder
        return known[kind, num_rows]

    return of


def long(*values: Any) -> Any:
    """A case beside another of its kind that is run in the ordinary suite too."""
    return pytest.param(*values, marks=pytest.mark.long)


def resumed(folder: Path) -> subprocess.CompletedProcess[str]:
    return gdtrain(folder, "--config", "a.yaml", "--output-dir", "run", "--resume", "epochs=2")


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("kind", "num_rows", "place"),
    [
        long("csv", 8191, "head"),
        long("csv", 8191, "middle"),
        ("csv", 8191, "tail"),
        long("csv", 6143, "tail"),
        long("npz", 4096, "middle"),
        long("npz", 100_003, "head"),
        long("npz", 100_003, "tail"),
        long("mapped", 6143, "tail"),
        ("mapped", 8191, "middle"),
    ],
)
def test_data_that_changed_before_a_resume_is_refused(finished, tmp_path, kind, num_rows, place):
    """Twenty other targets anywhere end --resume with exit code 2, and nothing is rewritten."""
    folder = shutil.copytree(finished(kind, num_rows), tmp_path / "copy")
    first = {"head": 3, "middle": num_rows // 2 + 100, "tail": num_rows - 20}[place]
    rows = table(num_rows, 1)
    rows[first : first + 20, -1] += 1000.0
    write_data(folder, kind, rows)
    before = contents(folder / "run")
    done = resumed(folder)
    assert done.returncode == 2, done.stderr
    assert "data" in done.stderr
    assert without_traceback(done)
    assert contents(folder / "run") == before


@pytest.mark.long
@pytest.mark.parametrize("kind", ["csv", long("npz")])
def test_the_same_data_written_anew_is_the_same_data(finished, tmp_path, kind):
    """A copy of the files, with another time of change, resumes."""
    folder = shutil.copytree(finished(kind, 8191), tmp_path / "copy")
    write_data(folder, kind, table(8191, 1))
    done = resumed(folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run" / "summary.json").read_text())["epochs"] == 2


# Signals that come early

GC_CALLBACK = """
import gc, os, signal
fired = []
def callback(phase, info):
    if not fired:
        fired.append(phase)
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass
gc.callbacks.append(callback)
gc.collect()
assert fired
"""

DESTRUCTOR = """
import os, signal
fired = []
class Last:
    def __del__(self):
        fired.append(1)
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass
last = Last()
del last
assert fired
"""


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("module", "name"),
    [(GC_CALLBACK, "SIGTERM"), (DESTRUCTOR, "SIGINT"), (DESTRUCTOR, "SIGTERM")],
    ids=["gc callback", "destructor interrupted", "destructor terminated"],
)
def test_an_early_signal_is_not_swallowed(tmp_path, module, name):
    """A signal whose handler runs where Python ignores exceptions ends the run all the same."""
    prepare(tmp_path)
    (tmp_path / "early.py").write_text(module.format(name=name))
    done = train(tmp_path, "--import", "early", fresh=True)
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert "epoch 1/" not in done.stderr


# Checkpoints that can't be saved or removed


@pytest.mark.long
def test_weights_are_written_though_the_last_checkpoint_cant_be_saved(tmp_path):
    """A file in the place of checkpoints/: exit code 1, and the model of an undisturbed run."""
    fault = 'os.rename("run/checkpoints", "aside")\nopen("run/checkpoints", "w").close()'
    rows = prepare(tmp_path, 30, fault)
    done = train(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "checkpoints" in done.stderr
    assert without_traceback(done)
    assert has_weights(tmp_path / "run", by_hand(rows, 10, 10))


@pytest.mark.long
def test_an_old_checkpoint_that_cant_be_removed_is_a_note(pinned):
    """It costs a line that names it, and neither the newer checkpoints nor the model."""
    fault = """
    old = "run/checkpoints/step-0000000010"
    until(lambda: os.path.isdir(old))
    subprocess.run(["chattr", "+i", old], check=True)
    """
    rows = prepare(pinned, 25, fault)
    done = train(pinned, "checkpoint.keep_last=2")
    assert done.returncode == 0, done.stderr
    assert "step-0000000010" in done.stderr
    assert without_traceback(done)
    assert has_weights(pinned / "run", by_hand(rows, 10, 10))
    assert list((pinned / "run" / "checkpoints").glob("step-0000000060*"))


# A full disk


@pytest.mark.long
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(small_disk, tmp_path):
    """The log can't be written: the message says so, and --resume ends with the hand-made bits."""
    small_disk()
    rows = prepare(tmp_path, 100, FILL)
    given = ("--output-dir", "disk/run", "epochs=60", "checkpoint.every_n_steps=90")
    done = train(tmp_path, *given)
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if "No space left" in line]
    assert any(re.search(r"metrics\.jsonl|the log", line) for line in said), done.stderr
    assert without_traceback(done)
    (tmp_path / "disk" / "hog").unlink()
    done = go_on(tmp_path, *given)
    assert done.returncode == 0, done.stderr
    assert has_weights(tmp_path / "disk" / "run", by_hand(rows, 60, 10))


@pytest.mark.long
def test_checkpoints_that_do_not_fit_make_room_or_say_how_much_is_needed(small_disk, tmp_path):
    """Three of 800 kB fit on the disk and four do not; the model is written in any case."""
    small_disk()
    rows = prepare(tmp_path)
    done = train(
        tmp_path,
        *("--output-dir", "disk/run", "model=wide", "optimizer={lr: 1e-3, momentum: 0.5}"),
    )
    assert done.returncode in (0, 1), done.stderr
    assert without_traceback(done)
    if done.returncode:
        assert re.search(r"\d[\d.,]*\s*([kKMG]i?B|bytes)", done.stderr), done.stderr
    expected = by_hand(rows, 10, 10, model=wide(), lr=1e-3, momentum=0.5)
    assert has_weights(tmp_path / "disk" / "run", expected)


# Progress that nobody can read


@pytest.mark.long
@with_full_device
def test_a_full_standard_error_costs_nothing(tmp_path):
    """With standard error on /dev/full, training ends with exit code 0 and its model."""
    rows = prepare(tmp_path)
    with Path("/dev/full").open("w") as full:
        done = train(tmp_path, "epochs=30", stderr=full)
    assert done.returncode == 0
    assert has_weights(tmp_path / "run", by_hand(rows, 30, 10))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"


@pytest.mark.long
def test_a_reader_that_has_gone_costs_nothing(tmp_path):
    """As under ``2>&1 | head -3``: all epochs are trained, and the model is written."""
    rows = prepare(tmp_path)
    given = ("--config", "a.yaml", "--import", "parts", "--output-dir", "run", "epochs=400")
    process = subprocess.Popen(
        command(*given), cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(3):
            process.stdout.readline()
        process.stdout.close()
        code = process.wait(SECONDS)
    finally:
        process.kill()
        process.wait()
    assert code in (0, 1, 128 + signal.SIGPIPE, -signal.SIGPIPE)
    assert has_weights(tmp_path / "run", by_hand(rows, 400, 10))


# A run's directory that loses files


WHOLE = """
os.rename("run", "away")
shutil.rmtree("away", ignore_errors=True)
"""
FILES = """
until(lambda: os.path.isdir("run/checkpoints/step-0000000010"))
for name in ("config.yaml", "preprocessing.json", "metrics.jsonl"):
    os.unlink("run/" + name)
shutil.rmtree("run/checkpoints/step-0000000010")
"""

REPLACED = """
for name, make in (("config.yaml", os.mkfifo), ("preprocessing.json", os.mkdir)):
    os.unlink("run/" + name)
    make("run/" + name)
"""


@pytest.mark.long
@pytest.mark.parametrize("fault", [WHOLE, FILES, REPLACED], ids=["whole", "files", "replaced"])
def test_a_directory_removed_in_mid_run_is_no_silent_success(tmp_path, fault):
    """The run ends with an error, or notes what is missing and has its config.yaml."""
    prepare(tmp_path, 15, fault, rows=table(600))
    done = train(tmp_path, "log.every_n_steps=1000", "epochs=3")
    assert without_traceback(done)
    if done.returncode == 0:
        assert (tmp_path / "run" / "config.yaml").is_file(), done.stderr
        told = [line for line in done.stderr.splitlines() if not line.startswith(("epoch", "done"))]
        assert any(re.search(r"missing|removed|gone|lost|not there", line) for line in told)
    else:
        assert any("run" in line for line in done.stderr.splitlines()[-2:])


@pytest.mark.long
@pytest.mark.parametrize("lost", ["deleted", long("truncated")])
def test_a_log_that_lost_lines_before_a_resume_is_told_of(tmp_path, lost):
    """metrics.jsonl is gone, or ends 1,000 bytes early: a note or a refusal names it."""
    prepare(tmp_path)
    assert train(tmp_path, "epochs=4").returncode == 0
    log = tmp_path / "run" / "metrics.jsonl"
    if lost == "deleted":
        log.unlink()
    else:
        os.truncate(log, log.stat().st_size - 1000)
    done = go_on(tmp_path, "epochs=5")
    assert without_traceback(done)
    assert "metrics.jsonl" in done.stderr, done.stderr


# A wide table


def processor_seconds(folder: Path, *arguments: str) -> float:
    """What a command takes of the processor, by the system's account of it; 20 s at most."""
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            command(*arguments), cwd=folder, env=ENV, stdout=said, stderr=said
        )
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (20, 20))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode < 0:
        pytest.fail("took more than 20 s of the processor")
    assert process.returncode == 0, (folder / "said").read_text()
    return usage.ru_utime + usage.ru_stime


def write_wide(path: Path, columns: int) -> None:
    """Three rows of so many inputs and a target."""
    names = ",".join(f"c{number}" for number in range(columns))
    rows = "".join("1," * columns + f"{row}\n" for row in range(3))
    path.write_text(f"{names},y\n{rows}")


@pytest.mark.long
def test_the_time_for_a_wide_table_grows_with_its_columns(tmp_path):
    """Three rows of 40,000 columns take less than three times the time for 20,000."""
    (tmp_path / "a.yaml").write_text(
        "data: {source: csv, path: d.csv, target: y}\nmodel: linear\nloss: mse\nloader: batch\n"
        "optimizer: {lr: 1e-6}\nlog: {picture: false}\nepochs: 1\n"
    )
    taken = []
    for columns in (40_000, 20_000, 10):
        write_wide(tmp_path / "d.csv", columns)
        taken.append(processor_seconds(tmp_path, "--config", "a.yaml", "--dry-run"))
    whole, half, narrow = taken
    assert whole - narrow < max(1.5, 3 * (half - narrow)), taken


# Checkpoints of strangers, with true digests


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of a perceptron with BatchNorm under SGD with momentum."""
    folder = tmp_path_factory.mktemp("trained")
    config = CONFIG.replace("start", "{name: mlp, hidden: [4], batch_norm: true}")
    prepare(folder, config=config)
    done = train(folder, "epochs=2")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_an_unchanged_checkpoint_with_digests_made_anew_resumes(trained, tmp_path):
    """What the tests below do to a checkpoint is no fault by itself."""
    ends = {}
    for name, change in (("as it is", None), ("again", lambda state, tensors: None)):
        folder = shutil.copytree(trained, tmp_path / name)
        if change is not None:
            edit(folder / "run", change)
        done = go_on(folder, "epochs=3")
        assert done.returncode == 0, done.stderr
        ends[name] = (folder / "run" / "model.safetensors").read_bytes()
    assert ends["as it is"] == ends["again"]


def other_momentum(state: Any, tensors: dict[str, Tensor]) -> None:
    group = entry(state, "optimizer", "groups")[1][1]
    entry(group, "momentum")[1] = real(0.1)


def no_buffer(state: Any, tensors: dict[str, Tensor]) -> None:
    kept = entry(state, "optimizer", "state")[1]
    kept.remove(entry(kept, "0.weight"))
    del tensors["optimizer.state.0.weight.momentum_buffer"]


def no_buffers(state: Any, tensors: dict[str, Tensor]) -> None:
    entry(state, "optimizer", "state")[1] = ["dict"]
    for name in [name for name in tensors if name.startswith("optimizer.state")]:
        del tensors[name]


def huge_rate(state: Any, tensors: dict[str, Tensor]) -> None:
    group = entry(state, "optimizer", "groups")[1][1]
    entry(group, "lr")[1] = real(1e30)
    entry(state, "lr")[1] = real(1e30)


def negative_variance(state: Any, tensors: dict[str, Tensor]) -> None:
    tensors["model.1.running_var"][0] = -1.0


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "change",
    [other_momentum, *map(long, [no_buffer, no_buffers, huge_rate]), negative_variance],
)
def test_an_edited_checkpoint_with_true_digests_is_refused(trained, tmp_path, change):
    """A state that no run of this configuration can have: exit code 2, and nothing is rewritten."""
    folder = shutil.copytree(trained, tmp_path / "copy")
    edit(folder / "run", change)
    before = contents(folder / "run")
    done = go_on(folder, "epochs=3")
    assert done.returncode == 2, done.stderr
    assert without_traceback(done)
    assert contents(folder / "run") == before


# What reaches the terminal


def raw(text: str) -> set[str]:
    """The control characters of a text, ends of lines and tabs apart."""
    return {c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\t"}


@pytest.mark.long
def test_escape_sequences_in_keys_do_not_reach_the_terminal(tmp_path):
    """An unknown key that would set a terminal's title and colour is shown, and not obeyed."""
    prepare(tmp_path, config=CONFIG + '"\\e]0;title\\a\\e[31mred": 1\n')
    done = train(tmp_path)
    assert done.returncode == 2
    assert "red" in done.stderr
    assert not raw(done.stderr + done.stdout)


# A terminal that hangs up


@pytest.mark.long
def test_a_hang_up_saves_and_ends_with_129(tmp_path):
    """SIGHUP in mid-run: a checkpoint, exit code 129, and in the end the bits of a plain loop."""
    rows = prepare(tmp_path, 25, "os.kill(os.getpid(), signal.SIGHUP)")
    done = train(tmp_path, "epochs=200", "checkpoint.every_n_steps=100000")
    assert done.returncode == 129, done.stderr
    assert without_traceback(done)
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    assert int(saved.name[5:15]) >= 24
    done = go_on(tmp_path, "epochs=200", "checkpoint.every_n_steps=100000")
    assert done.returncode == 0, done.stderr
    assert has_weights(tmp_path / "run", by_hand(rows, 200, 10))


# A stream with a malformed cell

STREAM = """
data: {source: stream, format: csv, path: d.csv, target: y}
model: start
loss: mse
loader: {name: minibatch, batch_size: 8}
optimizer: {lr: 0.05, momentum: 0.9}
log: {picture: false}
epochs: 1
"""


def spoil(folder: Path, cell: str) -> np.ndarray:
    """A stream whose line 21 has ``cell`` in the place of a number; the other rows."""
    rows = prepare(folder, config=STREAM, rows=table(40, 1))
    lines = (folder / "d.csv").read_text().splitlines()
    lines[20] = f"{cell},1.0"
    (folder / "d.csv").write_text("\n".join(lines) + "\n")
    return np.delete(rows, 19, axis=0)


@pytest.mark.parametrize(
    "cell", ["31.12.2024.235959", *map(long, ["1.0000000.0000000", "31.12.2024"])]
)
def test_a_malformed_cell_ends_a_stream_and_names_its_line(tmp_path, cell):
    """A date with several dots is not a number: exit code 2, with the line's number."""
    spoil(tmp_path, cell)
    done = train(tmp_path)
    assert done.returncode == 2, done.stderr
    assert "line 21" in done.stderr
    assert without_traceback(done)


@pytest.mark.long
@pytest.mark.parametrize("cell", ["31.12.2024.235959", long("1.5.1234567")])
def test_a_malformed_cell_is_skipped_where_that_is_wanted(tmp_path, cell):
    """The other 39 rows are trained on, to the bits of a plain loop over them."""
    rows = spoil(tmp_path, cell)
    done = train(tmp_path, "data.on_bad_line=skip")
    assert done.returncode == 0, done.stderr
    assert "line 21" in done.stderr
    assert without_traceback(done)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["samples"] == 39
    assert has_weights(tmp_path / "run", by_hand(rows, 1, 8))


# Data that memory can't hold


def limited(folder: Path, *arguments: str) -> tuple[int, str, int]:
    """Exit code, standard error and largest memory of a command that may address 4 GB."""
    if torch.version.cuda is not None:
        pytest.skip("the libraries of CUDA alone take more addresses than that")
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            command(*arguments),
            cwd=folder,
            env=ENV,
            stdout=said,
            stderr=said,
        )
        resource.prlimit(process.pid, resource.RLIMIT_AS, (4 << 30, 4 << 30))
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                text = (folder / "said").read_text(errors="replace")
                return process.returncode, text, usage.ru_maxrss * 1024
            time.sleep(0.02)
        process.kill()
        process.wait()
    pytest.fail(f"took more than {SECONDS} s")


def zeros(shape: tuple[int, ...]) -> tuple[bytes, int, int, int]:
    """An .npy file of float32 zeros, deflated: its bytes, length and CRC-32, made without it."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    size = 4 * int(np.prod(shape))
    block = bytes(1 << 24)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = [packer.compress(head), packer.flush(zlib.Z_FULL_FLUSH)]
    one = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = zlib.crc32(head)
    whole, rest = divmod(size, len(block))
    for _ in range(whole):
        crc = zlib.crc32(block, crc)
    packed += [one] * whole
    packed += [packer.compress(block[:rest]), packer.flush()]
    crc = zlib.crc32(block[:rest], crc)
    return b"".join(packed), len(head) + size, crc, len(head)


def write_npz(path: Path, **members: tuple[int, ...]) -> None:
    """An archive of arrays of zeros, of shapes that may be larger than memory."""
    entries, place = [], 0
    with path.open("wb") as file:
        for name, shape in members.items():
            packed, size, crc, _ = zeros(shape)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            info.CRC, info.file_size, info.compress_size = crc, size, len(packed)
            info.header_offset = place
            head = info.FileHeader(zip64=size >= 1 << 32)
            file.write(head + packed)
            place += len(head) + len(packed)
            entries.append(info)
        archive = zipfile.ZipFile(file, "w")
        archive.filelist, archive.start_dir, archive._didModify = entries, place, True
        archive.NameToInfo = {info.filename: info for info in entries}
        archive.close()


@pytest.mark.long
def test_a_sparse_table_is_refused_before_it_fills_memory(tmp_path):
    """Ten gigabytes of zero bytes below a header: one line, exit code 2, and no memory taken."""
    prepare(tmp_path, config=CONFIG.replace("trainer: faulty\n", "").replace("start", "linear"))
    with (tmp_path / "d.csv").open("wb") as file:
        file.write(b"a,y\n1,2\n3,4\n")
        file.truncate(10 << 30)
    code, said, memory = limited(tmp_path, "--config", "a.yaml", "--output-dir", "run")
    assert code == 2, said[-500:]
    assert len(said.splitlines()) == 1
    assert "data" in said
    assert memory < 1 << 30


@pytest.mark.long
def test_a_deflated_archive_is_refused_before_it_fills_memory(tmp_path):
    """Two arrays of 2.6 GB in 5 MB, with 4 GB to address: one line, and no memory taken."""
    prepare(tmp_path)
    (tmp_path / "a.yaml").write_text(
        "data: {source: npz, path: d.npz}\nmodel: linear\nloss: mse\n"
        "loader: {name: minibatch, batch_size: 10}\noptimizer: {lr: 0.1}\nepochs: 1\n"
    )
    write_npz(tmp_path / "d.npz", x=(650_000, 1000), y=(650_000, 1000))
    code, said, memory = limited(tmp_path, "--config", "a.yaml", "--output-dir", "run")
    assert code == 2, said[-500:]
    assert len(said.splitlines()) == 1
    assert "data" in said
    assert memory < 1 << 30


# Processes that are killed

WORKERS = """
import json, os, signal, sys
import torch
from torch import nn
from torch.utils.data import Dataset, get_worker_info
import gdtrain.errors
from gdtrain import MiniBatchLoader, Trainer

class Rows(Dataset):
    def __init__(self, fatal):
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(600, 3, generator=draw)
        self.y = torch.randn(600, 1, generator=draw)
        self.fatal = fatal
    def __len__(self):
        return 600
    def __getitem__(self, i):
        if i == self.fatal and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.x[i], self.y[i]

def make():
    model = nn.Linear(3, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

torch.set_num_threads(1)
model, optimizer = make()
rows = Rows(int(sys.argv[1]))
loader = MiniBatchLoader(rows, int(sys.argv[2]), order="sequential", num_workers=2)
trainer = Trainer(model, nn.MSELoss(), optimizer, loader, device="cpu")
said, ours = "", False
try:
    trainer.fit(2)
except Exception as error:
    said, ours = str(error), isinstance(error, gdtrain.errors.GdtrainError)
steps = trainer.progress.step
other, updates = make()
for first in range(0, steps * loader.batch_size, loader.batch_size):
    chosen = slice(first, first + loader.batch_size)
    updates.zero_grad()
    nn.functional.mse_loss(other(rows.x[chosen]), rows.y[chosen]).backward()
    updates.step()
same = all(map(torch.equal, model.parameters(), other.parameters()))
print(json.dumps([said, ours, steps, same, trainer.progress.samples]))
"""


def test_a_killed_worker_process_is_an_error_and_progress_counts_what_was_done(tmp_path):
    """The weights are those after progress.step updates, and the error tells of the worker."""
    done = run("-c", WORKERS, "537", "10", cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.err[-800:]
    said, ours, steps, same, samples = json.loads(done.out.splitlines()[-1])
    assert ours or "worker" in said
    assert steps <= 53
    assert samples == 10 * steps
    assert same, f"progress says {steps} updates, and the weights are those after another number"


@pytest.mark.long
def test_a_followed_file_goes_on_after_a_kill(tmp_path):
    """Killed while it follows a file, and resumed: the bits of all rows in their order."""
    rows = prepare(tmp_path, 12, "os.kill(os.getpid(), signal.SIGKILL)", STREAM, table(200))
    text = csv_text(rows).splitlines(keepends=True)
    (tmp_path / "d.csv").write_text("".join(text[:101]))
    given = ("trainer=faulty", "loader.batch_size=5", "checkpoint.every_n_steps=3")
    done = train(tmp_path, *given, "data.follow=true")
    assert done.returncode == -signal.SIGKILL
    with (tmp_path / "d.csv").open("a") as file:
        file.writelines(text[101:])
    done = go_on(tmp_path, *given, "data.follow=false")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["samples"] == 200
    assert has_weights(tmp_path / "run", by_hand(rows, 1, 5))


# Signals to the other commands


@pytest.mark.long
def test_compare_writes_what_was_done_when_it_is_interrupted(tmp_path):
    """SIGINT in the second form: exit code 130, and the first form's result is in compare.json."""
    config = CONFIG.replace("start", "linear")
    prepare(tmp_path, 700, "os.kill(os.getpid(), signal.SIGINT)", config)
    done = gdtrain(
        tmp_path,
        *("compare", "a.yaml", "--loaders", "batch,minibatch", "--import", "parts"),
        *("--updates", "600", "--looks", "2", "--output-dir", "result"),
    )
    assert done.returncode == 130, done.stderr
    assert without_traceback(done)
    held = json.loads((tmp_path / "result" / "compare.json").read_text())
    assert "batch" in json.dumps(held)
    assert "600" in json.dumps(held)
    assert (tmp_path / "result" / "report.html").stat().st_size > 0


HILL = """
import os, signal
import torch
from torch import nn
from gdtrain import register_model

calls = 0

@register_model("hill")
class Hill(nn.Linear):
    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
    def forward(self, x):
        global calls
        calls += 1
        if calls == int(os.environ.get("CALL", 0)):
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)
"""


@pytest.mark.long
def test_landscape_ends_with_130_when_it_is_interrupted(tmp_path):
    """SIGINT while the loss is computed: exit code 130, no traceback and no half of a picture."""
    pytest.importorskip("matplotlib", exc_type=ImportError)
    prepare(tmp_path, config=CONFIG.replace("start", "hill").replace("trainer: faulty\n", ""))
    (tmp_path / "hill.py").write_text(HILL)
    given = ("--config", "a.yaml", "--output-dir", "run", "--import", "hill")
    done = gdtrain(tmp_path, *given, "monitors={trajectory: {every_n_steps: 1}}")
    assert done.returncode == 0, done.stderr
    given = ("landscape", "run", "--resolution", "40", "--import", "hill")
    done = gdtrain(tmp_path, *given, env=ENV | {"CALL": "1"})
    assert done.returncode == 130, done.stderr
    assert without_traceback(done)
    assert not (tmp_path / "run" / "landscape.png").exists()
