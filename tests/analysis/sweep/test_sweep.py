"""``gdtrain.sweep``: each point once, as if it had been trained alone, whatever happens between."""

import json
import math
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from helpers.processes import start
from torch import nn

import gdtrain
from gdtrain import BatchLoader, Trainer
from gdtrain.analysis.sweep.grid import points_of
from gdtrain.analysis.sweep.result import Sweep
from gdtrain.checkpoint.durable_files import UNFINISHED
from gdtrain.errors import ConfigError, MissingPackageError, OutputError, StorageError
from gdtrain.output.run_directory import locked

X = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def make(lr, seed=0, fails=False):
    if fails:
        raise RuntimeError("no such\nthing")
    torch.manual_seed(seed)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, Y)), device="cpu")


def alone(epochs, **point):
    trainer = make(**point)
    return trainer.fit(epochs)[-1]["train_loss"]


def test_each_row_is_the_run_alone():
    grid = {"lr": [0.01, 0.1], "seed": range(3)}
    rows = gdtrain.sweep(make, grid, epochs=7)
    assert [(row["lr"], row["seed"]) for row in rows] == [
        (lr, s) for lr in grid["lr"] for s in (0, 1, 2)
    ]
    assert [row["run"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert (row["status"], row["updates"], row["epochs"]) == ("done", 7, 7)
        assert row["train_loss"] == alone(7, lr=row["lr"], seed=row["seed"])
    assert rows.best["lr"] == 0.1
    assert not rows.interrupted


def test_rows_are_ready_for_pandas():
    pandas = pytest.importorskip("pandas")
    rows = gdtrain.sweep(make, {"lr": [0.01, 0.1], "seed": [0, 1]}, epochs=2)
    frame = pandas.DataFrame(rows)
    assert len(frame) == 4
    assert frame.groupby("lr").train_loss.mean()[0.1] == pytest.approx(
        np.mean([alone(2, lr=0.1, seed=seed) for seed in (0, 1)])
    )


def test_what_diverges_or_raises_is_a_row_with_its_reason():
    rows = gdtrain.sweep(make, {"lr": [0.1, 1e30], "fails": [False, True]}, epochs=9)
    assert [row["status"] for row in rows] == ["done", "failed", "diverged", "failed"]
    assert rows[1]["reason"] == "RuntimeError: no such thing"
    assert rows[2]["reason"].startswith("loss is ")
    assert rows.best["lr"] == 0.1
    text = str(rows)
    assert "1 diverged" in text
    assert "1 failed" in text


def test_a_sweep_of_which_every_run_fails_says_so(caplog):
    gdtrain.sweep(make, {"lr": [0.1, 0.2], "fails": [True]}, epochs=1)
    assert caplog.messages == [
        "every run of the sweep failed; the first: RuntimeError: no such thing"
    ]


def test_a_notebook_shows_the_table_of_a_sweep():
    rows = gdtrain.sweep(make, {"lr": [0.01, 0.1], "seed": [0, 1]}, epochs=2)
    html = rows._repr_html_()
    assert html.count("<tr>") == 3
    assert all(f"<td>{word}</td>" in html for word in ("0.01", "0.1", "2"))
    assert f"<p>{rows.sentence()}</p>" in html


def test_a_function_may_measure_by_itself():
    def measure(a, b):
        return {"cost": torch.tensor(a * b), "big": math.inf, "name": "x"}

    rows = gdtrain.sweep(measure, {"a": [1.0, 2.0], "b": [3.0]}, by="cost")
    assert [row["cost"] for row in rows] == [3.0, 6.0]
    assert (rows[0]["big"], rows[0]["name"]) == (None, "x")
    assert rows.best["a"] == 1.0


def test_a_sweep_goes_on_where_it_was_and_may_grow(tmp_path):
    made = []

    def counted(lr, seed):
        made.append((lr, seed))
        return make(lr, seed)

    first = gdtrain.sweep(
        counted, {"lr": [0.1], "seed": [0, 1]}, epochs=3, directory=tmp_path / "s"
    )
    again = gdtrain.sweep(
        counted, {"lr": [0.1, 0.2], "seed": [0, 1, 2]}, epochs=3, directory=tmp_path / "s"
    )
    assert sorted(made) == sorted({(lr, seed) for lr in (0.1, 0.2) for seed in (0, 1, 2)})
    assert [again[0], again[1]] == list(first)
    assert sorted(row["run"] for row in again) == [1, 2, 3, 4, 5, 6]
    lines = (tmp_path / "s" / "rows.csv").read_text().splitlines()
    assert len(lines) == 7
    with pytest.raises(OutputError, match="another configuration, which differs in epochs"):
        gdtrain.sweep(counted, {"lr": [0.1]}, epochs=4, directory=tmp_path / "s")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="holds no sweep"):
        gdtrain.sweep(counted, {"lr": [0.1]}, epochs=4, directory=tmp_path / "notes")


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    class Dies(gdtrain.Callback):
        def on_epoch_end(self, trainer, record):
            if record["epoch"] == 5 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                raise KeyboardInterrupt

    def fragile(lr):
        trainer = make(lr)
        trainer.callbacks.append(Dies())
        return trainer

    cut = gdtrain.sweep(fragile, {"lr": [0.1, 0.2]}, epochs=9, directory=tmp_path / "s")
    assert cut.interrupted
    assert list(cut) == []
    whole = gdtrain.sweep(fragile, {"lr": [0.1, 0.2]}, epochs=9, directory=tmp_path / "s")
    assert [row["train_loss"] for row in whole] == [alone(9, lr=0.1), alone(9, lr=0.2)]


def test_a_run_that_was_killed_in_its_first_checkpoint_begins_anew(tmp_path):
    remains = tmp_path / "s/runs/1/checkpoints" / f"{UNFINISHED}step-0000000000"
    remains.mkdir(parents=True)
    (remains / "model.safetensors").write_bytes(b"half")
    (row,) = gdtrain.sweep(make, {"lr": [0.1]}, epochs=3, directory=tmp_path / "s")
    assert (row["status"], row["train_loss"]) == ("done", alone(3, lr=0.1))
    assert not remains.exists()


def test_a_run_waits_for_the_worker_of_a_killed_sweep_that_is_still_at_it(tmp_path):
    made, ended, began_after = threading.Event(), threading.Event(), []

    class Looks(gdtrain.Callback):
        def on_fit_start(self, trainer):
            began_after.append(ended.is_set())

    def watched(lr):
        trainer = make(lr)
        trainer.callbacks.append(Looks())
        made.set()
        return trainer

    (tmp_path / "s/runs/1").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        with locked(tmp_path / "s/runs/1"):
            grid = {"lr": [0.1]}
            rows = pool.submit(gdtrain.sweep, watched, grid, epochs=300, directory=tmp_path / "s")
            assert made.wait(60)
            expected = alone(300, lr=0.1)  # in which time the other would have begun
            ended.set()
        assert [row["train_loss"] for row in rows.result()] == [expected]
    assert began_after == [True]


def test_a_table_that_cant_be_written_is_told_of_and_no_row_is_lost(tmp_path):
    """Nor does it hide what went wrong before it, such as a row that can't be kept."""
    directory = tmp_path / "s"
    table = directory / ".unfinished-rows.csv"

    def function(lr):
        if lr == 0.1:
            table.mkdir(exist_ok=True)  # in the way of the file
        if lr == 0.2:
            (directory / "rows" / ".unfinished-3.json").mkdir()
        return {"loss": lr}

    with pytest.raises(StorageError, match=r"^rows\.csv could not be written: .*unfinished-rows"):
        gdtrain.sweep(function, {"lr": [0.01, 0.1]}, directory=directory)
    assert len(list((directory / "rows").glob("[0-9]*.json"))) == 2
    with pytest.raises(StorageError, match=r"^rows/3\.json could not be written: "):
        gdtrain.sweep(function, {"lr": [0.01, 0.1, 0.2]}, directory=directory)
    (directory / "rows" / ".unfinished-3.json").rmdir()
    table.rmdir()
    found = gdtrain.sweep(lambda lr: {"loss": lr}, {"lr": [0.01, 0.1, 0.2]}, directory=directory)
    assert [row["loss"] for row in found] == [0.01, 0.1, 0.2]


def test_random_points_have_all_seeds():
    grid = {"a": range(10), "b": range(10), "seed": range(3)}
    points = points_of(grid, random=7)
    assert len(points) == 21
    assert len({(p["a"], p["b"]) for p in points}) == 7
    assert points == points_of(grid, random=7)
    assert points != points_of(grid, random=7, random_seed=1)
    assert len(points_of(grid, random=1000)) == 300


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ({}, {}, "grid: is empty; give at least one setting with its values"),
        ({"lr": []}, {}, "grid.lr: has no values; give at least one"),
        ({"lr": 0.1}, {}, "grid.lr: must be a list of values, got 0.1"),
        ({"lr": [0.1, 0.1]}, {}, "grid.lr: holds 0.1 twice; give each value once"),
        ({"run": [1]}, {}, "grid.run: is a column of the rows; name it otherwise"),
        ({"lr": [0.1]}, {"random": 0}, "random: must be >= 1, got 0"),
        ({"lr": [0.1]}, {"jobs": 0}, "jobs: must be >= 1, got 0"),
        (
            {"lr": [0.1]},
            {"epochs": None},
            "epochs: missing; give the number of epochs to train for",
        ),
    ],
)
def test_wrong_arguments_are_named(grid, options, message):
    with pytest.raises(ConfigError) as error:
        gdtrain.sweep(make, grid, **({"epochs": 1} | options))
    assert str(error.value) == message


