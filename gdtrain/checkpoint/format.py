"""How state is written: tensors as safetensors, everything else as JSON, and nothing that runs.

A checkpoint is two files. ``tensors.safetensors`` holds the tensors by name. ``state.json`` has
two lines: a header with the format's number, the SHA-256 of the other file and that of both and
the second line; and the values, with a note wherever a tensor belongs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.json_values import flatten, parse, restore
from gdtrain.checkpoint.safetensors_header import (
    DTYPE_NAMES,
    REMARK,
    TensorCheck,
    bytes_of,
    read_layout,
)
from gdtrain.errors import CheckpointError, OutputError

FORMAT = 2
READABLE = (1, 2)  # 1 is that of 0.1.0, which knows fewer kinds of value
TENSORS = "tensors.safetensors"
STATE = "state.json"
_ANY_SIZE = 1 << 62

# What values may take at most: they are epochs' records and counters.
MAX_VALUES_BYTES = 64 << 20
_MAX_HEADER_BYTES = 4096
# Tensors of fewer bytes together are written in one call: each call lets another thread run, and
# has to wait until it does so in turn.
_SMALL = 1 << 20
# How much larger than on its disk a file may be, by holes and by compression.
_SPARSE, _COMPRESSED = 64 << 20, 16
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def write_state(directory: Path, state: dict[str, Any]) -> None:
    """Write nested dicts, lists, tuples, tensors and plain values into ``directory``, flushed.

    Raises CheckpointError for anything else in them, OSError if the disk fails.
    """
    tensors: dict[str, Tensor] = {}
    values = json.dumps(flatten(state, "", tensors)).encode()
    digest = write_tensors(directory / TENSORS, tensors)
    disk.write_file(directory / STATE, [_header(digest, values), values, b"\n"])
    disk.sync_directory(directory)


def read_state(directory: Path, check: TensorCheck | None = None) -> dict[str, Any]:
    """Read and verify what :func:`write_state` wrote.

    check: looks at the names, dtypes and shapes of the tensors before any of them is read.
    Raises CheckpointError, naming the file, if it is damaged or not what was written.
    """
    with _told(directory):
        message, text = _read_values(directory)
        tensors, digest, _ = _read_tensors(directory / TENSORS, check)
        _compare(directory, digest, message)
    try:
        state = restore(parse(text), tensors)
        if not isinstance(state, dict) or tensors:
            raise ValueError("it holds no mapping, or tensors that are not in it")
    except (*_MALFORMED, OverflowError) as error:
        message = " ".join(str(error).split())[:100]
        raise CheckpointError(f"{directory / STATE}: is not a checkpoint's; {message}") from error
    return state


def verify(directory: Path) -> None:
    """Raise CheckpointError, naming the file, unless both are as they were written."""
    with _told(directory):
        message, _ = _read_values(directory)
        path = directory / TENSORS
        with os.fdopen(disk.open_file(path, _ANY_SIZE), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _compare(directory, digest, message)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], remark: str = "") -> str:
    """Write tensors by name as a new safetensors file, flushed; return its SHA-256.

    The format is a length, 8 bytes, a JSON header with dtype, shape and place of each tensor,
    and their bytes. Large tensors go to the file straight from their memory.
    remark: text kept in the header.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{name}: a tensor of {tensor.dtype} can't be saved")
    # The widest first, so that each is aligned to its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    held = {name: _plain(tensors[name]) for name in names}
    header: dict[str, Any] = {"__metadata__": {REMARK: remark}} if remark else {}
    end = 0
    for name, tensor in held.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()

    def parts() -> Iterator[bytes | memoryview]:
        content: list[bytes | memoryview] = [len(text).to_bytes(8, "little") + text]
        content += map(bytes_of, held.values())
        if end <= _SMALL:
            content = [b"".join(content)]
        for part in content:
            digest.update(part)
            yield part

    disk.write_file(path, parts())
    return digest.hexdigest()


