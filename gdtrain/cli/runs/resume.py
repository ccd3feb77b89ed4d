"""Going on with a run: the newest checkpoint that can be used, and proof that it is of this run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gdtrain import registry
from gdtrain.checkpoint.checkpoints import Checkpoints
from gdtrain.checkpoint.consistency import check_consistent
from gdtrain.checkpoint.expected_tensors import share_of, tensor_check
from gdtrain.config.build import BuiltRun, all_schedules
from gdtrain.config.load import check, dump, load_config
from gdtrain.config.schema import Config
from gdtrain.config.yaml_source import read_text
from gdtrain.errors import CheckpointError, ConfigError
from gdtrain.output import run_directory
from gdtrain.registry import shown
from gdtrain.training.state import snapshot
from gdtrain.training.state.compatibility import check_fits

# What may be another for a run that ends with the bits of one left alone: how long it is, where it
# runs, and who looks on. All else must match, and so must a section that comes in later.
_FREE = {
    *("epochs", "device", "strategy", "process_timeout"),
    *("log", "checkpoint", "monitors"),
}
_MUST_MATCH = tuple(key for key in Config.model_fields if key not in _FREE)
# What of a data source only decides how the run goes on from here.
_MAY_DIFFER = {"stream": ("follow", "on_bad_line", "window")}


def take_up(
    run: BuiltRun,
    directory: Path,
    checkpoints: Checkpoints,
    verify_data: bool,
    tell: Callable[[str], None],
) -> int:
    """Put the trainer into the state of the newest checkpoint that can be used.

    verify_data: compare mapped data by their bytes, though the files seem to be unchanged.
    tell: called on rank 0 with which one that is, and which were skipped and why.
    Returns how many bytes the log must have at least. Raises CheckpointError if
    there is none, or if it is of another configuration, model or data, naming both sides.
    """
    _check_same_settings(directory, run.config)
    trainer, store = run.trainer, checkpoints.store
    path, state, skipped = store.load_newest(tensor_check(trainer), share=share_of(trainer))
    if verify_data and isinstance(state["data"], dict):
        state["data"].pop("files", None)
    try:
        settings = state.pop("settings", None)
        checkpoints.best = _check_settings(path, settings, run.config)
        snapshot.enter_phase_of(state, trainer)
        with trainer.world.agreeing(CheckpointError):
            check_fits(state, trainer, snapshot.parameter_names(trainer))
            check_consistent(state, trainer)
        trainer.load_state_dict(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: is not of this run; {error}") from error
    begun = trainer.progress.epoch + (trainer.progress.step_in_epoch > 0)
    if begun > run.config.epochs:
        raise CheckpointError(
            f"{path} is of epoch {begun}, and epochs, which counts from the start of the run, is "
            f"{run.config.epochs}; give at least {begun}"
        )
    checkpoints.saved_at = (trainer.progress.epoch, trainer.progress.step)
    if trainer.world.rank == 0:
        store.remove_remains()
        for reason in skipped:
            tell(f"skipped a checkpoint: {reason}")
        tell(f"resuming from {path}")
    least = settings.get("log_bytes", 1 if trainer.progress.step else 0)
    return least if type(least) is int else 1


def _check_same_settings(directory: Path, config: Config) -> None:
    there = load_config(directory / run_directory.CONFIG)[0]
    _compare(str(directory), there, config)


def _check_settings(path: Path, settings: Any, config: Config) -> float:
    """Look at the settings kept in a checkpoint; return its best metric."""
    held = settings if isinstance(settings, dict) else {}
    text, best = held.get("config"), held.get("best")
    if not isinstance(text, str) or not isinstance(best, float) or best != best:
        raise CheckpointError("its settings are not those of a run")
    try:
        there = check(read_text(text, f"{path}: settings"))
    except ConfigError as error:
        raise CheckpointError(f"its settings can't be read; {error.faults[0]}") from error
    _compare(str(path), there, config)
    return best


def _compare(name: str, there: Config, here: Config) -> None:
    theirs = there.model_dump()
    # As it will be read the next time: a tuple among a registered model's options is a list.
    ours = check(read_text(dump(here), "")).model_dump()
    for settings in (theirs, ours):
        for key in _MAY_DIFFER.get(settings["data"]["source"], ()):
            del settings["data"][key]
    # Such as a cosine schedule, which depends on how many epochs there are in all.
    schedules = [one for _, one in all_schedules(here)]
    by_length = any(registry.find("schedule", one.name).takes("total") for one in schedules)
    differing = [
        f"{path} is {shown(a)} there and {shown(b)} here{_by_schedule(path, schedules)}"
        for key in ((*_MUST_MATCH, "epochs") if by_length else _MUST_MATCH)
        for path, a, b in _differences(key, theirs[key], ours[key])
    ]
    if differing:
        raise CheckpointError(
            f"{name} was started with other settings: {'; '.join(differing)}; resume with the "
            "run's own settings, or start a new run"
        )


def _by_schedule(path: str, schedules: Sequence[Any]) -> str:
    """Why the number of epochs, of all settings, can't be another one."""
    if path != "epochs":
        return ""
    named = [one.name for one in schedules if registry.find("schedule", one.name).takes("total")]
    return f", by which the schedule {named[0]} computes its rates"


def _differences(path: str, theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """What differs: (path, theirs, ours); of sections of two forms, only the form's name."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        form = [tag for tag in ("source", "name") if theirs.get(tag) != ours.get(tag)]
        if form or theirs.keys() == ours.keys():
            for key in form or theirs:
                yield from _differences(f"{path}.{key}", theirs.get(key), ours.get(key))
            return
    if theirs != ours:
        yield path, theirs, ours
