"""Sweeps whose workers, parents or schedulers are killed: no row is lost or doubled."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.processes import start

RATES, SEEDS, EPOCHS = (0.01, 0.1), 10, 300
POINTS = len(RATES) * SEEDS
SCRIPT = f"""
import sys, torch
from torch import nn
import gdtrain
from gdtrain import BatchLoader, Trainer

def make(lr, seed):
    torch.manual_seed(seed)
    X = torch.randn(16, 2)
    optimizer = torch.optim.SGD((model := nn.Linear(2, 1)).parameters(), lr=lr)
    data = (X, X.sum(1, keepdim=True))
    return Trainer(model, nn.MSELoss(), optimizer, BatchLoader(data), device="cpu")

cluster = sys.argv[2] if len(sys.argv) > 2 else None
gdtrain.sweep(make, {{"lr": {RATES}, "seed": range({SEEDS})}}, epochs={EPOCHS},
              directory=sys.argv[1], jobs=1 if cluster else 2, cluster=cluster)
"""


def rows(directory):
    return len(list(Path(directory, "rows").glob("[0-9]*.json")))


def table(directory):
    """What each point has given, by its settings; that no two rows are of one is checked."""
    found = [json.loads(path.read_text()) for path in Path(directory, "rows").glob("[0-9]*.json")]
    given = {(row["lr"], row["seed"]): (row["status"], row.get("train_loss")) for row in found}
    assert len(given) == len(found)
    return given


def workers_of(pid):
    """The processes that train for one, which joblib has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    command = {int(child): Path(f"/proc/{child}/cmdline") for child in children}
    return [child for child, path in command.items() if b"popen_loky" in path.read_bytes()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The table of a sweep that nothing has disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "s"
    with start("-c", SCRIPT, str(directory)) as running:
        assert running.wait() == 0, running.err
    assert len(table(directory)) == POINTS
    return table(directory)


def moments(draw, count):
    """After how many rows to kill."""
    return sorted(draw.choices(range(POINTS - 1), k=count))


def until(running, directory, count):
    """Wait for so many rows, or for the end."""
    running.wait_for(lambda: rows(directory) >= count or running.returncode is not None)


def finish(directory, *more):
    """Go on until it is done; a run whose worker died three times is trained again then."""
    for _ in range(3):
        with start("-c", SCRIPT, str(directory), *more) as running:
            running.wait()
        if len(table(directory)) == POINTS:
            break


@pytest.mark.long
def test_killed_parents(whole, tmp_path, scaled, first_seed):
    draw, kills = random.Random(first_seed), 0
    while kills < scaled(20):
        directory = tmp_path / str(kills)
        for after in moments(draw, 5):
            with start("-c", SCRIPT, str(directory)) as running:
                until(running, directory, after)
                running.send_signal(signal.SIGKILL)
                running.wait()
            kills += 1
            assert table(directory).items() <= whole.items()
        finish(directory)
        assert table(directory) == whole
    print(f"{kills} parents killed")


@pytest.mark.long
def test_killed_workers(whole, tmp_path, scaled, first_seed):
    draw, kills = random.Random(first_seed), 0
    while kills < scaled(20):
        directory = tmp_path / str(kills)
        with start("-c", SCRIPT, str(directory)) as running:
            for after in moments(draw, 4):
                until(running, directory, after)
                alive = workers_of(running.pid) if running.returncode is None else []
                if alive:
                    subprocess.run(["kill", "-9", str(draw.choice(alive))], check=False)
                    kills += 1
            running.wait()
        finish(directory)
        assert table(directory) == whole
    print(f"{kills} workers killed")


@pytest.mark.long
def test_killed_schedulers(whole, tmp_path, scaled, first_seed):
    pytest.importorskip("distributed")
    draw, kills = random.Random(first_seed), 0
    while kills < scaled(10):
        directory = tmp_path / str(kills)
        for after in moments(draw, 2):
            with (
                _Cluster(tmp_path / f"{kills}.json") as cluster,
                start("-c", SCRIPT, str(directory), cluster.address) as running,
            ):
                until(running, directory, after)
                cluster.scheduler.kill()
                kills += 1
                assert running.wait() != 0 or len(table(directory)) == POINTS
            assert table(directory).items() <= whole.items()
        finish(directory)
        assert table(directory) == whole
    print(f"{kills} schedulers killed")


class _Cluster:
    """A Dask scheduler and two workers on the loopback, for the length of a ``with``."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        module = [sys.executable, "-m"]
        where = ["--no-dashboard", "--scheduler-file", str(self.path)]
        own = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.scheduler = subprocess.Popen([*module, *own, *where], **quiet)
        worker = ["distributed.cli.dask_worker", "--nthreads", "1", "--death-timeout", "60"]
        self.workers = [subprocess.Popen([*module, *worker, *where], **quiet) for _ in range(2)]
        while not self.path.exists():
            assert self.scheduler.poll() is None
            time.sleep(0.05)
        self.address = json.loads(self.path.read_text())["address"]
        return self

    def __exit__(self, *_):
        for process in (self.scheduler, *self.workers):
            process.kill()
            process.wait()
