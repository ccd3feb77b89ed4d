"""Tables in HTML, which notebooks show in the place of a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table of texts, of which nothing is obeyed. note: a line below it."""
    top = f"<thead>{_row(head, 'th')}</thead>" if head else ""
    body = "".join(_row(row, "td") for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table>{top}<tbody>{body}</tbody></table>{below}"


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
