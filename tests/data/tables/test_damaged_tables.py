"""A row that is not understood never trains: damaged tables are refused with a place, or right.

What is right is said by Python's csv module, strict, and by ``float``.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gdtrain.data.tables.table import read_table
from gdtrain.errors import ConfigError, DataError
from gdtrain.registry import find

PLACE = re.compile(
    r"line \d+|row \d+|column '|no column|header|first line|stands in quotes|NUL character"
    r"|is not UTF-8|UTF-16|no rows|is JSON|a LIBSVM|an ARFF"
)
CELLS = ["NA", "", "$5", "1,5", "1 2", "--1", "1e999", "nan", "inf", "x", "1_0", "0x1f", "١", "5%"]
CHARACTERS = ['"', ",", ";", "\n", "\r", "\0", " ", "-", ".", "e", "'", "é", "7", "#", "\t"]

MSE = find("loss", "mse").settings(name="mse")
Damage = Callable[[random.Random, str], str]


def table(draw: random.Random) -> str:
    """Two columns of numbers, one of words, and numbers to learn."""
    words = ["red", "dark blue", '"a, b"', '"say ""c"""']
    rows = [
        f"{draw.gauss(0, 9):.3f},{draw.choice(words)},{draw.randrange(90)},{draw.gauss(0, 1)!r}"
        for _ in range(draw.randrange(3, 40))
    ]
    return "\n".join(["a,w,b,y", *rows]) + "\n"


def _edit(draw: random.Random, text: str) -> str:
    at = draw.randrange(len(text))
    kept = at + draw.choice([0, 1, 1, 3])
    return text[:at] + draw.choice([*CHARACTERS, ""]) + text[kept:]


def _cell(draw: random.Random, text: str) -> str:
    lines = text.split("\n")
    at = draw.randrange(min(1, len(lines) - 2), len(lines) - 1)
    cells = lines[at].split(",")
    cells[draw.randrange(len(cells))] = draw.choice(CELLS)
    lines[at] = ",".join(cells)
    return "\n".join(lines)


def _line(draw: random.Random, text: str) -> str:
    lines = text.split("\n")
    at = draw.randrange(len(lines) - 1)
    return "\n".join(
        draw.choice(
            [
                [*lines[:at], lines[at].rpartition(",")[0], *lines[at + 1 :]],
                [*lines[:at], lines[at] + ",1", *lines[at + 1 :]],
                [*lines[:at], lines[at].replace(",", ";"), *lines[at + 1 :]],
                [*lines[:at], lines[at] + lines[at + 1], *lines[at + 2 :]],
                [*lines[:at], lines[0], *lines[at:]],
                [*lines[:at], "   ", *lines[at:]],
                [*lines[:at], "", *lines[at:]],
                lines[at:],
                lines[: at + 1],
            ]
        )
    )


def _truncated(draw: random.Random, text: str) -> str:
    return text[: draw.randrange(len(text))]


DAMAGES: list[Damage] = [_edit, _edit, _cell, _line, _truncated]


def expected(raw: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Inputs and targets, or None for what is no table of numbers, words, numbers and numbers."""
    try:
        text = io.StringIO(raw.decode().lstrip(" \n\r"), newline="")
        rows = list(csv.reader(text, strict=True))
        header, *rows = [[cell.strip() for cell in row] for row in rows if row]
        if len({*header, "y", "w"}) != 4 or not rows or {len(row) for row in rows} != {4}:
            return None
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        numbers = {n: np.array([float(c) for c in columns[n]]) for n in header if n != "w"}
    except (csv.Error, ValueError):
        return None
    inputs = []
    for name in header:
        if name == "w":
            words = sorted(set(columns["w"]))
            inputs.append(np.array([[w == word for word in words] for w in columns["w"]], float))
        elif name != "y":
            inputs.append(numbers[name][:, None])
    return np.concatenate(inputs, axis=1), numbers["y"]


def look(seed: int, path: Path) -> str:
    """Damage a table by the seed and read it: whether it was refused, or right."""
    draw = random.Random(seed)
    text = table(draw)
    for _ in range(draw.choice([1, 1, 2])):
        text = draw.choice(DAMAGES)(draw, text) or "\n\n"
    raw = text.encode("latin-1" if "é" in text and "١" not in text and seed % 2 else "utf-8")
    path.write_bytes(raw)
    message = ""
    try:
        read = read_table(str(path), "y", keep=["w"], loss=MSE)
    except (DataError, ConfigError) as error:
        message = str(error)
    if message:
        for fault in message.split("\n"):
            assert PLACE.search(fault), (seed, raw, message)
        return "refused"
    data = read.data(torch.arange(len(read)))
    right = expected(raw)
    assert right is not None, (seed, raw, data.inputs)
    np.testing.assert_array_equal(data.inputs.numpy(), right[0], str((seed, raw)))
    np.testing.assert_array_equal(data.targets[:, 0].numpy(), right[1], str((seed, raw)))
    return "right"


def test_200_damaged_tables(tmp_path: Path) -> None:
    ends = [look(seed, tmp_path / "d.csv") for seed in range(200)]
    assert ends.count("refused") > 100
    assert ends.count("right") > 20


@pytest.mark.long
def test_2000_damaged_tables(tmp_path: Path) -> None:
    for seed in range(200, 2200):
        look(seed, tmp_path / "d.csv")
