"""An order for files that are read in groups of rows: groups at random, and the rows of each."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch

from gdtrain.data.orders.permutation import Array, Draws, Permutation, Words

Key = Callable[..., int]
"""A key of 64 bits, well mixed, for further numbers: a function of (seed, epoch)."""


class RowGroups:
    """Consecutive samples in groups, drawn one group after the other.

    ends: [groups] int64, rising, the number of samples in the groups up to each.
    """

    def __init__(self, ends: Array) -> None:
        self.ends = np.unique(ends)  # none of which is empty

    def __repr__(self) -> str:
        digest = zlib.crc32(self.ends.tobytes())
        return f"RowGroups({len(self.ends)} groups of {self.ends[-1]} samples, {digest:08x})"

    def draw(self, key: Key, version: int) -> Draws:
        """The draws of an epoch."""
        return GroupedPermutation(self.ends, key, version)


class GroupedPermutation(Draws):
    """Every sample once: the groups in random order, and the samples of each in random order.

    ends: as :class:`RowGroups` has them. A reader has to hold one group at a time. It shuffles less
    than a permutation of all samples does where groups differ.
    """

    def __init__(self, ends: Array, key: Key, version: int = 2) -> None:
        super().__init__(int(ends[-1]), key())
        drawing = torch.Generator().manual_seed(key())
        self._order = torch.randperm(len(ends), generator=drawing).numpy()
        sizes = np.diff(ends, prepend=0)
        self._starts = ends - sizes
        self._ends = np.cumsum(sizes[self._order])
        self._key_of, self._version = key, version

    def _images(self, positions: Words) -> Words:
        places = np.searchsorted(self._ends, positions.view(np.int64), side="right")
        found = np.empty_like(positions)
        for place in np.unique(places).tolist():
            inside, group = places == place, int(self._order[place])
            first = int(self._ends[place - 1]) if place else 0
            size = int(self._ends[place]) - first
            within = Permutation(size, self._key_of(group), self._version)
            images = within._images(positions[inside] - np.uint64(first))
            found[inside] = images + np.uint64(self._starts[group])
        return found
