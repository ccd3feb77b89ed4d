"""Give the command line generated input, and count what is not refused as it should be."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.broken_input import broken_case
from helpers.hostile_configs import BOMB_BYTES, BOMB_SECONDS, BOMBS, cost_of_bomb
from helpers.input_run import MOST_SECONDS, Outcome, run_case
from helpers.valid_input import valid_case, write_data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--valid", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--start", type=int, default=0, help="the first seed; to go on from it")
    parser.add_argument("--show", type=int, default=10, help="faults that are shown whole")
    parser.add_argument("--hostile", action="store_true", help="the hostile cases, and no others")
    options = parser.parse_args()
    if options.hostile:
        return _hostile()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        os.chdir(folder)
        started = time.perf_counter()
        faults = 0
        for kind, count in (("valid", options.valid), ("broken", options.cases)):
            seeds = range(options.start, options.start + count)
            faults += _run_all(kind, seeds, folder, options.show)
        print(f"{time.perf_counter() - started:.0f} s")
        os.chdir("/")
    return 1 if faults else 0


def _run_all(kind: str, seeds: range, folder: Path, most_shown: int) -> int:
    """Run the cases of one kind, print a table of what became of them, return the faults."""
    table: dict[str, Counter[str]] = {}
    slowest, shown, faults = (0.0, 0), 0, 0
    for seed in seeds:
        case = valid_case(seed) if kind == "valid" else broken_case(seed, folder)
        # A case that hangs where no signal can end it ends the script, with its place.
        faulthandler.dump_traceback_later(3 * MOST_SECONDS, exit=True)
        outcome = run_case(case, folder)
        faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, (outcome.seconds, seed))
        row = table.setdefault(case.kind, Counter())
        row.update(_marks(outcome))
        refused = kind == "valid" and outcome.code != 0
        if outcome.fault or refused:
            faults += 1
            row["wrong"] += 1
            if shown < most_shown:
                shown += 1
                print(f"seed {seed}, {case.kind}: {outcome.fault or outcome.err}\n")
        if (seed - seeds.start) % 1000 == 999:
            print(f"{kind}: {seed - seeds.start + 1} cases, {faults} wrong", file=sys.stderr)
    columns = ["cases", "exit 0", "exit 2", "exit 3", "tracebacks", "hangs", "files left", "wrong"]
    print(f"{kind:<20}" + "".join(f"{column:>12}" for column in columns))
    total: Counter[str] = Counter()
    for name, row in sorted(table.items()):
        total += row
        print(f"{name:<20}" + "".join(f"{row[column]:>12,}" for column in columns))
    print(f"{'all':<20}" + "".join(f"{total[column]:>12,}" for column in columns))
    print(f"slowest: {slowest[0]:.2f} s (seed {slowest[1]})\n")
    return faults


def _hostile() -> int:
    """Run the hostile cases under the audit hook, weigh the bombs, and print what was seen."""
    script = Path(__file__).resolve().parents[1] / "tests" / "hostile_run.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    wrong = [case for case in found["cases"] if case["wrong"]]
    codes = Counter(case["code"] for case in found["cases"])
    print(f"hostile cases {len(found['cases'])}, exit codes {dict(codes)}, wrong {len(wrong)}")
    print(f"audit events {found['events']:,}, peak memory {found['peak_kib'] / 1024:.0f} MiB")
    for case in wrong:
        print(case)
    costs = {name: cost_of_bomb(text) for name, text in BOMBS.items()}
    slowest = max(costs, key=lambda name: costs[name][0])
    largest = max(costs, key=lambda name: costs[name][1])
    print(f"bombs {len(costs)}; slowest {1e3 * costs[slowest][0]:.0f} ms ({slowest}), ", end="")
    print(f"largest {costs[largest][1] / 1e6:.1f} MB ({largest})")
    dear = costs[slowest][0] > BOMB_SECONDS or costs[largest][1] > BOMB_BYTES
    return 1 if wrong or dear else 0


def _marks(outcome: Outcome) -> dict[str, int]:
    marks = {"cases": 1, f"exit {outcome.code}": 1}
    marks["tracebacks"] = int(bool(outcome.traceback) and not outcome.hung)
    marks["hangs"] = int(outcome.hung)
    marks["files left"] = int(bool(outcome.left))
    return marks


if __name__ == "__main__":
    sys.exit(main())
