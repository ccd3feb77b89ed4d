"""Tensors that are split over processes: a file of rows from each, put together when they are read.

Each file's header notes of every tensor the number of its first row here and the whole shape.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.json_values import flatten
from gdtrain.checkpoint.safetensors_header import (
    DTYPES,
    Found,
    TensorCheck,
    bytes_of,
    read_layout,
)
from gdtrain.checkpoint.tensor_files import ANY_SIZE, check_holes, write_tensors
from gdtrain.errors import CheckpointError
from gdtrain.training.placement.sharding import Part

_MAX_FILES = 1 << 16
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def name_of(number: int) -> str:
    """The file of the process of that rank."""
    return f"shard-{number:05d}.safetensors"


def write_shard(directory: Path, number: int, state: dict[str, Any]) -> str:
    """Write the rows that a state has of split tensors, flushed; return the file's SHA-256."""
    tensors: dict[str, Tensor | Part] = {}
    flatten(state, "", tensors)
    parts = {name: part for name, part in tensors.items() if isinstance(part, Part)}
    places = {name: [part.start, part.shape] for name, part in parts.items()}
    rows = {name: part.rows for name, part in parts.items()}
    return write_tensors(directory / name_of(number), rows, json.dumps(places))


@dataclass
class Split:
    """The split tensors of a checkpoint by name, whole.

    found: their dtypes and whole shapes. heads: of the files, as their layouts were read.
    pieces: of each tensor, the numbers of the first row and of the one after the last, of each file
    in which it is.
    """

    found: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    heads: dict[Path, bytes] = field(default_factory=dict)
    pieces: dict[str, dict[Path, tuple[int, int]]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def with_whole(self, check: TensorCheck | None) -> TensorCheck:
        """A check of other tensors that looks at these too, and makes room for them then."""

        def check_both(found: Found) -> None:
            if twice := found.keys() & self.found.keys():
                raise CheckpointError(f"{min(twice)} is there whole and in parts")
            if check is not None:
                check({**found, **self.found})
            for name, (dtype, shape) in self.found.items():
                self.tensors[name] = torch.empty(shape, dtype=DTYPES[dtype])

        return check_both

    def add(self, path: Path) -> None:
        """Take notice of what is in a file. Raises CheckpointError if it is not consistent."""
        with disk.closing(disk.open_file(path, ANY_SIZE)) as handle:
            layout = read_layout(handle, path)
            check_holes(handle, path)
        self.heads[path] = layout.head
        try:
            places = json.loads(layout.remark)
            if places.keys() != layout.found.keys():
                raise ValueError
            for name, (dtype, shape) in layout.found.items():
                start, whole = places[name]
                if type(start) is not int or [shape[0], *whole[1:]] != shape:
                    raise ValueError
                if self.found.setdefault(name, (dtype, whole)) != (dtype, whole):
                    raise ValueError
                self.pieces.setdefault(name, {})[path] = (start, start + shape[0])
        except _MALFORMED as error:
            message = "its header does not say which rows it has"
            raise CheckpointError(f"{path} is damaged ({message})") from error

    def check_complete(self, directory: Path) -> None:
        """Raise CheckpointError unless every row of every tensor is in one file."""
        for name, pieces in self.pieces.items():
            end = 0
            for begin, after in sorted(pieces.values()):
                if begin != end:
                    break
                end = after
            if end != self.found[name][1][0]:
                raise CheckpointError(f"{directory} is damaged (rows of {name} are missing)")

    def read(self, path: Path) -> str:
        """Read a file's rows into the tensors; return its SHA-256."""
        with disk.closing(disk.open_file(path, ANY_SIZE)) as handle:
            layout = read_layout(handle, path)
            if layout.head != self.heads[path]:
                raise CheckpointError(f"{path} is damaged (it has changed while it was read)")
            digest = hashlib.sha256(layout.head)
            for name in layout.found:
                begin, after = self.pieces[name][path]
                content = bytes_of(self.tensors[name][begin:after])
                disk.read_into(handle, path, content)
                digest.update(content)
        return digest.hexdigest()


def layouts(directory: Path, count: int) -> Split:
    """What is in the files of so many processes; no tensor is read."""
    if count > _MAX_FILES:
        raise CheckpointError(f"{directory} is damaged ({count:,} processes are too many)")
    split = Split()
    for number in range(count):
        split.add(directory / name_of(number))
    split.check_complete(directory)
    return split
