"""What a checkpoint of a trainer may hold: looked at before any of its tensors is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.checkpoint.format import (
    DTYPES,
    Found,
    Rows,
    Share,
    TensorCheck,
    read_state,
    read_weights,
)
from gdtrain.data.tree import tensors_of
from gdtrain.errors import CheckpointError
from gdtrain.training.placement.sharding import own_rows
from gdtrain.training.state import module_state, own_state, snapshot
from gdtrain.training.state.compatibility import PARTS
from gdtrain.training.state.module_state import Slot, modules
from gdtrain.training.state.plain_values import shown, shown_names
from gdtrain.training.state.random_generators import RngState
from gdtrain.training.trainer import Trainer

# Callbacks may keep what they like, up to this and a few times the size of the model.
_CALLBACK_BYTES = 64 << 20
_ORDER_BYTES = 64 << 20  # and so may a sampler
_MAX_PROCESSES = 1 << 16


def tensor_check(trainer: Trainer) -> TensorCheck:
    """A check of names, dtypes and shapes against the model, the loss and generators.

    Raises CheckpointError, naming both sides, for tensors that no state of ``trainer`` has.
    """
    parts = {part: module_state.slots(module) for part, module in modules(trainer).items()}
    rng = RngState.take(trainer.device).tensors()

    def check(found: Found) -> None:
        for part in ("model", "loss"):
            check_module(_below(found, part), parts.get(part, {}), part)
        _check_rng(_below(found, "rng"), rng)
        _check_order(_below(found, "order"))
        model_bytes = sum(s.value.nbytes for s in parts["model"].values() if s.is_fixed)
        kept = sum(_nbytes(*message) for message in _below(found, "callbacks").values())
        own = sum(callback.state_bytes(trainer) for callback in trainer.callbacks)
        if kept > _CALLBACK_BYTES + 4 * model_bytes + own:
            raise CheckpointError(f"the callbacks' state takes {kept:,} bytes, which is too much")
        _check_own(_below(found, "own"), trainer, _CALLBACK_BYTES + 4 * model_bytes)
        known = tuple(f"{part}." for part in PARTS)
        if foreign := [name for name in found if not name.startswith(known)]:
            raise CheckpointError(f"has {shown(foreign[0])}, which is no part of a trainer's state")

    return check


def share_of(trainer: Trainer) -> Share:
    """What this process reads of a checkpoint: of parameters that are split, its rows alone."""
    names = snapshot.parameter_names(trainer).items()
    split = {name: p.shape for p, name in names if hasattr(p, "full_tensor")}

    def rows(name: str, shape: list[int]) -> Rows | None:
        if split.get(_parameter_of(name)) != torch.Size(shape):
            return None
        return own_rows(shape[0], trainer.world)

    return Share(trainer.world, rows)


def _parameter_of(name: str) -> str:
    """The parameter that a tensor of a state is, or that an optimizer keeps it of, by name."""
    part, _, rest = name.partition(".")
    if part != "optimizer":
        return rest if part == "model" else ""
    return rest.partition("state.")[2].rpartition(".")[0]


def load_weights(model: nn.Module, path: Path) -> None:
    """Give a model the weights of a finished run's file, or of a checkpoint's directory.

    Raises CheckpointError, naming both sides, if they are not the model's.
    """
    here = module_state.slots(model)
    if path.is_dir():
        weights = read_state(path).get("model", {})
    else:
        weights = read_weights(path, lambda found: check_module(found, here, "model"))
    gone = {name: None for name, slot in here.items() if slot.buffers is not None}
    try:
        module_state.check("model", gone | weights, model)
        module_state.put(model, gone | weights, torch.device("cpu"))
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_module(found: Found, here: Mapping[str, Slot], part: str) -> None:
    """Raise CheckpointError unless names are those of a module, and dtypes and shapes where fixed.

    here: see :func:`gdtrain.training.state.module_state.slots`.
    """
    free = tuple(name for name, slot in here.items() if not slot.is_fixed)
    fixed = {name: slot.value for name, slot in here.items() if slot.is_fixed}
    exact(
        {name: f for name, f in found.items() if name in fixed or not _within(name, free)},
        fixed,
        part,
    )


def exact(found: Found, expected: Mapping[str, Tensor], part: str) -> None:
    """Raise CheckpointError unless names, dtypes and shapes are the expected ones."""
    for message, names in (
        ("lacks", expected.keys() - found.keys()),
        (f"has, unlike the {part},", found.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(f"{message} {shown_names(names)}")
    for name, tensor in expected.items():
        dtype, shape = found[name]
        if shape != list(tensor.shape):
            message = f"{name} has shape {shape}, but the {part}'s has {list(tensor.shape)}"
            raise CheckpointError(message)
        if DTYPES[dtype] != tensor.dtype:
            raise CheckpointError(f"{name} is {DTYPES[dtype]}, but the {part}'s is {tensor.dtype}")


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
    kept = sum(_nbytes(*message) for message in _below(found, "source").values())
    if kept > _ORDER_BYTES:
        raise CheckpointError(f"the order's state takes {kept:,} bytes, which is too much")


def _check_own(found: Found, trainer: Trainer, spare: int) -> None:
    """What a subclass has registered, of each process; it may have grown, by so many bytes."""
    kept: dict[str, int] = {}
    for full, (dtype, shape) in found.items():
        rank, _, name = full.partition(".")
        if name.partition(".")[0] not in trainer.own_state:
            raise CheckpointError(f"has {shown(full)} of its own, which is not registered here")
        kept[rank] = kept.get(rank, 0) + _nbytes(dtype, shape)
    values = [own_state.taken(getattr(trainer, name), name) for name in trainer.own_state]
    here = sum(tensor.nbytes for tensor in tensors_of(values))
    if max(kept.values(), default=0) > spare + 4 * here:
        raise CheckpointError("what is registered takes too many bytes")


def _within(name: str, free: tuple[str, ...]) -> bool:
    """Whether it is one of these names, or of a tensor in the extra state that bears one."""
    return any(name == one or name.startswith(f"{one}.") for one in free)


def _below(found: Found, part: str) -> dict[str, Any]:
    start = f"{part}."
    return {name[len(start) :]: text for name, text in found.items() if name.startswith(start)}


def _nbytes(dtype: str, shape: list[int]) -> int:
    return int(torch.Size(shape).numel()) * DTYPES[dtype].itemsize
