"""What all tests share: one thread, and a program that forgets what a test has given it."""

import gc
import logging
import os
import secrets
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import Program

from gdtrain import registry

TESTS = Path(__file__).resolve().parent

# Under nohup, and in the background of a script, these are ignored; programs would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _signum in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_signum, signal.SIG_DFL)
# torch makes a record of each step of a trace for whoever handles this logger, and pytest gives a
# handler to all that do not propagate; nobody else listens to it, so there it makes none.
logging.getLogger("torch.__trace").propagate = True
# Processes that tests start find tests/helpers, and the gdtrain of these tests.
_FOUND = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _FOUND))
# What is compiled, and what libraries write, is kept for the processes of this session, and not
# with the user.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="gdtrain-cache-")
    for _name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "IPYTHONDIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ[_name] = _CACHE.name
# Tests make many objects and few cycles: a fifteenth of the time went into looking for these.
gc.set_threshold(20_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    share = "how much of what the tests marked long do; 1 (default) is all of it"
    parser.addoption("--scale", type=float, default=1.0, help=share)
    seed = "of random programs in tests marked long; other ones each time by default"
    parser.addoption("--seed", type=int, default=secrets.randbelow(10**6), help=seed)


def pytest_configure(config: pytest.Config) -> None:
    """One thread; a process that only hands tests to others does without the import of torch."""
    if not getattr(config.option, "numprocesses", None):
        import torch

        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """What is imported and collected here stays: no garbage is looked for in it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


# Of tests that take long, so that no process waits for another one at the end.
_FIRST = ("test_readme.py", "test_oracle.py", "test_kills.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``few(n)``, all but n sets of parameters are long, if not so marked."""
    items.sort(key=lambda item: item.path.name not in _FIRST)
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("long"):
            groups[item.nodeid.split("[")[0]].append(item)
    for group in groups.values():
        few = group[0].get_closest_marker("few")
        assert few is not None
        tried = spread([item.callspec.indices for item in group], few.args[0])  # type: ignore[attr-defined]
        for number, item in enumerate(group):
            if number not in tried:
                item.add_marker(pytest.mark.long)


def spread(sets: list[dict[str, int]], count: int) -> set[int]:
    """Numbers of ``count`` sets of parameters, the first among them, with many different values.

    Each next one has the most values that none before it has; of several such, those far apart.
    """
    golden = (5**0.5 - 1) / 2
    left = sorted(range(len(sets)), key=lambda number: number * golden % 1)
    chosen: set[int] = set()
    seen: set[tuple[str, int]] = set()
    while left and len(chosen) < count:
        best = max(left, key=lambda number: len(sets[number].items() - seen))
        chosen.add(best)
        seen.update(sets[best].items())
        left.remove(best)
    return chosen


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')}"


@pytest.fixture(scope="session")
def first_seed(request: pytest.FixtureRequest) -> int:
    """Of random programs."""
    return int(request.config.getoption("--seed"))


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
    parts = {kind: dict(there) for kind, there in registry.registered.items()}
    modules, path = set(sys.modules), list(sys.path)
    yield
    for kind, there in registry.registered.items():
        for name in {*there} - {*parts[kind]} - {*registry.index()[kind]}:
            del there[name]
    sys.path[:] = path
    written = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(written):
            del sys.modules[name]
