"""How state is written: tensors as safetensors, everything else as JSON, and nothing that runs.

A checkpoint is two files. ``tensors.safetensors`` holds the tensors by name. ``state.json`` has
two lines: a header with the format's number, the SHA-256 of the other file and that of both and
the second line; and the values, with a note wherever a tensor belongs. Tensors that are split over
processes are in further files, one of each process, whose SHA-256s are in the header too: each
file's own header notes of every tensor the number of its first row here and the whole shape.

A tensor is whole in one file, or in rows over several; a process may need some of its rows alone.
What a file says it holds is read, bounded and checked before any of it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gdtrain.checkpoint import durable_files as disk
from gdtrain.checkpoint.json_values import flatten, parse, restore, unique
from gdtrain.errors import CheckpointError, OutputError
from gdtrain.training.placement.distributed import World
from gdtrain.training.placement.sharding import Part

FORMAT = 2
READABLE = (1, 2)  # 1 is that of 0.1.0, which knows fewer kinds of value
TENSORS = "tensors.safetensors"
SHARDS = "shards"
STATE = "state.json"
# What values may take at most: they are epochs' records and counters.
MAX_VALUES_BYTES = 64 << 20
_MAX_HEADER_BYTES = 16 << 20
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


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
        add_shards(files, directory, len(shards))
        files.add_whole(directory / TENSORS)
        files.check(directory / TENSORS, check)
        files.make_room()
        names = [*map(shard_name, range(len(shards))), TENSORS]
        for number, (name, expected) in enumerate(zip(names, (*shards, digest), strict=True)):
            if (found := files.read(number)) is not None:
                _compare(directory, name, found, expected)
        tensors = files.tensors(directory / TENSORS)
    try:
        state = restore(parse(text), tensors)
        if not isinstance(state, dict) or tensors:
            raise ValueError("it holds no mapping, or tensors that are not in it")
    except _MALFORMED as error:
        message = " ".join(str(error).split())[:100]
        raise CheckpointError(f"{directory / STATE}: is not a checkpoint's; {message}") from error
    return state


def verify(directory: Path) -> None:
    """Raise CheckpointError, naming the file, unless all are as they were written."""
    with _told(directory):
        digest, shards, _ = _read_values(directory)
        names = [TENSORS, *map(shard_name, range(len(shards)))]
        for name, expected in zip(names, (digest, *shards), strict=True):
            path = directory / name
            with (
                disk.reading(path, ANY_SIZE) as handle,
                os.fdopen(handle, "rb", closefd=False) as file,
            ):
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
    except _MALFORMED as error:
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


# ── tensors in files ────────────────────────────────────────────────────────────────────────────


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
    write: Callable[[Path, Sequence[bytes | memoryview]], None] = disk.write_file,
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
    content: list[bytes | memoryview] = [len(text).to_bytes(8, "little") + text]
    content += map(bytes_of, held.values())
    if end <= _SMALL:
        content = [b"".join(content)]
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    write(path, content)
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
        with disk.reading(path, ANY_SIZE) as handle:
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
            self._tensors[name] = torch.empty(needed, dtype=DTYPES[dtype], device="cpu")

    def read(self, number: int) -> str | None:
        """Read what is needed of a file that was added; return its SHA-256, if it is known then.

        It is where all was read, and in one of the processes in any case.
        """
        path, layout = list(self._layouts.items())[number]
        spans = list(self._spans(path, layout))
        asked = number % self._share.world.size == self._share.world.rank
        digest = hashlib.sha256(layout.head)
        hashed = asked or all(span.place is not None for span in spans)
        with disk.reading(path, ANY_SIZE) as handle:
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


# ── split tensors ───────────────────────────────────────────────────────────────────────────────


_MAX_FILES = 1 << 16


def shard_name(number: int) -> str:
    """The file of the process of that rank."""
    return f"shard-{number:05d}.safetensors"


def write_shard(directory: Path, number: int, state: dict[str, Any]) -> str:
    """Write the rows that a state has of split tensors, flushed; return the file's SHA-256."""
    tensors: dict[str, Tensor | Part] = {}
    flatten(state, "", tensors)
    parts = {name: part for name, part in tensors.items() if isinstance(part, Part)}
    places = {name: [part.start, part.shape] for name, part in parts.items()}
    rows = {name: part.rows for name, part in parts.items()}
    return write_tensors(directory / shard_name(number), rows, json.dumps(places))


def add_shards(files: TensorFiles, directory: Path, count: int) -> None:
    """Take notice of what is in the files of so many processes.

    Raises CheckpointError unless every row of every tensor is in one of them.
    """
    if count > _MAX_FILES:
        raise CheckpointError(f"{directory} is damaged ({count:,} processes are too many)")
    rows: dict[str, list[Rows]] = {}
    for number in range(count):
        _add_shard(files, directory / shard_name(number), rows)
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


# ── headers of safetensors files ────────────────────────────────────────────────────────────────


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
        return torch.empty(shape, dtype=DTYPES[dtype], device="cpu")


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
