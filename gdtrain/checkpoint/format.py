"""How state is written: tensors as safetensors, everything else as JSON, and nothing that runs.

A checkpoint is two files. ``tensors.safetensors`` holds the tensors by name. ``state.json`` has
two lines: a header with the format's number and the SHA-256 of the other file and of the second
line, and the values, with a note wherever a tensor belongs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gdtrain.checkpoint import disk
from gdtrain.checkpoint.values import flatten, restore
from gdtrain.errors import CheckpointError, OutputError

FORMAT = 1
TENSORS = "tensors.safetensors"
STATE = "state.json"

# What a file may take at most: values are epochs' records and counters, a header is names.
MAX_VALUES_BYTES = 256 << 20
MAX_HEADER_BYTES = 64 << 20

# What values that were not written by us make their readers raise.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)

# name -> (dtype in the words of safetensors, shape); raises CheckpointError for what can't be
TensorCheck = Callable[[Mapping[str, tuple[str, list[int]]]], None]

_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
DTYPES = {name: dtype for dtype, name in _DTYPES.items()}


def write_state(directory: Path, state: dict[str, Any]) -> None:
    """Write nested dicts, lists, tuples, tensors and plain values into ``directory``, flushed.

    Raises CheckpointError for anything else in them, OSError if the disk fails.
    """
    tensors: dict[str, Tensor] = {}
    values = json.dumps(flatten(state, "", tensors)).encode()
    digest = write_tensors(directory / TENSORS, tensors)
    header = _header({TENSORS: digest, "values": hashlib.sha256(values).hexdigest()})
    disk.write_file(directory / STATE, [header, values, b"\n"])
    disk.sync_directory(directory)


def read_state(directory: Path, check: TensorCheck | None = None) -> dict[str, Any]:
    """Read and verify what :func:`write_state` wrote.

    check: looks at the names, dtypes and shapes of the tensors before any of them is read.
    Raises CheckpointError, naming the file, if it is damaged or not what was written.
    """
    values = verify(directory, check)
    try:
        tensors = load_file(directory / TENSORS)
        state = restore(values, tensors)
    except (*_MALFORMED, OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / STATE}: is not a checkpoint's; {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{directory / STATE}: is not a checkpoint's; it holds no mapping")
    return state


def verify(directory: Path, check: TensorCheck | None = None) -> Any:
    """Raise CheckpointError, naming the file, unless both are as they were written.

    Returns the values, as JSON has them.
    """
    if directory.is_symlink():
        raise CheckpointError(f"{directory}: is a symbolic link; a checkpoint is a directory")
    try:
        content = disk.read_file(directory / STATE, MAX_VALUES_BYTES)
        digests, values = _split(directory / STATE, content)
        path = directory / TENSORS
        size = _check_tensors(path, check)
        if _digest(path, size) != digests.get(TENSORS):
            raise CheckpointError(f"{path} is damaged (its digest differs)")
        return json.loads(values)
    except OutputError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or directory}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{directory / STATE} can't be used: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors by name as a new safetensors file, flushed; return its SHA-256.

    The format is a length, 8 bytes, a JSON header with dtype, shape and place of each tensor,
    and their bytes. Tensors go to the file straight from their memory.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{name}: a tensor of {tensor.dtype} can't be saved")
    # The widest first, so that each is aligned to its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    held = {name: tensors[name].detach().cpu().contiguous() for name in names}
    for name, tensor in held.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()

    def parts() -> Iterator[bytes | memoryview]:
        first: bytes = len(text).to_bytes(8, "little") + text
        digest.update(first)
        yield first
        for tensor in held.values():
            if tensor.numel():
                content = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
                digest.update(content)
                yield content

    disk.write_file(path, parts())
    return digest.hexdigest()


def read_weights(path: Path, check: TensorCheck) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, after ``check`` has seen what they are.

    Raises CheckpointError if they can't be read.
    """
    try:
        _check_tensors(path, check)
        tensors: dict[str, torch.Tensor] = load_file(path)
    except OutputError as error:
        raise CheckpointError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read as safetensors; {error}") from error
    return tensors


def _header(digests: dict[str, str]) -> bytes:
    return json.dumps({"gdtrain checkpoint": FORMAT, "sha256": digests}).encode() + b"\n"


def _split(path: Path, content: bytes) -> tuple[dict[str, str], bytes]:
    """The digests and the values' line of a state.json, which is exactly as it was written."""
    first, _, rest = content.partition(b"\n")
    damaged = CheckpointError(f"{path} is damaged (its digest differs)")
    try:
        header = json.loads(first)
        number, digests = header["gdtrain checkpoint"], dict(header["sha256"])
    except _MALFORMED as error:
        raise CheckpointError(f"{path} is damaged (its header can't be read)") from error
    if number != FORMAT:
        raise CheckpointError(f"{path} is of format {number!r}; this version reads {FORMAT}")
    values = rest.removesuffix(b"\n")
    if _header(digests) + values + b"\n" != content:
        raise damaged
    if digests.get("values") != hashlib.sha256(values).hexdigest():
        raise damaged
    return digests, values


def _check_tensors(path: Path, check: TensorCheck | None) -> int:
    """Look at the header of a safetensors file; return how long the file must be.

    Nothing is allocated but the header, which is bounded. Raises CheckpointError.
    """
    handle = disk.open_file(path, 1 << 62)
    try:
        size = os.fstat(handle).st_size
        length = int.from_bytes(os.read(handle, 8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{path} is damaged (its header is said to take {length} bytes)")
        header = json.loads(os.read(handle, length))
    except _MALFORMED as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged (its header can't be read)") from error
    finally:
        os.close(handle)
    found: dict[str, tuple[str, list[int]]] = {}
    end = 0
    try:
        for name, said in header.items():
            shape, dtype = said["shape"], DTYPES[said["dtype"]]
            if not all(type(extent) is int and extent >= 0 for extent in shape):
                raise ValueError
            start, end = end, end + math.prod(shape) * dtype.itemsize
            if said["data_offsets"] != [start, end]:
                raise ValueError
            found[name] = (said["dtype"], shape)
    except _MALFORMED as error:
        raise CheckpointError(f"{path} is damaged (its header is not consistent)") from error
    if size != 8 + length + end:
        raise CheckpointError(f"{path} is damaged ({size} bytes instead of {8 + length + end})")
    if check is not None:
        try:
            check(found)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return size


def _digest(path: Path, size: int) -> str:
    handle = disk.open_file(path, size)
    with os.fdopen(handle, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
