"""A folder of the user's own, in which later processes find what an earlier one has compiled.

It is ``$XDG_CACHE_HOME/gdtrain``, or ``~/.cache/gdtrain``, and holds programs that run: so it is
used only if it is the user's, and nobody else may write there or read it. Without such a folder
nothing is kept, and nothing is said.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import torch
from jax.experimental.compilation_cache import compilation_cache

from gdtrain.version import __version__

# At most so many files, of which the oldest go first: a program has three, of some 10 kB.
_MOST_FILES = 1536
# In which jax keeps what XLA has compiled.
_DIRECTORY, _LEAST_SECONDS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)


def folder() -> Path | None:
    """The folder of this version of everything, on this kind of machine; None if there is none."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # which the standard leaves aside
        home = os.environ.get("HOME", "")
        if not home.startswith("/"):
            return None
        base = f"{home}/.cache"
    own = Path(base) / "gdtrain"
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(own):
            return None
        inside = own / f"scan-{_versions()}"
        inside.mkdir(mode=0o700, exist_ok=True)
        return inside if _is_ours(inside) else None
    except OSError:
        return None


def _is_ours(path: Path) -> bool:
    found = path.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        and os.access(path, os.W_OK | os.X_OK)
    )


@cache
def _versions() -> str:
    """Of whatever has a say in what is compiled: programs, this package's code, the processor."""
    seen = hashlib.sha256()
    for one in (
        __version__,
        torch.__version__,
        jax.__version__,
        metadata.version("jaxlib"),
        _processor(),
    ):
        seen.update(f"{one}\n".encode())
    for file in sorted(Path(__file__).parents[2].rglob("*.py")):
        seen.update(file.read_bytes())
    return seen.hexdigest()[:16]


def _processor() -> str:
    """What code may be compiled for: the kind of machine, and the instructions that it has."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()} {line}"
    return f"{platform.machine()} {platform.processor()} {platform.node()}"


def read(name: str) -> bytes | None:
    """What was kept under this name, if anything."""
    there = folder()
    if there is None:
        return None
    try:
        return (there / name).read_bytes()
    except OSError:
        return None


def write(name: str, content: bytes) -> None:
    """Keep this for later processes: whole, or not at all."""
    there = folder()
    if there is None:
        return
    with suppress(OSError):
        number, temporary = tempfile.mkstemp(dir=there)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
            Path(temporary).replace(there / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _leave_most(there.parent)


def _leave_most(own: Path) -> None:
    """Remove the oldest files, those of other versions too."""
    files = sorted((file.stat().st_mtime_ns, file) for file in own.glob("scan-*/*"))
    for _, file in files[: max(0, len(files) - _MOST_FILES)]:
        file.unlink(missing_ok=True)


@contextmanager
def xla_keeps_programs() -> Iterator[None]:
    """Let what XLA compiles meanwhile be looked for in the folder, and kept there.

    That is jax's own cache. Where somebody has given it a folder, it stays with that.
    """
    config: Any = jax.config
    there = folder()
    if there is None or config.jax_compilation_cache_dir:
        yield
        return
    least = config.jax_persistent_cache_min_compile_time_secs
    config.update(_DIRECTORY, str(there))
    config.update(_LEAST_SECONDS, 0.0)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield
    finally:
        config.update(_DIRECTORY, None)
        config.update(_LEAST_SECONDS, least)
        compilation_cache.reset_cache()
    _pass_on(told, there)


def _pass_on(told: list[warnings.WarningMessage], there: Path) -> None:
    """Repeat warnings, but for those of jax's cache: a file that it can't read goes."""
    for warning in told:
        if "compilation cache" in str(warning.message):
            for file in there.glob("*-cache"):
                with suppress(OSError):
                    file.unlink()
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
