"""Do several trainers start from the same weights and train on the same samples."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from gdtrain.data.loaders.loader import Loader
from gdtrain.errors import ModelError
from gdtrain.training.trainer import Trainer


def common_start(trainers: dict[str, Trainer], validation: Loader | None) -> dict[str, Any]:
    """Digests of the weights and the data with which all forms start.

    Raises ModelError if they differ.
    """
    (first, trainer), *others = trainers.items()
    start = _start_of(first, trainer)
    for name, other in others:
        check_start(name, other, start)
    if validation is not None:
        found = validation.fingerprint()
        start["validation"] = {"samples": found["samples"], "checksum": found["data"]}
    return start


def check_start(name: str, trainer: Trainer, start: dict[str, Any]) -> None:
    own = _start_of(name, trainer)
    if own["weights_sha256"] != start["weights_sha256"]:
        raise ModelError(
            f"compare: {name} starts from other weights than {start['of']}; seed torch with the "
            "same number before each model is made"
        )
    if own["training"] != start["training"]:
        raise ModelError(
            f"compare: {name} trains on other samples than {start['of']}; give all the same"
        )


def _start_of(name: str, trainer: Trainer) -> dict[str, Any]:
    if trainer.loader is None or trainer.loader.is_stream:
        message = "a stream can't be evaluated as a whole; compare on a data set"
        raise ModelError(f"compare: {name} has no loader" if trainer.loader is None else message)
    if trainer.world.size > 1:
        raise ModelError("compare: measures one process; start it without torchrun")
    if trainer.progress.step:
        raise ModelError(f"compare: {name} has trained already; make a new trainer for each call")
    found = trainer.loader.fingerprint()
    return {
        "of": name,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "weights_sha256": _digest(trainer),
        "training": {"samples": found["samples"], "checksum": found["data"]},
        "validation": None,
    }


def _digest(trainer: Trainer) -> str:
    """SHA-256 of the names, types and bytes of everything in the model's and the loss's state."""
    total = hashlib.sha256()
    for part in (trainer.model, trainer.loss):
        for name, tensor in part.state_dict().items() if isinstance(part, nn.Module) else ():
            plain = tensor.detach().cpu().contiguous()
            total.update(f"{name} {plain.dtype} {list(plain.shape)}\n".encode())
            total.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
