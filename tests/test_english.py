"""The turns that CONTRIBUTING.md asks to avoid are nowhere in texts, docstrings and messages."""

import re

import pytest
from helpers.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = [path for room in ("gdtrain", "tests", "scripts") for path in (ROOT / room).rglob("*.py")]


def avoided() -> list[str]:
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("| --- | --- |")[1].split("\n\n")[0]
    return [row.split("|")[1].strip() for row in table.strip().splitlines()]


def test_the_list_is_read():
    assert {"is told of", "the hill"} <= set(avoided())


@pytest.mark.parametrize("turn", avoided())
def test_a_turn_is_avoided(turn):
    pattern = re.compile(rf"\b{turn}\b".replace(" ", r"\s+"), re.IGNORECASE)
    files = [path for path in PAGES + CODE if path.name != "test_english.py"]
    assert not [path for path in files if pattern.search(path.read_text("utf-8"))]
