"""One bar over all runs of a sweep, with the best one so far."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from gdtrain.analysis.sweep.result import Sweep
from gdtrain.output.terminal import DroppingStream, printable


class SweepProgress:
    """Shows on standard error how many runs are done; shown: True, False, or on terminals."""

    def __init__(self, total: int, done: int, shown: bool | None) -> None:
        self._stream = DroppingStream(sys.stderr)
        if shown is None:
            shown = sys.stderr.isatty()
        self._bar: tqdm[Any] = tqdm(
            total=total, initial=done, unit="run", file=self._stream, disable=not shown, leave=False
        )

    def show(self, rows: Sweep) -> None:
        """Move on by a run."""
        best = rows.best
        if best is not None:
            setting = " ".join(f"{name}={best[name]}" for name in rows.settings)
            text = f"best {rows.by} {best[rows.by]:.4g} at {setting}"
            self._bar.set_postfix_str(printable(text), refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.close()
