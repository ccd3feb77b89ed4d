"""The number of epochs' records that a callback goes by."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from gdtrain.errors import ConfigError
from gdtrain.wording import best_of, nearest

logger = logging.getLogger("gdtrain")


class Monitored:
    """A metric by its name, whether lower or higher is better, and whether any epoch had it.

    name: a key of the records, such as ``val_loss``. mode: ``min`` or ``max``; if left out, the
    name decides. sign: 1 where lower is better, else -1. Raises ConfigError for another mode.
    """

    def __init__(self, name: str, mode: Literal["min", "max"] | None) -> None:
        if not isinstance(name, str):
            text = f"must be a key of the epochs' records, such as 'val_loss', got {name!r}"
            raise ConfigError.of("monitor", text)
        mode = mode or best_of(name)
        if mode not in ("min", "max"):
            raise ConfigError.of("mode", f"must be min or max, got {mode!r}")
        self.name = name
        self.sign = 1.0 if mode == "min" else -1.0
        self.begin()

    def begin(self) -> None:
        """A fit begins, of which no epoch has had it."""
        self._is_found = False
        self._others: set[str] = set()

    def cost(self, record: Mapping[str, Any]) -> float:
        """The number in the record of an epoch that has ended, less being better; NaN if none."""
        self._is_found |= self.name in record
        self._others |= record.keys()
        return self.sign * float(record.get(self.name, math.nan))

    def tell_if_missed(self, who: str, consequence: str) -> None:
        """Warn at the end of a fit if epochs have ended and none had it."""
        if not self._others or self._is_found:
            return
        part = self.name.partition("_")[0]  # val_loss is no other spelling of train_loss
        near = nearest(self.name, [name for name in self._others if name.startswith(part)])
        close = "" if near is None else f"; did you mean {near}?"
        logger.warning("%s: no epoch had %s, so %s%s", who, self.name, consequence, close)
