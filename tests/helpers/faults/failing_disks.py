"""Saves on a disk that fails: every call in turn, with every error, once or from then on."""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer
from gdtrain.checkpoint.checkpoints import Checkpoints, CheckpointStore
from gdtrain.errors import CheckpointError, StorageError
from helpers.faults.fake_disk import ERRORS, Failing, fast_directory
from helpers.faults.power_cuts import same, state_of, store_in

SHORT_WRITE = 0
Way = tuple[int, bool]  # errno, and whether all calls after it fail too
WAYS: list[Way] = [*itertools.product(ERRORS, (False, True)), (SHORT_WRITE, True)]


@dataclass
class Figures:
    """silent: failures of which nobody was told, or after which something else was on the disk
    than was said. told: those that raised, or were logged."""

    calls: int = 0
    cases: int = 0
    told: int = 0
    silent: int = 0
    first: str = ""

    def blame(self, case: str, wrong: str) -> None:
        self.silent += 1
        self.first = self.first or f"{case}: {wrong}"


def fail_saves(ways: Callable[[int], Iterable[Way]]) -> Figures:
    """One save and its mark as the best, with checkpoints 1 (the best) and 2 on the disk.

    ways: how the n-th call is to fail, for each n.
    """
    figures = Figures()
    with fast_directory() as place:
        figures.calls = _fail_save(Path(place) / "count", -1, (errno.EIO, False), Figures())
        for n in range(figures.calls):
            for way in ways(n):
                figures.cases += 1
                _fail_save(Path(place) / f"{n}-{way}", n, way, figures)
    return figures


def _judged(
    figures: Figures, failing: Failing, way: Way, raised: Exception | None, *, heard: bool
) -> str:
    """Whether a fault was reported, with its file; the case in words."""
    case = f"{failing.failed[:1]}, {ERRORS.get(way[0], 'short write')}, forever={way[1]}"
    figures.told += heard
    if failing.failed and not heard and way[0] != SHORT_WRITE:
        figures.blame(case, "nothing was raised or logged")
    if raised is not None and str(failing.below) not in str(raised):
        figures.blame(case, f"{raised} names no file")
    return case


def _fail_save(root: Path, n: int, way: Way, figures: Figures) -> int:
    root.mkdir()
    (root / "metrics.jsonl").write_text("{}\n")
    store = store_in(root, 2)
    store.mark_best(store.save(1, state_of(1)), 0.5)
    store.save(2, state_of(2))
    handles = _open_files()
    failing = Failing(root, n, *way, reading=True)
    raised: Exception | None = None
    saved = False
    with told() as messages, failing.active():
        try:
            store = store_in(root, 2)
            path = store.save(3, state_of(3))
            saved = True
            store.mark_best(path, 0.4)
        except OSError as error:
            raised = error
    case = _judged(figures, failing, way, raised, heard=raised is not None or bool(messages))
    if way[0] == SHORT_WRITE and raised is not None:
        figures.blame(case, f"{raised!r}, although a short write is no failure")
    if _open_files() != handles:
        figures.blame(case, "a file was left open")
    store = store_in(root, 2)
    path, state, _ = store.load_newest()
    step = int(state["progress"]["step"])
    if not same(state, state_of(step)) or step not in ((3,) if saved else (2, 3)):
        figures.blame(case, f"saved: {saved}, and step {step} is the newest")
    best = store.best()
    if best is None or best.name not in {f"step-000000000{k}" for k in (1, 3)[: 1 + saved]}:
        figures.blame(case, f"{best} is the best")
    if n >= 0:
        store.save(4, state_of(4))  # the disk works again
        if not same(store.load_newest()[1], state_of(4)):
            figures.blame(case, "what was saved afterwards is not the newest")
    return failing.count


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# ── a whole fit, with saves in the background ────────────────────────────────────────────────


def fail_fits(ways: Callable[[int], Iterable[Way]]) -> Figures:
    """A fit of 6 updates that saves after every second one: it raises, or ends well saved."""
    figures = Figures()
    with fast_directory() as place:
        figures.calls = _fail_fit(Path(place) / "count", -1, (errno.EIO, False), Figures())
        for n in range(figures.calls):
            for way in ways(n):
                figures.cases += 1
                _fail_fit(Path(place) / f"{n}-{way}", n, way, figures)
    return figures


def trainer_in(root: Path) -> Trainer:
    torch.manual_seed(0)
    x = torch.arange(24.0).view(12, 2) / 24
    model = nn.Linear(2, 1)
    return Trainer(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        MiniBatchLoader((x, x.sum(1, keepdim=True)), 4, seed=1),
        device="cpu",
        callbacks=[
            Checkpoints(
                CheckpointStore(root / "checkpoints", 2), every_n_steps=2, retry_seconds=()
            ),
        ],
    )


def _fail_fit(root: Path, n: int, way: Way, figures: Figures) -> int:
    root.mkdir()
    trainer = trainer_in(root)
    failing = Failing(root, n, *way, reading=True)
    raised: Exception | None = None
    with told() as messages, failing.active():
        try:
            trainer.fit(2)
        except StorageError as error:
            raised = error
    case = _judged(figures, failing, way, raised, heard=raised is not None or bool(messages))
    store = CheckpointStore(root / "checkpoints", 2)
    try:
        state = store.load_newest()[1]
        step = state["progress"]["step"]
    except CheckpointError:
        step = None
    if raised is None and step != 6:
        figures.blame(case, f"the fit ended well, and the newest checkpoint is of step {step}")
    if step is not None:
        other = trainer_in(root)
        other.load_state_dict({k: v for k, v in state.items() if k != "settings"})
        other.fit(2)
        if not same(dict(other.model.state_dict()), _undisturbed()):
            figures.blame(case, f"step {step} goes on to other weights")
    return failing.count


_WEIGHTS: list[dict[str, torch.Tensor]] = []


def _undisturbed() -> dict[str, torch.Tensor]:
    if not _WEIGHTS:
        with fast_directory() as place:
            trainer = trainer_in(Path(place))
            trainer.fit(2)
            _WEIGHTS.append(dict(trainer.model.state_dict()))
    return _WEIGHTS[0]


@contextmanager
def told() -> Iterator[list[str]]:
    """The warnings that gdtrain logs meanwhile."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("gdtrain"), Keep()
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield messages
    finally:
        logger.propagate = propagates
        logger.removeHandler(handler)