def write_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Write a module's state by name as a new safetensors file, flushed.

    Extra state that is no tensor, of plain values, goes into the file's header as text.
    """
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in weights.items() if name not in tensors}
    write_tensors(path, tensors, json.dumps(flatten(rest, "", tensors)) if rest else "")


def read_weights(path: Path, check: TensorCheck) -> dict[str, Any]:
    """What :func:`write_weights` wrote, after ``check`` has seen what the tensors are.

    Raises CheckpointError if it can't be read.
    """
    with _told(path):
        tensors, _, remark = _read_tensors(path, check)
    if not remark:
        return dict(tensors)
    try:
        rest = restore(parse(remark.encode()), tensors)
        return {**rest, **tensors}
    except (*_MALFORMED, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged (its header holds no state)") from error


def _read_values(directory: Path) -> tuple[str, bytes]:
    """The tensors' digest and the values' line of a state.json that is exactly as written."""
    if directory.is_symlink():
        raise CheckpointError(f"{directory}: is a symbolic link; a checkpoint is a directory")
    path = directory / STATE
    content = disk.read_file(path, MAX_VALUES_BYTES)
    first, _, rest = content.partition(b"\n")
    try:
        header = json.loads(first[:_MAX_HEADER_BYTES])
        number, digest = header["gdtrain checkpoint"], header[TENSORS]
    except _MALFORMED as error:
        raise CheckpointError(f"{path} is damaged (its header can't be read)") from error
    if type(number) is int and number not in READABLE:
        raise CheckpointError(
            f"{path} is of format {number}; this version reads {' and '.join(map(str, READABLE))}"
        )
    values = rest.removesuffix(b"\n")
    if not isinstance(digest, str) or _header(digest, values, number) + values + b"\n" != content:
        raise CheckpointError(f"{path} is damaged (its digest differs)")
    return digest, values


def _read_tensors(path: Path, check: TensorCheck | None) -> tuple[dict[str, Tensor], str, str]:
    """The tensors by name, the SHA-256 of the file as it was read, once, and its remark.

    Nothing but the header, which is bounded, is read before ``check`` has seen it.
    """
    with disk.closing(disk.open_file(path, _ANY_SIZE)) as handle:
        layout = read_layout(handle, path)
        if check is not None:
            try:
                check(layout.found)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
        _check_holes(handle, path)
        digest = hashlib.sha256(layout.head)
        tensors = {}
        for name in layout.found:
            tensor = layout.empty(name)
            content = bytes_of(tensor)
            disk.read_into(handle, path, content)
            digest.update(content)
            if tensor.dtype == torch.bool and content and tensor.view(torch.uint8).max() > 1:
                raise CheckpointError(f"{path} is damaged ({name} is neither true nor false)")
            tensors[name] = tensor
    return tensors, digest.hexdigest(), layout.remark


def _plain(tensor: Tensor) -> Tensor:
    """The tensor's numbers as they lie in a file, on the CPU."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _check_holes(handle: int, path: Path) -> None:
    """Raise CheckpointError for a file that would take much more memory than it takes of a disk."""
    status = os.fstat(handle)
    there = getattr(status, "st_blocks", 0) * 512  # 0 where a file system does not say
    if there and status.st_size > _SPARSE + _COMPRESSED * there:
        raise CheckpointError(
            f"{path} is damaged ({status.st_size:,} bytes, of which {there:,} are on the disk)"
        )


def _header(tensors: str, values: bytes, number: int = FORMAT) -> bytes:
    both = hashlib.sha256(f"{number} {tensors}\n".encode() + values).hexdigest()
    header = {"gdtrain checkpoint": number, TENSORS: tensors, "sha256": both}
    return json.dumps(header).encode() + b"\n"


def _compare(directory: Path, digest: str, message: str) -> None:
    if digest != message:
        message = f"or is not of one checkpoint with its {STATE} (its digest differs)"
        raise CheckpointError(f"{directory / TENSORS} is damaged, {message}")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say what keeps a file from being read as a CheckpointError."""
    try:
        yield
    except OutputError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: {error.strerror}") from error