def test_what_a_file_cannot_keep_is_refused_with_a_directory(tmp_path):
    grid = {"lr": [0.1], "seed": [object()]}
    with pytest.raises(ConfigError, match=r"^grid.seed: holds what a file can't keep"):
        gdtrain.sweep(make, grid, epochs=1, directory=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("progress", [None, False])
def test_runs_have_no_bars_of_their_own(progress, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    gdtrain.sweep(make, {"lr": [0.1], "seed": [0, 1]}, epochs=2, progress=progress)
    shown = capsys.readouterr().err
    assert "step/s" not in shown
    assert ("run" in shown) == (progress is None)


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch):
    for name, options in (("joblib", {"jobs": 2}), ("distributed", {"cluster": "tcp://x:1"})):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(MissingPackageError, match=r"pip install 'gdtrain\[(sweep|cluster)\]'"):
            gdtrain.sweep(make, {"lr": [0.1]}, epochs=1, **options)


# ── what the rows say ───────────────────────────────────────────────────────────────────────


def rows_of(values, status="done"):
    return [
        {"lr": lr, "seed": seed, "run": 0, "status": "done" if v is not None else "diverged"}
        | {"train_loss": v}
        for lr, own in values.items()
        for seed, v in enumerate(own)
    ]


def test_settings_are_compared_over_their_seeds():
    draw = np.random.default_rng(0)
    hard = draw.lognormal(0, 1, 8)
    values = {lr: list(f * hard * draw.lognormal(0, 0.1, 8)) for lr, f in ((0.1, 3), (0.3, 1))}
    sweep = Sweep(rows_of(values), ["lr", "seed"], None, interrupted=False)
    first, second = sweep.groups()
    assert (first.setting, second.setting) == ({"lr": 0.3}, {"lr": 0.1})
    assert first.mean(log=True).center == pytest.approx(scipy.stats.gmean(values[0.3]))
    (pair,) = sweep.pairs()
    expected = scipy.stats.ttest_rel(np.log(values[0.1]), np.log(values[0.3]))
    assert pair.p == pytest.approx(expected.pvalue)
    assert sweep.sentence() == "Use lr=0.3: it is better than every other setting."
    few = Sweep(
        rows_of({lr: own[:4] for lr, own in values.items()}),
        ["lr", "seed"],
        None,
        interrupted=False,
    )
    assert few.sentence() == (
        "lr=0.3 was best; with 4 seeds this is not conclusive, use at least 5."
    )


@pytest.mark.parametrize(
    ("by", "mode", "best"),
    [
        ("val_r2", None, 0.1),
        ("f1", None, 0.1),
        ("val_acc", None, 0.1),
        ("auroc_class_2", None, 0.1),
        ("val_rmse", None, 0.3),
        ("f1_loss", None, 0.3),
        ("score", None, 0.3),
        ("score", "max", 0.1),
        ("val_accuracy", "min", 0.3),
    ],
)
def test_the_number_says_whether_higher_is_better(by, mode, best):
    rows = gdtrain.sweep(
        lambda lr, seed: {by: lr and 0.5 - lr + seed / 100},
        {"lr": [0.1, 0.3], "seed": range(5)},
        by=by,
        mode=mode,
        progress=False,
    )
    assert rows.sentence() == f"Use lr={best}: it is better than every other setting."
    better = "higher" if best == 0.1 else "lower"
    assert f"{by} (mean, 95 %; {better} is better)" in str(rows).splitlines()[0] or by == "f1_loss"


def test_settings_that_are_equal_are_not_called_best():
    rows = rows_of({0.1: [1.0, 2.0], 0.3: [1.0, 2.0], 1.0: [3.0, 4.0]})
    assert Sweep(rows, ["lr", "seed"], None, interrupted=False).sentence() == (
        "lr=0.1 and lr=0.3 are equally good; with 2 seeds this is not conclusive, use at least 5."
    )


def test_a_number_that_runs_do_not_have_ends_the_sweep_at_the_first(tmp_path):
    made = []

    def measured(lr):
        made.append(lr)
        return {"val_r2": lr, "name": "text"}

    message = "^by: a run has no 'val_r3'; did you mean val_r2? it has val_r2$"
    with pytest.raises(ConfigError, match=message.replace("?", "[?]")):
        gdtrain.sweep(measured, {"lr": [0.1, 0.3, 0.5]}, by="val_r3", progress=False)
    assert made == [0.1]


def test_where_all_runs_fail_the_first_reason_is_told():
    rows = gdtrain.sweep(lambda lr: {"loss": 1 / 0}, {"lr": [0.1, 0.3]}, progress=False)
    assert rows.sentence() == (
        "No setting has a number for each of its runs; the first that failed: "
        "ZeroDivisionError: division by zero."
    )


def test_in_the_sentence_settings_of_two_things_are_told_apart():
    values = {(0.1, 8): [1.0, 1.1, 0.9, 1.0, 1.2], (0.3, 16): [1.1, 0.9, 1.0, 1.2, 1.0]}

    def both(scale):
        rows = [
            {"lr": lr, "batch_size": size, "seed": seed, "run": 0, "status": "done"}
            | {"val_loss": value * (scale if size == 16 else 1)}
            for (lr, size), own in values.items()
            for seed, value in enumerate(own)
        ]
        return Sweep(rows, ["lr", "batch_size", "seed"], None, interrupted=False).sentence()

    assert both(9) == "Use (lr=0.1, batch_size=8): it is better than every other setting."
    assert both(1).startswith(
        "These seeds do not distinguish (lr=0.1, batch_size=8) from (lr=0.3, batch_size=16) ("
    )


@pytest.mark.parametrize("name", ["batch_size", "loader.batch_size", "loader"])
def test_where_sizes_alone_were_varied_the_sentence_says_that_rates_were_not(name):
    rows = [
        {name: size, "seed": seed, "run": 0, "status": "done", "val_loss": size + 0.1 * seed}
        for size in (1, 8)
        for seed in range(5)
    ]
    assert Sweep(rows, [name, "seed"], None, interrupted=False).sentence() == (
        f"Use {name}=1: it is better than every other setting, each tried at one learning rate."
    )


def test_equal_settings_are_not_told_apart():
    draw = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        values = {lr: list(draw.lognormal(0, 1, 5)) for lr in (0.1, 0.2, 0.3)}
        sweep = Sweep(rows_of(values), ["lr", "seed"], None, interrupted=False)
        wrong += sweep.sentence().startswith("Use ")
    assert wrong <= 10


def test_rates_that_diverge_are_counted_and_out_of_the_running():
    values = {0.1: [1.0] * 5, 0.2: [0.95] * 5, 0.3: [2.0] * 5, 9.0: [None] * 5}
    sweep = Sweep(rows_of(values), ["lr", "seed"], None, interrupted=False)
    assert sweep.sensitivity() == {"all": 0.5}
    assert sweep.sentence() == "Use lr=0.2: it is better than every other setting."
    assert "5 diverged" in str(sweep)
    none = Sweep(rows_of({9.0: [None] * 5}), ["lr", "seed"], None, interrupted=False)
    assert none.sentence() == "No setting has a number for each of its runs."
    assert none.best is None


# ── several processes, and kills ────────────────────────────────────────────────────────────

SCRIPT = """
import sys, torch
from torch import nn
import gdtrain
from gdtrain import BatchLoader, Trainer

X = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)

def make(lr, seed):
    torch.manual_seed(seed)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, Y)), device="cpu")

rows = gdtrain.sweep(make, {"lr": [0.01, 0.1], "seed": range(6)}, epochs=300, jobs=int(sys.argv[1]),
                     directory=sys.argv[2])
print(rows)
"""


def rows_on_disk(directory):
    """(settings, train_loss) of each row."""
    found = [json.loads(path.read_text()) for path in Path(directory, "rows").glob("*.json")]
    return sorted((row["lr"], row["seed"], row["train_loss"]) for row in found)


@pytest.mark.long
def test_two_processes_give_the_same_rows_and_a_killed_sweep_goes_on(tmp_path):
    whole = [(lr, seed, alone(300, lr=lr, seed=seed)) for lr in (0.01, 0.1) for seed in range(6)]
    arguments = ["-c", SCRIPT, "2", str(tmp_path / "s")]
    with start(*arguments) as running:
        running.wait_for(lambda: len(list((tmp_path / "s/rows").glob("*.json"))) >= 2)
        running.send_signal(signal.SIGKILL)
        running.wait()
    before = rows_on_disk(tmp_path / "s")
    assert set(before) <= set(whole)
    with start(*arguments) as running:
        assert running.wait() == 0, running.err
    assert rows_on_disk(tmp_path / "s") == whole
