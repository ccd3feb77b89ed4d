"""Programs in processes of their own, without the seconds that imports of torch take.

They are forked from a server that has imported torch and gdtrain (multiprocessing's), one for each
test session. What is about the start of an interpreter itself wants ``subprocess`` instead.

    with start("-m", "gdtrain", "--config", "a.yaml") as program:
        program.wait_for(lambda: "training on" in program.err)
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 143
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

SECONDS = 300.0  # for a busy machine: only what hangs takes so long
_NUMBERS = itertools.count()
# With sympy, which torch's compiler takes most of its time to import.
_PRELOADED = [
    *("torch", "torch.distributed", "sympy", "gdtrain.cli.runs.train_job"),
    "helpers.frozen",
]


def fork_server() -> ForkServerContext:
    """Starts processes that have torch and gdtrain in them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def end_with_the_server() -> None:
    """Have this process killed when its server ends, and that does with the test session."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Program:
    """A program that has been started. It is killed at the end of ``with``, and of its test."""

    alive: list[Program] = []  # noqa: RUF012 - of the whole session

    def __init__(self, process: Any, out: Path, err: Path, stdin: Connection | None) -> None:
        self._process, self._out, self._err = process, out, err
        self.started = time.monotonic()
        self.stdin = None if stdin is None else os.fdopen(os.dup(stdin.fileno()), "wb", 0)
        self.alive.append(self)

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code: int | None = self._process.exitcode
        return code

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._out.read_text("utf-8", "replace")

    @property
    def err(self) -> str:
        """What it has printed as errors so far."""
        return self._err.read_text("utf-8", "replace")

    def send_signal(self, signum: int) -> None:
        """If it has not ended."""
        if self.returncode is None:
            os.kill(self.pid, signum)

    @property
    def sentinel(self) -> int:
        """A handle that multiprocessing.connection.wait finds ready once it has ended."""
        return int(self._process.sentinel)

    def join(self, seconds: float) -> None:
        """Wait for its end, or so long."""
        self._process.join(seconds)

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait for its end; its exit code. A hang is an AssertionError, and it is killed."""
        self.join(seconds)
        code = self.returncode
        if code is None:
            self.kill()
            raise AssertionError(f"hung for {seconds:.0f} s; {self.err}")
        return code

    def wait_for(self, condition: Callable[[], Any], seconds: float = SECONDS) -> None:
        """Wait until something has happened; an AssertionError if it ends before."""
        until = time.monotonic() + seconds
        while not condition():
            if self.returncode is not None and not condition():
                raise AssertionError(f"ended with {self.returncode}; {self.err}")
            assert time.monotonic() < until, f"not within {seconds:.0f} s; {self.err}"
            time.sleep(0.005)

    def kill(self) -> None:
        """End it now, if it has not ended."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """Kill it, and give back what it holds."""
        self.kill()
        if self.stdin is not None:
            self.stdin.close()
        if self in self.alive:
            self.alive.remove(self)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(
    *arguments: str,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    stdin: bool = False,
    before: Callable[[], object] | None = None,
) -> Program:
    """Start ``python arguments``: ``-m MODULE …`` or ``-c CODE …``.

    env: what is other than here. cwd: here, by default. log: a file to which all it prints is
    appended. stdin: whether it can be written to. before: a module's function, or a partial of
    one, that the new process calls first.
    """
    name = f"{next(_NUMBERS)}"
    out, err = (log or _texts() / f"{name}.{kind}" for kind in ("out", "err"))
    for path in (out, err):
        path.touch()
    context = fork_server()
    theirs, ours = context.Pipe(duplex=False) if stdin else (None, None)
    environment = os.environ | (env or {})
    given = (arguments, str(cwd or Path.cwd()), environment, (str(out), str(err)), theirs, before)
    process = context.Process(target=_become, args=given)
    process.start()
    program = Program(process, out, err, ours)
    for end in (theirs, ours):
        if end is not None:
            end.close()
    return program


def run(*arguments: str, seconds: float = SECONDS, **options: Any) -> Program:
    """Start ``python arguments`` as :func:`start` does, and wait for its end."""
    program = start(*arguments, **options)
    program.wait(seconds)
    program.alive.remove(program)
    return program


def _texts() -> Path:
    """A directory of this session for what programs print."""
    if not _made:
        _made.append(Path(tempfile.mkdtemp(prefix="gdtrain-programs-")))
        atexit.register(shutil.rmtree, _made[0], ignore_errors=True)
    return _made[0]


_made: list[Path] = []


# ── in the new process ──────────────────────────────────────────────────────────────────────


def _become(
    arguments: tuple[str, ...],
    directory: str,
    environment: dict[str, str],
    texts: tuple[str, str],
    stdin: Connection | None,
    before: Callable[[], object] | None,
) -> None:
    """What the interpreter does with its arguments."""
    end_with_the_server()
    os.setpgid(0, 0)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    _connect(texts, stdin)
    sys.path.insert(0, directory)
    try:
        if before is not None:
            before()
        _interpret(list(arguments))
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
        raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None


def _connect(texts: tuple[str, str], stdin: Connection | None) -> None:
    """Put standard input, output and error in place."""
    for number, path in enumerate(texts, 1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    if stdin is None:
        handle = os.open(os.devnull, os.O_RDONLY)
        os.dup2(handle, 0)
        os.close(handle)
    else:
        os.dup2(stdin.fileno(), 0)
        stdin.close()
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)


def _interpret(arguments: list[str]) -> None:
    kind, what, *sys.argv[1:] = arguments
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    assert kind == "-c", arguments
    sys.argv[0] = "-c"
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(what, "<string>", "exec"), main.__dict__)
