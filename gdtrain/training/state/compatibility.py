"""Whether a state fits a trainer: looked at in full before anything is changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.data.loaders.loader import Loader
from gdtrain.data.orders.order import ORDER_VERSION
from gdtrain.data.streams.stream import StreamSamples
from gdtrain.errors import CheckpointError
from gdtrain.training.blocks import kept_plan
from gdtrain.training.callbacks.callback import named
from gdtrain.training.run import Run
from gdtrain.training.state import module_state, optimizer_state, own_state, schedule_state
from gdtrain.training.state.module_state import flagged, modules
from gdtrain.training.state.plain_values import (
    demand,
    is_count,
    is_finite,
    is_number,
    shown,
    shown_names,
)
from gdtrain.training.state.random_generators import RngState

logger = logging.getLogger("gdtrain")

PARTS = {
    *("model", "loss", "optimizer", "scheduler", "progress", "history", "callbacks"),
    *("lr", "rng", "data", "made_by", "flags", "order", "told", "stays_in_eval", "own"),
    *("loss_scale", "phase", "rates"),
}
# Parts that states of 0.1.0 do not have, and those that only some trainers have; and counters.
_SINCE = {"flags", "order", "told", "stays_in_eval", "own", "loss_scale", "phase", "rates"}
COUNTERS_SINCE = {"epoch_weight", "epoch_terms", "skipped"}


def check_fits(state: Any, trainer: Run, names: Mapping[Tensor, str]) -> None:
    """Raise CheckpointError unless ``state`` is one of a trainer that was built like this one.

    names: of the optimizer's parameters.
    """
    whole = isinstance(state, dict) and state.keys() | _SINCE == PARTS
    demand(whole, "it is not a trainer's state")
    _check_modules(state, trainer)
    optimizer_state.check_all(state["optimizer"], trainer.optimizers, names)
    _check_data(state["data"], trainer.loader)
    _check_progress(state, trainer.progress.state_dict(), trainer.loader)
    _check_schedules(state, trainer)
    demand(is_finite(state["lr"]), "lr is not a number")
    _check_rates(state.get("rates", {}), trainer)
    history = state["history"]
    demand(
        isinstance(history, list) and all(map(_is_record, history)),
        "its history is not a list of epochs",
    )
    demand(isinstance(state["callbacks"], dict), "callbacks is not a mapping")
    here, told = named(trainer.callbacks), state.get("told")
    named_ones = isinstance(told, list) and all(isinstance(name, str) for name in told)
    demand(told is None or (named_ones and bool(history)), "told is not a list of callbacks")
    demand(type(state.get("stays_in_eval", False)) is bool, "stays_in_eval is not true or false")
    for name in state["callbacks"]:
        demand(
            name in here,
            f"the state has a callback {shown(name)} that this trainer lacks",
        )
    if "loss_scale" in state:
        _check_scale(state["loss_scale"])
    if "own" in state or trainer.own_state:
        own_state.check(state.get("own", [{}]), trainer)
    demand(isinstance(state["made_by"], dict), "made_by is not a mapping")
    _check_rng(state["rng"], RngState.take(trainer.device).tensors())


def tell_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say what the last bits depend on and has changed since the state was taken."""
    changed = [
        f"{name} {shown(then.get(name))} then, {value} now"
        for name, value in now.items()
        if then.get(name) != value
    ]
    if changed:
        logger.warning(
            "resumed under other conditions (%s): the same samples in the same order, but the "
            "last bits may differ from an undisturbed run's",
            "; ".join(changed),
        )


def _check_modules(state: Mapping[str, Any], trainer: Run) -> None:
    flags, here = state.get("flags", {}), modules(trainer)
    demand(isinstance(flags, dict), "flags is not a mapping")
    for part in ("model", "loss"):
        module_state.check(part, state[part], here.get(part, nn.Module()))
    for part, module in flagged(trainer).items():
        if part in flags:
            module_state.check_flags(part, flags[part], module)


def _check_rates(found: Any, trainer: Run) -> None:
    """Of several optimizers, those of the last update by name."""
    numbers = isinstance(found, dict) and all(map(is_finite, found.values()))
    demand(numbers, "rates is not a mapping of numbers")
    demand(found.keys() <= trainer.optimizers.keys(), "rates: one is of no optimizer here")


def _check_schedules(state: Mapping[str, Any], trainer: Run) -> None:
    here, found, optimizers = trainer.schedule.schedulers, state["scheduler"], state["optimizer"]
    if "" in here or not here:
        groups = len(trainer.updater.param_groups), len(optimizer_state.groups_of(optimizers))
        schedule_state.check(found, here.get(""), groups)
        return
    several: Any = found.get("several") if isinstance(found, dict) else None
    same = isinstance(several, dict) and several.keys() == here.keys()
    demand(same, f"scheduler: the state's are not those here, {shown_names(here)}")
    for name, scheduler in here.items():
        of_state = len(optimizers["several"][name]["groups"])
        groups = len(trainer.optimizers[name].param_groups), of_state
        schedule_state.check(several[name], scheduler, groups)


