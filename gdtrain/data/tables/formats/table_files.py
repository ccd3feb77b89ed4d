"""Which files a path means, what each is by its bytes, and their rows one after another."""

from __future__ import annotations

import glob
import json
import os
import re
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gdtrain.data.tables.cells import WITH_PANDAS
from gdtrain.data.tables.formats.csv_file import CsvFile, Dialect, Unpacked
from gdtrain.data.tables.formats.typed_files import FeatherFile, JsonLines, ParquetFile
from gdtrain.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    import pyarrow as pa

INSTALL = "pip install 'gdtrain[tables]'"


class TableFile(Protocol):
    """Rows of named columns in a file. unnamed: columns that are called by their place."""

    path: str
    names: list[str]
    unnamed: set[str]

    def batches(
        self,
        names: Sequence[str],
        missing: Sequence[str],
        advance: Callable[[int], object] | None = None,
    ) -> Iterator[list[pa.Array]]: ...

    def places(self, rows: Sequence[int]) -> list[str]: ...


class TableFiles:
    """The rows of one file, or of all files of a folder or a pattern, in the order of their names.

    Raises DataError for a file that is no table, and MissingPackageError without pyarrow.
    """

    def __init__(self, path: str, dialect: Dialect) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            text = f"tables are read by pyarrow; install it: {INSTALL}"
            raise MissingPackageError(text) from error
        self.path = path
        self.dialect = dialect
        self.paths = paths_of(path)
        self._first = open_table(self.paths[0], dialect)
        self.names = self._first.names
        self.unnamed = self._first.unnamed
        self.starts = [0]

    def look_for(self, names: Sequence[str]) -> None:
        """Raise DataError if a column is not there since the file is not written as was said."""
        if isinstance(self._first, CsvFile):
            self._first.look_for(names)

    def batches(
        self,
        names: Sequence[str],
        missing: Sequence[str],
        advance: Callable[[int], object] | None = None,
        as_text: Collection[str] = (),
    ) -> Iterator[list[pa.Array]]:
        """Consecutive rows, each batch as one array for each of the named columns.

        missing: texts that stand for no value. as_text: columns that are given as text if they are
        text in the file; others may be given as numbers there too.
        """
        rows, self.starts = 0, []
        numbers: dict[str, bool] = {}
        if isinstance(self._first, CsvFile):
            may_be = [name for name in names if name not in as_text]
            numbers = self._first.number_columns(may_be, missing)
        for path in self.paths:
            self.starts.append(rows)
            file = self._first if path == self.paths[0] else self.opened(path)
            of_csv = {"numbers": numbers} if isinstance(file, CsvFile) else {}
            for batch in file.batches(names, missing, advance, **of_csv):
                rows += len(batch[0])
                yield batch

    def opened(self, path: str) -> TableFile:
        """One of the files; DataError if its columns are not those of the first."""
        if path == self.paths[0]:
            return self._first
        file = open_table(path, self.dialect)
        first = self._first
        for here, other in ((first, file), (file, first)):
            there = set(other.names)
            for name in here.names:
                if name not in there:
                    text = f"has no column {name!r}, which {here.path} has"
                    raise DataError(f"{other.path}: {text}")
        return file

    def places(self, rows: Sequence[int]) -> list[str]:
        """What rows that have been read are called: their lines, or their numbers from 0 on."""
        found: dict[int, str] = {}
        by_file: dict[int, list[int]] = {}
        for row in sorted(set(rows)):
            by_file.setdefault(bisect_right(self.starts, row) - 1, []).append(row)
        for number, chosen in by_file.items():
            path, start = self.paths[number], self.starts[number]
            names = self.opened(path).places([row - start for row in chosen])
            prefix = f"{path}, " if len(self.paths) > 1 else ""
            found |= {row: prefix + name for row, name in zip(chosen, names, strict=True)}
        return [found[row] for row in rows]

    def nbytes(self) -> int:
        """Of all files, as they are."""
        return sum(Path(path).stat().st_size for path in self.paths)


def paths_of(path: str) -> list[str]:
    """The files that a path, a folder or a pattern with * means; at least one."""
    if re.match(r"[a-z][a-z0-9+.-]+://", path):
        raise DataError(f"{path}: is an address; download the file, and give its path")
    here = str(Path(path).expanduser())
    if os.path.isdir(here):  # noqa: PTH112 - no error for what no file can be called
        files = [file for file in Path(here).rglob("*") if file.is_file()]
        found = sorted(str(file) for file in files if file.name[0] not in "._")
        for name in found:
            if not _ENDING.search(name.lower()):
                raise DataError(
                    f"{path}: contains {os.path.relpath(name, here)}, whose name does not end like "
                    f"a table's (.csv, .parquet, …); give a pattern, such as {path}/*.csv"
                )
        if not found:
            raise DataError(f"{path}: is a folder without files; give one with tables")
        _check_folders(path, [os.path.relpath(name, here) for name in found])
        return found
    if not os.path.exists(here) and any(mark in here for mark in "*?["):  # noqa: PTH110
        matches = glob.glob(here, recursive=True)  # noqa: PTH207 - a pattern may be absolute
        found = sorted(file for file in matches if Path(file).is_file())
        if not found:
            raise DataError(
                f"{path}: no file is called so; paths are relative to the working directory"
            )
        return found
    return [here]


