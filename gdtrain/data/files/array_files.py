"""Data sets in files: numpy, PyTorch and safetensors arrays, read as data and never as code."""

from __future__ import annotations

import math
import pickle
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gdtrain.data.checks import check_file, check_memory
from gdtrain.data.tables.preparation import LoadedData, as_tensor
from gdtrain.errors import DataError
from gdtrain.registry import register_source
from gdtrain.settings import FilePath, SourceSettings

T = TypeVar("T")

# How .npy files begin, and .npz ones, which are zip archives.
_NUMPY, _ZIP = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")

# What the readers raise on damaged files: errors that say why, and slips of their parsers.
_SAID = (OSError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, SafetensorError)
_UNSAID = (
    *(EOFError, LookupError, TypeError, AttributeError, AssertionError, OverflowError),
    *(struct.error, SyntaxError, tokenize.TokenError, zlib.error),
)


class Npz(SourceSettings):
    """Two arrays of a numpy .npz archive."""

    path: FilePath
    """The file, relative to the working directory."""
    inputs: str = "x"
    """Name of the array of inputs, [n, …]."""
    targets: str = "y"
    """Name of the array of targets, [n] or [n, …]."""


@register_source("npz", Npz)
def npz(path: str, inputs: str = "x", targets: str = "y") -> LoadedData:
    """Two arrays of a .npz archive, by name. Raises DataError if they can't be read."""

    def load() -> LoadedData:
        with Path(path).open("rb") as file:
            archive = _load_numpy(path, file)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: is not an .npz archive; use source: npy")
            with archive:
                check_memory(path, _unpacked(archive, (inputs, targets)))
                held = dict.fromkeys(archive.files)
                return _named(path, held, archive.__getitem__, inputs, targets)

    return reading(path, load)


def _unpacked(archive: np.lib.npyio.NpzFile, names: tuple[str, ...]) -> int:
    """Bytes of the arrays of those names, by what their headers say."""
    assert archive.zip is not None
    total = 0
    for name in names:
        for member in (name, f"{name}.npy"):
            if member in archive.zip.namelist():
                with archive.zip.open(member) as file:
                    total += _nbytes(file)
    return total


def _nbytes(file: IO[bytes]) -> int:
    """Bytes of an array in the .npy format; 0 if it is none, which reading it says."""
    try:
        version = np.lib.format.read_magic(file)
        first = version == (1, 0)
        shape, _, dtype = (
            np.lib.format.read_array_header_1_0(file)
            if first
            else np.lib.format.read_array_header_2_0(file)
        )
    except ValueError:
        return 0
    return math.prod(shape) * dtype.itemsize


class Npy(SourceSettings):
    """Two numpy .npy files."""

    path: FilePath
    """The file with the inputs, [n, …], relative to the working directory."""
    targets: FilePath
    """The file with the targets, [n] or [n, …]."""


@register_source("npy", Npy)
def npy(path: str, targets: str) -> LoadedData:
    """Inputs and targets from two .npy files. Raises DataError if they can't be read."""

    def load(name: str) -> Tensor:
        with Path(name).open("rb") as file:
            array = _load_numpy(name, file)
            if not isinstance(array, np.ndarray):
                raise DataError(f"{name}: is not an .npy file; use source: npz")
            return as_tensor(array, name)

    return LoadedData(reading(path, lambda: load(path)), reading(targets, lambda: load(targets)))


def _load_numpy(path: str, file: BinaryIO) -> Any:
    start = file.read(len(_NUMPY))
    file.seek(0)
    if not start.startswith((_NUMPY, *_ZIP)):  # numpy would take it for a pickle
        raise DataError(f"{path}: can't be read: it is no file that np.save or np.savez wrote")
    return np.load(file, allow_pickle=False)


class Pt(SourceSettings):
    """A PyTorch .pt file with a dict of tensors, or a pair of them; never runs code."""

    path: FilePath
    """The file, relative to the working directory."""
    inputs: str = "x"
    """Key of the inputs, if the file contains a dict."""
    targets: str = "y"
    """Key of the targets, if the file contains a dict."""


@register_source("pt", Pt)
def pt(path: str, inputs: str = "x", targets: str = "y") -> LoadedData:
    """Tensors of a .pt file: a dict by name, or a pair (inputs, targets).

    Read with ``weights_only``, so that a file from a stranger can't run code. Raises DataError
    if it can't be read or holds anything but tensors.
    """

    def load() -> LoadedData:
        held = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(held, tuple | list) and len(held) == 2:
            held, names = dict(enumerate(held)), (0, 1)
        elif isinstance(held, dict):
            names = (inputs, targets)  # type: ignore[assignment]
        else:
            raise DataError(f"{path}: must hold a dict of tensors or a pair (inputs, targets)")
        return _named(path, held, held.__getitem__, *names)

    return reading(path, load)


class Safetensors(SourceSettings):
    """Two tensors of a safetensors file."""

    path: FilePath
    """The file, relative to the working directory."""
    inputs: str = "x"
    """Name of the inputs, [n, …]."""
    targets: str = "y"
    """Name of the targets, [n] or [n, …]."""


@register_source("safetensors", Safetensors)
def safetensors(path: str, inputs: str = "x", targets: str = "y") -> LoadedData:
    """Two tensors of a safetensors file, by name. Raises DataError if they can't be read."""

    def load() -> LoadedData:
        with safe_open(path, framework="pt") as file:
            return _named(path, dict.fromkeys(file.keys()), file.get_tensor, inputs, targets)

    return reading(path, load)


def _named(
    path: str, held: dict[Any, Any], get: Callable[[Any], Any], inputs: Any, targets: Any
) -> LoadedData:
    parts = []
    for name in (inputs, targets):
        if name not in held:
            known = ", ".join(map(str, held)) or "nothing"
            raise DataError(f"{path}: has no {name!r}; it holds {known}")
        value = get(name)
        if not isinstance(value, Tensor | np.ndarray):
            raise DataError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
        parts.append(as_tensor(value, f"{path}: {name}"))
    return LoadedData(inputs=parts[0], targets=parts[1])


def reading(path: str, load: Callable[[], T], *, mapped: bool = False) -> T:
    """Run ``load``, and say in one line of our own why a file can't be read.

    mapped: it is not read whole.
    """
    try:
        check_file(path)
        if not mapped:
            check_memory(path, Path(path).stat().st_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old dtypes and foreign pickles; we raise or read
            return load()
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: holds more than tensors, or is no .pt file; refused, for it could run code"
        ) from error
    except (*_SAID, *_UNSAID) as error:
        is_said = isinstance(error, _SAID) and not isinstance(error, UnicodeError)
        lines = str(error).splitlines() if is_said else []
        # numpy names parts of a damaged header by their address.
        told = lines and " object at 0x" not in lines[0]
        reason = lines[0] if told else "it is damaged, or of another format"
        raise DataError(f"{path}: can't be read: {reason}") from error
