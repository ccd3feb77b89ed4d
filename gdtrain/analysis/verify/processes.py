"""The gradient of a batch on several real processes, on gloo, each with its contiguous share."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gdtrain.analysis.verify.float64_copy import Float64Copy, pick
from gdtrain.data.batch import Batch, Plan
from gdtrain.training.gradients.exact import add_gradient
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.exchange import exchange_gradients

# For all of it: starting Python, importing torch, and the gradient.
TIMEOUT_SECONDS = 120.0

# What a trainer holds and no loss needs: it may be large, or bound to this process.
_STAYS = (
    *("loader", "plan", "optimizer", "schedule", "callbacks", "metrics", "engine", "history"),
    *("guard", "_listeners", "_placement", "choice", "exact_gradient", "step_weights"),
)


class NotRunError(Exception):
    """The processes could not be started, or did not finish; says why."""


def shares(size: int, processes: int) -> list[tuple[int, int]]:
    """Where each process's share of a batch of ``size`` samples starts and stops."""
    plan = Plan(0, size, size, None)
    return [plan.share(rank, processes).bounds(0) for rank in range(processes)]


def gradient(copied: Float64Copy, batch: Batch, processes: int) -> tuple[Tensor, Tensor]:
    """Gradient [P] and loss [] of the batch, as all of the processes have it in the end.

    The copied goes to them by pickle. They meet through a file, and talk over loopback.
    Raises NotRunError if that can't be done, or takes too long; leaves no process behind.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        try:
            (directory / "work").write_bytes(pickle.dumps((_bare(copied), batch)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise NotRunError(f"can't be sent to another process: {_one_line(error)}") from error
        _run(directory, processes)
        first, *others = [torch.load(directory / f"gradient{r}") for r in range(processes)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    return first[0], first[1]


def _bare(copied: Float64Copy) -> Float64Copy:
    bare = copy.copy(copied)
    bare.trainer = copy.copy(copied.trainer)
    for name in _STAYS:
        setattr(bare.trainer, name, None)
    return bare


def _run(directory: Path, processes: int) -> None:
    """Start the processes and wait for them; when one fails, or time is up, end the others."""
    started: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        for rank in range(processes):
            command = [sys.executable, "-m", __name__, str(directory), str(rank), str(processes)]
            with (directory / f"said{rank}").open("wb") as message:
                started.append(
                    subprocess.Popen(command, env=_environment(), stdout=message, stderr=message)
                )
        while None in (codes := [process.poll() for process in started]) and not any(codes):
            if time.monotonic() > deadline:
                raise NotRunError(f"not done within {TIMEOUT_SECONDS:g} s")
            time.sleep(0.01)
    except OSError as error:
        raise NotRunError(_one_line(error)) from error
    finally:
        for process in started:
            process.kill()
            process.wait()
    for rank, code in enumerate(codes):
        if code:
            text = (directory / f"said{rank}").read_text("utf-8", "replace")
            lines = [line for line in text.splitlines() if line.strip()]
            reason = lines[-1] if lines else f"process {rank} ended with {code}"
            raise NotRunError(reason.removeprefix(f"[rank{rank}]: "))


def _environment() -> dict[str, str]:
    """This process's, but not its place in a world of torchrun's, and with its import path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return kept | {"PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path)}


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())


def _work(directory: Path, rank: int, size: int) -> None:
    """What each process does: the gradient of its share, and the sum of all of them."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory / 'meeting'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    copied, batch = pickle.loads((directory / "work").read_bytes())
    share = pick(batch, torch.arange(*shares(len(batch), size)[rank], device="cpu"))
    world = World.current()

    def summed() -> Tensor:
        parts = [share] if len(share) else []
        added = add_gradient(copied.trainer, share, parts, world)
        held = list(copied.trained.values())
        return exchange_gradients(world, held, added.loss, has_graph=added.has_graph)

    torch.save(copied.gradient(summed), directory / f"gradient{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
