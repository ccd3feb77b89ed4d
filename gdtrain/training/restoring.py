"""Whether a state fits a trainer: looked at in full before anything is changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gdtrain.data.loaders import Loader
from gdtrain.data.order import ORDER_VERSION
from gdtrain.data.stream import StreamSamples
from gdtrain.errors import CheckpointError
from gdtrain.training.epoch_plan import kept_plan
from gdtrain.training.optimizer_state import check_like, check_optimizer, demand
from gdtrain.training.plain import is_count, is_finite, is_number, shown, shown_names
from gdtrain.training.seeding import RngState

logger = logging.getLogger("gdtrain")

_PARTS = (
    *("model", "loss", "optimizer", "scheduler", "progress", "history", "callbacks"),
    *("lr", "rng", "data", "made_by"),
)


def check_fits(state: Any, template: dict[str, Any]) -> None:
    """Raise CheckpointError unless ``state`` is one of a trainer that was built like this one.

    template: what :func:`gdtrain.training.state.take_template` gives.
    """
    parts = set(state) - {"order"} if isinstance(state, dict) else None  # only some orders keep one
    demand(parts == set(_PARTS), "it is not a trainer's state")
    for part in ("model", "loss"):
        _check_tensors(part, state[part], template[part])
    check_optimizer(state["optimizer"], template)
    _check_data(state["data"], template["loader"])
    _check_progress(state, template["progress"], template["loader"])
    check_like("scheduler", state["scheduler"], template["scheduler"])
    _check_counts(state["scheduler"], template["scheduler"], state["progress"]["step"])
    demand(is_finite(state["lr"]), "lr is not a number")
    history = state["history"]
    demand(
        isinstance(history, list) and all(map(_is_record, history)),
        "its history is not a list of epochs",
    )
    demand(isinstance(state["callbacks"], dict), "callbacks is not a mapping")
    for name in state["callbacks"]:
        demand(
            name in template["callbacks"],
            f"the state has a callback {shown(name)} that this trainer lacks",
        )
    demand(isinstance(state["made_by"], dict), "made_by is not a mapping")
    _check_rng(state["rng"], template["rng"])


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


def _check_tensors(part: str, found: Any, expected: Mapping[str, Tensor]) -> None:
    demand(isinstance(found, dict), f"{part} is not a mapping")
    missing, foreign = expected.keys() - found.keys(), found.keys() - expected.keys()
    demand(not missing, f"{part}: the state lacks {shown_names(missing)}")
    there = f"the state has {shown_names(map(str, foreign))}"
    demand(not foreign, f"{part}: {there}, which is not in this {part}")
    for name, tensor in expected.items():
        theirs = found[name]
        demand(isinstance(theirs, Tensor), f"{part}: {name} is not a tensor")
        demand(
            theirs.shape == tensor.shape and theirs.dtype == tensor.dtype,
            f"{part}: {name} is {_said(theirs)} in the state and {_said(tensor)} here",
        )


def _check_data(found: Any, loader: Loader | None) -> None:
    if loader is None or found is None:
        return
    demand(isinstance(found, dict), "data is not a mapping")
    version = found.get("orders", 1)
    known = type(version) is int and 1 <= version <= ORDER_VERSION
    demand(known, f"its orders are of version {shown(version)}, which this gdtrain does not know")
    here = loader.fingerprint(version)
    differing = [
        f"{name} {shown(found.get(name))} in the state, {value} here"
        for name, value in here.items()
        if found.get(name) != value and not (name == "data" and value is None)  # it can't be told
    ]
    demand(not differing, f"the data or loader is another: {'; '.join(differing)}")


def _check_progress(state: Any, template: Mapping[str, Any], loader: Loader | None) -> None:
    found = state["progress"]
    names = template.keys() - {"epoch_weight"}  # which 0.1.0 did not have
    complete = isinstance(found, dict) and names <= found.keys() <= template.keys()
    demand(complete, "progress is incomplete")
    for name in template.keys() & found.keys():
        value = template[name]
        theirs = found[name]
        if name == "position":
            demand(
                theirs is None or (isinstance(theirs, list) and all(map(is_count, theirs))),
                "progress: position is no list of whole numbers",
            )
        elif isinstance(value, int):
            demand(is_count(theirs), f"progress: {name} is not a whole number >= 0")
        else:
            demand(is_finite(theirs), f"progress: {name} is not a number")
    steps, samples = found["step_in_epoch"], found["epoch_samples"]
    demand(steps <= found["step"], "progress: step_in_epoch is over step")
    demand(samples <= found["samples"], "progress: epoch_samples is over samples")
    demand((samples > 0) == (steps > 0), "progress: samples of the epoch without a step")
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
        most = min(steps * plan.batch_size, plan.num_samples)
        demand(samples <= most, f"progress: epoch_samples is {samples}, at most {most} can be")


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


def _check_counts(scheduler: Any, template: Any, steps: int) -> None:
    """Raise CheckpointError if a scheduler has counted more steps than were made."""
    if not isinstance(template, dict):
        return
    for key in ("last_epoch", "_step_count"):
        if key in template:
            most = steps + max(template[key], 0) + 1
            demand(0 <= scheduler[key] <= most, f"scheduler: {key} is not what it has counted")
    for number, one in enumerate(template.get("_schedulers", ())):
        _check_counts(scheduler["_schedulers"][number], one, steps)


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
