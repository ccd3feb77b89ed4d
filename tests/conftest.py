"""What all tests share: one thread, and a program that forgets what a test has given it."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.processes import Program

from gdtrain.config import registry

TESTS = Path(__file__).resolve().parent

torch.set_num_threads(1)
# Processes that tests start find tests/helpers, and the gdtrain of these tests.
_FOUND = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _FOUND))


def pytest_addoption(parser: pytest.Parser) -> None:
    share = "how much of what the tests marked long do; 1 (default) is all of it"
    parser.addoption("--scale", type=float, default=1.0, help=share)


@pytest.fixture(scope="session")
def scaled(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """A count of a long test, as --scale wants it."""
    scale = request.config.getoption("--scale")
    return lambda count: max(1, round(count * scale))


@pytest.fixture(autouse=True)
def _leaves_no_program() -> Iterator[None]:
    yield
    for program in list(Program.alive):
        program.close()


@pytest.fixture(autouse=True)
def _forgets(tmp_path_factory) -> Iterator[None]:
    """Parts that a test registers, and modules of its own that it imports, are its own."""
    kinds = (registry.models, registry.losses, registry.sources, registry.trainers)
    parts = [dict(kind.parts) for kind in kinds]
    modules, path = set(sys.modules), list(sys.path)
    yield
    for kind, before in zip(kinds, parts, strict=True):
        kind.parts.clear()
        kind.parts.update(before)
    sys.path[:] = path
    written = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(written):
            del sys.modules[name]