_OF = {"data": " (checksums of the values)"}


def _check_data(found: Any, loader: Loader | None) -> None:
    if loader is None or found is None:
        return
    demand(isinstance(found, dict), "data is not a mapping")
    version = found.get("orders", 1)
    known = type(version) is int and 1 <= version <= ORDER_VERSION
    demand(known, f"its orders are of version {shown(version)}, which this gdtrain does not know")
    _trust_files(found, loader)
    here = loader.fingerprint(version)
    differing = [
        f"{name} {shown(found.get(name))} in the state, {value} here{_OF.get(name, '')}"
        for name, value in here.items()
        if found.get(name) != value
        and name != "files"
        and not (name == "data" and value is None)  # it can't be told
    ]
    demand(not differing, f"the data or loader is another: {'; '.join(differing)}")


def _trust_files(found: Mapping[str, Any], loader: Loader) -> None:
    """Spare a pass over files of the size and time of change that those of the state had."""
    files, digest = loader.samples.marks(), found.get("data")
    if files is not None and found.get("files") == files and type(digest) is int:
        loader.samples.trust(digest)


def _check_progress(state: Any, template: Mapping[str, Any], loader: Loader | None) -> None:
    found = state["progress"]
    complete = isinstance(found, dict) and found.keys() | COUNTERS_SINCE == template.keys()
    demand(complete, "progress is incomplete")
    for name, theirs in found.items():
        value = template[name]
        if name == "position":
            demand(
                theirs is None or (isinstance(theirs, list) and all(map(is_count, theirs))),
                "progress: position is no list of whole numbers",
            )
        elif name == "epoch_terms":
            demand(_are_sums(theirs), "progress: epoch_terms are no sums by name")
        elif isinstance(value, int):
            demand(is_count(theirs), f"progress: {name} is not a whole number >= 0")
        else:
            demand(is_finite(theirs), f"progress: {name} is not a number")
    steps, samples = found["step_in_epoch"], found["epoch_samples"]
    skipped = found.get("skipped", 0)
    demand(steps <= found["step"] + skipped, "progress: step_in_epoch is over step")
    demand(samples <= found["samples"], "progress: epoch_samples is over samples")
    none_made = skipped > 0 and samples == 0
    same = (samples > 0) == (steps > 0) or none_made
    demand(same, "progress: samples of the epoch without a step")
    if loader is None:
        return
    if isinstance(loader.samples, StreamSamples):
        place = found["position"]
        fits = place is None or len(place) == len(loader.samples.position)
        demand(fits, "progress: position is not one of this kind of stream")
        return
    plan = kept_plan(state.get("order"), loader, found["epoch"])
    if plan is None and loader.asked_order(found["epoch"]) is None:
        plan = loader.plan(found["epoch"])
    if plan is not None and steps:
        demand(steps <= len(plan), f"progress: step_in_epoch is {steps}, of {len(plan)}")
        most = min(plan.first_draw(steps), plan.num_samples)
        demand(samples <= most, f"progress: epoch_samples is {samples}, at most {most} can be")


def _check_scale(found: Any) -> None:
    keys = {"scale", "updates", "in_a_row"}
    demand(isinstance(found, dict) and set(found) == keys, "loss_scale is not complete")
    demand(is_finite(found["scale"]) and found["scale"] > 0, "loss_scale: scale is not > 0")
    counts = is_count(found["updates"]) and is_count(found["in_a_row"])
    demand(counts and found["updates"] < 2**31, "loss_scale: it has not counted so")


def _are_sums(found: Any) -> bool:
    """Whether it is a mapping of names to pairs of numbers, the second of which is a weight."""
    return isinstance(found, dict) and all(
        isinstance(name, str)
        and isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(map(is_number, pair))
        and pair[1] > 0
        for name, pair in found.items()
    )


def _is_record(record: Any) -> bool:
    """Whether it is what :meth:`Progress.close_epoch` and callbacks make of an epoch."""
    if not isinstance(record, dict) or "train_loss" not in record:
        return False
    numbers = ("epoch", "step", "samples", "train_loss", "seconds", "lr")
    return all(
        isinstance(key, str)
        and (is_number(value) or not (key in numbers or key.startswith("val_")))
        for key, value in record.items()
    )


def _check_rng(found: Any, here: Mapping[str, Tensor]) -> None:
    demand(isinstance(found, list) and len(found) > 0, "rng: there are no generators")
    try:
        for kept in found:
            state = RngState.of_tensors(kept)
            for tensor, own in ((state.cpu, here["cpu"]), (state.device, here.get("device"))):
                if tensor is not None and own is not None:
                    same = tensor.dtype == own.dtype and tensor.shape == own.shape
                    demand(same, "it is of another version of torch")
            torch.Generator().set_state(state.cpu)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"rng: {shown(str(error))}") from error
