"""How long a block may be: until somebody needs to look, and about a tenth of a second."""

from __future__ import annotations

from collections.abc import Iterable

from gdtrain.training.callbacks import Callback

# Bounds how late a signal, a clock or a progress bar is looked at …
BLOCK_SECONDS = 0.1
# … and how many losses wait on the device.
MAX_BLOCK_STEPS = 4096


class BlockLength:
    """Doubles the length of blocks while they take little time, and halves it when they do not.

    Lengths depend on the clock, so nothing that a run reports may depend on them.
    """

    def __init__(self) -> None:
        self._steps = 1

    def next(self, step: int, remaining: int, callbacks: Iterable[Callback]) -> int:
        """Steps of the block that starts after ``step`` updates, of ``remaining`` in the epoch.

        It ends at the latest where a callback with ``every_n_steps`` is due.
        """
        cadences = [c.every_n_steps for c in callbacks if c.every_n_steps is not None]
        return min(self._steps, remaining, *(every - step % every for every in cadences))

    def observe(self, steps: int, seconds: float) -> None:
        """Learn from a block of ``steps`` that took ``seconds``."""
        if steps == self._steps and seconds < BLOCK_SECONDS / 2:
            self._steps = min(2 * self._steps, MAX_BLOCK_STEPS)
        elif seconds > 2 * BLOCK_SECONDS:
            self._steps = max(1, self._steps // 2)
