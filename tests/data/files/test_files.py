"""Arrays in files: npz, npy, pt and safetensors are read as data, and never run as code."""

from __future__ import annotations

import os
import pickle
import random
import re
from collections.abc import Callable
from errno import ENAMETOOLONG
from os import strerror
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gdtrain.data.files import array_files as files
from gdtrain.data.tables.preparation import LoadedData
from gdtrain.errors import DataError

X = np.arange(6.0).reshape(3, 2)
Y = np.arange(3)
TENSORS = {"x": torch.tensor(X), "y": torch.tensor(Y)}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refuses(message: str) -> Any:
    return pytest.raises(DataError, match=f"^{re.escape(message)}$")


def write_npz() -> None:
    np.savez("d.npz", x=X, y=Y)


def write_compressed() -> None:
    np.savez_compressed("d.npz", x=X, y=Y)


def write_npy() -> None:
    np.save("x.npy", X)
    np.save("y.npy", Y)


def write_pt() -> None:
    torch.save(TENSORS, "d.pt")


def write_old_pt() -> None:
    torch.save(TENSORS, "d.pt", _use_new_zipfile_serialization=False)


def write_pair() -> None:
    torch.save((TENSORS["x"], TENSORS["y"]), "d.pt")


def write_safetensors() -> None:
    save_file(TENSORS, "d.safetensors")


def read_npy(path: str) -> LoadedData:
    return files.npy(path, "y.npy")


FORMATS = [
    (write_npz, files.npz, "d.npz"),
    (write_compressed, files.npz, "d.npz"),
    (write_npy, read_npy, "x.npy"),
    (write_pt, files.pt, "d.pt"),
    (write_old_pt, files.pt, "d.pt"),
    (write_pair, files.pt, "d.pt"),
    (write_safetensors, files.safetensors, "d.safetensors"),
]


@pytest.mark.parametrize(("write", "read", "path"), FORMATS)
def test_inputs_and_targets_are_read_as_they_were_written(
    write: Callable[[], None], read: Callable[[str], LoadedData], path: str
) -> None:
    write()
    data = read(path)
    assert data.inputs.dtype == torch.float64
    assert data.targets.dtype == torch.int64
    assert data.inputs.tolist() == X.tolist()
    assert data.targets.tolist() == Y.tolist()


@pytest.mark.parametrize(("write", "read", "path"), FORMATS)
def test_a_damaged_file_is_a_data_error_or_still_data(
    write: Callable[[], None], read: Callable[[str], LoadedData], path: str
) -> None:
    write()
    whole = Path(path).read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        if draw.random() < 0.3:
            del damaged[draw.randrange(len(damaged)) :]
        else:
            for _ in range(draw.choice([1, 2, 5])):
                damaged[draw.randrange(min(len(damaged), 600))] = draw.randrange(256)
        Path(path).write_bytes(damaged)
        try:
            read(path)
        except DataError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 — some damage is harmless


NAMED = [(write_npz, files.npz, "d.npz"), (write_pt, files.pt, "d.pt")]
NAMED += [(write_safetensors, files.safetensors, "d.safetensors")]


@pytest.mark.parametrize(("write", "read", "path"), NAMED)
def test_a_name_that_is_not_there_is_told_with_those_that_are(
    write: Callable[[], None], read: Callable[..., LoadedData], path: str
) -> None:
    write()
    with refuses(f"{path}: has no 'X'; it holds x, y"):
        read(path, inputs="X")


@pytest.mark.parametrize(("write", "read", "path"), NAMED)
def test_other_names_can_be_chosen(
    write: Callable[[], None], read: Callable[..., LoadedData], path: str
) -> None:
    write()
    data = read(path, inputs="y", targets="x")
    assert data.inputs.tolist() == Y.tolist()
    assert data.targets.tolist() == X.tolist()


@pytest.mark.parametrize("read", [files.npz, read_npy, files.pt, files.safetensors])
def test_missing_files_and_directories_are_refused(read: Callable[[str], LoadedData]) -> None:
    with refuses("none: file not found; paths are relative to the working directory"):
        read("none")
    with refuses(".: is a directory; give a file"):
        read(".")
    name = "a" * 5000
    with refuses(f"{name}: can't be read: {OSError(ENAMETOOLONG, strerror(ENAMETOOLONG), name)}"):
        read(name)


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


