"""Run hostile cases under an audit hook, in a process of its own, and print what was seen.

Names of cases are arguments; without any, all are run.

The hook sees every import, execution, open and change of files that Python makes. What a case
needs is imported before, by runs of valid configurations.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch

from gdtrain.cli.main import main
from helpers.hostile.hostile_configs import CONFIG, DATA, Hostile, cases
from helpers.hostile.input_run import FAULT, MOST_SECONDS, Hang, limited_memory, run_case
from helpers.hostile.valid_input import valid_case, write_data

# Read to learn how much memory there is.
OWN_FILES = (
    *("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    *("/proc/meminfo", "/proc/self/statm"),
)
# Events of which a configuration must cause none. A prefix stands for all that begin with it.
FORBIDDEN = (
    *("import", "exec", "code.__new__", "marshal.", "pickle.find_class", "socket.", "urllib."),
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess."),
    *("os.startfile", "pty.", "os.chmod", "os.chown", "os.kill", "os.link", "os.symlink"),
    *("os.putenv", "os.unsetenv", "tempfile.", "ftplib.", "http.", "smtplib.", "webbrowser."),
    *("sys.settrace", "sys.setprofile", "ctypes.dlopen", "ctypes.call_function", "ctypes.cdata"),
)
# Events of paths, which must be inside what a case may open.
PATHS = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
PATHS += ("os.utime", "os.truncate", "shutil.rmtree", "shutil.copyfile", "shutil.move")


class Audit:
    """The hook; notes what is forbidden while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        self.inside: list[str] = []
        self.total = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.total += 1
        if event in PATHS:
            self._path(event, arguments)
        elif event == "compile":
            # ast.literal_eval parses the header of an .npy file; to run it would be an exec.
            if arguments[1] != "<unknown>":
                self.seen.append(f"compile {arguments[1]!r}")
        elif event == "ctypes.dlopen" and arguments[0] is None:
            pass  # our own call of madvise, on the process itself
        elif event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {str(arguments)[:200]}")

    def _path(self, event: str, arguments: tuple[Any, ...]) -> None:
        paths = arguments[:2] if event == "os.rename" else arguments[:1]
        for path in paths:
            if not isinstance(path, str | bytes | os.PathLike):
                continue
            self.on = False
            # Where the folder holds what it opens; links are followed, as opening does.
            whole = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
            self.on = True
            if not any(whole == p or whole.startswith(p + "/") for p in self.inside):
                self.seen.append(f"{event} {whole[:200]}")


@contextmanager
def audited(audit: Audit, inside: list[str]) -> Iterator[None]:
    """Look while a case runs; ``inside``: what it may open."""
    audit.seen, audit.inside = [], inside
    audit.on = True
    try:
        yield
    finally:
        audit.on = False


def run_hostile(case: Hostile, folder: Path, audit: Audit) -> dict[str, Any]:
    """What became of a case: its exit code, and what is wrong about that."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    Path("a.yaml").write_bytes(case.content)
    Path("data.csv").write_text(DATA, "utf-8")
    case.setup()
    beside = sorted(Path("..").iterdir())
    out, err = io.StringIO(), io.StringIO()
    arguments = ["--config", case.config, *case.arguments, *(["--dry-run"] if case.dry else [])]
    named = [os.path.abspath(path) for path in case.named]  # noqa: PTH100
    inside = [str(folder), *named, *OWN_FILES]
    code: int | None = None
    wrong: list[str] = []
    started = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(err), limited_memory(), audited(audit, inside):
            code = main(arguments)
    except Hang:
        wrong.append(f"hung: {traceback.format_exc()[-500:]}")
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        wrong.append(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - started
    wrong += audit.seen
    if Path("ran").exists():
        wrong.append("RAN CODE")
    os.chdir(folder)
    if sorted(Path("..").iterdir()) != beside:
        wrong.append(f"something was made beside the folder: {sorted(Path('..').iterdir())}")
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]
    if code == 2:
        wrong += [f"not a fault: {line!r}" for line in lines if not FAULT.fullmatch(line)]
        wrong += [] if lines else ["no fault was told"]
        wrong += [] if not Path("runs", "a").is_dir() or not case.dry else ["a run was begun"]
    elif code not in (0, 3):
        wrong.append(f"exit code {code}: {err.getvalue()[-300:]}")
    places = [p for p in Path().rglob("summary.json") if "runs" not in p.parts[:1]]
    wrong += [f"wrote {place}" for place in places]
    return {
        "name": case.name,
        "code": code,
        "seconds": round(seconds, 3),
        "wrong": wrong,
        "told": lines,
    }


def preload(folder: Path, kinds: int) -> None:
    """Import what runs of so many kinds import, before the hook looks."""
    write_data(folder)
    os.chdir(folder)
    for seed in range(kinds):
        run_case(valid_case(seed), folder)
    Path("real.yaml").write_text(CONFIG, "utf-8")
    Path("data.csv").write_text(DATA, "utf-8")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        main(["--config", "real.yaml"])
        for wrong in (
            "model.hidden=1",
            "trainer=x",
            "loss=x",
            "seed=!!x 1",
            "epochs=]",
            "x",
            "lr=1",
        ):
            main(["--config", "real.yaml", wrong])


def check_hook(audit: Audit, folder: Path) -> list[str]:
    """What the hook says of things that are forbidden, to show that it would see them."""
    said = []
    os.chdir(folder)
    tries = {
        "import": "import antigravity_none",
        "exec": "exec('1')",
        "os.system": "__import__('os').system('true')",
        "open": "open('/etc/hostname')",
        "os.mkdir": "__import__('os').mkdir('/tmp/none/none')",
        "pickle.find_class": "__import__('pickle').loads(b'cos\\nsystem\\n.')",
        "subprocess.Popen": "__import__('subprocess').run(['true'])",
        "socket.": "__import__('socket').gethostbyname('localhost')",
    }
    for event, code in tries.items():
        with audited(audit, [str(folder)]), suppress(Exception):
            exec(code)
        if any(line.startswith(event) for line in audit.seen):
            said.append(event)
    return said


def _main() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _alarm)
    chosen = [case for case in cases() if not sys.argv[1:] or case.name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        (root / "valid").mkdir()
        preload(root / "valid", 100 if len(chosen) == len(cases()) else 0)
        audit = Audit()
        seen = check_hook(audit, root / "valid")
        done = [run_hostile(case, root / "cases" / "case", audit) for case in chosen]
        os.chdir("/")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    json.dump({"control": seen, "events": audit.total, "peak_kib": peak, "cases": done}, sys.stdout)


def _alarm(signum: int, frame: Any) -> None:
    raise Hang


if __name__ == "__main__":
    _main()
