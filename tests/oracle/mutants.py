"""Faults put back into a copy of gdtrain, one at a time: how many programs find each?

    PYTHONPATH=tests python -m oracle.mutants [--most 5000] [--seed 0] [NAME …]

Each mutant is one line of the source in another form, as it stood, or might have stood, before the
fault was mended. Only generated programs look for it, in the order of :func:`numbered`: the first
hundred are those of the ordinary suite.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

TESTS = Path(__file__).resolve().parent.parent
PACKAGE = TESTS.parent / "gdtrain"

# Of twenty programs in a row; five times that are the shares of the suite.
TURNS = {"exact": 10, "cut": 5, "scan": 3, "ranks": 2}
ALL = tuple(TURNS)


@dataclass(frozen=True)
class Mutant:
    """``old`` stands once in ``file``; with ``new`` in its place the fault is back.

    kinds: of programs in which it can show at all; the others are counted and not run.
    """

    name: str
    file: str
    old: str
    new: str
    kinds: tuple[str, ...] = ALL

    def source(self) -> str:
        """The file with the fault. Raises ValueError unless ``old`` stands there once."""
        text = (PACKAGE / self.file).read_text("utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: stands {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)


MUTANTS: tuple[Mutant, ...] = ()


# ── the search ──────────────────────────────────────────────────────────────────────────────────


def numbered(seed: int) -> Iterator[tuple[int, str, Random]]:
    """Numbers from 1, with the kind of program that has it, and what draws the programs of it."""
    randoms = {kind: Random(f"{seed} {kind}") for kind in TURNS}
    number = 0
    while True:
        for kind, turns in TURNS.items():
            for _ in range(turns):
                number += 1
                yield number, kind, randoms[kind]


def search(kinds: tuple[str, ...], most: int, seed: int) -> str:
    """``number: difference`` of the first program that differs, or "" if none of ``most`` does."""
    from oracle.check import Differs, NoReference, check
    from oracle.generator import generate

    for number, kind, random in numbered(seed):
        if number > most:
            return ""
        if kind not in kinds:
            continue
        try:
            check(generate(random, kind))
        except NoReference:
            continue
        except Differs as error:
            return f"{number}: {error}"
    raise AssertionError


def caught(mutant: Mutant | None, most: int = 5000, seed: int = 0) -> tuple[int | None, str]:
    """After how many programs the mutant is seen, None if never, and by what; None: no fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "gdtrain"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (copy / mutant.file).write_text(mutant.source(), "utf-8")
        path = os.pathsep.join([folder, str(TESTS)])
        kinds = ",".join(mutant.kinds if mutant is not None else ALL)
        command = [
            sys.executable,
            "-m",
            "oracle.mutants",
            "--search",
            kinds,
            f"--most={most}",
            f"--seed={seed}",
        ]
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd=folder
        )
    if done.returncode:
        return 1, f"does not run: {done.stderr.strip().splitlines()[-1]}"
    number, _, text = done.stdout.partition(": ")
    return (int(number), text.strip()) if number.strip() else (None, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--most", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        print(search(tuple(options.search.split(",")), options.most, options.seed))
        return 0
    missed = 0
    for mutant in [m for m in MUTANTS if not options.names or m.name in options.names]:
        started = time.monotonic()
        number, text = caught(mutant, options.most, options.seed)
        missed += number is None
        shown = "never" if number is None else f"{number:5}"
        print(f"{shown}  {mutant.name}  ({time.monotonic() - started:.0f} s)\n       {text}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
