"""What is larger than it seems is refused in a line, before memory is taken for it."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gdtrain.data import checks
from gdtrain.data.files.array_files import npy, npz, safetensors
from gdtrain.data.streams.decimals import DecimalGrid
from gdtrain.data.tables.preparation import check_columns
from gdtrain.data.tables.table import read_table
from gdtrain.errors import DataError

FREE = 50_000_000


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "free_memory", lambda: FREE)


def header_of(shape: tuple[int, ...]) -> bytes:
    """The header of an .npy file of float32 numbers, none of which follow."""
    file = io.BytesIO()
    head = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue()


def deflated(path: Path) -> None:
    """Two arrays of 40 MB of zeros in 80 kB."""
    np.savez_compressed(path, x=np.zeros((100_000, 100), "f4"), y=np.zeros((100_000, 100), "f4"))


def promised(path: Path) -> None:
    """A header of a terabyte, and nothing behind it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x", "y"):
            archive.writestr(f"{name}.npy", header_of((1 << 28, 1000)))


@pytest.mark.parametrize("make", [deflated, promised])
@pytest.mark.usefixtures("small_memory")
def test_an_archive_that_is_larger_than_memory_is_refused_unread(tmp_path: Path, make) -> None:
    path = tmp_path / "d.npz"
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"d.npz: takes [\d,]+ bytes of memory, and 50,000,000"):
            npz(str(path))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [npy, safetensors, npz])
@pytest.mark.usefixtures("small_memory")
def test_a_sparse_file_is_refused_by_its_size(tmp_path: Path, read) -> None:
    path = tmp_path / "d"
    with path.open("wb") as file:
        file.write(b"a,y\n1,2\n")
        file.truncate(10 << 30)
    with pytest.raises(DataError, match=r"takes 10,737,418,240 bytes of memory") as told:
        read(str(path), "y") if read is not npz else read(str(path))
    assert "\n" not in str(told.value)


def test_a_table_is_refused_before_it_takes_more_memory_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "ALWAYS_THERE", 0)
    monkeypatch.setattr(checks, "free_memory", lambda: 1000)
    (tmp_path / "d.csv").write_text("a,y\n" + "1,2\n" * 1000)
    with pytest.raises(DataError, match=r"takes 4,004 bytes of memory, and 1,000 are free"):
        read_table(str(tmp_path / "d.csv"), "y")
    monkeypatch.setattr(checks, "free_memory", lambda: 5000)
    with pytest.raises(DataError, match=r"takes [\d,]+ bytes of memory, and 5,000 are free"):
        read_table(str(tmp_path / "d.csv"), "y")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"a,y\n" + b"1" * (17 << 20),
            "a line is longer than 16 MiB; is it text with one row a line",
        ),
        (b"1" * (17 << 20), "a line is longer than 16 MiB"),
        (b"a,y\n" + b"\0" * (17 << 20), "holds a NUL character, so it is not text"),
        (
            b'a,y\n1,"' + (b"2" * 1023 + b"\n") * (17 << 10),
            "a line is longer than 16 MiB|field larger than field",
        ),
    ],
    ids=["row", "header", "zeros", "quoted"],
)
def test_a_line_that_can_be_no_row_is_refused_when_its_length_is_seen(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "d.csv").write_bytes(content)
    with pytest.raises(DataError, match=said) as told:
        read_table(str(tmp_path / "d.csv"), "y")
    assert len(str(told.value)) < 300


def test_names_of_columns_are_looked_up_and_not_sought() -> None:
    """Of 200,000 columns; to go through all for each would take minutes."""
    header = [f"c{number}" for number in range(200_000)]
    assert check_columns("d", header, None, ["c7"])[:8] == [*header[:7], "c8"]
    with pytest.raises(DataError, match=r"no column 'zz'; it has c0, .*c49 and 199,950 more$"):
        check_columns("d", header, None, ["zz"])
    with pytest.raises(DataError, match=r"column 'c9' is chosen twice"):
        check_columns("d", header, [*header[10:], "c9", "c9"], ["c0"])


@pytest.mark.parametrize(
    "cell",
    [
        *("31.12.2024.235959", "1.0000000.0000000", "1.5.1234567", "1.2.3.4.5.6.7.8.9.0", "."),
        *("-", "--1", "1-2", "1e5", "0x10", "9" * 40, "0." + "1" * 40, "." * 16, "." * 40, "-.-"),
    ],
)
def test_what_is_no_plain_number_is_odd_wherever_it_stands(cell: str) -> None:
    """And the numbers around it are read, by the definition of ``float``."""
    rows, _, odd = DecimalGrid(2, None).read(
        f"1.5,2\n{cell},1.0\n3,{cell}\n-4.25,5\n".encode()
    ) or (*(np.empty(0), np.empty(0), np.arange(4)),)
    assert {1, 2} <= set(odd.tolist())
    for row, expected in ((0, [1.5, 2.0]), (3, [-4.25, 5.0])):
        assert row in odd or rows[row].tolist() == expected


def test_files_that_a_container_has_read_are_no_memory_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_GROUP", tmp_path)
    monkeypatch.setattr(checks, "_of_system", lambda: None)
    monkeypatch.setattr(checks, "_of_process", lambda: None)
    assert checks.free_memory() is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert checks.free_memory() is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 200\nactive_file 300\ninactive_file 400\nx 5\n")
    assert checks.free_memory() == 800
