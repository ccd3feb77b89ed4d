"""A picture as wide as its cells or axes need: it shrinks with the window, and then scrolls."""

from __future__ import annotations

from html import escape

SMALLEST = 0.63  # of its full size, at which its texts can still be read
LARGEST = 1.25
AROUND = 38  # pixels of a card beside its picture


def plan(title: str, size: tuple[int, int], drawing: str, below: str = "") -> str:
    """A card with an SVG element of this size, of which nothing is cut unless a hint says so.

    below: HTML for the card, under the picture.
    """
    width, height = size
    least = round(SMALLEST * width)
    return (
        f'<div class="plan" style="--least:{least + AROUND}px">'
        '<p class="note hint">The picture is wider than the screen: scroll it sideways.</p>'
        f'<figure class="card wide"><svg class="chart" viewBox="0 0 {width} {height}" '
        f'style="width:{round(LARGEST * width)}px;min-width:{least}px" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{drawing}</svg>{below}'
        "</figure></div>"
    )
