"""Tensors that are split over processes: a file of rows from each.

Each file's header notes of every tensor the number of its first row here and the whole shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from gdtrain.checkpoint.json_values import flatten
from gdtrain.checkpoint.tensor_files import Rows, TensorFiles, write_tensors
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


def add_shards(files: TensorFiles, directory: Path, count: int) -> None:
    """Take notice of what is in the files of so many processes.

    Raises CheckpointError unless every row of every tensor is in one of them.
    """
    if count > _MAX_FILES:
        raise CheckpointError(f"{directory} is damaged ({count:,} processes are too many)")
    rows: dict[str, list[Rows]] = {}
    for number in range(count):
        _add_shard(files, directory / name_of(number), rows)
    for name, pieces in rows.items():
        end = 0
        for begin, after in sorted(pieces):
            if begin != end:
                break
            end = after
        if end != files.found[name][1][0]:
            raise CheckpointError(f"{directory} is damaged (rows of {name} are missing)")


def _add_shard(files: TensorFiles, path: Path, rows: dict[str, list[Rows]]) -> None:
    layout = files.add(path)
    try:
        places = json.loads(layout.remark)
        if places.keys() != layout.found.keys():
            raise ValueError
        for name, (dtype, shape) in layout.found.items():
            start, whole = places[name]
            if {type(start), type(whole[0])} != {int} or [shape[0], *whole[1:]] != shape:
                raise ValueError
            files.add_rows(path, name, start, whole)
            if files.found[name] != (dtype, whole):
                raise ValueError
            rows.setdefault(name, []).append((start, start + shape[0]))
    except _MALFORMED as error:
        message = "its header does not say which rows it has"
        raise CheckpointError(f"{path} is damaged ({message})") from error
