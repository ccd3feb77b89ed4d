"""The best checkpoint is the one of the undisturbed run, also where a run ended just before it."""

from pathlib import Path

from helpers.faults.failing_disks import trainer_in
from helpers.faults.power_cuts import store_in

from gdtrain.checkpoint.checkpoints import Checkpoints
from gdtrain.checkpoint.format import read_state
from gdtrain.training.callbacks.callback import Callback
from gdtrain.training.trainer import Trainer


class StopAfter(Callback):
    def __init__(self, step: int) -> None:
        super().__init__(every_n_steps=step)

    def on_safe_point(self, trainer: Trainer) -> None:
        trainer.stop("enough")


def trainer_with_best(root: Path) -> Trainer:
    """Of 3 updates an epoch; saves at the end of each, and when it ends."""
    trainer = trainer_in(root)
    store = store_in(root, 2)
    trainer.callbacks[:] = [Checkpoints(store, every_n_steps=3, keep_best="train_loss")]
    return trainer


def test_a_run_stopped_before_its_epoch_was_judged_marks_it_when_it_goes_on(tmp_path: Path) -> None:
    stopped = trainer_with_best(tmp_path)
    stopped.callbacks.append(StopAfter(3))
    stopped.fit(2)
    store = store_in(tmp_path, 2)
    assert (stopped.progress.epoch, stopped.progress.step) == (0, 3)
    assert store.best() is None
    _, state, _ = store.load_newest()
    del state["settings"]
    resumed = trainer_with_best(tmp_path)
    resumed.load_state_dict(state)
    resumed.fit(1)
    best = store.best()
    assert best is not None
    marked = read_state(best)["progress"]
    assert (marked["epoch"], marked["step"], marked["step_in_epoch"]) == (0, 3, 3)


def test_a_run_stopped_at_the_end_of_an_epoch_is_saved_though_nothing_was_due(
    tmp_path: Path,
) -> None:
    trainer = trainer_in(tmp_path)
    store = store_in(tmp_path, 2)
    trainer.callbacks[:] = [Checkpoints(store, keep_best="train_loss"), StopAfter(3)]
    trainer.fit(2)
    assert store.load_newest()[1]["progress"]["step"] == 3
