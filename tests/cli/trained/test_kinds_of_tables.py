"""Tables as people have them: a right model at once, or after what the first message says."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from gdtrain import load_run
from gdtrain.cli.main import main

N = 120
COLOURS = {"red": 20, "green": 0, "blue": -9}
DAYS = pd.date_range("2020-01-01", periods=N)


def houses() -> pd.DataFrame:
    draw = random.Random(0)
    rows = [
        (round(draw.uniform(30, 200), 1), draw.choice(list(COLOURS)), draw.randrange(80))
        for _ in range(N)
    ]
    table = pd.DataFrame(rows, columns=["size", "colour", "age"])
    price = 30 * table["size"] + 10 * table["colour"].map(COLOURS) - 5 * table["age"] + 1000
    return table.assign(price=price.round(2))


def with_column(name: str, cell: Callable[[int], Any], first: bool = False) -> pd.DataFrame:
    table = houses()
    table.insert(0 if first else 3, name, [cell(n) for n in range(N)])
    return table


def with_cells(column: str, every: int, cell: Any, last: bool = False) -> pd.DataFrame:
    table = houses().astype(object)
    table.loc[table.index[-3:] if last else table.index[::every], column] = cell
    return table


def written(column: str, form: Callable[[float], str]) -> pd.DataFrame:
    table = houses()
    table[column] = [form(value) for value in table[column]]
    return table


def text(table: pd.DataFrame, **options: Any) -> bytes:
    return table.to_csv(index=False, **options).encode()


def parquet(table: pd.DataFrame) -> bytes:
    out = io.BytesIO()
    table.to_parquet(out)
    return out.getvalue()


def lines(table: pd.DataFrame, change: Callable[[int, dict[str, Any]], Any]) -> bytes:
    records = table.to_dict("records")
    for number, record in enumerate(records):
        change(number, record)
    return "\n".join(map(json.dumps, records)).encode()


def german(value: float) -> str:
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


KINDS: dict[str, Callable[[], bytes]] = {
    "index column": lambda: houses().to_csv().encode(),
    "numbers as text": lambda: text(with_column("id", lambda n: f"C-{n:05}", first=True)),
    "NA in numbers": lambda: text(with_cells("size", 17, "NA")),
    "? in numbers and words": lambda: text(
        with_cells("size", 17, "?").assign(colour=with_cells("colour", 13, "?")["colour"])
    ),
    "another mark of missing cells": lambda: text(with_cells("age", 17, "-")),
    "missing targets": lambda: text(with_cells("price", 17, "NA")),
    "an index, names and missing cells": lambda: (
        with_cells("size", 9, "").assign(owner=[f"Ann {n}" for n in range(N)]).to_csv().encode()
    ),
    "an empty column": lambda: text(with_column("remarks", lambda _: "")),
    "dates": lambda: text(with_column("sold", lambda n: DAYS[n].date())),
    "days before months": lambda: text(with_column("sold", lambda n: f"{DAYS[n]:%d.%m.%Y}")),
    "months as words": lambda: text(with_column("sold", lambda n: f"{DAYS[n]:%d %b %Y}")),
    "notes": lambda: text(with_column("note", lambda n: f'a "nice"\nhouse, no {n}')),
    "dollars": lambda: text(written("price", lambda v: f"${v:,.2f}")),
    "euros behind decimal commas": lambda: text(written("price", lambda v: f"{german(v)} €")),
    "thousands": lambda: text(written("price", lambda v: f"{v:,.2f}")),
    "thousands parted by blanks": lambda: text(
        written("price", lambda v: f"{v:,.2f}".replace(",", " "))
    ),
    "thousands parted by points": lambda: text(written("price", german), sep=";"),
    "percentages": lambda: text(with_column("tax", lambda n: f"{n % 30}%")),
    "brackets of accountants": lambda: text(with_column("net", lambda n: f"({n})")),
    "units": lambda: text(written("size", lambda v: f"{v} m2")),
    "semicolons and decimal commas": lambda: text(houses(), sep=";", decimal=","),
    "three decimals behind commas": lambda: text(
        houses(), sep=";", decimal=",", float_format="%.3f"
    ),
    "thousands without fractions": lambda: text(
        houses()
        .assign(size=houses()["size"] * 1e4)
        .pipe(lambda t: t.assign(size=[f"{value:,.0f}" for value in t["size"]]))
    ),
    "minus signs of print": lambda: text(
        with_column("depth", lambda n: str((n % 9) - 6).replace("-", "\u2212"))
    ),
    "digits of another script": lambda: text(
        written("age", lambda v: str(v).translate({48 + n: 0x660 + n for n in range(10)}))
    ),
    "times of day": lambda: text(with_column("at", lambda n: f"{n % 24:02}:{n % 60:02}:00")),
    "times of day before and after noon": lambda: text(
        with_column("at", lambda n: f"{1 + n % 12}:{n % 60:02} {'ap'[n % 2]}m")
    ),
    "postal codes": lambda: text(with_column("zip", lambda n: f"{n % 7 * 1601:05}")),
    "dates of two time zones": lambda: text(
        with_column("sold", lambda n: f"{DAYS[n]:%Y-%m-%dT%H:%M}+0{n % 2}:00")
    ),
    "tabs": lambda: text(houses(), sep="\t"),
    "blanks": lambda: text(houses(), sep=" ").replace(b" ", b"   "),
    "blanks behind commas": lambda: text(houses()).replace(b",", b", "),
    "quoted": lambda: text(houses(), quoting=csv.QUOTE_ALL),
    "single quotes": lambda: text(houses(), quoting=csv.QUOTE_NONNUMERIC, quotechar="'"),
    "a title above": lambda: b"Houses\n\n" + text(houses()),
    "remarks above": lambda: b"# by an instrument\n# at noon\n" + text(houses()),
    "gzip": lambda: gzip.compress(text(houses())),
    "bzip2": lambda: bz2.compress(text(houses())),
    "a mark of bytes": lambda: b"\xef\xbb\xbf" + text(houses()),
    "lines of Windows": lambda: text(houses(), lineterminator="\r\n"),
    "UTF-16": lambda: houses().to_csv(index=False).encode("utf-16"),
    "Latin 1": lambda: text(houses().replace("green", "grün")).decode().encode("latin-1"),
    "Parquet": lambda: parquet(houses()),
    "Parquet with nulls and times": lambda: parquet(
        with_column("sold", lambda n: DAYS[n]).assign(size=houses()["size"].mask(DAYS.day == 3))
    ),
    "Parquet with lists": lambda: parquet(with_column("tags", lambda n: ["a"] * (n % 3))),
    "JSON lines": lambda: lines(houses(), lambda _, record: record),
    "JSON lines without some fields": lambda: lines(
        houses(), lambda n, record: n % 9 or record.pop("age")
    ),
    "JSON lines with objects": lambda: lines(
        houses(), lambda n, record: record.update(where={"lat": n})
    ),
    "an array of JSON": lambda: houses().to_json(orient="records").encode(),
    "a late cell of words": lambda: text(with_cells("age", 0, "unknown", last=True)),
    "200 more columns": lambda: text(
        pd.concat([houses(), pd.DataFrame(np.eye(N)[:, :100]).add_prefix("w")], axis=1)
    ),
}
TARGETS = {"no header": "column_4"}
KINDS["no header"] = lambda: houses().to_csv(index=False, header=False).encode()


def trained(path: Path, data: dict[str, Any]) -> tuple[int, str]:
    """Train a line through the table by least squares; the exit code, and what was said."""
    Path("a.yaml").write_text(
        f"data: {json.dumps({'source': 'table', 'path': str(path), **data})}\n"
        "model: linear\nloss: mse\nloader: batch\noptimizer: {name: lbfgs, max_iter: 300}\n"
        "epochs: 2\nprecision: fp64\nlog: {picture: false}\n"
    )
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["--config", "a.yaml", "--output-dir", "out", "--quiet"])
    return code, said.getvalue()


def corrected(message: str, path: Path, data: dict[str, Any]) -> Path:
    """Do what a message says: set the settings that it names, or run its lines of pandas."""
    whole = re.search(r"pd\.read_\w+\(.*\)", message)
    if whole is not None:
        exec(whole[0], {"pd": pd})
        return next(Path().glob("table.*"))
    by_column = re.findall(r"df\[.*?\] = (?:.(?!; ))*.", message.strip())
    if by_column:
        df = pd.read_csv(path, sep=None, engine="python", dtype=str)
        for line in by_column:
            exec(line, {"df": df, "pd": pd})
        df.to_csv("table.csv", index=False)
        data.setdefault("keep", []).extend(name for name in df if name == "sold")
        return Path("table.csv")
    named = r'(?:set|with|out:|such as) (\w+): (\[.*?\]|","|[^\s;,]+)'
    settings = {key: yaml.safe_load(value) for key, value in re.findall(named, message)}
    if "exclude" in settings:
        settings.pop("keep", None)
    data |= settings
    each = re.search(r"missing: (\{.*?\}|drop)", message)
    if each is not None:
        data["missing"] = yaml.safe_load(each[1])
    return path


@pytest.mark.few(12)
@pytest.mark.parametrize("kind", KINDS)
def test_a_right_model_within_one_correction(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prices are a line's; what the model predicts for the file says whether it has learnt them."""
    monkeypatch.chdir(tmp_path)
    path, target = Path("f"), TARGETS.get(kind, "price")
    path.write_bytes(KINDS[kind]())
    data: dict[str, Any] = {"target": target, "standardize": True}
    code, message = trained(path, data)
    if code:
        path = corrected(message, path, data)
        assert trained(path, data) == (0, ""), message
    found = load_run("out").predict_table(path, on_bad_row="empty")[target]
    errors = np.array([np.nan if f is None else f for f in found]) - houses()["price"].to_numpy()
    assert np.nanmedian(np.abs(errors)) < 0.02 * houses()["price"].std()
    assert np.isnan(errors).mean() < 0.2
