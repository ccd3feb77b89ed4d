"""What a safetensors file says it holds: read, bounded and checked before any of it is used."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.json_values import unique
from gdtrain.errors import CheckpointError

# Names, dtypes and shapes: about 150 bytes a tensor.
MAX_HEADER_BYTES = 16 << 20
# Under this name, a file's header holds text of our own.
REMARK = "gdtrain"
_MAX_DIMENSIONS = 64  # as torch has it
_MAX_ELEMENTS = 1 << 48

# name -> (dtype in the words of safetensors, shape)
Found = Mapping[str, tuple[str, list[int]]]
# Raises CheckpointError for tensors that can't be.
TensorCheck = Callable[[Found], None]

DTYPE_NAMES = {
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
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.complex128: "C128",  # of our own: safetensors has none for it
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Layout:
    """Dtype and shape of each tensor in the order of the file.

    head: the bytes before them. remark: text of our own in the header.
    """

    head: bytes
    found: dict[str, tuple[str, list[int]]]
    remark: str = ""

    def empty(self, name: str) -> Tensor:
        """A tensor to read the one of that name into."""
        dtype, shape = self.found[name]
        return torch.empty(shape, dtype=DTYPES[dtype])


def read_layout(handle: int, path: Path) -> Layout:
    """Read the header, and leave ``handle`` where the tensors begin.

    Raises CheckpointError unless the tensors lie one after the other and fill the file.
    """
    size = os.fstat(handle).st_size
    start = bytearray(min(size, 8))
    disk.read_into(handle, path, memoryview(start))
    length = int.from_bytes(start, "little")
    if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path} is damaged (its header is said to take {length:,} bytes)")
    text = bytearray(length)
    disk.read_into(handle, path, memoryview(text))
    try:
        header = json.loads(text, object_pairs_hook=unique)
    except _MALFORMED as error:
        raise CheckpointError(f"{path} is damaged (its header can't be read)") from error
    found: dict[str, tuple[str, list[int]]] = {}
    end = 0
    try:
        remarks = header.pop("__metadata__", None)  # also other programs'
        remark = remarks.get(REMARK) if isinstance(remarks, dict) else None
        for name, message in header.items():
            shape, begin = message["shape"], end
            if len(shape) > _MAX_DIMENSIONS or not all(map(_is_extent, shape)):
                raise ValueError
            if math.prod(extent or 1 for extent in shape) > _MAX_ELEMENTS:
                raise ValueError
            end += math.prod(shape) * DTYPES[message["dtype"]].itemsize
            if message["data_offsets"] != [begin, end]:
                raise ValueError
            found[name] = (message["dtype"], shape)
    except _MALFORMED as error:
        raise CheckpointError(f"{path} is damaged (its header is not consistent)") from error
    if size != 8 + length + end:
        raise CheckpointError(f"{path} is damaged ({size:,} bytes instead of {8 + length + end:,})")
    return Layout(bytes(start + text), found, remark if isinstance(remark, str) else "")


def _is_extent(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_ELEMENTS
