"""A trainer's whole state as plain values and tensors: take a snapshot, put it back."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gdtrain.data.batch import map_tensors
from gdtrain.data.order import mix
from gdtrain.errors import CheckpointError
from gdtrain.training.callbacks import Callback
from gdtrain.training.epoch_plan import kept_plan, order_state, restore_source
from gdtrain.training.restoring import check_fits, tell_differences
from gdtrain.training.seeding import RngState, seed_everything
from gdtrain.training.sharding import split_like, whole

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer

# Parts of a state in which live tensors may be, which training goes on to change. The others are
# made anew, and the history is long.
_HOLD_TENSORS = ("loss", "optimizer", "scheduler", "callbacks", "order")


def take(trainer: Trainer) -> dict[str, Any]:
    """Everything that decides how training goes on, in copies.

    Of several processes, all must ask together: each has generators of its own, and perhaps a
    part of the model.
    """
    scheduler = trainer.schedule.scheduler
    state = {
        "model": weights(trainer),
        "loss": trainer.loss.state_dict() if isinstance(trainer.loss, nn.Module) else {},
        "optimizer": optimizer_state(trainer),
        "scheduler": scheduler.state_dict() if scheduler else None,
        "progress": trainer.progress.state_dict(),
        "history": [dict(record) for record in trainer.history.epochs],
        "callbacks": {
            name: kept for name, c in named(trainer.callbacks) if (kept := c.state_dict())
        },
        "lr": trainer.lr,
        "rng": _everyones_rng(trainer),
        "data": trainer.loader.fingerprint() if trainer.loader is not None else None,
        "made_by": made_by(trainer),
    }
    if (order := order_state(trainer)) is not None:
        state["order"] = order
    return {k: map_tensors(v, whole) if k in _HOLD_TENSORS else v for k, v in state.items()}


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, whole, in copies; for all ranks together."""
    copies: dict[str, Tensor] = map_tensors(trainer.model.state_dict(), whole)
    return copies


def parameter_names(trainer: Trainer) -> dict[Tensor, str]:
    """The names of what the optimizer holds: the model's parameters, and the loss's after a /."""
    names: dict[Tensor, str] = {p: name for name, p in trainer.model.named_parameters()}
    if isinstance(trainer.loss, nn.Module):
        names |= {p: f"loss/{name}" for name, p in trainer.loss.named_parameters()}
    return names


def optimizer_state(trainer: Trainer) -> dict[str, Any]:
    """The optimizer's state by the names of the parameters, and its groups' settings."""
    names, optimizer = parameter_names(trainer), trainer.optimizer
    return {
        "state": {names[p]: dict(kept) for p, kept in optimizer.state.items()},
        "groups": [
            {**group, "params": [names[p] for p in group["params"]]}
            for group in optimizer.param_groups
        ],
    }


def made_by(trainer: Trainer) -> dict[str, Any]:
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


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a trainer that was built alike into ``state``, which stays as it is.

    The global random number generators are set too. Raises CheckpointError, before anything is
    changed but callbacks, if the trainer was built differently.
    """
    check_fits(state, take_template(trainer))
    trainer.choice.keep(state["made_by"].get("engine"))
    tell_differences(state["made_by"], made_by(trainer))
    state = map_tensors(state, torch.clone)
    callbacks = dict(named(trainer.callbacks))
    for name, saved in state["callbacks"].items():
        try:
            callbacks[name].load_state_dict(saved)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the state of the callback {name} does not fit it") from error
    restore_source(state.get("order"), trainer.loader)
    if trainer.loader is not None and state["data"] is not None:
        trainer.loader.use_orders(state["data"].get("orders", 1))
    here = trainer.model.state_dict()
    trainer.model.load_state_dict({k: split_like(v, here[k]) for k, v in state["model"].items()})
    if isinstance(trainer.loss, nn.Module):
        trainer.loss.load_state_dict(state["loss"])
    _restore_optimizer(trainer, state["optimizer"])
    if trainer.schedule.scheduler is not None:
        trainer.schedule.scheduler.load_state_dict(state["scheduler"])
    trainer.progress.load_state_dict(state["progress"])
    trainer.plan = kept_plan(state.get("order"), trainer.loader, trainer.progress.epoch)
    trainer.history.epochs = [dict(record) for record in state["history"]]
    trainer.lr = state["lr"]
    _restore_rng(trainer, state["rng"])


def take_template(trainer: Trainer) -> dict[str, Any]:
    """What a state of this trainer looks like, not in copies: names, shapes and kinds of value."""
    scheduler = trainer.schedule.scheduler
    return {
        "model": trainer.model.state_dict(),
        "loss": trainer.loss.state_dict() if isinstance(trainer.loss, nn.Module) else {},
        "groups": optimizer_state(trainer)["groups"],
        "parameters": {name: p for p, name in parameter_names(trainer).items()},
        "scheduler": scheduler.state_dict() if scheduler else None,
        "progress": trainer.progress.state_dict(),
        "callbacks": [name for name, _ in named(trainer.callbacks)],
        "data": trainer.loader.fingerprint() if trainer.loader is not None else None,
        "loader": trainer.loader,
        "optimizer": type(trainer.optimizer),
        "rng": RngState.take(trainer.device).tensors(),
    }


def named(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    """Each callback with its type's name, numbered where there are several of a type."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}-{seen[name]}", callback


def _restore_optimizer(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Give each parameter the state that bears its name, in whatever place it stands now."""
    names, optimizer = parameter_names(trainer), trainer.optimizer
    held = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {names[p]: number for number, p in enumerate(held)}
    state = {
        numbers[name]: {key: split_like(value, held[numbers[name]]) for key, value in kept.items()}
        for name, kept in saved["state"].items()
    }
    of_names = {frozenset(group["params"]): group for group in saved["groups"]}
    groups = []
    for group in optimizer.param_groups:
        members = [names[p] for p in group["params"]]
        kept = of_names[frozenset(members)]
        groups.append({**kept, "params": [numbers[name] for name in members]})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _everyones_rng(trainer: Trainer) -> list[dict[str, Tensor]]:
    """The generators of every process, in the order of their ranks."""
    own = RngState.take(trainer.device).tensors()
    columns = [trainer.world.gather_tensor(tensor) for tensor in own.values()]
    return [dict(zip(own, tensors, strict=True)) for tensors in zip(*columns, strict=True)]


def _restore_rng(trainer: Trainer, saved: list[dict[str, Tensor]]) -> None:
    """Each process takes back its own generators, or, in other numbers, new ones."""
    world = trainer.world
    if len(saved) == world.size:
        RngState.of_tensors(saved[world.rank]).restore(trainer.device)
    else:  # no two ranks may drop the same units
        seed_everything(mix(trainer.progress.step, world.size, world.rank) % 2**63)
