"""Errors of data sets, collate functions and workers: raised as they are, and nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, default_collate

from gdtrain import Callback, MiniBatchLoader, Trainer
from gdtrain.data.sources import WorkerError
from gdtrain.data.streams.record_feed import RecordFeed
from gdtrain.errors import ConfigError, DataError

N, SIZE = 20, 2


class OwnError(Exception):
    """Takes two arguments, which torch's own passing on of errors does not bear."""

    def __init__(self, what: str, where: int) -> None:
        super().__init__(what, where)
        self.where = where


class Rows(Dataset[Any]):
    """The items of which one can't be read, once or always."""

    def __init__(self, at: int, kind: str = "runtime", once: bool = True) -> None:
        self.at, self.kind, self.once, self.failed = at, kind, once, False

    def __len__(self) -> int:
        return N

    def fail(self) -> None:
        if self.once and self.failed:
            return
        self.failed = True
        if self.kind == "own":
            raise OwnError("bad", self.at)
        if self.kind == "stop":
            raise StopIteration
        if self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"runtime": RuntimeError, "key": KeyError, "memory": MemoryError}[self.kind]("bad")

    def __getitem__(self, i: int) -> Any:
        if i == self.at:
            self.fail()
        return torch.full((1,), float(i)), torch.zeros(1)


