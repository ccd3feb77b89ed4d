"""Several processes as one: who they are, and the few things that they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from gdtrain.errors import DeviceError


@dataclass(frozen=True)
class World:
    """The processes of a run. With one process, every exchange gives back what it was given.

    rank: this process's number, from 0. size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The world of torch.distributed's default group, or of this process alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def sum(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` up over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=_device()))[0] > 0)

    def gather(self, values: Iterable[int]) -> list[list[int]]:
        """The whole numbers of every process, in the order of their ranks; as many on each."""
        mine = torch.tensor(list(values), dtype=torch.int64, device=_device())
        if self.size == 1:
            return [mine.tolist()]
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine)
        return [theirs.tolist() for theirs in everyone]


def join(device: str, timeout_seconds: float) -> World:
    """Join the processes that torchrun has started; alone, if it has started none or one.

    device: ``auto``, ``cpu``, ``cuda``, …; decides between nccl and gloo.
    Raises DeviceError if the processes can't be connected.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        return World.current()
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group(
            "nccl" if on_cuda else "gloo", timeout=timedelta(seconds=timeout_seconds)
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"{size} processes can't be connected: {reason}") from error
    return World.current()


def leave() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _device() -> torch.device:
    """Where tensors must be for the default group to exchange them."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
