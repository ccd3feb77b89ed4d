"""Jobs on two or three connected processes, which are started once per test session.

    def job(rank, *arguments):          # at the top level of a test's module
        return ...                      # anything that can be pickled, tensors too

    first, second = on_ranks(job, *arguments)
    results = on_ranks(job, *arguments, ranks=3)

Each job has a new gloo group, a fresh seed, and the caller's directory and environment; what it
has changed of these is put back. What a job raises is raised here, with the rank's traceback as
its cause. After that, and after a job that took over ``SECONDS``, all processes are ended and the
next job has new ones.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from gdtrain.training.placement.compiler_import import leave_compiler_out
from helpers.processes import end_with_the_server, fork_server

SECONDS = 300.0  # for a busy machine: only a job that hangs takes so long


class RankError(Exception):
    """Which rank has raised, and its traceback; the cause of what is raised here."""


class _Task(NamedTuple):
    """What a rank gets: a job, and the world to do it in."""

    number: int  # of the job: its group's names in the store
    ranks: int
    port: int  # of the store, on rank 0
    job: bytes  # pickled apart, for sys.path is set before it is read
    path: list[str]
    directory: str
    environment: dict[str, str]


class _Rank:
    """The caller's end of one process."""

    def __init__(self, rank: int) -> None:
        context = fork_server()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(rank, theirs))
        self.process.start()
        theirs.close()


_started: list[_Rank] = []
_port = _jobs = 0


def on_ranks(job: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """What ``job(rank, *arguments)`` returns on each of ``ranks`` processes.

    Raises what the job has raised on the rank that was the first to raise; RuntimeError if a
    process has ended otherwise; TimeoutError after ``SECONDS``.
    """
    global _jobs
    try:
        _start(ranks)
        _jobs += 1
        pickled, environment = pickle.dumps((job, arguments)), dict(os.environ)
        task = _Task(_jobs, ranks, _port, pickled, list(sys.path), str(Path.cwd()), environment)
        for rank in _started[:ranks]:
            rank.connection.send(task)
        return _results(_started[:ranks])
    except BaseException:
        end_all()
        raise


def end_all() -> None:
    """End all processes, now."""
    for rank in _started:
        rank.connection.close()
        rank.process.kill()
        rank.process.join()
        rank.process.close()
    _started.clear()


atexit.register(end_all)


def _start(ranks: int) -> None:
    """Have at least so many processes; the first one holds the store by which they meet."""
    global _port
    while len(_started) < ranks:
        _started.append(_Rank(len(_started)))
        if len(_started) == 1:
            (_port,) = _results(_started)


def _results(ranks: list[_Rank]) -> list[Any]:
    """What each of them sends, once all have."""
    results: dict[int, Any] = {}
    until = time.monotonic() + SECONDS
    ends = {rank.connection: number for number, rank in enumerate(ranks)}
    while len(results) < len(ranks):
        waiting = [end for end, number in ends.items() if number not in results]
        ready = wait(waiting, until - time.monotonic())
        if not ready:
            missing = ", ".join(str(ends[end]) for end in waiting)
            raise TimeoutError(f"no answer from rank {missing} within {SECONDS:.0f} s")
        for end in ready:
            results[ends[end]] = _result(ends[end], ranks[ends[end]])
    return [results[number] for number in range(len(ranks))]


def _result(number: int, rank: _Rank) -> Any:
    try:
        done, content, text = rank.connection.recv()
    except (EOFError, ConnectionResetError):
        rank.process.join()
        code = rank.process.exitcode
        raise RuntimeError(f"rank {number} ended with exit code {code} in its job") from None
    if done:
        return pickle.loads(content)
    error = RuntimeError("an exception that can't be pickled")
    if content is not None:
        error = pickle.loads(content)
    raise error from RankError(f"on rank {number}:\n{text}")


# ── in the process of a rank ────────────────────────────────────────────────────────────────


def _serve(rank: int, connection: Connection) -> None:
    """Do what comes; end when the caller has closed its end, or a job has raised.

    A process that has ended closes its sockets: peers that wait for it get an exception at once.
    """
    end_with_the_server()
    leave_compiler_out()
    torch.set_num_threads(1)
    store = None
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        connection.send((True, pickle.dumps(store.port), ""))
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            store = store or dist.TCPStore("127.0.0.1", task.port, is_master=False)
            content = pickle.dumps(_done(task, rank, store))
        except BaseException as error:
            connection.send((False, _pickled(error), traceback.format_exc()))
            return
        connection.send((True, content, ""))


def _done(task: _Task, rank: int, store: dist.Store) -> Any:
    """The job's result, with its own group, and the process left as it was found."""
    path, environment, dtype = list(sys.path), dict(os.environ), torch.get_default_dtype()
    sys.path[:] = task.path
    _set_environment(task.environment | {"GLOO_SOCKET_IFNAME": "lo"})
    os.chdir(task.directory)
    torch.manual_seed(0)
    if dist.is_initialized():  # that of the job before, which by now all ranks have done
        dist.destroy_process_group()
    try:
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore(f"job-{task.number}", store),
            rank=rank,
            world_size=task.ranks,
            timeout=timedelta(seconds=SECONDS),
        )
        job, arguments = pickle.loads(task.job)
        return job(rank, *arguments)
    finally:
        os.chdir("/")
        _set_environment(environment)
        sys.path[:] = path
        torch.set_default_dtype(dtype)
        torch.set_num_threads(1)


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _pickled(error: BaseException) -> bytes | None:
    """The exception, if it survives the journey."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:
        return None
    return content
