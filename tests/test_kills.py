"""Runs that are killed, signalled or lose a rank end with the bits of one that was left alone.

The short form of ``scripts/torture_kills.py``, with the same code.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers.torture import (
    check_same,
    draw_kills,
    killed_run,
    nursery,
    signalled_run,
    step_log,
    undisturbed,
    write_config,
)

from gdtrain.checkpoint.store import CheckpointStore


@pytest.fixture(scope="module")
def made():
    with nursery() as nursery_:
        yield nursery_


@pytest.fixture(scope="module")
def clean(made, tmp_path_factory):
    """Undisturbed runs, by form and number of ranks, made when they are asked for."""
    folder, known = tmp_path_factory.mktemp("clean"), {}

    def of(form: str, ranks: int):
        if (form, ranks) not in known:
            known[form, ranks] = undisturbed(made, folder / f"{form}-{ranks}", form, ranks)
        return known[form, ranks]

    return of


@pytest.mark.parametrize(
    ("form", "ranks", "inside", "count"),
    [
        ("batch", 1, True, 1),
        ("batch", 1, False, 1),
        ("sample", 1, True, 3),
        ("minibatch", 1, True, 1),
        ("minibatch", 1, False, 1),
        ("minibatch", 2, True, 1),
        ("minibatch", 2, False, 1),
    ],
)
def test_kill_9_anywhere(made, clean, tmp_path, form, ranks, inside, count):
    expected = clean(form, ranks)
    draw = random.Random(f"{form} {ranks} {inside}")
    kills = draw_kills(draw, expected, ranks, inside, count)
    hits, _ = killed_run(made, tmp_path / "killed", form, ranks, kills)
    assert hits == count or not inside
    check_same(tmp_path / "killed", expected)


@pytest.mark.parametrize(
    ("signum", "ranks", "whom"),
    [
        (signal.SIGTERM, 1, None),
        (signal.SIGINT, 1, None),
        (signal.SIGUSR1, 1, None),
        (signal.SIGTERM, 2, [1]),
        (signal.SIGUSR1, 2, [1]),
    ],
)
def test_signals_stop_or_save_all_ranks_at_a_safe_point(made, clean, tmp_path, signum, ranks, whom):
    expected = clean("minibatch", ranks)
    moment = 0.5 * expected.seconds
    signalled_run(made, tmp_path / "run", "minibatch", ranks, signum, moment, whom)
    check_same(tmp_path / "run", expected)


STUCK = """\
import time
from gdtrain import Trainer, register_trainer

@register_trainer("stuck")
class Stuck(Trainer):
    def train_step(self, batch):
        print("stuck", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_exits_at_once(tmp_path, signum):
    write_config(tmp_path, "minibatch", 1)
    (tmp_path / "parts.py").write_text(STUCK, "utf-8")
    command = [sys.executable, "-m", "gdtrain", "--config", "a.yaml", "--import", "parts"]
    with subprocess.Popen(
        [*command, "trainer=stuck"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stuck\n"
        process.send_signal(signum)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # it waits for the safe point
        process.send_signal(signum)
        assert process.wait(10) == 128 + signum


def test_ranks_that_wait_for_a_stopped_one_give_up_in_the_configured_time(made, tmp_path):
    """SIGSTOP: the process is there and its connections are open, but it never answers."""
    arguments = write_config(tmp_path, "sample", 2)
    run = made.start([*arguments, "process_timeout=3", "epochs=2000"], tmp_path, 2)
    while "training on" not in run.text():
        time.sleep(0.01)
    run.send(signal.SIGSTOP, [1])
    moment = time.monotonic()
    while len(run.alive()) == 2:
        assert time.monotonic() - moment < 60, run.text()
        time.sleep(0.01)
    run.send(signal.SIGKILL)
    ended = run.end()
    assert ended.codes == [1, -signal.SIGKILL]
    said = "gdtrain: another process of the run has ended or does not answer"
    assert re.search(rf"^{said}.*; start all of them again with --resume$", ended.log, re.M)


def test_torchrun_restarts_a_run_whose_rank_has_died(clean, tmp_path):
    arguments = write_config(tmp_path, "batch", 2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", "--max-restarts", "2", "--monitor-interval", "0.1", "-m", "gdtrain"]
    # Rank 1 kills itself in the middle of the first attempt.
    (tmp_path / "parts.py").write_text(
        "import os, signal\n"
        "from gdtrain import Trainer, register_trainer\n"
        "@register_trainer('mortal')\n"
        "class Mortal(Trainer):\n"
        "    def train_step(self, batch):\n"
        "        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "        if first and os.environ['RANK'] == '1' and self.progress.step > 20:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().train_step(batch)\n",
        "utf-8",
    )
    done = subprocess.run(
        [*command, *arguments, "--import", "parts", "trainer=mortal", "process_timeout=120"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "going on from out/checkpoints/step-" in done.stderr
    check_same(tmp_path, clean("batch", 2))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_run_goes_on_with_other_processes_in_the_same_order(made, tmp_path, before, after):
    arguments, out = write_config(tmp_path, "sample", 2), tmp_path / "out"
    half = made.start([*arguments, "scheduler=null", "epochs=1"], tmp_path, before).end()
    assert set(half.codes) == {0}, half.log
    ended = made.start([*arguments, "scheduler=null", "--resume"], tmp_path, after).end()
    assert set(ended.codes) == {0}, ended.log
    assert (
        f"note: resumed under other conditions (processes {before} then, {after} now): the same "
        "samples in the same order, but the last bits may differ from an undisturbed run's"
    ) in ended.log
    steps = [record["step"] for record in step_log(out) if record["kind"] == "step"]
    assert steps == list(range(1, 121))
    samples = [record["samples"] for record in step_log(out) if record["kind"] == "epoch"]
    assert samples == [40, 80, 120]


def test_two_ranks_whose_loss_is_not_finite_end_with_3_and_a_checkpoint_from_before(made, tmp_path):
    arguments = write_config(tmp_path, "minibatch", 2)
    diverging = ["loss=mse", "data=teaching", "data.num_samples=40", "model=linear"]
    diverging += ["optimizer.lr=1e6", "clip_grad_norm=null", "validation=null"]
    diverging += ["checkpoint.keep_best=null"]
    ended = made.start([*arguments, *diverging], tmp_path, 2).end()
    assert ended.codes == [3, 3], ended.log
    (said,) = [line for line in ended.log.splitlines() if line.startswith("gdtrain: ")]
    step = int(re.search(r"step (\d+)", said)[1])
    path, state, skipped = CheckpointStore(tmp_path / "out" / "checkpoints").load_newest()
    assert (state["progress"]["step"], skipped) == (step - 1, [])
    assert path.name == f"step-{step - 1:010d}"
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
