"""Generated input: all that is valid is taken, all that is broken is refused."""

from collections import Counter
from pathlib import Path

import pytest
from helpers.hostile.broken_input import broken_case
from helpers.hostile.input_run import Outcome, run_case
from helpers.hostile.valid_input import valid_case, write_data

NUM_VALID = 15
NUM_BROKEN = 60
AT_LENGTH = 10_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)


def test_valid_configurations_are_taken(data: Path) -> None:
    assert_taken(range(NUM_VALID), data)


@pytest.mark.long
def test_many_valid_configurations_are_taken(data: Path, scaled) -> None:
    assert_taken(range(NUM_VALID, NUM_VALID + scaled(200)), data)


def assert_taken(seeds: range, data: Path) -> None:
    refused = {}
    for seed in seeds:
        outcome = run_case(valid_case(seed), data)
        if outcome.code != 0 or outcome.fault:
            refused[seed] = outcome.fault or outcome.err
    assert refused == {}


def test_broken_input_is_refused_in_one_line_a_fault_and_leaves_nothing(data: Path) -> None:
    assert_refused(range(NUM_BROKEN), data)


@pytest.mark.long
@pytest.mark.parametrize("tenth", range(10))
def test_broken_input_is_refused_at_length(data: Path, scaled, tenth: int) -> None:
    """Seeds that the short form has not."""
    first = NUM_BROKEN + tenth * AT_LENGTH // 10
    assert_refused(range(first, first + scaled(AT_LENGTH // 10)), data)


def assert_refused(seeds: range, data: Path) -> None:
    wrong, codes = {}, Counter[int | None]()
    for seed in seeds:
        outcome = run_case(broken_case(seed, data), data)
        codes[outcome.code] += 1
        if outcome.fault:
            wrong[seed] = outcome.fault
    assert wrong == {}
    assert codes[2] > len(seeds) / 2, "most of it is broken"


def test_a_seed_gives_the_same_case_again(data: Path) -> None:
    for seed in range(50):
        assert broken_case(seed, data) == broken_case(seed, data)
        assert valid_case(seed) == valid_case(seed)


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (Outcome(0), ""),
        (Outcome(2, err="a.yaml:1:2: seed: must be >= 0, got -1\n"), ""),
        (Outcome(2, err="note: x\na.yaml:1:2: is empty\n"), ""),
        (Outcome(2, err="a.yaml: is empty\n"), "not FILE:LINE:COLUMN: 'a.yaml: is empty'"),
        (Outcome(2, err="note: x\n"), "no fault was told: 'note: x\\n'"),
        (Outcome(2, "x", "a.yaml:1:2: is empty\n"), "printed 'x' beside the faults"),
        (Outcome(1, err="x"), "exit code 1: x"),
        (Outcome(None, traceback="ValueError"), "ValueError"),
        (Outcome(None, hung=True, traceback="x"), "hung for over 120 s"),
        (Outcome(2, err="a.yaml:1:2: x\n", left=["runs"]), "files left or changed: ['runs']"),
    ],
)
def test_what_counts_as_wrong(outcome: Outcome, fault: str) -> None:
    assert outcome.fault == fault
