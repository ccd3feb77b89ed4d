"""The turns that CONTRIBUTING.md asks to avoid are nowhere in texts, docstrings and messages."""

import re

from helpers.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = [path for room in ("gdtrain", "tests", "scripts") for path in (ROOT / room).rglob("*.py")]


def avoided() -> list[str]:
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("| --- | --- |")[1].split("\n\n")[0]
    return [row.split("|")[1].strip().lower() for row in table.strip().splitlines()]


def test_the_list_is_read():
    assert {"is told of", "the hill"} <= set(avoided())


def test_the_turns_are_avoided():
    turns = [(turn, re.compile(rf"\b{re.escape(turn)}\b")) for turn in avoided()]
    found = []
    for path in PAGES + CODE:
        if path.name == "test_english.py":
            continue
        text = " ".join(path.read_text("utf-8").lower().split())
        found += [(turn, path) for turn, whole in turns if turn in text and whole.search(text)]
    assert found == []