def _check_folders(path: str, files: Sequence[str]) -> None:
    """Refuse folders such as year=2024: they hold a column that none of the files has."""
    for file in files:
        *folders, name = Path(file).parts
        column = next((folder for folder in folders if "=" in folder), None)
        if column is not None:
            pattern = "/*" * len(folders) + "/*" + Path(name).suffix
            way = f"give the pattern {path}{pattern} to read the files without it"
            if name.endswith((".parquet", ".pq")):
                line = f"pd.read_parquet({path!r}).to_parquet('table.parquet')"
                way = f"make one Parquet file of it {WITH_PANDAS}{line}; or {way}"
            raise DataError(
                f"{path}: the folder {column} holds a value of a column that is in no file; {way}"
            )


_ENDING = re.compile(
    r"\.(csv|tsv|tab|txt|data|parquet|pq|feather|arrow|ipc|jsonl|ndjson)(\.(gz|gzip|bz2|zst|zstd))?$"
)


# ── recognised by their bytes ───────────────────────────────────────────────────────────────

_READ_BY_PANDAS = {
    "xlsx": ("an Excel spreadsheet (XLSX)", "pd.read_excel({path})"),
    "xls": ("an Excel spreadsheet (XLS)", "pd.read_excel({path})"),
    "ods": ("an OpenDocument spreadsheet (ODS)", "pd.read_excel({path})"),
    "json": ("JSON, but not one object a line (JSON lines)", "pd.read_json({path})"),
    "arff": ("an ARFF file", "pd.DataFrame(scipy.io.arff.loadarff({path})[0])"),
    "libsvm": (
        "a LIBSVM file",
        "(lambda x, y: pd.DataFrame(x.toarray()).add_prefix('x').assign(y=y))"
        "(*sklearn.datasets.load_svmlight_file({path}))",
    ),
    "zip": ("a zip archive", "pd.read_csv({path})"),
    "hdf5": ("an HDF5 file", "pd.read_hdf({path})"),
    "html": ("an HTML page", "pd.read_html({path})[0]"),
    "xml": ("an XML file", "pd.read_xml({path})"),
    "sas": ("a SAS file", "pd.read_sas({path})"),
    "stata": ("a Stata file", "pd.read_stata({path})"),
    "orc": ("an ORC file", "pd.read_orc({path})"),
}
_MAGIC = {
    b"\xd0\xcf\x11\xe0": "xls",
    b"\x89HDF": "hdf5",
    b"ORC": "orc",
    b"<?xml": "xml",
    b"<stata_dta>": "stata",
    b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xc2\xea\x81\x60": "sas",
}
_OTHERS = {
    b"FEA1": "a Feather file of version 1; write it again with a current pandas",
    b"\x93NUMPY": "a numpy array; use source: npy",
    b"SQLite format 3": "an SQLite database; export the table",
    b"%PDF": "a PDF file; save the table as CSV",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it, or compress it by gzip, bzip2 or zstd",
    b"Obj\x01": "an Avro file; write it as Parquet",
}
# Of a table that pandas writes as JSON by columns, whose cells have the names of their rows.
_COLUMN = re.compile(rb'\{\s*"[^"]*"\s*:\s*\{\s*"0"\s*:')
_LIBSVM = re.compile(rb"[-+]?\d[\d.eE+-]*(?:\s+\d+:[-+]?\d[\d.eE+-]*)+\s*(?:#.*)?")


def open_table(path: str, dialect: Dialect) -> TableFile:
    """Open a file as what its first bytes say it is.

    Raises DataError for other formats, with the line of pandas that makes a Parquet file of them.
    """
    with Unpacked(path) as file:
        start = file.read(1 << 16)
        packed = bool(file.codec)
    if start.startswith(b"PAR1"):
        return ParquetFile(_plain(path, packed))
    if start.startswith(b"ARROW1"):
        return FeatherFile(_plain(path, packed))
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise DataError(f"{path}: is {what}")
    kind = _kind_of(path, start)
    if kind == "jsonl":
        return JsonLines(path)
    if kind is not None:
        what, line = _READ_BY_PANDAS[kind]
        written = f"{line.format(path=repr(Path(path).name))}.to_parquet('table.parquet')"
        raise DataError(f"{path}: is {what}; make a Parquet file of it {WITH_PANDAS}{written}")
    return CsvFile(path, dialect)


def _plain(path: str, packed: bool) -> str:
    if packed:
        raise DataError(f"{path}: is a compressed Parquet or Feather file; unpack it")
    return path


def _kind_of(path: str, start: bytes) -> str | None:
    """A name of the format, or None for text that may be CSV."""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _kind_of_zip(path)
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"{", b"["):
        return _kind_of_json(text)
    if text[:9].lower() == b"<!doctype" or text[:5].lower() == b"<html":
        return "html"
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(b"%")]
    if lines and lines[0].lower().startswith(b"@relation"):
        return "arff"
    return "libsvm" if lines and _LIBSVM.fullmatch(lines[0]) else None


def _kind_of_json(text: bytes) -> str | None:
    first = text.split(b"\n", 1)[0]
    try:
        value: Any = json.loads(first)
    except (ValueError, RecursionError):
        if first == text and text[:1] == b"{":  # its first line is longer than what is looked at
            return "json" if _COLUMN.match(text) else "jsonl"
        rest = text[1:].lstrip()[:1]
        return "json" if rest in (b"{", b"[", b'"', b"}", b"]") else None
    if isinstance(value, dict) and not (_COLUMN.match(first) and first == text.rstrip()):
        return "jsonl"
    return "json"


def _kind_of_zip(path: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "mimetype" in names and b"opendocument" in archive.read("mimetype")[:100]:
                return "ods"
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        return "zip"
    return "xlsx" if any(name.startswith("xl/") for name in names) else "zip"
