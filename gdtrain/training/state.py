"""A trainer's whole state as plain values and tensors: take a snapshot, put it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gdtrain.data.batch import map_tensors
from gdtrain.training.seeding import RngState

if TYPE_CHECKING:
    from gdtrain.training.trainer import Trainer


def take(trainer: Trainer) -> dict[str, Any]:
    """Everything that decides how training goes on, in copies."""
    state = {
        "model": trainer.model.state_dict(),
        "loss": trainer.loss.state_dict() if isinstance(trainer.loss, nn.Module) else {},
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict() if trainer.scheduler else None,
        "progress": trainer.progress.state_dict(),
        "history": [dict(record) for record in trainer.history.epochs],
        "callbacks": [callback.state_dict() for callback in trainer.callbacks],
        "lr": trainer.lr,
        "rng": vars(RngState.take(trainer.device)),
    }
    return {key: map_tensors(value, lambda t: t.detach().clone()) for key, value in state.items()}


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a trainer that was built alike into ``state``, which stays as it is.

    The global random number generators are set too. Raises what torch raises if model or
    optimizer were built differently.
    """
    state = map_tensors(state, torch.clone)
    trainer.model.load_state_dict(state["model"])
    if isinstance(trainer.loss, nn.Module):
        trainer.loss.load_state_dict(state["loss"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.scheduler is not None:
        trainer.scheduler.load_state_dict(state["scheduler"])
    trainer.progress.load_state_dict(state["progress"])
    trainer.history.epochs = [dict(record) for record in state["history"]]
    for callback, saved in zip(trainer.callbacks, state["callbacks"], strict=True):
        callback.load_state_dict(saved)
    trainer.lr = state["lr"]
    RngState(**state["rng"]).restore(trainer.device)
