"""Saves whose power is cut: scenarios, and what must be on the disk afterwards."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.checkpoints import CheckpointStore
from gdtrain.checkpoint.format import read_state, verify
from gdtrain.errors import CheckpointError
from helpers.faults.fake_disk import DATA, Recorder, Tree, after_cuts, fast_directory, make_tree

LOG, CONFIG = "metrics.jsonl", "config.yaml"


def state_of(label: int) -> dict[str, Any]:
    """A state that can be told from that of any other label."""
    numbers = torch.arange(40.0).view(5, 8)
    return {
        "model": {"weight": numbers + label, "mask": numbers > label, "n": torch.tensor(label)},
        "progress": {"step": label, "loss": 0.1 * label},
        "history": [{"epoch": 1, "train_loss": label / 3}],
    }


def same(one: Any, other: Any) -> bool:
    """Whether two states are alike, bit for bit."""
    if isinstance(one, torch.Tensor):
        alike = isinstance(other, torch.Tensor) and one.dtype == other.dtype
        return alike and one.shape == other.shape and one.tolist() == other.tolist()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


class Run:
    """A run in ``root`` that saves, as a scenario tells it."""

    def __init__(self, recorder: Recorder, keep_last: int, place: str) -> None:
        self.recorder, self.root = recorder, recorder.root
        self.store = store_in(self.root, keep_last, place)

    def save(self, step: int, label: int) -> None:
        with self.recorder.promising("newest", label):
            self.store.save(step, state_of(label))

    def mark_best(self, step: int, label: int) -> None:
        with self.recorder.promising("best", label):
            path = self.store.newest(step)
            assert path is not None
            self.store.mark_best(path, 0.5)

    def replace(self, label: str) -> None:
        with self.recorder.promising(CONFIG, label):
            disk.replace_file(self.root / CONFIG, label.encode())

    def log(self, step: int) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        handle = os.open(self.root / LOG, flags, 0o666)
        os.write(handle, json.dumps({"kind": "step", "step": step}).encode() + b"\n")
        os.close(handle)


def store_in(root: Path, keep_last: int, place: str = "checkpoints") -> CheckpointStore:
    logs = [root / LOG] if place == "checkpoints" else []
    return CheckpointStore(root / place, keep_last, sync_first=logs)


@dataclass(frozen=True)
class Scenario:
    """before: what happened safely before the record starts, given the run's directory."""

    keep_last: int
    act: Callable[[Run], None]
    before: Callable[[Path], None] = lambda root: None
    at_first: dict[str, Any] | None = None
    newest_is_logged: bool = False
    damaged_before: int = 0
    place: str = "checkpoints"


def _saves(*steps: int) -> Callable[[Run], None]:
    def act(run: Run) -> None:
        for step in steps:
            run.save(step, step)

    return act


def _saved_before(keep_last: int, *steps: int) -> Callable[[Path], None]:
    def before(root: Path) -> None:
        store = store_in(root, keep_last)
        for step in steps:
            store.save(step, state_of(step))

    return before


def _same_step_again(run: Run) -> None:
    run.save(7, 7)
    run.save(7, 8)
    run.save(7, 9)


def _best(run: Run) -> None:
    run.save(1, 1)
    run.mark_best(1, 1)
    run.save(2, 2)
    run.save(3, 3)
    run.mark_best(3, 3)
    run.save(4, 4)


def _files(run: Run) -> None:
    for label in ("one", "two: longer than that", "3"):
        run.replace(label)


def _logged(run: Run) -> None:
    for step in range(1, 5):
        run.log(step)
        if step % 2 == 0:
            run.save(step, step)


def _log_made_later(run: Run) -> None:
    run.save(0, 0)
    _logged(run)


def _made_and_killed(run: Run) -> None:
    run.store.directory.mkdir()  # by a program that ended before it flushed anything
    run.save(1, 1)


def _remains(root: Path) -> None:
    _saved_before(3, 1, 2)(root)
    kept = root / "checkpoints"
    shutil.copytree(kept / "step-0000000001", kept / ".unfinished-step-0000000003")
    shutil.copytree(kept / "step-0000000002", kept / ".unfinished-removed-step-0000000001")
    (kept / ".unfinished-step-0000000003" / "state.json").write_bytes(b"half")
    (kept / ".unfinished-best.json").write_bytes(b"{")


def _undone(root: Path) -> None:
    """The newest two are damaged; the run was resumed from the one before."""
    _saved_before(5, 1, 2, 3)(root)
    for step in (2, 3):
        (root / "checkpoints" / f"step-000000000{step}" / "state.json").write_bytes(b"damaged")


