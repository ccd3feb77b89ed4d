"""What the index says of built-in parts is what their own settings say, without importing them."""

import subprocess
import sys
import tomllib

import pytest
from helpers.hostile.bad_cases import CASES, text_of
from helpers.paths import ROOT
from helpers.processes import run

from gdtrain import registry
from gdtrain.config.load import check, dump, parse_config
from gdtrain.config.yaml_source import read_text
from gdtrain.errors import ConfigError
from gdtrain.registry import settings_of

PARTS = [(kind, name) for kind in registry.KINDS for name in registry.index()[kind]]

# Without torch: the faults of each case, by the index alone.
BY_INDEX = """
import sys
from helpers.hostile.bad_cases import CASES, text_of
from gdtrain.config.load import check
from gdtrain.config.yaml_source import read_text
from gdtrain.errors import ConfigError
for name in CASES:
    try:
        check(read_text(text_of(CASES[name][0]), "a.yaml"), by_index=True)
        print(f"{name}|")
    except ConfigError as error:
        print(f"{name}|" + "|".join(map(str, error.faults)))
assert "torch" not in sys.modules
"""
# What only validators of a part see, wholly or in part.
SEEN_LATER = {
    "a NUL in a path",
    "a batch size that does not grow",
    "a long delimiter",
    "a monitor with two cadences",
    "a stream in another order",
    "a stream in one batch",
    "a stream of two epochs",
    "a stream with labels twice",
    "a stream with validation",
    "batch sizes that do not rise",
    "dampening alone",
    "fewer samples than eigenvalues",
    "groups as large as all their samples",
    "kernel even",
    "monitors of a stream",
    "nesterov alone",
    "nesterov with dampening",
    "weights of another length",
}


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_settings_made_of_the_index_are_described_as_the_parts_own(kind, name):
    made, own = settings_of(kind, name, by_index=True), settings_of(kind, name)
    assert made is not own
    assert made.model_json_schema() == own.model_json_schema()


@pytest.fixture(scope="module")
def by_index() -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", BY_INDEX], capture_output=True, text=True, check=True
    )
    lines = [line.split("|") for line in done.stdout.splitlines()]
    return {name: [fault for fault in faults if fault] for name, *faults in lines}


def test_faults_that_the_index_shows_are_those_of_the_parts_word_for_word(by_index):
    other = {}
    for name, (changes, _) in CASES.items():
        own: list[str] = []
        try:
            check(read_text(text_of(changes), "a.yaml"))
        except ConfigError as error:
            own = [str(fault) for fault in error.faults]
        if by_index[name] != own:
            other[name] = by_index[name]
            assert set(by_index[name]) < set(own)
    assert set(other) == SEEN_LATER


def test_what_the_index_fills_in_is_what_the_parts_do(by_index):
    config = parse_config({
        "data": "digits", "model": "cnn", "loss": "cross_entropy", "epochs": 1,
        "loader": [{"name": "minibatch", "batch_size": 4, "until_epoch": 2}, "batch"],
        "optimizer": {"lr": 0.1}, "scheduler": "cosine", "monitors": ["sharpness"],
    })  # fmt: skip
    shown = subprocess.run(
        [sys.executable, "-c", "import sys\nfrom gdtrain.config.load import check, dump\n"
         "from gdtrain.config.yaml_source import read_text\n"
         "print(dump(check(read_text(sys.stdin.read(), 'a'), by_index=True)), end='')"],
        input=dump(config), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == dump(config)


def test_the_index_is_installed_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "parts.json" in project["tool"]["setuptools"]["package-data"]["gdtrain"]


def test_building_imports_the_parts_that_are_named_and_not_their_kin():
    code = (
        "import sys\nfrom gdtrain.config.build import build\n"
        "from gdtrain.config.load import parse_config\n"
        "build(parse_config({'data': 'teaching', 'model': 'linear', 'loss': 'mse', 'epochs': 1,"
        "'loader': 'sample', 'optimizer': {'lr': 0.1}}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('gdtrain')))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.err
    imported = set(done.out.split())
    assert {"gdtrain.training.losses.numbers", "gdtrain.data.builtin.problems"} <= imported
    assert not imported & {
        *("gdtrain.training.losses.labels", "gdtrain.training.losses.probabilities"),
        *("gdtrain.data.builtin.digits", "gdtrain.data.streams.source"),
        *("gdtrain.training.callbacks.svrg", "gdtrain.analysis.monitors.sharpness"),
    }
