"""A trainer's whole state as plain values and tensors: take a snapshot, put it back."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gdtrain.data.orders.order import mix
from gdtrain.errors import CheckpointError
from gdtrain.training.blocks import kept_plan, order_state, restore_source
from gdtrain.training.callbacks.callback import Callback, among, named
from gdtrain.training.descent import note_step
from gdtrain.training.placement.sharding import in_parts
from gdtrain.training.run import Run
from gdtrain.training.state import module_state, optimizer_state, own_state, schedule_state
from gdtrain.training.state.compatibility import check_fits, tell_differences
from gdtrain.training.state.module_state import flagged, modules
from gdtrain.training.state.plain_values import copied, demand
from gdtrain.training.state.random_generators import RngState, seed_everything


def take(trainer: Run) -> dict[str, Any]:
    """Everything that decides how training goes on, in copies.

    Of several processes, all must ask together: each has generators of its own, and perhaps a
    part of the model. Raises CheckpointError, naming it, for a value that is neither plain nor
    a tensor, such as an object that a module gives as its extra state.
    """
    parts, callbacks = modules(trainer), named(trainer.callbacks)
    schedules = trainer.schedule.schedulers
    taken = {
        "model": module_state.take(trainer.model, "model"),
        "loss": module_state.take(parts["loss"], "loss") if "loss" in parts else {},
        "flags": {name: module_state.take_flags(part) for name, part in flagged(trainer).items()},
        "optimizer": optimizer_state.take_all(trainer.optimizers, parameter_names(trainer)),
        "scheduler": schedule_state.take_all(schedules) if schedules else None,
        "progress": trainer.progress.state_dict(),
        "history": [dict(record) for record in trainer.history.epochs],
        "callbacks": {
            name: copied(kept, f"callbacks.{name}")
            for name, callback in callbacks.items()
            if (kept := callback.state_dict())
        },
        "told": None if trainer.told_of_end is None else _told(callbacks, trainer.told_of_end),
        "stays_in_eval": trainer.is_fitting and not trainer.model.training,
        "lr": float(trainer.progress.lr),
        "rng": _everyones_rng(trainer),
        "data": trainer.loader.fingerprint() if trainer.loader is not None else None,
        "made_by": made_by(trainer),
    }
    if trainer.rates:
        taken["rates"] = dict(trainer.rates)
    if trainer.phases is not None:
        taken["phase"] = trainer.phase
    if trainer.loss_scale is not None:
        taken["loss_scale"] = trainer.loss_scale.state_dict()
    if trainer.own_state:
        taken["own"] = own_state.take(trainer)
    if (order := order_state(trainer)) is not None:
        taken["order"] = copied(order, "order")
    return taken


def _told(callbacks: Mapping[str, Callback], told: Sequence[Callback]) -> list[str]:
    """The callbacks that have been called at the end of the last epoch, by name."""
    return [name for name, callback in callbacks.items() if among(told, callback)]


def weights(trainer: Run) -> dict[str, Any]:
    """What ``model.state_dict()`` has, in copies, tensors whole; for all ranks together."""
    taken = module_state.take(trainer.model, "model")
    return {name: taken[name] for name in trainer.model.state_dict()}


def parameter_names(trainer: Run) -> dict[Tensor, str]:
    """The names of what the optimizer holds: the model's parameters, and the loss's after a /."""
    names: dict[Tensor, str] = {p: name for name, p in trainer.model.named_parameters()}
    if isinstance(trainer.loss, nn.Module):
        names |= {p: f"loss/{name}" for name, p in trainer.loss.named_parameters()}
    return names


def made_by(trainer: Run) -> dict[str, Any]:
    """What the last bits of a run depend on, besides its configuration and data."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": trainer.device.type,
        "threads": torch.get_num_threads(),
        "processes": trainer.world.size,
        "engine": trainer.choice.name,
    }