SCENARIOS = {
    "the first save": Scenario(3, _saves(1)),
    "a second save, one kept": Scenario(1, _saves(1, 2)),
    "the first save, far down": Scenario(3, _saves(1), place="runs/mine/checkpoints"),
    "the directory made before": Scenario(1, _made_and_killed, place="runs"),
    "a log made after the first save": Scenario(2, _log_made_later, newest_is_logged=True),
    "more saves, three kept": Scenario(3, _saves(1, 2, 3, 4, 5)),
    "the same step again": Scenario(2, _same_step_again, _saved_before(2, 6), {"newest": 6}),
    "several pruned at once": Scenario(
        1, _saves(6), _saved_before(5, 1, 2, 3, 4, 5), {"newest": 5}
    ),
    "the best marked": Scenario(1, _best),
    "the start's replaced": Scenario(2, _saves(1), _saved_before(2, 0), {"newest": 0}),
    "config.yaml replaced": Scenario(1, _files),
    "the log before the checkpoint": Scenario(2, _logged, newest_is_logged=True),
    "after a crash": Scenario(3, _saves(3, 4), _remains, {"newest": 2}),
    "after damage, from an older one": Scenario(
        5, _saves(2), _undone, {"newest": 1}, damaged_before=2
    ),
}


@dataclass
class Figures:
    calls: int = 0
    states: int = 0
    broken: int = 0
    first: str = ""
    kinds: Counter[str] | None = None


def cut_everywhere(name: str, subsets: int, data: tuple[str, ...] = DATA) -> Figures:
    """Record a scenario, cut its power everywhere, and look at each disk that can be left."""
    scenario = SCENARIOS[name]
    with fast_directory() as place:
        root = Path(place) / "run"
        root.mkdir()
        scenario.before(root)
        recorder = Recorder(root)
        with recorder.active():
            scenario.act(Run(recorder, scenario.keep_last, scenario.place))
        figures = Figures(calls=len(recorder.calls), kinds=Counter(c[0] for c in recorder.calls))
        looked: dict[Any, tuple[dict[str, Any], list[str]]] = {}
        for cut, tree in after_cuts(recorder, subsets, data=data):
            key = frozenset(tree.items())
            if key not in looked:
                looked[key] = _look(Path(place) / f"cut-{len(looked)}", tree, scenario)
            seen, wrong = looked[key]
            wrong = list(wrong)
            for what in {promise.what for promise in recorder.promises}:
                allowed = recorder.allowed(what, cut, (scenario.at_first or {}).get(what))
                if seen[what] not in allowed:
                    wrong.append(f"{what} is {seen[what]}, not of {allowed}")
            figures.states += 1
            if wrong:
                figures.broken += 1
                figures.first = figures.first or f"cut before call {cut}: {'; '.join(wrong)}"
    return figures


def _look(root: Path, tree: Tree, scenario: Scenario) -> tuple[dict[str, Any], list[str]]:
    """What is found after a cut, and what is wrong whenever it was."""
    make_tree(root, tree)
    wrong: list[str] = []
    store = store_in(root, scenario.keep_last, scenario.place)
    seen = _found(root, store, wrong)
    if scenario.newest_is_logged and seen["newest"] is not None:
        lines = _content(root / LOG).split(b"\n")[: seen["newest"]]
        wanted = [f'{{"kind": "step", "step": {k + 1}}}'.encode() for k in range(seen["newest"])]
        if lines != wanted:
            wrong.append(f"the log lacks lines up to step {seen['newest']}")
    if len(seen["halves"]) > scenario.damaged_before:
        wrong += seen["halves"]
    _go_on(root, scenario, wrong)
    shutil.rmtree(root)
    return seen, wrong


def _found(root: Path, store: CheckpointStore, wrong: list[str]) -> dict[str, Any]:
    # halves: what bears a whole checkpoint's name
    seen: dict[str, Any] = {"newest": None, "best": None, CONFIG: None, "halves": []}
    try:
        seen["newest"] = _label(store.load_newest()[1], wrong)
    except CheckpointError as error:
        if "holds no checkpoint" not in str(error) and "no checkpoint can be used" not in str(
            error
        ):
            wrong.append(str(error))
    for path in store.directory.glob("step-*") if store.directory.is_dir() else ():
        try:
            verify(path)
        except CheckpointError as error:
            seen["halves"].append(str(error))
    best = store.best()
    if best is not None:
        seen["best"] = _label(read_state(best), wrong)
    if (root / CONFIG).exists():
        seen[CONFIG] = (root / CONFIG).read_text()
    return seen


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _label(state: dict[str, Any], wrong: list[str]) -> int:
    label = int(state["progress"]["step"])
    if not same(state, state_of(label)):
        wrong.append("a state was loaded that was never saved")
    return label


def _go_on(root: Path, scenario: Scenario, wrong: list[str]) -> None:
    """Whatever the cut has left, the run goes on saving, and nothing piles up."""
    for step in (11, 12):
        store = store_in(root, scenario.keep_last, scenario.place)
        store.save(step, state_of(step))
        if _label(store.load_newest()[1], wrong) != step:
            wrong.append("what was saved afterwards is not the newest")
    names = [path.name for path in store.directory.iterdir()]
    if sum(name.startswith("step-") for name in names) > scenario.keep_last + 1:
        wrong.append(f"{len(names)} checkpoints are kept")
    if any(name.startswith(disk.UNFINISHED) for name in names):
        wrong.append("something unfinished is never removed")