class Count(nn.Module):
    """Its weight counts the updates: at lr 1 it is minus their number, for its gradient is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Any) -> Any:
        return self.w + 0.0 * x

    @property
    def updates(self) -> int:
        return -int(self.w.detach())


def make(data: Any, **options: Any) -> Trainer:
    model = Count()
    loader = MiniBatchLoader(data, SIZE, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return Trainer(model, lambda output, targets: output.mean(), optimizer, loader, device="cpu")


def updates(trainer: Trainer) -> int:
    made = trainer.model.updates
    assert isinstance(made, int)
    assert made == trainer.progress.step
    return made


@pytest.mark.few(4)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [0, 7, N - 1])
@pytest.mark.parametrize(
    ("kind", "error"),
    [("runtime", RuntimeError), ("key", KeyError), ("memory", MemoryError), ("own", OwnError)],
)
def test_an_item_that_cant_be_read_is_its_own_error(
    kind: str, error: type[Exception], at: int, workers: int
) -> None:
    data = Rows(at, kind)
    trainer = make(data, order="sequential", num_workers=workers)
    with pytest.raises(error) as caught:
        trainer.fit(1)
    assert type(caught.value) is error
    assert caught.value.args == (("bad", at) if kind == "own" else ("bad",))
    assert isinstance(caught.value.__cause__, WorkerError) == (workers > 0)
    assert updates(trainer) == at // SIZE
    data.failed = True  # workers had copies
    trainer.fit(1)
    assert updates(trainer) == N // SIZE
    assert trainer.progress.samples == N


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_function_that_fails_is_its_own_error(workers: int) -> None:
    def collate(items: list[Any]) -> Any:
        if items[0][0] == 8.0:
            raise OwnError("collate", 8)
        return default_collate(items)

    trainer = make(Rows(-1), order="sequential", collate_fn=collate, num_workers=workers)
    with pytest.raises(OwnError, match="collate") as caught:
        trainer.fit(1)
    assert caught.value.where == 8
    assert updates(trainer) == 4


def test_what_cant_go_to_another_process_is_told_by_its_text() -> None:
    class LocalError(RuntimeError):
        def __reduce__(self) -> Any:
            raise TypeError("not to be pickled")

    def collate(items: list[Any]) -> Any:
        raise LocalError("said in words")

    with pytest.raises(RuntimeError, match=r"^LocalError: said in words$"):
        make(Rows(-1), collate_fn=collate, num_workers=1).fit(1)


def test_errors_of_gdtrain_go_to_another_process() -> None:
    for error in (ConfigError.of("order", "is wrong"), DataError("is wrong")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)


def test_a_worker_that_is_killed_is_an_error() -> None:
    trainer = make(Rows(9, "killed"), order="sequential", num_workers=1)
    with pytest.raises(
        DataError,
        match=r"a DataLoader worker has died \((killed by signal: Killed|exit code -9)\) while",
    ):
        trainer.fit(1)
    assert updates(trainer) <= 4


class Ends(Callback):
    """Ends a worker after the first update; by SIGTERM of its own process, its code is 0."""

    def on_fit_start(self, trainer: Trainer) -> None:
        self.others = set(multiprocessing.active_children())  # of tests before this one

    def on_safe_point(self, trainer: Trainer) -> None:
        if trainer.step == 1:
            (set(multiprocessing.active_children()) - self.others).pop().terminate()


@pytest.mark.few(1)
@pytest.mark.parametrize("attempt", range(4))  # torch or the system may be the first to tell
def test_a_worker_that_is_terminated_is_an_error(attempt: int) -> None:
    trainer = make(Rows(-1), order="sequential", num_workers=2)
    trainer.callbacks.append(Ends(every_n_steps=1))
    with pytest.raises(DataError, match=r"^a DataLoader worker has died \("):
        trainer.fit(50)
    assert 1 <= updates(trainer) <= N // SIZE


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


class Generated(IterableDataset[Any]):
    """A generator, which is at its end after an error."""

    def __init__(self, at: int, error: Exception) -> None:
        self.at, self.error = at, error

    def __iter__(self) -> Iterator[Any]:
        for i in range(N):
            if i == self.at:
                raise self.error
            yield torch.full((1,), float(i)), torch.zeros(1)


class Continued(Generated):
    """An iterator that goes on after an error."""

    def __iter__(self) -> Iterator[Any]:
        items, places, error = Rows(-1), iter(range(N)), [self.error]

        class Items:
            def __iter__(self) -> Any:
                return self

            def __next__(self_) -> Any:  # noqa: N805
                if error and items_given == self.at:
                    raise error.pop()
                return items[next(places)]

        items_given = -1

        class Counted(Items):
            def __next__(self) -> Any:
                nonlocal items_given
                items_given += 1
                return super().__next__()

        return Counted()


@pytest.mark.parametrize("at", [0, 1, 10, 11, N - 1])
@pytest.mark.parametrize("error", [RuntimeError("bad"), OwnError("bad", 3)])
def test_a_stream_that_fails_loses_no_batch_before_it(at: int, error: Exception) -> None:
    trainer = make(Generated(at, error))
    for _ in range(2):  # it fails again when it is iterated again
        with pytest.raises(type(error), match="bad") as caught:
            trainer.fit(1)
        assert caught.value is error
        assert updates(trainer) == at // SIZE


@pytest.mark.parametrize("at", [0, 1, 10, 11, N - 1])
def test_a_generator_that_fails_once_goes_on_where_it_was(at: int) -> None:
    """It is iterated again, past the items that were read."""
    data = Generated(at, RuntimeError("bad"))
    trainer, undisturbed = make(data), make(Generated(-1, RuntimeError()))
    undisturbed.fit(1)
    with pytest.raises(RuntimeError, match="bad"):
        trainer.fit(1)
    data.at = -1
    trainer.fit(1)
    assert updates(trainer) == N // SIZE
    assert trainer.progress.samples == N
    for one, other in zip(trainer.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("at", [0, 1, 10, 11, N - 1])
def test_a_stream_that_can_goes_on_after_an_error(at: int) -> None:
    trainer = make(Continued(at, RuntimeError("bad")))
    with pytest.raises(RuntimeError, match="bad"):
        trainer.fit(1)
    assert updates(trainer) == at // SIZE
    trainer.fit(1)
    assert updates(trainer) == N // SIZE
    assert trainer.progress.samples == N


def test_an_error_in_the_thread_of_a_stream_is_raised_in_the_trainer(tmp_path, monkeypatch) -> None:
    path = tmp_path / "s.csv"
    path.write_text("x,y\n" + "1,2\n" * 10)

    def fail(self: Any, *arguments: Any) -> Any:
        raise RuntimeError("in the thread")

    from gdtrain.config.build import build
    from gdtrain.config.load import parse_config

    run = build(
        parse_config(
            {
                "data": {"source": "stream", "format": "csv", "path": str(path), "target": "y"},
                "model": "linear",
                "loss": "mse",
                "loader": {"name": "minibatch", "batch_size": 2},
                "optimizer": {"lr": 0.1},
                "epochs": 1,
            }
        )
    )
    feed = run.loader.samples.feed  # type: ignore[attr-defined]
    assert isinstance(feed, RecordFeed)
    monkeypatch.setattr(type(feed._parse), "__call__", fail)
    with pytest.raises(RuntimeError, match="in the thread"):
        run.trainer.fit(1)
    assert run.trainer.progress.step == 0
