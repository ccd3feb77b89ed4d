"""Arrays in memory-mapped files: one file, or a folder of shards that together form one array."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from gdtrain.data.files.array_files import reading
from gdtrain.data.tables.preparation import as_tensor
from gdtrain.errors import DataError

FORMATS = (".npy", ".safetensors", ".pt", ".pth")
# How much of the mapped files may be in memory before the pages that were used are let go …
RESIDENT_BYTES = 32 << 20
# … and what reading one row can bring there: the kernel maps this much around a fault.
_FAULT_AROUND = 64 << 10

_SAFETENSORS_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    "BOOL": torch.bool,
}
_Opened = tuple[torch.dtype, list[int], "np.ndarray[Any, Any]"]


class ShardedArray:
    """Rows [n, …] in mapped files; nothing is read before :meth:`take`.

    path: an .npy, .safetensors or .pt file, or a folder of such, which are joined along the
    first axis in the order of their names. key: which tensor of each file, where it holds several.

    ``shape`` and ``dtype`` are those of the array. Raises DataError for files that can't be read
    or do not fit each other.
    """

    def __init__(self, path: str | Path, key: str | None = None) -> None:
        self.path, self._key = str(path), key
        files = _files(Path(path))
        self.marks = [mark_of(file) for file in files]  # before they are looked into
        opened = [(file, *_open(file, key)) for file in files]
        first, self.dtype, (_, *self._row_shape), _ = opened[0]
        for file, dtype, shape, _ in opened:
            if dtype != self.dtype:
                raise DataError(
                    f"{file}: holds {_name(dtype)}, but {first} {_name(self.dtype)}; "
                    "all shards must be of one dtype"
                )
            if shape[1:] != self._row_shape:
                raise DataError(
                    f"{file}: has rows of shape {shape[1:]}, but {first} of {self._row_shape}; "
                    "all shards must be of one width"
                )
        self.row_bytes = self.dtype.itemsize * math.prod(self._row_shape)
        if not self.row_bytes:
            raise DataError(f"{path}: holds no numbers, its rows are of shape {self._row_shape}")
        if self.row_bytes >= 2**31:  # numpy has no larger items
            raise DataError(f"{path}: has rows of {self.row_bytes:,} bytes; 2 GiB are too many")
        row = np.dtype(f"V{self.row_bytes}")
        parts = [(shape[0], data) for _, _, shape, data in opened if shape[0]]
        self._shards = [np.ndarray((count,), row, buffer=data) for count, data in parts]
        self._ends = np.cumsum([count for count, _ in parts], dtype=np.int64)
        self._touched = 0

    def __reduce__(self) -> Any:
        return ShardedArray, (self.path, self._key)  # a copy maps the files itself

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def shape(self) -> list[int]:
        """[n, …]."""
        return [len(self), *self._row_shape]

    @property
    def ends(self) -> np.ndarray[Any, Any]:
        """How many rows there are up to the end of each file, [files] int64."""
        return self._ends

    def take(self, rows: Tensor) -> Tensor:
        """A copy of ``rows`` ([k] int64, in any order), [k, …] in the array's dtype."""
        wanted = rows.numpy()
        out = np.empty(len(wanted), f"V{self.row_bytes}")
        if len(wanted) and np.array_equal(wanted, np.arange(wanted[0], wanted[0] + len(wanted))):
            self._copy(int(wanted[0]), out)
        elif len(wanted):
            # In rising order, which reads each page once and takes the shards one by one.
            order = np.argsort(wanted, kind="stable")
            self._gather(wanted[order], order, out)
        taken = torch.from_numpy(out.view(np.uint8)).view(self.dtype)
        return as_tensor(taken.reshape(len(wanted), *self._row_shape), self.path)

    def digest(self, digest: int = 0) -> int:
        """The CRC-32 of all rows and their shape, added to ``digest``."""
        digest = zlib.crc32(f"{self.dtype} {self.shape}".encode(), digest)
        at_once = max(1, RESIDENT_BYTES // self.row_bytes)
        for shard in self._shards:
            _advise(shard, "MADV_SEQUENTIAL")
            for start in range(0, len(shard), at_once):
                rows = shard[start : start + at_once]
                self._count(rows.nbytes)
                digest = zlib.crc32(rows.view(np.uint8).data, digest)
        return digest

    def advise(self, sequential: bool) -> None:
        """Tell the system whether rows will be read in sequence, so that it reads on or not."""
        for shard in self._shards:
            _advise(shard, "MADV_SEQUENTIAL" if sequential else "MADV_RANDOM")

    def _copy(self, first: int, out: np.ndarray[Any, Any]) -> None:
        at_once = max(1, RESIDENT_BYTES // self.row_bytes)
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True):
            begin = end - len(shard)
            low, high = max(first, begin), min(first + len(out), end)
            for start in range(low, high, at_once):
                stop = min(high, start + at_once)
                self._count((stop - start) * self.row_bytes)
                out[start - first : stop - first] = shard[start - begin : stop - begin]

    def _gather(
        self,
        wanted: np.ndarray[Any, Any],
        order: np.ndarray[Any, Any],
        out: np.ndarray[Any, Any],
    ) -> None:
        cost = _FAULT_AROUND + self.row_bytes
        at_once = max(1, RESIDENT_BYTES // cost)
        bounds = [0, *np.searchsorted(wanted, self._ends).tolist()]
        for shard, end, low, high in zip(
            self._shards, self._ends.tolist(), bounds, bounds[1:], strict=False
        ):
            for start in range(low, high, at_once):
                stop = min(high, start + at_once)
                rows = wanted[start:stop] - (end - len(shard))
                span = int(rows[-1] - rows[0]) + 1
                self._count(min(len(rows) * cost, span * self.row_bytes + _FAULT_AROUND))
                out[order[start:stop]] = shard[rows]

    def _count(self, nbytes: int) -> None:
        """Let the pages go before more than RESIDENT_BYTES are there; a small array stays."""
        self._touched += nbytes
        if self._touched > RESIDENT_BYTES < len(self) * self.row_bytes:
            for shard in self._shards:
                _advise(shard, "MADV_DONTNEED")
            self._touched = nbytes


def mark_of(path: Path) -> list[Any]:
    """By which a file is taken for unchanged, without being read."""
    try:
        found = path.stat()
    except OSError:  # opening it says why
        return [path.name, None, None]
    return [path.name, found.st_size, found.st_mtime_ns]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix in FORMATS)
    if not files:
        raise DataError(f"{path}: holds no {', '.join(FORMATS[:-2])} or .pt file")
    return files


def _open(path: Path, key: str | None) -> _Opened:
    """Dtype, shape and the mapped bytes of one file's array."""
    readers = {".npy": _npy, ".safetensors": _safetensors, ".pt": _pt, ".pth": _pt}
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(f"{path}: can't be mapped; give {', '.join(FORMATS[:-2])} or .pt")
    dtype, shape, data = reading(str(path), lambda: reader(path, key), mapped=True)
    if not shape:
        raise DataError(f"{path}: a single number has no rows; give a tensor of shape [n, …]")
    return dtype, shape, data


def _npy(path: Path, key: str | None) -> _Opened:
    if key is not None:
        raise DataError(f"{path}: an .npy file holds one array; leave the name {key!r} out")
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(file)
        offset = file.tell()
    as_tensor(np.zeros((1,), dtype), str(path))  # raises for what is not numeric
    if not dtype.isnative:
        raise DataError(f"{path}: is in another machine's byte order; save it in this one's")
    if fortran:
        raise DataError(f"{path}: is in column order; save np.ascontiguousarray of the array")
    promised = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    data = _map(path, offset, promised)
    return torch.from_numpy(np.empty(0, dtype)).dtype, list(shape), data


def _safetensors(path: Path, key: str | None) -> _Opened:
    with safe_open(str(path), framework="pt") as file:  # checks the header against the file
        name = _chosen(path, list(file.keys()), key)
        part = file.get_slice(name)
        dtype, shape = part.get_dtype(), list(part.get_shape())
    if dtype not in _SAFETENSORS_DTYPES:
        raise DataError(f"{path}: {name!r} is {dtype}, which can't be trained on; convert it")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(length))[name]["data_offsets"]
    return _SAFETENSORS_DTYPES[dtype], shape, _map(path, 8 + length + begin, 8 + length + end)


