"""Pictures on the disk: none but one of our own is written over."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from gdtrain.checkpoint import durable_files as disk
from gdtrain.errors import ConfigError

MADE_BY = "gdtrain, with Matplotlib"  # written into every picture
SUFFIXES = (".png", ".svg")


class Encoded(Protocol):
    """A picture that can be written."""

    def encoded(self, kind: str) -> bytes:
        """It as a ``png`` or ``svg`` file."""


def save(figure: Encoded, path: Path) -> None:
    """Write a picture as its suffix says; of what is there, only another of our own gives way.

    Raises ConfigError of ``out`` as :func:`check_out` does, OSError if the disk fails.
    """
    check_out(path)
    disk.replace_file(path, figure.encoded(path.suffix.lower().removeprefix(".")))


def check_out(path: Path) -> None:
    """Raise ConfigError of ``out`` unless a picture may be written there: to be asked early.

    The name must say PNG or SVG, its directory be there, and the file be new or our own.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError.of("out", f"must end in .png or .svg, got {str(path)!r}")
    try:
        if not path.parent.is_dir():
            raise ConfigError.of("out", f"{path.parent} is not a directory; make it first")
        if disk.is_there(path) and not _is_ours(path):
            text = f"{path} is there and no picture of gdtrain's; remove it, or choose another name"
            raise ConfigError.of("out", text)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError.of("out", f"{path} can't be written: {error}") from error


def _is_ours(path: Path) -> bool:
    """Whether a file is a picture that :func:`save` has written: it says so near its start."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return MADE_BY.encode() in file.read(4096)
