"""Programs that are forked from a server behave as those that ``python`` starts."""

import functools
import os
import signal
import sys
from pathlib import Path

import pytest

from helpers.processes import Program, run, start


def test_what_a_program_gets_prints_and_returns(tmp_path) -> None:
    code = (
        "import os, sys\n"
        "print(__name__, sys.argv, os.getcwd(), os.environ['MINE'], sys.stdin.read())\n"
        "print('bad', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    done = run("-c", code, "a", "b", cwd=tmp_path, env={"MINE": "1"})
    assert done.out == f"__main__ ['-c', 'a', 'b'] {tmp_path} 1 \n"
    assert done.err == "bad\n"
    assert done.returncode == 7
    done = run("-m", "gdtrain", "--config", "missing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.err == "missing.yaml:1:1: file not found; check the path\n"


def test_torch_is_there_from_the_start() -> None:
    done = run("-c", "import sys; print('torch' in sys.modules, 'matplotlib' in sys.modules)")
    assert (done.out, done.err) == ("True False\n", "")


@pytest.mark.parametrize(
    ("end", "code", "err"),
    [
        ("pass", 0, ""),
        ("sys.exit('no')", 1, "no\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("os._exit(5)", 5, ""),
    ],
)
def test_how_a_program_ends(end: str, code: int, err: str) -> None:
    done = run("-c", f"import os, sys\n{end}")
    assert done.returncode == code
    assert done.err.endswith(err)


def test_it_is_written_to_and_signalled() -> None:
    code = "import sys, time\nprint(sys.stdin.readline(), flush=True)\nwhile True: time.sleep(0.01)"
    with start("-c", code, stdin=True) as program:
        assert program.returncode is None
        program.stdin.write(b"word\n")
        program.wait_for(lambda: "word" in program.out)
        program.send_signal(signal.SIGINT)
        assert program.wait() == 1
        assert program.err.endswith("KeyboardInterrupt\n")


def test_a_program_that_ends_too_early_or_never_is_told() -> None:
    with (
        start("-c", "import sys; sys.exit('over')") as program,
        pytest.raises(AssertionError, match="ended with 1; over"),
    ):
        program.wait_for(lambda: False)
    with (
        start("-c", "import signal; signal.pause()") as program,
        pytest.raises(AssertionError, match=r"^hung for 0 s; $"),
    ):
        program.wait(0.1)
    assert program.returncode == -9
    assert Program.alive == []


def write_down(path: Path) -> None:
    path.write_text(f"{os.getpid()} {'helpers.processes' in sys.modules}")


def test_a_function_is_called_before(tmp_path) -> None:
    path = tmp_path / "note"
    program = run("-c", "print(1)", before=functools.partial(write_down, path))
    assert path.read_text() == f"{program.pid} True"
    assert program.out == "1\n"
