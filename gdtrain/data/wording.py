"""Words that several rooms share; imports nothing heavy."""

from typing import Literal

OrderName = Literal["reshuffle", "shuffle_once", "sequential", "replacement"]


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
