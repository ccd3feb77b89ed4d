"""Random training programs end as the plain PyTorch loop of the same program does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from random import Random

import pytest

from oracle.check import Differs, NoReference, check
from oracle.generator import generate, shortest
from oracle.mutants import MUTANTS, Mutant, caught
from oracle.program import Program

SEED = 0
# Of a hundred programs, of which the long run makes fifty times as many.
SHARES = {"exact": 50, "cut": 25, "scan": 15, "ranks": 10}


def programs(seed: int, kind: str) -> Iterator[Program]:
    """The programs of one kind, without end."""
    random = Random(f"{seed} {kind}")
    return (generate(random, kind) for _ in itertools.count())


def ends_of(kind: str, seed: int, count: int) -> list[str]:
    """How ``count`` programs have ended; those that PyTorch itself can't run do not count."""
    ends: list[str] = []
    for number, program in enumerate(programs(seed, kind)):
        try:
            ends.append(check(program))
        except NoReference:
            continue
        except Differs:
            print(f"seed {seed}, {kind} program {number}: {program}, and shorter:")
            check(shortest(program, differs))
            raise
        if len(ends) == count:
            return ends
    raise AssertionError


def differs(program: Program) -> bool:
    try:
        check(program)
    except NoReference:
        return False
    except Differs:
        return True
    return False


@pytest.mark.parametrize("kind", SHARES)
def test_programs(kind: str) -> None:
    """The first programs of each kind, the same ones each time."""
    if kind == "scan":
        pytest.importorskip("jax")
    ends = ends_of(kind, SEED, SHARES[kind])
    compared = [end for end in ends if not end.startswith("refused")]
    assert len(compared) >= len(ends) / 3, ends  # it is no comparison if all are refused


@pytest.mark.long
@pytest.mark.parametrize("kind", SHARES)
@pytest.mark.parametrize("share", range(50))
def test_thousands_of_programs(
    share: int, kind: str, first_seed: int, scaled: Callable[[int], int]
) -> None:
    """Fifty times a hundred programs, each with a seed of its own; a difference prints it.

    ``-m long --seed 7 -k 12-scan`` runs one share of them.
    """
    if kind == "scan":
        pytest.importorskip("jax")
    ends_of(kind, first_seed + share, scaled(SHARES[kind]))


def test_every_fault_can_be_put_back() -> None:
    """Its line stands where :mod:`oracle.mutants` looks for it."""
    for mutant in MUTANTS:
        assert mutant.new in mutant.source()


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_programs_find_a_fault_that_is_put_back(
    mutant: Mutant, scaled: Callable[[int], int]
) -> None:
    number, difference = caught(mutant, scaled(5000), SEED)
    print(f"program {number}: {difference}")
    assert number is not None
