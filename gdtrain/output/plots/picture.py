"""A picture that shows itself in a notebook; the one file that imports matplotlib as a whole."""

from __future__ import annotations

import io
import warnings
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from gdtrain.output.plots import MADE_BY


class Picture(Figure):
    """A matplotlib Figure apart from pyplot: nothing global refers to it, and no window opens."""

    def __init__(self, width: float, height: float) -> None:
        """width, height: in inches of 100 pixels."""
        super().__init__(figsize=(width, height), dpi=100)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return self.encoded("png")

    def encoded(self, kind: str) -> bytes:
        """The picture as a PNG or SVG file; alike pictures give the same bytes."""
        # The texts of an SVG are drawn as shapes, so that it looks the same without the font.
        settings: dict[Any, Any] = {"svg.hashsalt": "gdtrain", "svg.fonttype": "path"}
        metadata = {"png": {"Software": MADE_BY}, "svg": {"Date": None, "Creator": MADE_BY}}[kind]
        # A name may have dollars, which are no formula; those of ticks are matplotlib's own.
        axes = [axis for frame in self.axes for axis in (frame.xaxis, frame.yaxis)]
        ticks = {label for axis in axes for label in axis.get_ticklabels(which="both")}
        for text in self.findobj(Text):
            if text not in ticks:
                text.set_parse_math(False)
        file = io.BytesIO()
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            # Of names in letters that the font lacks: an empty box says it too.
            warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
            self.savefig(file, format=kind, metadata=metadata)
        return file.getvalue()
