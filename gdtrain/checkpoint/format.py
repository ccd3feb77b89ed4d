"""How state is written: tensors as safetensors, everything else as JSON, and nothing that runs.

A checkpoint is two files. ``tensors.safetensors`` holds the tensors by name. ``state.json`` has
two lines: a header with the format's number, the SHA-256 of the other file and that of both and
the second line; and the values, with a note wherever a tensor belongs. Tensors that are split over
processes are in further files, one of each process, whose SHA-256s are in the header too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint import shard_files
from gdtrain.checkpoint.json_values import flatten, parse, restore
from gdtrain.checkpoint.safetensors_header import TensorCheck
from gdtrain.checkpoint.tensor_files import (
    ANY_SIZE,
    Share,
    TensorFiles,
    read_tensors,
    write_tensors,
)
from gdtrain.errors import CheckpointError, OutputError
from gdtrain.training.placement.sharding import Part

FORMAT = 2
READABLE = (1, 2)  # 1 is that of 0.1.0, which knows fewer kinds of value
TENSORS = "tensors.safetensors"
SHARDS = "shards"
STATE = "state.json"
# What values may take at most: they are epochs' records and counters.
MAX_VALUES_BYTES = 64 << 20
_MAX_HEADER_BYTES = 16 << 20
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def write_state(directory: Path, state: dict[str, Any], shards: Sequence[str] = ()) -> None:
    """Write nested dicts, lists, tuples, tensors and plain values into ``directory``, flushed.

    shards: the SHA-256 of the file of each process, which is there already, if the state is split.
    Raises CheckpointError for anything else in the state, OSError if the disk fails.
    """
    tensors: dict[str, Tensor | Part] = {}
    values = json.dumps(flatten(state, "", tensors)).encode()
    whole = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    digest = write_tensors(directory / TENSORS, whole)
    disk.write_file(directory / STATE, [_header(digest, values, shards), values, b"\n"])
    disk.sync_directory(directory)


def read_state(
    directory: Path, check: TensorCheck | None = None, share: Share | None = None
) -> dict[str, Any]:
    """Read and verify what :func:`write_state` wrote.

    check: looks at the names, dtypes and shapes of the tensors before any of them is read.
    share: of a process that reads together with others, and gets :class:`Part`s of what it needs
    in part. Raises CheckpointError, naming the file, if it is damaged or not what was written; of
    several processes, all must read it to know that it is not.
    """
    with _told(directory):
        digest, shards, text = _read_values(directory)
        files = TensorFiles(share or Share())
        shard_files.add_shards(files, directory, len(shards))
        files.add_whole(directory / TENSORS)
        files.check(directory / TENSORS, check)
        files.make_room()
        names = [*map(shard_files.name_of, range(len(shards))), TENSORS]
        for number, (name, expected) in enumerate(zip(names, (*shards, digest), strict=True)):
            if (found := files.read(number)) is not None:
                _compare(directory, name, found, expected)
        tensors = files.tensors(directory / TENSORS)
    try:
        state = restore(parse(text), tensors)
        if not isinstance(state, dict) or tensors:
            raise ValueError("it holds no mapping, or tensors that are not in it")
    except (*_MALFORMED, OverflowError) as error:
        message = " ".join(str(error).split())[:100]
        raise CheckpointError(f"{directory / STATE}: is not a checkpoint's; {message}") from error
    return state


def verify(directory: Path) -> None:
    """Raise CheckpointError, naming the file, unless all are as they were written."""
    with _told(directory):
        digest, shards, _ = _read_values(directory)
        names = [TENSORS, *map(shard_files.name_of, range(len(shards)))]
        for name, expected in zip(names, (digest, *shards), strict=True):
            path = directory / name
            with disk.named(path), os.fdopen(disk.open_file(path, ANY_SIZE), "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            _compare(directory, name, found, expected)


def write_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Write a module's state by name as a safetensors file, in the place of what may be there.

    Extra state that is no tensor, of plain values, goes into the file's header as text.
    """
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in weights.items() if name not in tensors}
    of_rest: dict[str, Tensor | Part] = {**tensors}
    remark = json.dumps(flatten(rest, "", of_rest)) if rest else ""
    held = {name: tensor for name, tensor in of_rest.items() if isinstance(tensor, Tensor)}
    write_tensors(path, held, remark, write=disk.replace_file)


def read_weights(path: Path, check: TensorCheck) -> dict[str, Any]:
    """What :func:`write_weights` wrote, after ``check`` has seen what the tensors are.

    Raises CheckpointError if it can't be read.
    """
    with _told(path):
        found, remark = read_tensors(path, check)
    tensors = dict(found)
    if not remark:
        return tensors
    try:
        rest = restore(parse(remark.encode()), tensors)
        return {**rest, **tensors}
    except (*_MALFORMED, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged (its header holds no state)") from error


def _read_values(directory: Path) -> tuple[str, list[str], bytes]:
    """The tensors' digest, those of shards, and the values' line of a state.json as written."""
    if directory.is_symlink():
        raise CheckpointError(f"{directory}: is a symbolic link; a checkpoint is a directory")
    path = directory / STATE
    content = disk.read_file(path, MAX_VALUES_BYTES)
    first, _, rest = content.partition(b"\n")
    try:
        header = json.loads(first[:_MAX_HEADER_BYTES])
        number, digest = header["gdtrain checkpoint"], header[TENSORS]
        shards = header.get(SHARDS, [])
    except _MALFORMED as error:
        raise CheckpointError(f"{path} is damaged (its header can't be read)") from error
    if type(number) is int and number not in READABLE:
        raise CheckpointError(
            f"{path} is of format {number}; this version reads {' and '.join(map(str, READABLE))}"
        )
    values = rest.removesuffix(b"\n")
    listed = isinstance(shards, list) and all(isinstance(d, str) for d in (digest, *shards))
    if not listed or _header(digest, values, shards, number) + values + b"\n" != content:
        raise CheckpointError(f"{path} is damaged (its digest differs)")
    return digest, shards, values


def _header(tensors: str, values: bytes, shards: Sequence[str] = (), number: int = FORMAT) -> bytes:
    digests = " ".join([tensors, *shards])
    both = hashlib.sha256(f"{number} {digests}\n".encode() + values).hexdigest()
    listed = {SHARDS: list(shards)} if shards else {}
    header = {"gdtrain checkpoint": number, TENSORS: tensors, **listed, "sha256": both}
    return json.dumps(header).encode() + b"\n"


def _compare(directory: Path, name: str, found: str, expected: str) -> None:
    if found != expected:
        message = f"or is not of one checkpoint with its {STATE} (its digest differs)"
        raise CheckpointError(f"{directory / name} is damaged, {message}")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say what keeps a file from being read as a CheckpointError."""
    try:
        yield
    except OutputError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: {error.strerror}") from error
