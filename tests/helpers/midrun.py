"""What a callback may do to the layer ``first`` of a model in mid-run."""

from __future__ import annotations

from gdtrain import Trainer


def freeze(trainer: Trainer) -> None:
    trainer.model.first.requires_grad_(False)


def unfreeze(trainer: Trainer) -> None:
    trainer.model.first.requires_grad_(True)


def add_group(trainer: Trainer) -> None:
    unfreeze(trainer)
    trainer.optimizer.add_param_group({"params": trainer.model.first.parameters()})
