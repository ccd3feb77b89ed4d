"""Words that several rooms share; imports nothing heavy."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

OrderName = Literal["reshuffle", "shuffle_once", "sequential", "replacement"]

# Words in the names of metrics that are the better the higher they are, unless they are errors.
_HIGHER_IS_BETTER = {"accuracy", "acc", "r2", "f1", "precision", "recall", "auroc", "auc", "iou"}
_ERRORS = {"loss", "error"}


def best_of(metric: str) -> Literal["min", "max"]:
    """Whether lower or higher values of a metric are better, by the words of its name.

    >>> best_of("val_f1_class_2"), best_of("val_loss"), best_of("balanced accuracy")
    ('max', 'min', 'max')
    """
    words = set(re.split("[^a-z0-9]+", metric.lower()))
    return "max" if words & _HIGHER_IS_BETTER and not words & _ERRORS else "min"


def counted(number: int, noun: str) -> str:
    """A number of things, in words: 1 update, 1,438 updates."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def is_number(cell: str) -> bool:
    """Whether the text of a cell is a number, NaN and infinity included."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


# ── tables in HTML, which notebooks show in the place of a text ─────────────────────────────


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table of texts, of which nothing is obeyed. note: a line below it."""
    top = f"<thead>{_row(head, 'th')}</thead>" if head else ""
    body = "".join(_row(row, "td") for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table>{top}<tbody>{body}</tbody></table>{below}"


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
