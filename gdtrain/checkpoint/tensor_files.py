"""Tensors by name in a safetensors file: written flushed, read in bounds, with their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.safetensors_header import (
    DTYPE_NAMES,
    REMARK,
    TensorCheck,
    bytes_of,
    read_layout,
)
from gdtrain.errors import CheckpointError

ANY_SIZE = 1 << 62
# Tensors of fewer bytes together are written in one call: each call lets another thread run, and
# has to wait until it does so in turn.
_SMALL = 1 << 20
# How much larger than on its disk a file may be, by holes and by compression.
_SPARSE, _COMPRESSED = 64 << 20, 16


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


def read_tensors(path: Path, check: TensorCheck | None) -> tuple[dict[str, Tensor], str, str]:
    """The tensors by name, the SHA-256 of the file as it was read, once, and its remark.

    Nothing but the header, which is bounded, is read before ``check`` has seen it.
    """
    with disk.closing(disk.open_file(path, ANY_SIZE)) as handle:
        layout = read_layout(handle, path)
        if check is not None:
            try:
                check(layout.found)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
        check_holes(handle, path)
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


def check_holes(handle: int, path: Path) -> None:
    """Raise CheckpointError for a file that would take much more memory than it takes of a disk."""
    status = os.fstat(handle)
    there = getattr(status, "st_blocks", 0) * 512  # 0 where a file system does not say
    if there and status.st_size > _SPARSE + _COMPRESSED * there:
        raise CheckpointError(
            f"{path} is damaged ({status.st_size:,} bytes, of which {there:,} are on the disk)"
        )
