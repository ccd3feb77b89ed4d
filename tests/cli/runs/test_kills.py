"""Runs that are killed, signalled or lose a rank end with the bits of one that was left alone."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.faults.torture import (
    FORMS,
    check_same,
    draw_kills,
    killed_run,
    resumes_by_epoch,
    signalled_run,
    start_run,
    step_log,
    undisturbed,
    write_config,
)
from helpers.processes import run, start

from gdtrain.checkpoint.checkpoints import CheckpointStore


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Undisturbed runs, by form and number of ranks, made when they are asked for."""
    folder, known = tmp_path_factory.mktemp("clean"), {}

    def of(form: str, ranks: int):
        if (form, ranks) not in known:
            known[form, ranks] = undisturbed(folder / f"{form}-{ranks}", form, ranks)
        return known[form, ranks]

    return of


@pytest.mark.parametrize(
    ("form", "ranks", "inside", "count"),
    [
        pytest.param("batch", 1, True, 1, marks=pytest.mark.long),
        pytest.param("batch", 1, False, 1, marks=pytest.mark.long),
        ("sample", 1, True, 1),
        pytest.param("minibatch", 1, True, 1, marks=pytest.mark.long),
        pytest.param("minibatch", 1, False, 1, marks=pytest.mark.long),
        pytest.param("minibatch", 2, True, 1, marks=pytest.mark.long),
        pytest.param("minibatch", 2, False, 1, marks=pytest.mark.long),
    ],
)
def test_kill_9_anywhere(clean, tmp_path, form, ranks, inside, count):
    expected = clean(form, ranks)
    draw = random.Random(f"{form} {ranks} {inside}")
    kills = draw_kills(draw, expected, ranks, inside, count)
    hits, _ = killed_run(tmp_path / "killed", form, ranks, kills)
    assert hits == count or not inside
    check_same(tmp_path / "killed", expected)


@pytest.mark.parametrize(
    ("signum", "ranks", "whom"),
    [
        pytest.param(signal.SIGTERM, 1, None, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 1, None, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR1, 1, None, marks=pytest.mark.long),
        (signal.SIGTERM, 2, [1]),
        pytest.param(signal.SIGUSR1, 2, [1], marks=pytest.mark.long),
    ],
)
def test_signals_stop_or_save_all_ranks_at_a_safe_point(clean, tmp_path, signum, ranks, whom):
    expected = clean("minibatch", ranks)
    moment = 0.5 * expected.seconds
    signalled_run(tmp_path / "run", "minibatch", ranks, signum, moment, whom)
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


@pytest.mark.few(1)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_exits_at_once(tmp_path, signum):
    write_config(tmp_path, "minibatch", 1)
    (tmp_path / "parts.py").write_text(STUCK, "utf-8")
    command = ["-m", "gdtrain", "--config", "a.yaml", "--import", "parts", "trainer=stuck"]
    with start(*command, cwd=tmp_path) as program:
        program.wait_for(lambda: program.out == "stuck\n")
        program.send_signal(signum)
        program.join(0.5)
        assert program.returncode is None  # it waits for the safe point
        program.send_signal(signum)
        assert program.wait(60) == 128 + signum  # and not after the 600 s of the step


@pytest.mark.long
def test_ranks_that_wait_for_a_stopped_one_give_up_in_the_configured_time(tmp_path):
    """SIGSTOP: the process is there and its connections are open, but it never answers."""
    arguments = write_config(tmp_path, "sample", 2)
    run = start_run([*arguments, "process_timeout=10", "epochs=2000"], tmp_path, 2)
    run.programs[0].wait_for(lambda: "training on" in run.text())
    run.send(signal.SIGSTOP, [1])
    run.wait_for_one()
    run.send(signal.SIGKILL)
    ended = run.end()
    assert ended.codes == [1, -signal.SIGKILL]
    said = "gdtrain: another process of the run has ended or does not answer"
    assert re.search(rf"^{said}.*; start all of them again with --resume$", ended.log, re.M)


@pytest.mark.long
def test_torchrun_restarts_a_run_whose_rank_has_died(clean, tmp_path):
    arguments = write_config(tmp_path, "minibatch", 2)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", "--monitor-interval", "0.1", "-m", "gdtrain"]
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
    command += [*arguments, "--import", "parts", "trainer=mortal", "process_timeout=120"]
    done = run(*command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.err
    assert "resuming from out/checkpoints/step-" in done.err
    check_same(tmp_path, clean("minibatch", 2))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(2, 1, marks=pytest.mark.long),
        pytest.param(1, 2, marks=pytest.mark.long),
        pytest.param(2, 3, marks=pytest.mark.long),
    ],
)
def test_a_run_goes_on_with_other_processes_in_the_same_order(tmp_path, before, after):
    arguments, out = write_config(tmp_path, "sample", 2), tmp_path / "out"
    half = start_run([*arguments, "scheduler=null", "epochs=1"], tmp_path, before).end()
    assert set(half.codes) == {0}, half.log
    ended = start_run([*arguments, "scheduler=null", "--resume"], tmp_path, after).end()
    assert set(ended.codes) == {0}, ended.log
    assert (
        f"note: resumed under other conditions (processes {before} then, {after} now): the same "
        "samples in the same order, but the last bits may differ from an undisturbed run's"
    ) in ended.log
    steps = [record["step"] for record in step_log(out) if record["kind"] == "step"]
    assert steps == list(range(1, 121))
    samples = [record["samples"] for record in step_log(out) if record["kind"] == "epoch"]
    assert samples == [40, 80, 120]