def _pt(path: Path, key: str | None) -> _Opened:
    held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(held, Tensor):
        if key is not None:
            raise DataError(f"{path}: holds one tensor; leave the name {key!r} out")
    elif isinstance(held, dict):
        held = held[_chosen(path, list(held), key)]
    if not isinstance(held, Tensor):
        raise DataError(f"{path}: must hold a tensor or a dict of tensors")
    if held.layout != torch.strided or not held.is_contiguous():
        raise DataError(f"{path}: is not stored row by row; save tensor.contiguous()")
    return held.dtype, list(held.shape), held.detach().reshape(-1).view(torch.uint8).numpy()


def _chosen(path: Path, names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key in names:
        return str(key)
    known = ", ".join(map(str, names)) or "nothing"
    if key is None:
        raise DataError(f"{path}: holds {known}; say which, as (path, name)")
    raise DataError(f"{path}: has no {key!r}; it holds {known}")


def _map(path: Path, start: int, stop: int) -> np.ndarray[Any, Any]:
    """Bytes ``start`` … ``stop - 1`` of a file, mapped; DataError if it is shorter."""
    size = path.stat().st_size
    if size < stop:
        raise DataError(f"{path}: is truncated; it promises {stop} bytes and has {size}")
    if start == stop:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "r", start, (stop - start,))


def _advise(shard: np.ndarray[Any, Any], advice: str) -> None:
    """madvise on the pages that lie wholly in the shard; of all shards, files and formats."""
    number = getattr(mmap, advice, None)
    if number is None:  # not on this system, where it would only have been a hint
        return
    page = mmap.PAGESIZE
    start = -(-shard.ctypes.data // page) * page
    length = (shard.ctypes.data + shard.nbytes) // page * page - start
    if length > 0:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(number)
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
