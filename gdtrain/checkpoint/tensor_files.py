"""Tensors by name in safetensors files: written flushed, read in bounds, with their SHA-256.

A tensor is whole in one file, or in rows over several; a process may need some of its rows alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.safetensors_header import (
    DTYPE_NAMES,
    DTYPES,
    REMARK,
    Layout,
    TensorCheck,
    read_layout,
)
from gdtrain.errors import CheckpointError
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.sharding import Part

ANY_SIZE = 1 << 62
# How much larger than on its disk a file may be, by holes and by compression.
_SPARSE, _COMPRESSED = 64 << 20, 16
_AT_ONCE = 1 << 20  # of what is read for its digest alone
# The numbers of a first row and of the one after the last.
Rows = tuple[int, int]
# Tensors of fewer bytes together are written in one call: each call lets another thread run, and
# has to wait until it does so in turn.
_SMALL = 1 << 20


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    remark: str = "",
    write: Callable[[Path, Iterator[bytes | memoryview]], None] = disk.write_file,
) -> str:
    """Write tensors by name as a new safetensors file, flushed; return its SHA-256.

    The format is a length, 8 bytes, a JSON header with dtype, shape and place of each tensor,
    and their bytes. Large tensors go to the file straight from their memory.
    remark: text kept in the header. write: what puts the parts of a file on the disk.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{name}: a tensor of {tensor.dtype} can't be saved")
    # The widest first, so that each is aligned to its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    # As they lie in a file, on the CPU.
    plain = (tensors[name].detach().cpu().resolve_conj().resolve_neg() for name in names)
    held = {name: tensor.contiguous() for name, tensor in zip(names, plain, strict=True)}
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

    write(path, parts())
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    if not tensor.numel():
        return memoryview(b"")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class Share:
    """What one of several processes reads, which all read together.

    rows: given a name and a whole shape, those that it needs; None for all. Of a file of which no
    process needs everything, one alone computes the digest.
    """

    world: World = field(default_factory=World)
    rows: Callable[[str, list[int]], Rows | None] = lambda _name, _shape: None


class _Span(NamedTuple):
    """So many bytes of a file, in their order, and where they go, if anywhere."""

    nbytes: int
    place: memoryview | None


