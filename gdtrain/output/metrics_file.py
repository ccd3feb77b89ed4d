"""Reading back what a run has recorded, whole or cut short, without what only writing it needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """A record with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl as one undisturbed run would have written them.

    What a resumed run made again is there once, from the resumed run; a last line that a crash
    cut short is left out, and so is what is no record.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        return records_of(file)


def records_of(lines: Iterable[str | bytes]) -> list[dict[str, Any]]:
    """The same for lines, in the order of the file."""
    records: list[dict[str, Any]] = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            continue
        if not all(isinstance(record.get(key), int) for key in ("step", "epoch")):
            continue
        if record["kind"] == "resume":
            records = [r for r in records if _is_before(r, record)]
        else:
            records.append(record)
    return records


def _is_before(record: dict[str, Any], resume: dict[str, Any]) -> bool:
    if record["kind"] == "epoch":
        return bool(record["epoch"] <= resume["epoch"])
    return bool(record["step"] <= resume["step"])


def broken_of(directory: Path) -> dict[str, Any] | None:
    """The update that a number that was not finite has made impossible, if that ended the run."""
    path = directory / "summary.json"
    try:
        summary = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return None
    known = isinstance(summary, dict) and summary.get("status") == "non_finite"
    if not known or type(summary.get("steps")) is not int:
        return None
    seconds = summary.get("seconds")
    return {
        "step": summary["steps"] + 1,
        "seconds": seconds if isinstance(seconds, int | float) else 0.0,
    }
