"""What a run of a sweep holds is free when it is over, and the next one finds nothing of it."""

import gc
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.small_runs import MOONS
from torch import nn

import gdtrain
from gdtrain import MiniBatchLoader, Trainer
from gdtrain.analysis.sweep.executor import MOST_GROWTH
from gdtrain.cli.main import main

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


@pytest.fixture(autouse=True)
def python_does_not_look() -> Iterator[None]:
    """Python would free cycles whenever it likes."""
    gc.disable()
    yield
    gc.enable()


def trainer(seed: int, engine: str = "eager") -> Trainer:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Trainer(
        model, nn.MSELoss(), optimizer, MiniBatchLoader((X, Y), 5), device="cpu", engine=engine
    )


def engine(name: str) -> str:
    if name == "scan":
        pytest.importorskip("jax")
    return name


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("name", ["eager", "scan"])
def test_no_run_finds_anything_of_those_before_it(name, on_disk, tmp_path):
    made: list[weakref.ref[Trainer]] = []
    alive: list[int] = []

    def make(seed: int) -> Trainer:
        alive.append(sum(one() is not None for one in made))
        made.append(weakref.ref(one := trainer(seed, engine(name))))
        return one

    where = tmp_path / "s" if on_disk else None
    gdtrain.sweep(make, {"seed": range(5)}, epochs=3, directory=where, progress=False)
    assert alive == [0] * 5
    assert made[-1]() is None


def test_arrays_of_xla_are_free_too():
    jax = pytest.importorskip("jax")
    alive = []

    def make(seed: int) -> Trainer:
        alive.append(len(jax.live_arrays()))
        return trainer(seed, "scan")

    gdtrain.sweep(make, {"seed": range(4)}, epochs=3, progress=False)
    assert alive == alive[:1] * 4


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["scan", "eager"])
def test_runs_of_the_command_leave_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs.yaml").write_text(MOONS)
    gc.collect()
    before = living()
    assert main(["sweep", "runs.yaml", f"engine={engine(name)}", "seed=0..4", "--quiet"]) == 0
    assert living() - before == set()


def test_what_fails_or_diverges_leaves_nothing_either():
    made: list[weakref.ref[Trainer]] = []
    alive: list[int] = []

    def make(seed: int) -> Trainer:
        alive.append(sum(one() is not None for one in made))
        one = trainer(seed)
        made.append(weakref.ref(one))
        if seed == 1:
            one.optimizer.param_groups[0]["lr"] = 1e30
        if seed == 2:
            raise RuntimeError("no such thing")
        return one

    rows = gdtrain.sweep(make, {"seed": range(4)}, epochs=9, progress=False)
    assert [row["status"] for row in rows] == ["done", "diverged", "failed", "done"]
    assert alive == [0] * 4


def test_a_trainer_that_its_maker_keeps_stays():
    kept = []

    def make(seed: int) -> Trainer:
        kept.append(trainer(seed))
        return kept[-1]

    gdtrain.sweep(make, {"seed": range(3)}, epochs=2, progress=False)
    assert [one.progress.epoch for one in kept] == [2, 2, 2]


@pytest.mark.parametrize("frozen", [False, True])
def test_what_python_looks_at_is_as_it_was(frozen):
    by_others = gc.get_freeze_count()
    gc.unfreeze()
    if frozen:
        gc.freeze()
    try:
        gdtrain.sweep(trainer, {"seed": range(2)}, epochs=1, progress=False)
        assert (gc.get_freeze_count() > 0) is frozen
    finally:
        gc.unfreeze()
        if by_others:
            gc.freeze()


def test_joblib_has_the_bound_that_is_raised():
    loky = pytest.importorskip("joblib.externals.loky.process_executor")
    assert 0 < loky._MAX_MEMORY_LEAK_SIZE <= MOST_GROWTH


@pytest.mark.long
def test_a_worker_that_compiles_is_not_restarted():
    """What it has imported and compiled is no leak; its first task had none of it."""
    pytest.importorskip("joblib")
    rows = gdtrain.sweep(grown, {"seed": range(8)}, jobs=2, by="pid", progress=False)
    assert len({row["pid"] for row in rows}) == 2


KEPT: list[torch.Tensor] = []


def grown(seed: int) -> dict[str, int]:
    """The process, which is 400 MB larger from its second run on, a second after the first."""
    if seed > 1 and not KEPT:
        KEPT.append(torch.ones(100_000_000))
    time.sleep(1.1)  # joblib looks once a second
    return {"pid": os.getpid()}


@pytest.mark.long
def test_nor_do_runs_in_other_processes(tmp_path):
    pytest.importorskip("joblib")
    rows = gdtrain.sweep(counted, {"seed": range(12)}, jobs=2, by="alive", progress=False)
    assert [row["alive"] for row in rows] == [0] * 12


def counted(seed: int) -> dict[str, int]:
    """How many trainers there are before one is made."""
    gc.disable()
    alive = len(living())
    trainer(seed).fit(2, progress=False)
    return {"alive": alive}


def living() -> set[int]:
    return {id(one) for one in gc.get_objects() if type(one) is Trainer}
