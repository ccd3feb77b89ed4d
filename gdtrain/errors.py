"""Every exception that a user of gdtrain may want to catch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class GdtrainError(Exception):
    """The base of all errors that gdtrain raises on purpose."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a setting, and where it stands.

    ``key`` is the setting's dotted name (``loader.batch_size``), ``message`` says what is wrong
    and what would be right. ``path``, ``line`` and ``column`` (from 1) are set for settings that
    came from a file or a command line.
    """

    key: str
    message: str
    path: str | None = None
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        text = f"{self.key}: {self.message}" if self.key else self.message
        return text if self.path is None else f"{self.path}:{self.line}:{self.column}: {text}"


class ConfigError(GdtrainError, ValueError):
    """One or more settings are wrong; ``faults`` lists all of them, ``str()`` one a line."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Fault, ...]]]:
        return ConfigError, (self.faults,)

    @classmethod
    def of(cls, key: str, message: str) -> ConfigError:
        """The error of a single setting."""
        return cls([Fault(key, message)])


class DataError(GdtrainError, ValueError):
    """The data can't be trained on: unreadable, empty, ragged, not finite, of the wrong shape.

    ``args`` has a message for each fault, ``str()`` one a line.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ModelError(GdtrainError, ValueError):
    """Model, loss, optimizer and data do not fit together."""


class DeviceError(GdtrainError, ValueError):
    """The requested device or precision is not available on this machine."""


class OutputError(GdtrainError, ValueError):
    """The output directory can't be used, or is another run's."""


class CheckpointError(GdtrainError, ValueError):
    """A checkpoint is missing, damaged, or belongs to another model, data set or configuration."""


class NonFiniteError(GdtrainError, ArithmeticError):
    """A loss or a gradient became infinite or NaN, and training stopped."""


class StorageError(GdtrainError, OSError):
    """What a run has to keep could not be written: the disk is full, or fails."""


class ProcessError(GdtrainError, RuntimeError):
    """Another process of the run has ended, or has not answered in time."""


class MissingPackageError(GdtrainError, ImportError):
    """A package that belongs to an extra of gdtrain is not installed."""


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    own = type(error).__module__.startswith("gdtrain.")
    return text if own and text else f"{type(error).__name__}: {text}".rstrip(": ")
