"""Whatever leaves a fit, a checkpoint of the last update is tried; what is raised is the cause."""

import errno
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from gdtrain import MiniBatchLoader, Trainer
from gdtrain.checkpoint.checkpoints import Checkpoints, CheckpointStore
from gdtrain.errors import StorageError


class OwnError(Exception):
    pass


class Raising(Trainer):
    """Raises in the middle of its fifth update."""

    error: BaseException = OwnError()

    def compute_loss(self, batch):
        if self.progress.step == 4 and self.error is not None:
            raise self.error
        return super().compute_loss(batch)

    def loss_weight(self, batch):
        return len(batch)


def trainer_in(folder: Path, error: BaseException | None) -> Raising:
    torch.manual_seed(0)
    x = torch.arange(12.0)[:, None] / 12
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saving = Checkpoints(CheckpointStore(folder))
    loader = MiniBatchLoader((x, x), 4, seed=1)
    trainer = Raising(model, nn.MSELoss(), optimizer, loader, callbacks=[saving], device="cpu")
    trainer.error = error
    return trainer


@pytest.mark.parametrize(
    "error",
    [OwnError("x"), MemoryError(), KeyboardInterrupt(), SystemExit(7), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_a_checkpoint_is_left_by_any_exception(tmp_path: Path, error: BaseException) -> None:
    trainer = trainer_in(tmp_path / "c", error)
    with pytest.raises(type(error)) as told:
        trainer.fit(3)
    assert told.value is error
    path, state, _ = CheckpointStore(tmp_path / "c").load_newest()
    assert path.name == "step-0000000004"
    again = trainer_in(tmp_path / "again", None)
    again.load_state_dict({key: value for key, value in state.items() if key != "settings"})
    again.fit(3)
    whole = trainer_in(tmp_path / "whole", None)
    whole.fit(3)
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_that_fails_then_is_a_note_to_the_cause(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path / "c", OwnError("x"))
    trainer.callbacks[0].store.directory.mkdir()
    trainer.callbacks[0].saved_at = (0, 0)
    trainer.callbacks[0].store.directory.rmdir()
    (tmp_path / "c").touch()
    with pytest.raises(OwnError) as told:
        trainer.fit(3)
    (note,) = told.value.__notes__
    assert note.startswith("then, at the end of the fit: StorageError: the checkpoint of step 4 ")
    assert "Not a directory" in note or "File exists" in note


def test_a_fit_that_is_over_leaves_no_thread(tmp_path: Path) -> None:
    """Which would keep the trainer, and memory of its own."""
    trainer = trainer_in(tmp_path / "c", None)
    before = threading.active_count()
    for epochs in (2, 4):
        trainer.fit(epochs)
        assert threading.active_count() == before
        path, _, _ = CheckpointStore(tmp_path / "c").load_newest()
        assert path.name == f"step-{3 * epochs:010d}"
    with pytest.raises(OwnError):
        trainer_in(tmp_path / "raises", OwnError("x")).fit(3)
    assert threading.active_count() == before


def test_nor_does_one_whose_last_checkpoint_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    trainer = trainer_in(tmp_path / "c", None)
    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(StorageError, match="could not be saved"):
        trainer.fit(2)
    assert threading.active_count() == before


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