REFUSED = "evil: holds more than tensors, or is no .pt file; refused, for it could run code"


@pytest.mark.parametrize(
    "write",
    [
        lambda: torch.save({"x": Hostile(), "y": torch.zeros(3)}, "evil"),
        lambda: torch.save(Hostile(), "evil", _use_new_zipfile_serialization=False),
        lambda: Path("evil").write_bytes(pickle.dumps(Hostile(), protocol=2)),
        lambda: Path("evil").write_bytes(pickle.dumps(Hostile(), protocol=5)),
    ],
)
def test_a_pt_file_never_runs_code(write: Callable[[], Any]) -> None:
    write()
    with refuses(REFUSED):
        files.pt("evil")
    assert not Path("ran").exists()


def test_the_hostile_file_of_these_tests_would_run_code() -> None:
    pickle.loads(pickle.dumps(Hostile()))
    assert Path("ran").exists()


@pytest.mark.parametrize("read", [files.npz, read_npy])
def test_a_numpy_file_never_runs_code(read: Callable[[str], LoadedData]) -> None:
    write_npy()
    objects = np.array([Hostile()], dtype=object)
    with Path("evil").open("wb") as file:
        np.savez(file, x=objects, y=Y) if read is files.npz else np.save(file, objects)
    with refuses("evil: can't be read: Object arrays cannot be loaded when allow_pickle=False"):
        read("evil")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"x": X, "y": Y}, "holds more than tensors, or is no .pt file; refused, for it could "
                           "run code"),
        (torch.zeros(3), "must hold a dict of tensors or a pair (inputs, targets)"),
        ([torch.zeros(3)] * 3, "must hold a dict of tensors or a pair (inputs, targets)"),
        ({"x": [1, 2], "y": torch.zeros(2)}, "'x' is a list, not a tensor"),
        ((torch.zeros(2), None), "1 is a NoneType, not a tensor"),
        ({0: torch.zeros(3)}, "has no 'x'; it holds 0"),
        ({}, "has no 'x'; it holds nothing"),
        ({"x": torch.tensor(3.0), "y": torch.zeros(1)},
         "x: a single number has no rows; give a tensor of shape [n, …]"),
        ({"x": torch.eye(3).to_sparse(), "y": torch.zeros(3)},
         "x: a sparse tensor can't be cut into rows; give a dense one"),
    ],
)  # fmt: skip
def test_a_pt_file_must_hold_two_tensors(held: Any, said: str) -> None:
    torch.save(held, "d.pt")
    with refuses(f"d.pt: {said}"):
        files.pt("d.pt")


def test_an_npy_file_is_no_npz_and_the_reverse() -> None:
    write_npy()
    write_npz()
    with refuses("x.npy: is not an .npz archive; use source: npy"):
        files.npz("x.npy")
    with refuses("d.npz: is not an .npy file; use source: npz"):
        files.npy("d.npz", "y.npy")


def test_text_in_an_npy_file_is_refused() -> None:
    write_npy()
    np.save("x.npy", np.array(["a", "b", "c"]))
    with refuses("x.npy: an array of <U1 is not numeric; encode it first"):
        files.npy("x.npy", "y.npy")


def test_an_array_too_large_for_memory_is_refused() -> None:
    write_npy()
    header = b"'shape': (3, 2), }" + b" " * 15
    huge = Path("x.npy").read_bytes().replace(header, b"'shape': (1, 99999999999999), }  ")
    Path("x.npy").write_bytes(huge)
    with pytest.raises(DataError, match=r"^x\.npy: can't be read: Unable to allocate [^\n]*$"):
        files.npy("x.npy", "y.npy")


@pytest.mark.parametrize("size", [0, 24])
@pytest.mark.parametrize("read", [files.npz, read_npy, files.pt, files.safetensors])
def test_a_file_of_something_else_is_refused_in_one_line(
    read: Callable[[str], LoadedData], size: int
) -> None:
    write_npy()
    Path("junk").write_bytes(b"nothing that we can read"[:size])
    with pytest.raises(DataError, match=r"^junk: (can't be read: |holds more than )[^\n]+$"):
        read("junk")


def test_different_lengths_are_refused() -> None:
    np.savez("d.npz", x=X, y=Y[:2])
    with refuses(
        "different numbers of samples: inputs 3 and targets 2; each sample needs one of each"
    ):
        files.npz("d.npz")