class TensorFiles:
    """Tensors by name in files: layouts are added, then checked, then the tensors are read.

    found: their dtypes and whole shapes.
    """

    def __init__(self, share: Share) -> None:
        self.found: dict[str, tuple[str, list[int]]] = {}
        self._share = share
        self._layouts: dict[Path, Layout] = {}
        self._status: dict[Path, os.stat_result] = {}
        self._starts: dict[tuple[Path, str], int] = {}  # the first row in a file of many
        self._rows: dict[str, Rows] = {}  # of which this process needs no others
        self._tensors: dict[str, Tensor] = {}

    def add(self, path: Path) -> Layout:
        """Take notice of what a file says it holds; no tensor is read."""
        with disk.closing(disk.open_file(path, ANY_SIZE)) as handle:
            self._layouts[path] = layout = read_layout(handle, path)
            self._status[path] = os.fstat(handle)
        return layout

    def add_whole(self, path: Path) -> str:
        """Add a file of whole tensors; return its remark."""
        layout = self.add(path)
        if twice := layout.found.keys() & self.found.keys():
            raise CheckpointError(f"{path}: {min(twice)} is there whole and in parts")
        self.found |= layout.found
        return layout.remark

    def add_rows(self, path: Path, name: str, start: int, shape: list[int]) -> None:
        """Take notice of which rows of a tensor are in a file that was added."""
        self._starts[path, name] = start
        self.found.setdefault(name, (self._layouts[path].found[name][0], shape))

    def check(self, path: Path, check: TensorCheck | None) -> None:
        """Have somebody look at names, dtypes and shapes; their error names ``path``."""
        if check is not None:
            try:
                check(self.found)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error

    def make_room(self) -> None:
        """Have memory for what this process needs."""
        for path, status in self._status.items():
            _check_holes(path, status)
        for name, (dtype, shape) in self.found.items():
            needed = list(shape)
            if (rows := self._share.rows(name, shape)) is not None:
                self._rows[name] = rows
                needed[0] = rows[1] - rows[0]
            self._tensors[name] = torch.empty(needed, dtype=DTYPES[dtype])

    def read(self, number: int) -> str | None:
        """Read what is needed of a file that was added; return its SHA-256, if it is known then.

        It is where all was read, and in one of the processes in any case.
        """
        path, layout = list(self._layouts.items())[number]
        spans = list(self._spans(path, layout))
        asked = number % self._share.world.size == self._share.world.rank
        digest = hashlib.sha256(layout.head)
        hashed = asked or all(span.place is not None for span in spans)
        with disk.closing(disk.open_file(path, ANY_SIZE)) as handle:
            if read_layout(handle, path).head != layout.head:
                raise CheckpointError(f"{path} is damaged (it has changed while it was read)")
            for span in spans:
                if span.place is None and not hashed:
                    os.lseek(handle, span.nbytes, os.SEEK_CUR)
                    continue
                for content in _contents(handle, path, span):
                    if hashed:
                        digest.update(content)
        return digest.hexdigest() if hashed else None

    def tensors(self, of: Path) -> dict[str, Tensor | Part]:
        """What was read, of split tensors this process's part. of: for messages."""
        for name, tensor in self._tensors.items():
            odd = tensor.dtype == torch.bool and tensor.numel() and tensor.view(torch.uint8).max()
            if odd and odd > 1:
                raise CheckpointError(f"{of} is damaged ({name} is neither true nor false)")
        parts = {
            name: Part(self._tensors[name], rows[0], torch.Size(self.found[name][1]))
            for name, rows in self._rows.items()
        }
        return {**self._tensors, **parts}

    def _spans(self, path: Path, layout: Layout) -> Iterator[_Span]:
        """All bytes of a file after its head: rows before those that are needed, these, others."""
        for name, (dtype, shape) in layout.found.items():
            tensor = self._tensors[name]
            if not shape:
                yield _Span(tensor.nbytes, bytes_of(tensor))
                continue
            row = math.prod(shape[1:]) * DTYPES[dtype].itemsize
            begin = self._starts.get((path, name), 0)
            end = begin + shape[0]
            first, after = self._rows.get(name, (0, self.found[name][1][0]))
            here, last = min(max(first, begin), end), max(min(after, end), begin)
            last = max(here, last)
            if here > begin:
                yield _Span((here - begin) * row, None)
            yield _Span((last - here) * row, bytes_of(tensor[here - first : last - first]))
            if end > last:
                yield _Span((end - last) * row, None)


def read_tensors(path: Path, check: TensorCheck) -> tuple[Mapping[str, Tensor | Part], str]:
    """The tensors of one file by name, and its remark.

    Nothing but the header, which is bounded, is read before ``check`` has seen it.
    """
    files = TensorFiles(Share())
    remark = files.add_whole(path)
    files.check(path, check)
    files.make_room()
    files.read(0)
    return files.tensors(path), remark


def _contents(handle: int, path: Path, span: _Span) -> Iterator[memoryview]:
    """The bytes of a span, read into their place, or a few at a time."""
    if span.place is not None:
        disk.read_into(handle, path, span.place)
        yield span.place
        return
    aside = memoryview(bytearray(min(span.nbytes, _AT_ONCE)))
    for done in range(0, span.nbytes, _AT_ONCE):
        content = aside[: span.nbytes - done]
        disk.read_into(handle, path, content)
        yield content


def _check_holes(path: Path, status: os.stat_result) -> None:
    """Raise CheckpointError for a file that would take much more memory than it takes of a disk."""
    there = getattr(status, "st_blocks", 0) * 512  # 0 where a file system does not say
    if there and status.st_size > _SPARSE + _COMPRESSED * there:
        raise CheckpointError(
            f"{path} is damaged ({status.st_size:,} bytes, of which {there:,} are on the disk)"
        )
