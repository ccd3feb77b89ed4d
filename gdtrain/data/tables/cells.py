"""What a cell of text is: a number, nearly a number, a date, or words; rules that docs state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

Kind = Literal[
    "number", "not finite", "currency", "percent", "grouped", "points", "comma", "brackets",
    "typeset", "date", "text",
]  # fmt: skip

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_NOT_FINITE = re.compile(r"[+-]?(?:inf|infinity|nan)", re.IGNORECASE)
_MONEY = r"(?:[$€£¥₹]|USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD)"
_CURRENCY = re.compile(rf"\(?[+-]?\s*{_MONEY}\s*[+-]?\d[\d., ']*\)?|[+-]?\d[\d., ']*\s*{_MONEY}")
_PERCENT = re.compile(r"[+-]?\d[\d.,]*\s*%")
_TYPESET = re.compile(_NUMBER.pattern, re.IGNORECASE)  # with the digits of all scripts
_GROUPED = re.compile(r"[+-]?(?!0,)\d{1,3}(?:[,' \u00a0\u202f]\d{3})+(?:\.\d*)?")
_POINTS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+,\d*|[+-]?\d{1,3}(?:\.\d{3}){2,}")
_BRACKETS = re.compile(r"\(\d[\d., ']*\)")
_COMMA = re.compile(r"[+-]?(?:\d+,\d*|,\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_DATE = re.compile(
    r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})"
    r"(?:[T ](\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?",
    re.ASCII,
)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_OTHER_DATE = re.compile(
    rf"(?:\d{{1,2}}([./-])\d{{1,2}}\1\d{{2,4}}|\d{{1,2}}[ -]{_MONTH}[ -]\d{{2,4}}"
    rf"|{_MONTH} \d{{1,2}},? \d{{4}})"
    r"(?:,? \d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]m)?)?",
    re.ASCII | re.IGNORECASE,
)
_TIME = re.compile(
    r"(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?(?: ?[ap]m)?", re.ASCII | re.IGNORECASE
)
_WITH_UNIT = re.compile(r"[+-]?\d+(?:[.,]\d+)?\s*([^\s\d.,:;/+-][^\s\d]{0,9}\d?)")

NEARLY_NUMBERS: dict[str, str] = {
    "currency": "amounts with a currency",
    "percent": "percentages",
    "grouped": "numbers with thousands separators",
    "points": "numbers with points between thousands",
    "comma": "numbers with decimal commas",
    "brackets": "negative numbers in brackets",
    "typeset": "numbers with other digits or minus signs than those of ASCII",
}
"""Kinds that are nearly numbers, and what they are called."""


# What a remedy begins with that gdtrain itself does not need.
WITH_PANDAS = "with pandas (pip install pandas): "


def line_of_pandas(column: str, kind: Kind, cells: Sequence[str]) -> str:
    """The line of pandas that makes numbers of a column of cells such as these.

    >>> line_of_pandas("tax", "percent", ["12,5 %"])
    "df['tax'] = df['tax'].str.rstrip('% ').str.replace(',', '.').astype(float) / 100"
    """
    of_column = f"df[{column!r}]"
    if kind == "typeset":
        minus = next((m for cell in cells for m in _MINUS if m in cell), None)
        sign = "" if minus is None else f".str.replace({minus!r}, '-')"
        return f"{of_column} = {of_column}{sign}.map(float)"
    has_comma = kind == "points" or any(map(_DECIMAL_COMMA.search, cells))
    point = ".str.replace(',', '.')" if has_comma else ""
    if kind == "percent":
        return f"{of_column} = {of_column}.str.rstrip('% '){point}.astype(float) / 100"
    sign = ".str.replace('(', '-')" if any(cell.startswith("(") for cell in cells) else ""
    marks = r"[^\d,-]" if has_comma else r"[^\d.-]"
    bare = f".str.replace(r'{marks}', '', regex=True)"
    return f"{of_column} = {of_column}{sign}{bare}{point}.astype(float)"


# A comma that no three digits follow stands before a fraction, and so does one behind a lone 0.
_DECIMAL_COMMA = re.compile(r",(?!\d{3}(?!\d))\d*\D*$|(?<!\d)0,\d")
_MINUS = "\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"
_ASCII_MINUS = str.maketrans(dict.fromkeys(_MINUS, "-"))


def may_be_a_fraction(cell: str) -> bool:
    """Whether the mark in a number may stand before thousands or a fraction, as in 1,259.

    >>> [may_be_a_fraction(cell) for cell in ("1,259", "1,259,000", "1,259.5")]
    [True, False, False]
    """
    return _EITHER.fullmatch(cell) is not None


_EITHER = re.compile(r"[+-]?\d{1,3}[.,]\d{3}")


def are_times(cells: Sequence[str]) -> bool:
    """Whether many different cells are times of day, such as 8:30, 18:30:05 and 6:30 pm.

    >>> are_times([f"{hour}:30" for hour in range(20)])
    True
    """
    return len(cells) > _FEW and all(map(_TIME.fullmatch, cells))


def common_unit(cells: Sequence[str]) -> str | None:
    """What stands behind the number in each of many different cells, None if they are not so.

    >>> common_unit([f"{length} mm" for length in range(20)])
    'mm'
    """
    if len(cells) <= _FEW:
        return None
    found = [_WITH_UNIT.fullmatch(cell) for cell in cells]
    units = {match and match[1] for match in found}
    return units.pop() if len(units) == 1 else None


_FEW = 10  # different cells that may well be names, such as 2-door and 4-door


def is_code(cell: str) -> bool:
    """Whether digits begin with 0, as those of postal codes do, and not as numbers do.

    >>> [is_code(cell) for cell in ("01003", "1003", "00.5", "07")]
    [True, False, False, False]
    """
    return _CODE.fullmatch(cell) is not None


_CODE = re.compile(r"0\d{2,}", re.ASCII)


def plain_code(cell: str, decimal: str = ".") -> str:
    """A whole number without a fraction of zeros, and true or false in lower case; else the cell.

    Programs write the same code in several ways: pandas 4 as 4.0 once a cell of its column is
    missing, and true as True.

    >>> [plain_code(cell) for cell in ("4.0", "4", "01003.0", "4.10", "a.0", "True")]
    ['4', '4', '01003', '4.10', 'a.0', 'true']
    """
    if cell.lower() in _TRUTHS:
        return cell.lower()
    whole, point, fraction = cell.partition(decimal)
    return whole if point and not fraction.strip("0") and _WHOLE.fullmatch(whole) else cell


_TRUTHS = {"true", "false"}
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)


def spellings(cells: Iterable[str], decimal: str = ".") -> dict[str, list[str]]:
    """The cells of each plain code; empty for names, which are neither numbers nor true and false.

    >>> spellings(["4", "4.0", "5"])
    {'4': ['4', '4.0'], '5': ['5']}
    """
    found: dict[str, list[str]] = {}
    for cell in cells:
        found.setdefault(plain_code(cell, decimal), []).append(cell)
    are_codes = found.keys() <= _TRUTHS or all(kind_of(code) == "number" for code in found)
    return found if are_codes else {}


def kind_of(cell: str) -> Kind:
    """What a cell is that has no blanks around it.

    >>> [kind_of(cell) for cell in ("1.5e3", "$1,200", "12,5", "1,200", "5 %", "2024-02-01", "a")]
    ['number', 'currency', 'comma', 'grouped', 'percent', 'date', 'text']
    """
    if _NUMBER.fullmatch(cell):
        return "number"
    if not cell.isascii() and _TYPESET.fullmatch(cell.translate(_ASCII_MINUS)):
        return "typeset"
    for kind, pattern in _KINDS:
        if pattern.fullmatch(cell):
            return kind
    return "text"


_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("not finite", _NOT_FINITE),
    ("grouped", _GROUPED),
    ("points", _POINTS),
    ("brackets", _BRACKETS),
    ("comma", _COMMA),
    ("percent", _PERCENT),
    ("currency", _CURRENCY),
    ("date", _DATE),
    ("date", _OTHER_DATE),
)


def days(cell: str) -> float | None:
    """Days from 1970-01-01 to a date, with the time of day as a fraction; None for another form.

    Dates are read as year, month, day, such as 2024-12-31 or 2024-12-31T18:30+01:00; those of a
    time zone are counted in UTC, as Parquet counts them.
    """
    match = _DATE.fullmatch(cell)
    if match is None:
        return None
    *parts, zone = match.groups()
    try:
        moment = datetime(*(int(part or 0) for part in parts), tzinfo=UTC)  # type: ignore[misc, arg-type]
    except ValueError:
        return None
    return (moment.timestamp() - _seconds_east(zone)) / 86400


def _seconds_east(zone: str | None) -> int:
    if zone is None or zone == "Z":
        return 0
    seconds = 3600 * int(zone[1:3]) + 60 * int(zone[-2:])
    return -seconds if zone[0] == "-" else seconds


def days_stand_first(cells: Iterable[str]) -> bool | None:
    """Whether dates such as 31/12/2024 begin with the day; None where that can't be told.

    >>> [days_stand_first(cells) for cells in (["31/12/2024"], ["12/31/2024"], ["1/2/2024"])]
    [True, False, None]
    """
    found = [match for match in map(_TWO_NUMBERS.match, cells) if match is not None]
    if not found or any(int(match[1]) > _MONTHS for match in found):
        return True
    return False if any(int(match[2]) > _MONTHS for match in found) else None


_TWO_NUMBERS = re.compile(r"(\d{1,2})[./-](\d{1,2})[./-]", re.ASCII)
_MONTHS = 12


def has_zone(cell: str) -> bool:
    """Whether a date says in which time zone it is."""
    match = _DATE.fullmatch(cell)
    return match is not None and match[match.re.groups] is not None
