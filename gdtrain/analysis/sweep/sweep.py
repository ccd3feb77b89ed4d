"""Many runs over a grid of settings, each once, whatever ends the sweep in between."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gdtrain.analysis.sweep.executor import Workers
from gdtrain.analysis.sweep.grid import Point, points_of
from gdtrain.analysis.sweep.result import Mode, Row, Sweep
from gdtrain.analysis.sweep.run_points import run_points
from gdtrain.analysis.sweep.store import SweepStore
from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.checkpoints import Checkpoints, CheckpointStore
from gdtrain.data.checks import whole_number
from gdtrain.errors import ConfigError, NonFiniteError, reason_of
from gdtrain.output.run_directory import locked
from gdtrain.training.trainer import Trainer
from gdtrain.wording import first_guesses

logger = logging.getLogger("gdtrain")

_OWN = ("run", "status", "reason", "killed")  # what a row has besides settings and numbers
_one_at_a_time = threading.Lock()  # PyTorch's generators are the process's


@first_guesses(num_epochs="is called epochs here: sweep(make, grid, epochs=100)")
def sweep(
    make: Callable[..., Trainer | Mapping[str, Any]],
    grid: Mapping[str, Sequence[Any]],
    *,
    epochs: int | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    random: int | None = None,
    random_seed: int = 0,
    by: str | None = None,
    mode: Mode | None = None,
    directory: str | Path | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Train once at each point of a grid, and return the rows: flat dicts, ready for pandas.

    make: called with a point's settings as keywords, ``make(lr=0.1, seed=3)``; returns a new
    Trainer, which is trained for ``epochs``, or a mapping of numbers that it has measured itself.
    grid: the values of each setting; runs are averaged over ``seed``.
    random: take this many of the combinations, drawn with ``random_seed``, each with every seed.
    jobs: processes on this machine, which needs joblib (``pip install 'gdtrain[sweep]'``);
    they start and import once, and each run has one thread. cluster: the address of a Dask
    scheduler instead (``gdtrain[cluster]``).
    by: the number by which settings are compared; ``val_loss`` if there is one, else
    ``train_loss``. mode: ``min`` or ``max``, whether lower or higher is better; if left out, the
    number's name decides: max for accuracy, r2, f1, precision, recall, auroc, auc and iou, min for
    all others. progress: a bar with the best run so far; on terminals, if left out.
    directory: for rows and checkpoints. Called again with it, the sweep continues where it was:
    finished runs are not repeated, and the grid may have grown.

    A run that diverges or raises is a row with its reason. Ctrl-C returns the rows so far, with
    ``interrupted`` set. Raises ConfigError for a wrong grid, OutputError for a directory that
    belongs to something else, MissingPackageError without joblib or Dask.

    >>> import torch
    >>> from torch import nn
    >>> from gdtrain import BatchLoader, Trainer, sweep
    >>> X = torch.linspace(-1, 1, 20).view(20, 1)
    >>> def make(lr, seed):
    ...     torch.manual_seed(seed)
    ...     model = nn.Linear(1, 1)
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    ...     return Trainer(model, nn.MSELoss(), optimizer, BatchLoader((X, 3 * X)), device="cpu")
    >>> rows = sweep(make, {"lr": [0.01, 0.3], "seed": range(5)}, epochs=5)
    >>> len(rows), rows.best["lr"]
    (10, 0.3)
    """
    points = points_of(grid, random=random, random_seed=random_seed)
    whole_number("jobs", jobs, minimum=1)
    if epochs is not None:
        whole_number("epochs", epochs, minimum=1)
    reserved = [name for name in grid if name in _OWN]
    if reserved:
        raise ConfigError.of(f"grid.{reserved[0]}", "is a column of the rows; name it otherwise")
    workers = Workers(jobs, cluster)
    store = None
    if directory is not None:
        _check_plain(grid)
        store = SweepStore(Path(directory))
    function = partial(_train, make, epochs, None if store is None else store.directory)
    with workers:
        rows = run_points(
            function,
            points,
            list(grid),
            store=store,
            base={"epochs": epochs},
            resume=True,
            workers=workers,
            by=by,
            mode=mode,
            progress=progress,
        )
    if rows and all(row["status"] == "failed" for row in rows):
        logger.warning("every run of the sweep failed; the first: %s", rows[0]["reason"])
    return rows


def _check_plain(grid: Mapping[str, Sequence[Any]]) -> None:
    for name, values in grid.items():
        try:
            json.dumps(list(values))
        except TypeError:
            message = "holds what a file can't keep; give numbers and names, and make of them"
            raise ConfigError.of(f"grid.{name}", f"{message} what the run needs") from None


# ── one run ─────────────────────────────────────────────────────────────────────────────────


def _train(
    make: Callable[..., Trainer | Mapping[str, Any]],
    epochs: int | None,
    directory: Path | None,
    number: int,
    point: Point,
) -> Row:
    """Make what is to be trained and train it; what went wrong is in the row."""
    with _one_at_a_time:
        try:
            made = make(**point)
            if not isinstance(made, Trainer):
                return {"status": "done", "reason": None, **_numbers(made)}
            return _fit(made, epochs, directory, number)
        except ConfigError:
            raise
        except Exception as error:
            return {"status": "failed", "reason": reason_of(error)}


def _fit(trainer: Trainer, epochs: int | None, directory: Path | None, number: int) -> Row:
    if epochs is None and not trainer.progress.step:
        raise ConfigError.of("epochs", "missing; give the number of epochs to train for")
    if directory is None:
        return _fitted(trainer, epochs)
    run = SweepStore(directory).run_directory(number)
    disk.make_directory(run)
    with locked(run, waits=True):  # a worker of a sweep that was killed may still train there
        _take_up(trainer, run / "checkpoints")
        return _fitted(trainer, epochs)


def _fitted(trainer: Trainer, epochs: int | None) -> Row:
    status, reason = "done", None
    try:
        if epochs is not None:
            trainer.fit(epochs, progress=False)  # the sweep has a bar of its own
        if trainer.stop_reason is not None:
            status, reason = "stopped", trainer.stop_reason
    except NonFiniteError as error:
        status, reason = "diverged", str(error)
    return {
        "status": status,
        "reason": reason,
        "epochs": trainer.progress.epoch,
        "updates": trainer.progress.step,
        "seconds": trainer.progress.seconds,
        **_numbers(trainer.history[-1] if trainer.history.epochs else {}),
    }


def _take_up(trainer: Trainer, directory: Path) -> None:
    """Go on from the newest checkpoint, and save further ones every half minute."""
    store = CheckpointStore(directory, keep_last=1)
    checkpoints = Checkpoints(store, every_seconds=30.0)
    if not store.is_empty():
        _, state, _ = store.load_newest()
        state.pop("settings", None)
        trainer.load_state_dict(state)
        checkpoints.saved_at = (trainer.progress.epoch, trainer.progress.step)
    trainer.callbacks.append(checkpoints)


def _numbers(measured: Mapping[str, Any]) -> Row:
    """What was measured, as plain numbers; what is not a number stays as text."""
    found: Row = {}
    for name, value in measured.items():
        if name in ("epoch", "step"):
            continue
        if isinstance(value, torch.Tensor) or hasattr(value, "item"):
            value = value.item()
        plain = isinstance(value, bool | int | float | str) or value is None
        found[name] = value if plain else str(value)
        if isinstance(value, float) and not math.isfinite(value):
            found[name] = None
    return found
