"""What a cell of text is: a number, nearly a number, a date, or words; rules that docs state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

Kind = Literal["number", "not finite", "currency", "percent", "grouped", "comma", "date", "text"]

# Not told apart by upper and lower case.
MISSING = ("", "NA", "N/A", "NaN", "?", "NULL", "None")

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_NOT_FINITE = re.compile(r"[+-]?(?:inf|infinity|nan)", re.IGNORECASE)
_MONEY = r"(?:[$€£¥₹]|USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD)"
_CURRENCY = re.compile(rf"\(?[+-]?\s*{_MONEY}\s*[+-]?\d[\d., ']*\)?|[+-]?\d[\d., ']*\s*{_MONEY}")
_PERCENT = re.compile(r"[+-]?\d[\d.,]*\s*%")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:[,' ]\d{3})+(?:\.\d*)?|[+-]?\d{1,3}(?:\.\d{3}){2,}(?:,\d*)?")
_COMMA = re.compile(r"[+-]?(?:\d+,\d*|,\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_DATE = re.compile(
    r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})"
    r"(?:[T ](\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?",
    re.ASCII,
)
_OTHER_DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}(?: \d{1,2}:\d{2}(?::\d{2})?)?", re.ASCII)

NEARLY_NUMBERS: dict[str, tuple[str, str]] = {
    "currency": (
        "amounts with a currency",
        r"df[{name}] = df[{name}].str.replace(r'[^\d.-]', '', regex=True).astype(float)",
    ),
    "percent": (
        "percentages",
        "df[{name}] = df[{name}].str.rstrip('% ').astype(float) / 100",
    ),
    "grouped": (
        "numbers with thousands separators",
        r"df[{name}] = df[{name}].str.replace(r'[^\d.-]', '', regex=True).astype(float)",
    ),
    "comma": (
        "numbers with decimal commas",
        "",
    ),
}
"""Of kinds that are nearly numbers: what they are, and the line of pandas that makes numbers."""


def kind_of(cell: str) -> Kind:
    """What a cell is that has no blanks around it.

    >>> [kind_of(cell) for cell in ("1.5e3", "$1,200", "12,5", "1,200", "5 %", "2024-02-01", "a")]
    ['number', 'currency', 'comma', 'grouped', 'percent', 'date', 'text']
    """
    if _NUMBER.fullmatch(cell):
        return "number"
    for kind, pattern in _KINDS:
        if pattern.fullmatch(cell):
            return kind
    return "text"


_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("not finite", _NOT_FINITE),
    ("grouped", _GROUPED),
    ("comma", _COMMA),
    ("percent", _PERCENT),
    ("currency", _CURRENCY),
    ("date", _DATE),
    ("date", _OTHER_DATE),
)


def days(cell: str) -> float | None:
    """Days from 1970-01-01 to a date, with the time of day as a fraction; None for another form.

    Dates are read as year, month, day, such as 2024-12-31 or 2024-12-31T18:30; time zones are not
    looked at.
    """
    match = _DATE.fullmatch(cell)
    if match is None:
        return None
    parts = [int(part or 0) for part in match.groups()]
    try:
        moment = datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]
    except ValueError:
        return None
    return moment.timestamp() / 86400


def marks_of(missing_values: Sequence[str] | None) -> list[str]:
    """The texts that stand for no value, as files have them; by default in any case of letters."""
    if missing_values is not None:
        return list(dict.fromkeys(missing_values))
    cases = ((m, m.lower(), m.upper(), m.capitalize()) for m in MISSING)
    return list(dict.fromkeys(form for forms in cases for form in forms))
