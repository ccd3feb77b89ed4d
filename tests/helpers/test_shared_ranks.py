"""The shared processes of tests: what they return, raise, put back, and how they end."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gdtrain.errors import DataError
from helpers import ranks
from helpers.ranks import RankError, on_ranks


def total(rank: int, mine: torch.Tensor) -> tuple[int, torch.Tensor]:
    mine = mine + rank
    dist.all_reduce(mine)
    return os.getpid(), mine


def test_a_job_runs_on_all_ranks_and_the_next_one_on_the_same_processes() -> None:
    pids, totals = zip(*on_ranks(total, torch.tensor([1.0, 2.0])), strict=True)
    assert [t.tolist() for t in totals] == [[3.0, 5.0]] * 2
    again = on_ranks(total, torch.tensor(5), ranks=3)
    assert [t.item() for _, t in again] == [18] * 3
    assert [pid for pid, _ in again[:2]] == list(pids)
    assert len({os.getpid(), *(pid for pid, _ in again)}) == 4
    assert [t.item() for _, t in on_ranks(total, torch.tensor(1))] == [3, 3]


def leave_changes(rank: int) -> float:
    os.environ["LEFT"] = str(rank)
    torch.set_default_dtype(torch.float64)
    if rank == 0:  # one all_reduce that nobody answers
        dist.all_reduce(torch.ones(1), async_op=True)
    return torch.rand(1).item()


def what_is_left(rank: int) -> tuple[str, torch.dtype, str]:
    dist.barrier()
    return str(Path.cwd()), torch.get_default_dtype(), os.environ.get("LEFT", "nothing")


def test_nothing_is_left_of_a_job(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = on_ranks(leave_changes)
    assert on_ranks(what_is_left) == [(str(tmp_path), torch.float32, "nothing")] * 2
    assert on_ranks(leave_changes) == drawn


def fail_on_one(rank: int) -> None:
    if rank == 1:
        raise DataError("row 7")
    dist.barrier()


def kill_one(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_an_exception_is_raised_here_and_the_next_job_has_new_processes() -> None:
    before = on_ranks(total, torch.tensor(1))
    with pytest.raises(DataError, match=r"^row 7$") as caught:
        on_ranks(fail_on_one)
    assert isinstance(caught.value.__cause__, RankError)
    assert "in fail_on_one" in str(caught.value.__cause__)
    after = on_ranks(total, torch.tensor(1))
    assert not {pid for pid, _ in before} & {pid for pid, _ in after}


def test_a_rank_that_is_killed_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"^rank 1 ended with exit code -9 in its job$|peer"):
        on_ranks(kill_one)


def wait_for_ever(rank: int) -> None:
    if rank == 0:
        signal.pause()


def test_a_job_that_hangs_is_ended(monkeypatch) -> None:
    on_ranks(total, torch.tensor(1))
    monkeypatch.setattr(ranks, "SECONDS", 1.0)
    with pytest.raises(TimeoutError, match=r"^no answer from rank 0(, 1)? within 1 s$"):
        on_ranks(wait_for_ever)
