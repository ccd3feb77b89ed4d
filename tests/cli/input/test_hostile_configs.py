"""Hostile configurations and data files: nothing runs, nothing is imported, little is read."""

import json
import subprocess
import sys
from typing import Any

import pytest
from helpers.hostile.hostile_configs import BOMB_BYTES, BOMB_SECONDS, BOMBS, cases, cost_of_bomb
from helpers.processes import run

# How much longer a machine that is busy may take.
BUSY = 10


# Of the ordinary tests: code by a tag, by a name, by a dotted path, and much from little.
FEW = ("tag 0 as value", "import builtins.exec", "model torch.hub.load", "bomb: a billion laughs")


@pytest.fixture(scope="module")
def audited() -> dict[str, Any]:
    """What a process of its own, under an audit hook, says of every case."""
    command = [sys.executable, "-W", "error", "-m", "helpers.hostile.hostile_run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_few_cases_import_execute_and_open_nothing_and_are_refused():
    done = run("-m", "helpers.hostile.hostile_run", *FEW)
    assert done.returncode == 0, done.err
    found = json.loads(done.out)
    assert {"import", "exec", "open"} <= set(found["control"])  # the hook sees them
    told = {case["name"]: (case["code"], case["wrong"]) for case in found["cases"]}
    assert told == dict.fromkeys(FEW, (2, []))


def test_there_are_at_least_300_hostile_cases():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) >= 300


@pytest.mark.long
def test_the_hook_sees_what_is_forbidden(audited):
    assert audited["control"] == [
        *("import", "exec", "os.system", "open", "os.mkdir", "pickle.find_class"),
        *("subprocess.Popen", "socket."),
    ]


@pytest.mark.long
def test_no_case_imports_executes_or_opens_what_was_not_named(audited):
    assert len(audited["cases"]) == len(cases())
    assert {case["name"]: case["wrong"] for case in audited["cases"] if case["wrong"]} == {}


@pytest.mark.long
def test_only_what_is_harmless_is_taken(audited):
    taken = [case["name"] for case in audited["cases"] if case["code"] == 0]
    assert [name for name in taken if not name.startswith("named ")] == [
        "text: two byte order marks",
        "text: next lines",
        "text: carriage returns",
        "npz file: lying",
        "csv file: formulas",
        "csv file: code",
        "csv file: a cell over the bound",
        "csv file: JSON with a class",
        "records file: JSON with names twice",
        "override 'epochs=1 # x'",
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "named '..yaml'",
            "command line:1:1: --output-dir: a configuration named '.' has no place in runs; "
            "rename it, or give this option",
        ),
        (
            "named '...yaml'",
            "command line:1:1: --output-dir: a configuration named '..' has no place in runs; "
            "rename it, or give this option",
        ),
        (
            "runs/a is a link",
            "command line:1:1: --output-dir: runs/a is a symbolic link, and may lead out of runs; "
            "remove it, or give this option",
        ),
        (
            "runs is a file",
            "command line:1:1: --output-dir: runs/a can't be made: Not a directory; choose another",
        ),
        (
            "config 0: 'b.yaml'",
            "b.yaml:1:1: is a pipe or a device; save the configuration in a file",
        ),
        (
            "config 18: '/dev/zero'",
            "/dev/zero:1:1: is a pipe or a device; save the configuration in a file",
        ),
        (
            "config 22: '/proc/self/mem'",
            "/proc/self/mem:1:1: can't be read: Input/output error; give a readable YAML file",
        ),
        (
            "csv 'pipe'",
            "a.yaml:1:7: data: pipe: is a pipe or a device; give a file, or read it with "
            "source: stream",
        ),
        (
            "csv /dev/zero",
            "a.yaml:1:7: data: /dev/zero: is a pipe or a device; give a file, or read it with "
            "source: stream",
        ),
        (
            "stream /dev/zero",
            "a.yaml:1:7: data: /dev/zero: a line is longer than 16 MiB; is it text with one "
            "record a line?",
        ),
        (
            "pt file: pt system",
            "a.yaml:1:7: data: d: holds more than tensors, or is no .pt file; refused, for it "
            "could run code",
        ),
        (
            "npy file: objects",
            "a.yaml:1:7: data: d: can't be read: Object arrays cannot be loaded when "
            "allow_pickle=False",
        ),
        (
            "bomb: a billion laughs",
            "a.yaml:3:50: has more faults than these 20; correct them first",
        ),
        (
            "bomb: many items",
            "a.yaml:1:5999: holds over 3,000 keys and values; a configuration is small",
        ),
        (
            "bomb: deep brackets",
            "a.yaml:1:21: is nested over 20 levels deep; a configuration is flat",
        ),
        ("bomb: too long", "a.yaml:1:1: is over 64 KiB; a configuration is small"),
        (
            "text: an escape over Unicode",
            "a.yaml:1:30: is not valid YAML: a number in it is out of range",
        ),
    ],
)
def test_a_case_is_refused_in_clear_words(audited, name, told):
    (case,) = [case for case in audited["cases"] if case["name"] == name]
    assert (case["code"], case["told"][-1]) == (2, told)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if number % 9 == 0 else pytest.mark.long)
        for number, name in enumerate(BOMBS)
    ],
)
def test_a_bomb_costs_little(name):
    seconds, peak = cost_of_bomb(BOMBS[name])
    assert seconds < BOMB_SECONDS * BUSY
    assert peak < BOMB_BYTES
