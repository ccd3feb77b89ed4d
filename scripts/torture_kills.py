"""Kill, signal and resume real runs many times over, and print what came of it.

The long form of ``tests/test_kills.py``: the three forms of gradient descent, in one process and
in two, killed with SIGKILL at seeded times and inside the calls that save and prune; stopped by
SIGTERM and SIGINT and asked to save by SIGUSR1; and torchrun's restarts after a rank has died.
Every run must end with the bits and the step log of one that was left alone.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers.torture import (
    FORMS,
    Nursery,
    Undisturbed,
    check_same,
    draw_kills,
    killed_run,
    nursery,
    resumes_by_epoch,
    signalled_run,
    undisturbed,
    write_config,
)

Clean = dict[tuple[str, int], Undisturbed]
_MANY = 5  # kills of one run, in those runs that take several


def kills(made: Nursery, folder: Path, clean: Clean, count: int, seed: int) -> bool:
    """``count`` runs of each form on 1 and 2 ranks, of which a twelfth take several kills."""
    draw = random.Random(seed)
    survived: list[float] = []
    passed = total = several = hit = in_one_epoch = 0
    for (form, ranks), expected in clean.items():
        for number in range(count):
            # Several kills fall into one epoch only where an epoch is more than one update.
            many = number % 8 == 3 and form != "batch"
            planned = draw_kills(draw, expected, ranks, number % 2 == 1, _MANY if many else 1)
            where = folder / f"kill-{form}-{ranks}-{number}"
            total += 1
            try:
                hits, seconds = killed_run(made, where, form, ranks, planned)
                check_same(where, expected)
            except AssertionError as error:
                print(f"FAILED {where.name}, {planned}: {error}", flush=True)
                continue
            passed += 1
            several += many
            hit += hits
            in_one_epoch += many and _MANY in resumes_by_epoch(where / "out").values()
            survived += seconds
            shutil.rmtree(where)
        print(f"  {form} on {ranks}: {passed} of {total} so far", flush=True)
    print(f"kill -9: {passed}/{total} runs end with the undisturbed bits and log; {hit} kills hit")
    print(f"  {several} runs took {_MANY} kills, {in_one_epoch} of them all in one epoch")
    if survived:
        longest = max(survived)
        print(
            f"  {len(survived)} times one of two ranks died; the other ended within {longest:.2f} s"
        )
    return passed == total


def signals(made: Nursery, folder: Path, clean: Clean, count: int, seed: int) -> bool:
    """``count`` moments for each signal on 1 and 2 ranks, the forms in turn."""
    draw = random.Random(seed + 1)
    passed = total = 0
    happened: Counter[str] = Counter()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for ranks in (1, 2):
            for number in range(count):
                form = list(FORMS)[number % len(FORMS)]
                expected = clean[form, ranks]
                whom = draw.choice([None, [0], [1]]) if ranks > 1 else None
                moment = draw.uniform(0.0, expected.seconds)
                where = folder / f"signal-{signum}-{ranks}-{number}"
                total += 1
                try:
                    how = signalled_run(made, where, form, ranks, signum, moment, whom)
                    check_same(where, expected)
                except AssertionError as error:
                    print(f"FAILED {where.name} at {moment:.3f} to {whom}: {error}", flush=True)
                    continue
                passed += 1
                happened[f"{signal.Signals(signum).name} {how}"] += 1
                shutil.rmtree(where)
        print(f"  {signal.Signals(signum).name}: {passed} of {total} so far", flush=True)
    print(f"signals: {passed}/{total} as promised, 0 hangs; {dict(sorted(happened.items()))}")
    return passed == total


def restarts(folder: Path, clean: Clean, count: int, seed: int) -> bool:
    """Kill a rank under torchrun, which starts all of them again; the run ends alike."""
    draw = random.Random(seed + 2)
    passed = 0
    for number in range(count):
        form = list(FORMS)[number % len(FORMS)]
        where = folder / f"restart-{number}"
        where.mkdir(parents=True)
        arguments = write_config(where, form, 2)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", "--max-restarts", "3", "--monitor-interval", "0.1"]
        with (where / "log").open("w") as log:
            agent = subprocess.Popen(
                # Imports of torch can take long on a busy machine, and ranks wait for each other.
                [*command, "-m", "gdtrain", *arguments, "process_timeout=120"],
                cwd=where,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            killed = _kill_a_worker(agent, where, draw)
            code = agent.wait(180)
        try:
            assert killed, "no worker was killed"
            assert code == 0, (where / "log").read_text("utf-8")
            check_same(where, clean[form, 2])
        except AssertionError as error:
            print(f"FAILED {where.name}: {error}", flush=True)
            continue
        passed += 1
        print(f"  restarts: {passed} of {number + 1} so far", flush=True)
        shutil.rmtree(where)
    print(f"torchrun restarts: {passed}/{count} end with the undisturbed bits")
    return passed == count


def _kill_a_worker(agent: subprocess.Popen[bytes], where: Path, draw: random.Random) -> bool:
    """SIGKILL one of the agent's workers a little after training has begun."""
    while agent.poll() is None and not (where / "out" / "config.yaml").exists():
        time.sleep(0.005)
    time.sleep(draw.uniform(0.0, 0.5))
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text("utf-8").split()
    workers = [int(pid) for pid in children if _is_worker(int(pid))]
    if not workers:
        return False
    os.kill(draw.choice(workers), signal.SIGKILL)
    return True


def _is_worker(pid: int) -> bool:
    try:
        return b"gdtrain" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="runs of each form and rank count")
    parser.add_argument("--signals", type=int, default=50, help="of each kind on each rank count")
    parser.add_argument("--restarts", type=int, default=50, help="runs under torchrun")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, nursery() as made:
        folder = Path(name)
        clean: Clean = {
            (form, ranks): undisturbed(made, folder / f"clean-{form}-{ranks}", form, ranks)
            for form in FORMS
            for ranks in (1, 2)
        }
        good = [
            kills(made, folder, clean, options.kills, options.seed),
            signals(made, folder, clean, options.signals, options.seed),
            restarts(folder, clean, options.restarts, options.seed),
        ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