def test_two_ranks_whose_loss_is_not_finite_end_with_3_and_a_checkpoint_from_before(tmp_path):
    arguments = write_config(tmp_path, "minibatch", 2)
    diverging = ["loss=mse", "data=teaching", "data.num_samples=40", "model=linear"]
    diverging += ["optimizer.lr=1e6", "clip_grad_norm=null", "validation=null"]
    diverging += ["checkpoint.keep_best=null"]
    ended = start_run([*arguments, *diverging], tmp_path, 2).end()
    assert ended.codes == [3, 3], ended.log
    (said,) = [line for line in ended.log.splitlines() if line.startswith("gdtrain: ")]
    step = int(re.search(r"step (\d+)", said)[1])
    path, state, skipped = CheckpointStore(tmp_path / "out" / "checkpoints").load_newest()
    assert (state["progress"]["step"], skipped) == (step - 1, [])
    assert path.name == f"step-{step - 1:010d}"
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


# ── at length: many runs, and what was not as promised ──────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_kill_9_at_many_moments(clean, tmp_path, scaled, form, ranks):
    """40 runs, half of them killed inside a disk call; every eighth takes five kills.

    Several kills fall into one epoch only where an epoch is more than one update.
    """
    expected, draw = clean(form, ranks), random.Random(f"many {form} {ranks}")
    figures, failed = Counter[str](), []
    for number in range(scaled(40)):
        count = 5 if number % 8 == 3 and form != "batch" else 1
        planned = draw_kills(draw, expected, ranks, number % 2 == 1, count)
        place = tmp_path / str(number)
        try:
            hits, survived = killed_run(place, form, ranks, planned)
            check_same(place, expected)
        except AssertionError as error:
            failed.append(f"{planned}: {error}")
            continue
        figures["hits"] += hits
        figures["ranks left over"] += len(survived)
        figures["five in an epoch"] += 5 in resumes_by_epoch(place / "out").values()
    print(form, ranks, dict(figures))
    assert failed == []
    assert figures["hits"] >= scaled(40) // 4  # those inside disk calls, at the least


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_at_many_moments(clean, tmp_path, scaled, signum, ranks):
    """50 moments from the first line to the last, the forms in turn."""
    draw = random.Random(f"many {signum} {ranks}")
    figures, failed = Counter[str](), []
    for number in range(scaled(50)):
        form = list(FORMS)[number % len(FORMS)]
        whom = draw.choice([None, [0], [1]]) if ranks > 1 else None
        moment = draw.uniform(0.0, clean(form, ranks).seconds)
        place = tmp_path / str(number)
        try:
            figures[signalled_run(place, form, ranks, signum, moment, whom)] += 1
            check_same(place, clean(form, ranks))
        except AssertionError as error:
            failed.append(f"{form} at {moment:.3f} to {whom}: {error}")
    print(signum, ranks, dict(figures))
    assert failed == []


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_torchrun_restarts_runs_whose_ranks_die_at_many_moments(clean, tmp_path, scaled, form):
    draw, failed = random.Random(f"restarts {form}"), []
    for number in range(scaled(17)):
        place = tmp_path / str(number)
        place.mkdir()
        try:
            killed, code = restarted_run(place, form, draw.uniform(0.0, 0.5), draw)
            assert killed, "no worker was killed"
            assert code == 0, (place / "log").read_text("utf-8")
            check_same(place, clean(form, 2))
        except AssertionError as error:
            failed.append(f"{number}: {error}")
    assert failed == []


def restarted_run(place: Path, form: str, delay: float, draw: random.Random) -> tuple[bool, int]:
    """Train under torchrun, with a SIGKILL for one worker so long after training has begun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", "3", "--monitor-interval", "0.1"]
    # Imports of torch can take long on a busy machine, and ranks wait for each other.
    command += ["-m", "gdtrain", *write_config(place, form, 2), "process_timeout=120"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (place / "log").open("w") as log:
        agent = subprocess.Popen(command, cwd=place, stdout=log, stderr=log, env=environment)
        while agent.poll() is None and not (place / "out" / "config.yaml").exists():
            time.sleep(0.005)
        time.sleep(delay)
        workers = workers_of(agent.pid)
        if workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        return bool(workers), agent.wait(180)


def workers_of(agent: int) -> list[int]:
    """The processes of gdtrain that torchrun's agent has started."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text("utf-8").split()
    return [int(pid) for pid in children if _is_worker(int(pid))]


def _is_worker(pid: int) -> bool:
    try:
        return b"gdtrain" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
