"""Models larger than one device: parameters split over the processes by FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gdtrain.errors import ConfigError
from gdtrain.training.placement.distributed import World

# torch.distributed.fsdp and .tensor take almost a second to import, which one process need not
# spend: they are imported where a model is split, and its tensors known by what they can do.


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Split the parameters of ``model`` over all processes, in place, and return it.

    Each layer that holds parameters is gathered when it is used and dropped after it
    (``fully_shard`` of torch.distributed.fsdp). To be called before the optimizer is made, with
    the model on its device and in its dtype; every process then holds rank 0's weights.
    With one process, nothing is split. Raises ConfigError on CPUs with a torch before 2.7.
    """
    world = World.current()
    if world.size == 1:
        return model
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        message = f"shard on CPUs needs torch >= 2.7, and this is {torch.__version__}; "
        raise ConfigError.of("strategy", f"{message}install it, or use replicate")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world.copy_from_first([*model.parameters(), *model.buffers()])
    mesh = init_device_mesh(device.type, (world.size,))
    for layer in model.modules():
        if layer is not model and list(layer.parameters(recurse=False)):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's parameters are split over the processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


@dataclass(frozen=True)
class Part:
    """This process's rows of a tensor that is split over the processes along its first dimension.

    rows: [k, …], perhaps none. start: the number of the first in the whole. shape: of the whole.
    """

    rows: Tensor
    start: int
    shape: torch.Size

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    def clone(self) -> Part:
        """The same rows in a copy."""
        return Part(self.rows.clone(), self.start, self.shape)


_in_parts = ContextVar("in parts", default=False)


@contextmanager
def in_parts() -> Iterator[None]:
    """Let copies of split tensors be the process's own parts, for :func:`copy_of`."""
    token = _in_parts.set(True)
    try:
        yield
    finally:
        _in_parts.reset(token)


def copy_of(tensor: Tensor | Part) -> Tensor | Part:
    """A copy of a tensor; of a split one the whole, or under :func:`in_parts` the own part."""
    if isinstance(tensor, Part):
        return tensor.clone()
    if _in_parts.get() and hasattr(tensor, "full_tensor"):
        return _own_part(tensor)
    return whole(tensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its parts, in a copy; all processes must ask for it together."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().clone()


def local(value: Any) -> Any:
    """What of a split tensor is in this process; anything else as it is."""
    if isinstance(value, Part):
        return value.rows
    return value.to_local() if hasattr(value, "full_tensor") else value


def own_rows(count: int, world: World) -> tuple[int, int]:
    """Of so many rows, the numbers of this process's first one and of the one after its last.

    FSDP splits them as ``torch.chunk`` does, and leaves the last processes fewer, or none.
    """
    most = -(-count // world.size)
    return min(world.rank * most, count), min((world.rank + 1) * most, count)


def _own_part(tensor: Any) -> Part:
    start, _ = own_rows(tensor.shape[0], World.current())
    return Part(tensor.to_local().detach().clone(), start, tensor.shape)


def split_like(value: Any, parameter: Any) -> Any:
    """A tensor of a parameter's shape, whole or this process's part, split as the parameter is.

    Anything else as it is.
    """
    if not (isinstance(value, Tensor | Part) and hasattr(parameter, "full_tensor")):
        return value
    if value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    there, mesh, placements = parameter.device, parameter.device_mesh, parameter.placements
    if isinstance(value, Part):
        rows, stride = value.rows.to(there), torch.empty(value.shape, device="meta").stride()
        return DTensor.from_local(rows, mesh, placements, shape=value.shape, stride=stride)
    return distribute_tensor(value.to(there), mesh, placements)
