"""What a checkpoint of a trainer may hold: looked at before any of its tensors is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gdtrain.checkpoint.layout import DTYPES, Found, TensorCheck
from gdtrain.errors import CheckpointError
from gdtrain.training.plain import shown, shown_names
from gdtrain.training.seeding import RngState
from gdtrain.training.state import take_template
from gdtrain.training.trainer import Trainer

# Of a parameter's optimizer state: tensors of its shape, counters, and the histories of L-BFGS.
_STATES_PER_PARAMETER = 8
# Callbacks may keep what they like, up to this and a few times the size of the model.
_CALLBACK_BYTES = 64 << 20
_MAX_PROCESSES = 1 << 16


def tensor_check(trainer: Trainer) -> TensorCheck:
    """A check of names, dtypes and shapes against the model, optimizer and generators.

    Raises CheckpointError, naming both sides, for tensors that no state of ``trainer`` has.
    """
    template = take_template(trainer)
    rng = RngState.take(trainer.device).tensors()

    def check(found: Found) -> None:
        for part in ("model", "loss"):
            exact(_below(found, part), template[part], part)
        _check_optimizer(_below(found, "optimizer.state"), template["parameters"], trainer)
        _check_rng(_below(found, "rng"), rng)
        model_bytes = sum(t.nbytes for t in template["model"].values())
        _check_order(_below(found, "order"))
        kept = sum(_nbytes(*said) for said in _below(found, "callbacks").values())
        own = sum(callback.state_bytes(trainer) for callback in trainer.callbacks)
        if kept > _CALLBACK_BYTES + 4 * model_bytes + own:
            raise CheckpointError(f"the callbacks' state takes {kept:,} bytes, which is too much")
        known = ("model.", "loss.", "optimizer.state.", "rng.", "callbacks.", "order.")
        if foreign := [name for name in found if not name.startswith(known)]:
            raise CheckpointError(f"has {shown(foreign[0])}, which is no part of a trainer's state")

    return check


def exact(found: Found, expected: Mapping[str, Tensor], part: str) -> None:
    """Raise CheckpointError unless names, dtypes and shapes are the expected ones."""
    for said, names in (
        ("lacks", expected.keys() - found.keys()),
        (f"has, unlike the {part},", found.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(f"{said} {shown_names(names)}")
    for name, tensor in expected.items():
        dtype, shape = found[name]
        if shape != list(tensor.shape):
            said = f"{name} has shape {shape}, but the {part}'s has {list(tensor.shape)}"
            raise CheckpointError(said)
        if DTYPES[dtype] != tensor.dtype:
            raise CheckpointError(f"{name} is {DTYPES[dtype]}, but the {part}'s is {tensor.dtype}")


def _check_optimizer(found: Found, parameters: Mapping[str, Tensor], trainer: Trainer) -> None:
    total = sum(p.numel() for p in parameters.values())
    history = max(int(g.get("history_size", 0)) for g in trainer.optimizer.param_groups)
    most = _STATES_PER_PARAMETER * len(parameters) + 3 * history
    if len(found) > most:
        raise CheckpointError(f"has {len(found)} tensors of the optimizer; at most {most} can be")
    for full, (_, shape) in found.items():
        name = shown(full)
        owners = [key for key in parameters if full.startswith(f"{key}.")]
        if not owners:
            raise CheckpointError(f"has optimizer state {name}, of a parameter that is not here")
        owner = parameters[max(owners, key=len)]
        if shape not in (list(owner.shape), [], *([[total]] if history else [])):
            raise CheckpointError(
                f"optimizer state {name} has shape {shape}, and the parameter {list(owner.shape)}"
            )


def _check_rng(found: Found, own: Mapping[str, Tensor]) -> None:
    for full, (dtype, shape) in found.items():
        name, (rank, _, kind) = shown(full), full.partition(".")
        if not (rank.isdecimal() and int(rank) < _MAX_PROCESSES):
            raise CheckpointError(f"has rng.{name}, which is no process's generator")
        like = own.get(kind)
        device_of_old = kind == "device" and like is None and dtype == "U8" and shape <= [1 << 16]
        if like is not None and shape == list(like.shape) and DTYPES[dtype] == like.dtype:
            continue
        if not (device_of_old and len(shape) == 1):
            raise CheckpointError(f"rng.{name} is {dtype} {shape}, which is no generator's state")


def _check_order(found: Found) -> None:
    for full, (dtype, shape) in found.items():
        if not full.startswith("source.") and (full, dtype, len(shape)) != ("indices", "I64", 1):
            raise CheckpointError(f"has order.{shown(full)}, which is no row of indices")
    kept = sum(_nbytes(*said) for said in _below(found, "source").values())
    if kept > _CALLBACK_BYTES:
        raise CheckpointError(f"the order's state takes {kept:,} bytes, which is too much")


def _below(found: Found, part: str) -> dict[str, Any]:
    start = f"{part}."
    return {name[len(start) :]: said for name, said in found.items() if name.startswith(start)}


def _nbytes(dtype: str, shape: list[int]) -> int:
    return int(torch.Size(shape).numel()) * DTYPES[dtype].itemsize
