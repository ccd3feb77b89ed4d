"""Several processes as one: who they are, and the few things that they tell each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gdtrain.errors import ProcessError


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
            with _talking():
                dist.all_reduce(tensor)
        return tensor

    def sum_later(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to add ``tensor`` up over all processes, in place; returns what waits for it."""
        with _talking():
            work: Any = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with _talking():
                work.wait()

        return wait

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=_device()))[0] > 0)

    def sum_floats(self, numbers: list[float]) -> list[float]:
        """The numbers, each added up over all processes in float64."""
        if self.size == 1:
            return numbers
        total: list[float] = self.sum(
            torch.tensor(numbers, dtype=torch.float64, device=_device())
        ).tolist()
        return total

    def first_and_any(self, number: int, flag: bool) -> tuple[int, bool]:
        """The first process's number, and :meth:`any`, in one message."""
        if self.size == 1:
            return number, flag
        mine = [0 if self.rank else int(number), int(flag)]
        number, flags = self.sum(torch.tensor(mine, device=_device())).tolist()
        return number, flags > 0

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors that should be alike the first process's, in place."""
        for tensor in tensors:
            with _talking():
                dist.broadcast(tensor.detach(), src=0)

    def first_row(self, row: Tensor) -> Tensor:
        """The first process's tensor [k] int64, of any length, on the CPU."""
        length, _ = self.first_and_any(len(row), False)
        there = torch.zeros(length, dtype=torch.int64, device=_device())
        if self.rank == 0:
            there.copy_(row)
        return self.sum(there).cpu()

    def gather(self, values: Iterable[int]) -> list[list[int]]:
        """The whole numbers of every process, in the order of their ranks; as many on each."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(list(values), dtype=torch.int64, device=_device())
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        with _talking():
            dist.all_gather(everyone, mine)
        return [theirs.tolist() for theirs in everyone]

    def gather_tensor(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every process, in the order of their ranks; of one shape and dtype."""
        if self.size == 1:
            return [tensor]
        mine = tensor.to(_device())
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        with _talking():
            dist.all_gather(everyone, mine)
        return [theirs.to(tensor.device) for theirs in everyone]

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """The bytes of every process, in the order of their ranks; of any length on each."""
        if self.size == 1:
            return [content]
        longest = max(length for (length,) in self.gather([len(content)]))
        padded = [len(content), *content, *bytes(longest - len(content))]
        return [bytes(data[:length]) for length, *data in self.gather(padded)]

    def gather_objects(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks; tensors on the CPU."""
        everyone: list[Any] = [value] * self.size
        if self.size > 1:
            with _talking():
                dist.all_gather_object(everyone, value)
        return everyone

    def gather_text(self, text: str) -> list[str]:
        """The text of every process, in the order of their ranks."""
        return [content.decode() for content in self.gather_bytes(text.encode())]

    @contextmanager
    def agreeing(self, on: type[Exception]) -> Iterator[None]:
        """Raise such an error on all processes if one has raised it, when all have come this far.

        It is the error of the lowest rank. What is done meanwhile must not wait for the others.
        """
        if self.size == 1:
            yield
            return
        mine: Exception | None = None
        try:
            yield
        except on as error:
            mine = error
        if texts := [text for text in self.gather_text("" if mine is None else str(mine)) if text]:
            raise on(texts[0]) from mine


def join(device: str, timeout_seconds: float) -> World:
    """Join the processes that torchrun has started; alone, if it has started none or one.

    device: ``auto``, ``cpu``, ``cuda``, …; decides between nccl and gloo.
    Raises ProcessError if the processes can't be connected in that time.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        return World.current()
    from torch.distributed.distributed_c10d import PrefixStore  # not in every build of torch

    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    timeout = timedelta(seconds=timeout_seconds)
    try:
        store, rank, size = _meet(timeout)
        dist.init_process_group(
            "nccl" if on_cuda else "gloo",
            store=PrefixStore(_attempt(), store),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        raise ProcessError(f"{size} processes can't be connected: {reason}") from error
    return World.current()


def _meet(timeout: timedelta) -> tuple[Any, int, int]:
    """The store that all processes share, this one's rank, and their number.

    Raises TimeoutError when the time is over. torch by itself may sleep on for twice as long,
    between two attempts to reach a first process that has died; so a thread has that to do.
    """
    from torch.distributed.rendezvous import rendezvous

    met: Future[tuple[Any, int, int]] = Future()

    def meet() -> None:
        try:
            met.set_result(next(rendezvous("env://", timeout=timeout)))
        except BaseException as error:
            met.set_exception(error)

    threading.Thread(target=meet, name="gdtrain-rendezvous", daemon=True).start()
    seconds = timeout.total_seconds()
    try:
        return met.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"not all of them were there within {seconds:g} s") from error


def _attempt() -> str:
    """A name for this start of the processes, alike on all of them.

    Under torchrun's restarts on one machine the store is kept, and with it the addresses of
    processes that have died, which a quick one would take for those of the new ones. Agents of
    several machines count their restarts apart; there torch makes a new store for each.
    """
    alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    return f"gdtrain-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if alone else 0}"


def leave() -> None:
    """Part from the other processes, if there are any, when all of them have come this far.

    A process that goes while another still talks to it aborts that one. After an error there is
    no use in waiting: the process ends, and the launcher ends the others.
    """
    if dist.is_available() and dist.is_initialized():
        with _talking():
            dist.barrier()
        dist.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    """Say what it means when another process can't be reached."""
    try:
        yield
    except RuntimeError as error:  # of gloo and nccl alike; they have no type of their own
        reason = str(error).splitlines()[0]
        raise ProcessError(
            f"another process of the run has ended or does not answer ({reason}); "
            "start all of them again with --resume"
        ) from error


def _device() -> torch.device:
    """Where tensors must be for the default group to exchange them."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
