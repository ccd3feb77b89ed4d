"""A trainer's whole state as plain values and tensors: take a snapshot, put it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gdtrain.data.batch import map_tensors
from gdtrain.data.order import mix
from gdtrain.errors import CheckpointError
from gdtrain.training.callbacks import Callback
from gdtrain.training.seeding import RngState, seed_everything
from gdtrain.training.sharding import split_like, whole

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


def take(trainer: Trainer) -> dict[str, Any]:
    """Everything that decides how training goes on, in copies.

    Where the model is split over processes, all of them must ask together.
    """
    scheduler = trainer.schedule.scheduler
    state = {
        "model": weights(trainer),
        "loss": trainer.loss.state_dict() if isinstance(trainer.loss, nn.Module) else {},
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": scheduler.state_dict() if scheduler else None,
        "progress": trainer.progress.state_dict(),
        "history": [dict(record) for record in trainer.history.epochs],
        "callbacks": {
            name: kept for name, c in _named(trainer.callbacks) if (kept := c.state_dict())
        },
        "lr": trainer.lr,
        "engine": trainer.choice.of_run,
        "rng": vars(RngState.take(trainer.device)),
    }
    return {key: map_tensors(value, whole) for key, value in state.items()}


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, whole, in copies; for all ranks together."""
    copies: dict[str, Tensor] = map_tensors(trainer.model.state_dict(), whole)
    return copies


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a trainer that was built alike into ``state``, which stays as it is.

    The global random number generators are set too. Raises CheckpointError, or what torch
    raises, if it was built differently.
    """
    state = map_tensors(state, torch.clone)
    here = trainer.model.state_dict()
    split = {k: split_like(v, here[k]) if k in here else v for k, v in state["model"].items()}
    trainer.model.load_state_dict(split)
    if isinstance(trainer.loss, nn.Module):
        trainer.loss.load_state_dict(state["loss"])
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for number, kept in state["optimizer"]["state"].items():
        for name, value in kept.items():
            kept[name] = split_like(value, trained[number])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.schedule.scheduler is not None:
        trainer.schedule.scheduler.load_state_dict(state["scheduler"])
    trainer.progress.load_state_dict(state["progress"])
    trainer.history.epochs = [dict(record) for record in state["history"]]
    callbacks = dict(_named(trainer.callbacks))
    for name, saved in state["callbacks"].items():
        if name not in callbacks:
            raise CheckpointError(f"the state has a callback {name} that this trainer lacks")
        callbacks[name].load_state_dict(saved)
    trainer.lr = state["lr"]
    trainer.choice.keep(state.get("engine"))
    RngState(**state["rng"]).restore(trainer.device)
    if trainer.world.rank:  # the snapshot is rank 0's; the others must not drop the same units
        seed_everything(mix(trainer.progress.step, trainer.world.rank) % 2**63)


def _named(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    """Each callback with its type's name, numbered where there are several of a type."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}-{seen[name]}", callback
