"""The command ``sweep``: each run as the train command leaves it, and a table of all."""

import csv
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.processes import start
from helpers.small_runs import MOONS

from gdtrain.cli.main import main
from gdtrain.config.grid import load_sweep
from gdtrain.errors import ConfigError


@pytest.fixture(autouse=True)
def moons(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("moons.yaml").write_text(MOONS)


def table(directory="runs/sweep/1"):
    with Path(directory, "rows.csv").open() as file:
        return list(csv.DictReader(file))


def summary(directory):
    return json.loads(Path(directory, "summary.json").read_text("utf-8"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_table_that_cant_be_printed_is_an_error_after_all_is_written(monkeypatch, capsys, more):
    """Runs in this process print nothing themselves, and do not take that for dropped text."""
    with monkeypatch.context() as patch, suppress(OSError), Path("/dev/full").open("w") as full:
        patch.setattr("sys.stdout", full)
        assert main(["sweep", "moons.yaml", "optimizer.lr=0.01,0.1", *more]) == 1
    said = "standard output could not be written: [Errno 28] No space left on device"
    assert capsys.readouterr().err.splitlines()[-1] == f"gdtrain: {said}"
    assert len(table()) == 2
    assert Path("runs/sweep/1/report.html").is_file()


def test_each_run_is_that_of_the_train_command(capsys):
    grid = ["optimizer.lr=0.01,0.1", "loader=batch,minibatch:5", "seed=3..4"]
    assert main(["sweep", "moons.yaml", *grid]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[:3] == ["optimizer.lr", "loader", "runs"]
    assert err.splitlines()[0] == "8 runs; results go to runs/sweep/1"
    rows = table()
    assert [(r["optimizer.lr"], r["loader"], r["seed"]) for r in rows] == [
        (lr, loader, seed)
        for lr in ("0.01", "0.1")
        for loader in ("batch", "minibatch:5")
        for seed in ("3", "4")
    ]
    assert [row["run"] for row in rows] == [str(number) for number in range(1, 9)]
    page = Path("runs/sweep/1/report.html").read_text("utf-8")
    assert "loader=minibatch:5" in page
    assert err.splitlines()[-1].endswith("look at runs/sweep/1/report.html")
    own = ["optimizer.lr=0.1", "loader={name: minibatch, batch_size: 5}", "seed=4"]
    assert main(["--config", "moons.yaml", *own, "--output-dir", "alone"]) == 0
    alone = summary("alone")
    assert float(rows[-1]["train_loss"]) == alone["train"]["loss"]
    assert float(rows[-1]["val_accuracy"]) == alone["validation"]["accuracy"]
    for name in ("model.safetensors", "config.yaml", "preprocessing.json"):
        swept = Path("runs/sweep/1/runs/8", name).read_bytes()
        assert swept == Path("alone", name).read_bytes()


def test_a_sweep_goes_on_and_may_grow(capsys):
    assert main(["sweep", "moons.yaml", "seed=0,1", "--output-dir", "s"]) == 0
    before = Path("s/runs/1/summary.json").stat().st_mtime_ns
    Path("s/rows/2.json").unlink()
    assert main(["sweep", "moons.yaml", "seed=0..2", "--output-dir", "s", "--resume"]) == 0
    assert [row["seed"] for row in table("s")] == ["0", "1", "2"]
    assert Path("s/runs/1/summary.json").stat().st_mtime_ns == before
    capsys.readouterr()
    again = ["sweep", "moons.yaml", "seed=0,1", "--output-dir", "s"]
    assert main([*again, "epochs=3", "--resume"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "command line:1:1: --output-dir: s holds a sweep of another configuration, which differs "
        "in epochs; choose another directory"
    ]
    assert main(["sweep", "moons.yaml", "seed=0,1", "--output-dir", "s"]) == 2
    assert capsys.readouterr().err == (
        "command line:1:1: --output-dir: s is not empty; choose another directory, or resume the "
        "sweep in it\n"
    )
    assert main(["sweep", "moons.yaml", "seed=0,1", "--output-dir", "s/runs"]) == 2
    assert capsys.readouterr().err == (
        "command line:1:1: --output-dir: s/runs is not empty; choose another directory\n"
    )


def test_runs_that_diverge_or_fail_are_rows(capsys):
    arguments = ["sweep", "moons.yaml", "optimizer.lr=0.1,1e30", "model.batch_norm=false,true"]
    assert main([*arguments, "loader=minibatch:2", "epochs=9"]) == 0
    rows = table()
    assert [row["status"] for row in rows] == ["done", "failed", "diverged", "failed"]
    assert rows[1]["reason"].startswith("model.batch_norm: needs batches of at least 2 samples")


BRANCHES = """\
from torch import nn
from gdtrain.registry import register_model


@register_model("branching")
class Branching(nn.Module):
    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)
"""


def test_a_run_that_its_engine_refuses_is_a_row_even_the_first_one():
    pytest.importorskip("jax")
    Path("branching.py").write_text(BRANCHES)
    arguments = ["--import", "branching", "model=branching", "engine=scan,eager"]
    assert main(["sweep", "moons.yaml", *arguments, "seed=0,1"]) == 0
    rows = table()
    assert [row["status"] for row in rows] == ["failed", "failed", "done", "done"]
    assert rows[0]["reason"].startswith("engine: scan can't run this: ")


def test_a_file_has_the_grid(capsys):
    Path("grid.yaml").write_text(
        "sweep: {optimizer.lr: [0.01, 0.1], seed: 0..1, 'model.hidden': [[4], [2, 2]]}\n"
    )
    assert main(["sweep", "moons.yaml", "grid.yaml", "--random", "3"]) == 0
    rows = table()
    assert len(rows) == 6
    assert {row["model.hidden"] for row in rows} == {"[4]", "[2, 2]"}


def test_json_is_the_rows_and_nothing_else(capsys):
    assert main(["sweep", "moons.yaml", "seed=0,1", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [row["seed"] for row in found["rows"]] == [0, 1]
    assert found["by"] == "val_loss"
    assert err == ""


def test_values_are_split_outside_of_brackets_and_quotes():
    settings = ["seed=-2..1", "model.hidden=[4],[8, 8]", "loader=sample,{name: batch}", "epochs=3"]
    loaded = load_sweep(["moons.yaml"], settings)
    assert loaded.grid == {
        "seed": ["-2", "-1", "0", "1"],
        "model.hidden": ["[4]", "[8, 8]"],
        "loader": ["sample", "{name: batch}"],
    }
    assert loaded.document.data["epochs"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["epochs=3"],
            "command line:1:1: nothing to sweep over; give a setting several values, such as "
            "seed=0..4",
        ),
        (
            ["optimizer.lr=0.1,-1"],
            "command line:1:14: optimizer.lr: must be > 0, got -1",
        ),
        (
            ["optimizer.lrr=0.1,1"],
            "command line:1:1: optimizer.lrr: unknown key; did you mean lr?",
        ),
        (
            ["seed=1,2,1"],
            "command line:1:6: seed: holds 1 twice; give each value once",
        ),
        (
            ["seed=3..1"],
            "command line:1:6: seed: must be a range such as 0..9, of at most 100,000 numbers, "
            "got '3..1'",
        ),
        (["seed=0,1", "--jobs", "0"], "command line:1:1: --jobs: must be >= 1, got 0"),
        (["seed=0,1", "--random", "0"], "command line:1:1: --random: must be >= 1, got 0"),
        (
            ["seed=0,1", "--resume"],
            "command line:1:1: --resume: goes with --output-dir, which names the sweep to go on "
            "with",
        ),
        (
            ["seed=0,1", "--jobs", "2", "--cluster", "tcp://x:1"],
            "command line:1:1: --jobs: has no effect beside --cluster, whose workers are counted "
            "there",
        ),
        (
            ["seed=0,1", "data={source: csv, path: none.csv, target: y}", "loss=mse"],
            "command line:2:6: data: none.csv: file not found; paths are relative to the working "
            "directory",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, said, capsys):
    assert main(["sweep", "moons.yaml", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()


def test_help_and_faults_do_not_wait_for_torch():
    look = (
        "import sys\nfrom gdtrain.cli.main import main\n"
        "try:\n    main(['sweep', '--help'])\nexcept SystemExit:\n    pass\n"
        "for more in (['seed=0,1', 'epochs=x'], []):\n"
        "    assert main(['sweep', 'moons.yaml', *more]) == 2\n"
        "print([m for m in ('torch', 'joblib', 'distributed') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_interrupted_sweep_leaves_a_table_and_goes_on():
    command = ["-m", "gdtrain", "sweep", "moons.yaml", "seed=0..5", "--output-dir", "s"]
    with start(*command, "epochs=60") as running:
        running.wait_for(lambda: Path("s/rows/2.json").exists())
        running.send_signal(2)
        assert running.wait() == 130
        assert "Traceback" not in running.err
        assert running.err.splitlines()[-1] == (
            "interrupted; to go on, give the same command with --output-dir s --resume"
        )
        assert "(interrupted: runs are missing)" in running.out
    done = len(table("s"))
    assert 2 <= done < 6
    with start(*command, "epochs=60", "--resume") as running:
        assert running.wait() == 0, running.err
    assert [row["seed"] for row in table("s")] == [str(seed) for seed in range(6)]


@pytest.mark.long
def test_processes_and_a_cluster_give_the_same_table():
    command = [sys.executable, "-m", "gdtrain", "sweep", "moons.yaml"]
    grid = ["optimizer.lr=0.01,0.1", "seed=0..3"]
    subprocess.run([*command, *grid, "--output-dir", "one"], check=True)
    subprocess.run([*command, *grid, "--output-dir", "two", "--jobs", "2"], check=True)
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    scheduler = subprocess.Popen(
        [*dask, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "f"]
    )
    try:
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", "f"]
        workers = [subprocess.Popen([*worker, "--no-dashboard", "--nthreads", "2"]) for _ in "ab"]
        while not Path("f").exists():
            assert scheduler.poll() is None
        address = json.loads(Path("f").read_text())["address"]
        subprocess.run([*command, *grid, "--output-dir", "many", "--cluster", address], check=True)
    finally:
        for process in (*workers, scheduler):
            process.terminate()
            process.wait()
    tables = [table(directory) for directory in ("one", "two", "many")]
    for rows in tables:
        for row in rows:
            del row["seconds"]
    assert tables[0] == tables[1] == tables[2]


def test_nothing_is_swept_without_a_grid_of_several_values():
    with pytest.raises(ConfigError, match="nothing to sweep over"):
        load_sweep(["moons.yaml"], ["seed=1"])
