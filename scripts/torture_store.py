"""Power cuts, damaged files, failing disks and hostile checkpoints, in their long form.

    python scripts/torture_store.py [power] [corruption] [failing] [hostile] [--seed N]

All four if none is named. The code is that of the tests' short form: tests/power_cuts.py,
corruptions.py, failing_disks.py and hostile_checkpoints.py. Prints a table of what was counted,
and exits with 1 if a figure falls short.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import corruptions, failing_disks, hostile_checkpoints, power_cuts

SUBSETS = 256
FLIPS = 2000
HOSTILE = 1000

# What was looked at, how often it was as promised, out of how many, and the first that was not.
Row = tuple[str, int, int, str]


def power(_seed: int) -> list[Row]:
    rows = []
    for name in power_cuts.SCENARIOS:
        found = power_cuts.cut_everywhere(name, SUBSETS)
        what = f"power cut, {name}: {found.calls} calls"
        rows.append((what, found.states - found.broken, found.states, found.first))
    return rows


def corruption(seed: int) -> list[Row]:
    kinds: dict[str, Callable[[], corruptions.Figures]] = {
        f"{FLIPS} bit flips": lambda: corruptions.damage_each(
            lambda sizes: corruptions.flips(FLIPS, sizes, seed)
        ),
        "truncations, every 4 KiB": lambda: corruptions.damage_each(corruptions.truncations),
        "longer, swapped, missing": lambda: corruptions.damage_each(
            lambda _: corruptions.other_damages()
        ),
        "no other checkpoint": lambda: corruptions.damage_all(
            lambda sizes: corruptions.flips(FLIPS // 4, sizes, seed + 1)
        ),
        "the mark of the best": corruptions.flip_the_mark,
    }
    rows = []
    for name, run in kinds.items():
        found = run()
        first = found.problems[0] if found.problems else ""
        rows.append((f"corruption, {name}", found.cases - found.missed, found.cases, first))
    return rows


def failing(_seed: int) -> list[Row]:
    rows = []
    for what, run in (("a save", failing_disks.fail_saves), ("a fit", failing_disks.fail_fits)):
        found = run(lambda _: failing_disks.WAYS)
        name = f"failing disk, {what}: each of {found.calls} calls × {len(failing_disks.WAYS)}"
        rows.append((name, found.cases - found.silent, found.cases, found.first))
    return rows


def hostile(seed: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        found = hostile_checkpoints.in_a_process_of_its_own(Path(place), HOSTILE, seed)
    first = found.problems[0] if found.problems else ""
    bad = {
        "imports": found.imports,
        "executions": found.executions,
        "opens outside": found.opens_outside,
        "tracebacks": found.tracebacks,
        "hangs": found.hangs,
        "more than one line": found.long_answers,
        "files outside changed": found.harmed,
    }
    print(f"hostile: exit codes {found.codes}, {found.peak_mb:.0f} MB more at the peak")
    return [
        (
            f"hostile, without {name}",
            found.cases - min(number, found.cases),
            found.cases,
            first if number else "",
        )
        for name, number in bad.items()
    ]


KINDS = {"power": power, "corruption": corruption, "failing": failing, "hostile": hostile}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.kinds) - KINDS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    torch.set_num_threads(1)
    logging.getLogger("gdtrain").setLevel(logging.CRITICAL)
    short = False
    for kind in options.kinds or KINDS:
        started = time.monotonic()
        if kind == "failing":  # which listens to what is logged
            logging.getLogger("gdtrain").setLevel(logging.NOTSET)
        for what, good, cases, first in KINDS[kind](options.seed):
            short |= good < cases
            print(f"{what:<66}{good:>7} of {cases:<7}{first}")
        print(f"{kind}: {time.monotonic() - started:.0f} s", flush=True)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