def restore(trainer: Run, state: dict[str, Any]) -> None:
    """Put a trainer that was built alike into ``state``, which stays as it is.

    The global random number generators are set too. Raises CheckpointError, with everything as it
    was, if the trainer was built differently.
    """
    before = None if trainer.phases is None else _in_parts(trainer)
    try:
        enter_phase_of(state, trainer)
        with trainer.world.agreeing(CheckpointError):
            check_fits(state, trainer, parameter_names(trainer))
    except BaseException:
        if before is not None:
            enter_phase_of(before, trainer)
            _put(trainer, before)
        raise
    before = before or _in_parts(trainer)
    try:
        _put(trainer, state)
    except BaseException as error:
        enter_phase_of(before, trainer)
        _put(trainer, before)
        if isinstance(error, CheckpointError):
            raise
        if isinstance(error, ValueError | LookupError | TypeError | AttributeError | RuntimeError):
            raise CheckpointError(f"the state does not fit: {error}") from error
        raise
    trainer.choice.keep(state["made_by"].get("engine"))
    tell_differences(state["made_by"], made_by(trainer))


def _in_parts(trainer: Run) -> dict[str, Any]:
    """A state to fall back to, of split tensors this process's parts."""
    with in_parts():
        return take(trainer)


def enter_phase_of(state: Any, trainer: Run) -> None:
    """Bring a trainer that has phases into that of a state, with an optimizer to be filled."""
    if trainer.phases is None:
        return
    number: Any = state.get("phase") if isinstance(state, dict) else None
    known = type(number) is int and 0 <= number < len(trainer.phases)
    demand(known, "phase: it is none of the phases that this trainer has")
    if number != trainer.phase:
        trainer.enter_phase(number)


def _put(trainer: Run, state: dict[str, Any]) -> None:
    state = copied(state, "state")
    callbacks = named(trainer.callbacks)
    for name, saved in state["callbacks"].items():
        try:
            callbacks[name].load_state_dict(saved)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the state of the callback {name} does not fit it") from error
    restore_source(state.get("order"), trainer.loader)
    if trainer.loader is not None and state["data"] is not None:
        trainer.loader.use_orders(state["data"].get("orders", 1))
    for part, module in modules(trainer).items():
        module_state.put(module, state[part], trainer.device)
    optimizer_state.put_all(trainer.optimizers, state["optimizer"], parameter_names(trainer))
    schedule_state.put_all(trainer.schedule.schedulers, state["scheduler"])
    if "loss_scale" in state and trainer.loss_scale is not None:
        trainer.loss_scale.load_state_dict(state["loss_scale"])
    if "own" in state:
        own_state.put(trainer, state["own"])
    for part, module in flagged(trainer).items():
        if part in state.get("flags", {}):
            module_state.put_flags(module, state["flags"][part])
    if state["progress"]["step"]:
        for optimizer in trainer.optimizers.values():
            note_step(optimizer)
    trainer.progress.load_state_dict(state["progress"])
    trainer.plan = kept_plan(state.get("order"), trainer.loader, trainer.progress.epoch)
    trainer.history.epochs = [dict(record) for record in state["history"]]
    told = state.get("told")
    trainer.told_of_end = (
        None if told is None else [callbacks[name] for name in told if name in callbacks]
    )
    trainer.stays_in_eval = state.get("stays_in_eval", False)
    trainer.progress.lr, trainer.rates = state["lr"], state.get("rates", {})
    _restore_rng(trainer, state["rng"])


def _everyones_rng(trainer: Run) -> list[dict[str, Tensor]]:
    """The generators of every process, in the order of their ranks."""
    own = RngState.take(trainer.device).tensors()
    columns = [trainer.world.gather_tensor(tensor) for tensor in own.values()]
    return [dict(zip(own, tensors, strict=True)) for tensors in zip(*columns, strict=True)]


def _restore_rng(trainer: Run, saved: list[dict[str, Tensor]]) -> None:
    """Each process takes back its own generators, or, in other numbers, new ones."""
    world = trainer.world
    if len(saved) == world.size:
        RngState.of_tensors(saved[world.rank]).restore(trainer.device)
    else:  # no two ranks may drop the same units
        seed_everything(mix(trainer.progress.step, world.size, world.rank) % 2**63)
