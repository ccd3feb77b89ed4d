"""Orders of any number of samples, computed at the positions asked for and never kept."""

from __future__ import annotations

import copy
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]

# Pairs of images over 4 million keys tell four rounds on a domain of 1,024 from random, six on
# one of 256 and eight on one of 64, but not eight on 256. A large order's domain is over 2^20.
ROUNDS = 8

# SplitMix64: the step of its counter and the two multipliers of its finaliser.
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_WORD = 1 << 64
# By the bits of a word: the two multipliers of the network's hash and the shift between them.
_HASH = {
    32: (0x21F0AAAD, 0x735A2D97, 15),  # of lowbias32 (Wellons, 2018; improved by TheIronBorn)
    64: (_MULTIPLIERS[0][1], _MULTIPLIERS[1][1], 32),
}
# Positions are worked on so many at a time: the four work arrays stay in a core's cache, and
# memory beyond the answer's does not grow with the number of positions.
_CHUNK = 1 << 15


class Draws(ABC):
    """The sample indices of one epoch, a function of the position instead of a tensor.

    num_samples: n; every index is in 0 … n - 1. At most 2^63 - 1.
    key: 64 bits, well mixed, that select the order.

    ``draws[start:stop]`` is an int64 tensor [stop - start], ``draws[positions]`` one of the shape
    of the int64 tensor ``positions``, and ``len(draws)`` the number of draws. An instance holds
    a few numbers, whatever n is.
    """

    def __init__(self, num_samples: int, key: int) -> None:
        assert 1 <= num_samples < 1 << 63
        self.num_samples = num_samples
        self._num_draws = num_samples
        self._key = key % _WORD

    def __len__(self) -> int:
        return self._num_draws

    def __getitem__(self, places: slice | Tensor) -> Tensor:
        if isinstance(places, slice):
            places = torch.arange(*places.indices(len(self)), device="cpu")
        return self.at(places)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} draws of {self.num_samples} samples)"

    def head(self, count: int) -> Draws:
        """The first ``count`` draws, 0 <= count <= len(self)."""
        assert 0 <= count <= len(self)
        shorter = copy.copy(self)
        shorter._num_draws = count
        return shorter

    def at(self, positions: Tensor) -> Tensor:
        """The sample indices at ``positions``, int64 of any shape; the answer has their shape.

        Raises IndexError for a position that is not in 0 … len(self) - 1.
        """
        flat = positions.detach().cpu().reshape(-1).numpy()
        if not len(flat):
            return torch.empty(positions.shape, dtype=torch.int64, device="cpu")
        low, high = int(flat.min()), int(flat.max())
        if low < 0 or high >= len(self):
            raise IndexError(
                f"positions must be in 0 … {len(self) - 1}, got {low if low < 0 else high}"
            )
        words = flat.view(np.uint64)
        found = np.empty(len(words), dtype=np.uint64)
        for start in range(0, len(words), _CHUNK):
            found[start : start + _CHUNK] = self._images(words[start : start + _CHUNK])
        return torch.from_numpy(found.view(np.int64)).reshape(positions.shape)

    @abstractmethod
    def _images(self, positions: Words) -> Words:
        """The sample indices at a few positions [k], in a new array."""


class Permutation(Draws):
    r"""A keyed bijection of 0 … n - 1 with random access: every sample once, in random order.

    A Feistel network (Luby and Rackoff, 1988) on Z_a × {0, 1}^k, a·2^k ≥ n: the position is
    L·2^k + R, and every two of the ``ROUNDS`` rounds do

        L ← (L + ⌊a · h(R + κ_i) / 2^w⌋) mod a,    R ← R ⊕ ⌊2^k · h(L + κ_{i+1}) / 2^w⌋

    in words of w bits, 32 up to 2^30 samples and else 64, with κ the SplitMix64 sequence from
    ``key`` (Steele, Lea and Flood, 2014). Each round can be undone, so the whole is a bijection
    of 0 … a·2^k - 1. An image beyond n - 1 is sent through again until it falls inside, which
    leaves a bijection of 0 … n - 1 (cycle-walking; Black and Rogaway, 2002, section 3; L modulo a
    is as in their section 4).

    h multiplies, folds the upper half down and multiplies again; only the top bits of the second
    product, which depend on all that went in, are taken. Here k is half of the bits of n - 1 and
    a = ⌈n / 2^k⌉. So fewer than 2^k of the a·2^k values lie beyond n: about one position in √n
    walks, where a domain of a power of four would walk up to three times for each. It shuffles
    well; it is no cipher.

    version: 1 is the permutation of gdtrain 0.1.0, with which its checkpoints go on, and the same
    up to 2^30 samples. Beyond, up to 2^32, it has words of 32 bits, of which no more than 16 are
    left for a step of L: the steps are not uniform, and all even where a is 2^16, for n just
    below 2^31 and 2^32. The same at 2^63, where a is 2^32.
    """

    def __init__(self, num_samples: int, key: int, version: int = 2) -> None:
        super().__init__(num_samples, key)
        self._low_bits = (num_samples - 1).bit_length() // 2
        self._modulus = -(-num_samples >> self._low_bits)  # a, rounded up; at most 2^32
        self._version = version
        counters = np.arange(ROUNDS, dtype=np.uint64)
        words = _splitmix64(counters, self._key, np.empty_like(counters))
        # Half as wide, twice as fast.
        widest = 1 << (32 if version == 1 else 30)
        self._bits = 32 if self._modulus << self._low_bits <= widest else 64
        self._round_keys = (words >> np.uint64(64 - self._bits)).tolist()

    def _images(self, positions: Words) -> Words:
        images = self._feistel(positions)
        outside = np.flatnonzero(images >= self.num_samples)
        while len(outside):
            again = self._feistel(images[outside])
            images[outside] = again
            outside = outside[again >= self.num_samples]
        return images

    def _feistel(self, values: Words) -> Words:
        """The image of each value in the network's domain, 0 … a·2^k - 1."""
        word = np.uint32 if self._bits == 32 else np.uint64
        first, second, fold = (word(number) for number in _HASH[self._bits])
        values = values.astype(word, copy=False)
        low_bits, modulus = word(self._low_bits), word(self._modulus)
        left, right = values >> low_bits, values & word((1 << self._low_bits) - 1)
        hashed, scratch = np.empty_like(left), np.empty_like(left)
        # a·h / 2^w from the top bits of h, as many as keep the product within w bits.
        taken = (self._modulus - (self._version > 1)).bit_length()  # a product of 2^w - 1 at most
        unused, kept = word(taken), word(self._bits - taken)
        not_low = word(self._bits - self._low_bits)  # a shift by all bits gives 0, in numpy

        def hash_of(half: Array, key: int) -> None:
            np.add(half, word(key), out=hashed)
            np.multiply(hashed, first, out=hashed)
            np.right_shift(hashed, fold, out=scratch)
            np.bitwise_xor(hashed, scratch, out=hashed)
            np.multiply(hashed, second, out=hashed)

        for one, two in zip(self._round_keys[::2], self._round_keys[1::2], strict=True):
            hash_of(right, one)
            np.right_shift(hashed, unused, out=hashed)
            np.multiply(hashed, modulus, out=hashed)
            np.right_shift(hashed, kept, out=hashed)
            np.add(left, hashed, out=left)
            np.subtract(left, modulus, out=scratch)  # wraps to a huge word where left < a, …
            np.minimum(left, scratch, out=left)  # … so that the smaller one is left mod a
            hash_of(left, two)
            np.right_shift(hashed, not_low, out=hashed)
            np.bitwise_xor(right, hashed, out=right)
        left <<= low_bits
        left |= right
        return left.astype(np.uint64, copy=False)


class Replacement(Draws):
    """Independent uniform draws from 0 … n - 1 with random access, as many as there are samples.

    The draw at position i is w mod n, where w is the i-th 64-bit word of SplitMix64 (Steele, Lea
    and Flood, 2014) from ``key``. A word over the largest multiple of n is hashed again, so that
    each index has the same number of words and none is favoured.
    """

    def _images(self, positions: Words) -> Words:
        scratch = np.empty_like(positions)
        words = _splitmix64(positions, self._key, scratch)
        fair = np.uint64(_WORD - 1 - _WORD % self.num_samples)  # the last word that is taken
        unfair = np.flatnonzero(words > fair)
        while len(unfair):
            again = _splitmix64(words[unfair], self._key, np.empty(len(unfair), dtype=np.uint64))
            words[unfair] = again
            unfair = unfair[again > fair]
        words %= np.uint64(self.num_samples)
        return words


def _splitmix64(counters: Words, key: int, scratch: Words) -> Words:
    """Word number ``counters`` (from 0) of the SplitMix64 sequence with seed ``key``."""
    words = counters * np.uint64(_GAMMA)
    words += np.uint64((key + _GAMMA) % _WORD)
    _finalize(words, scratch)
    return words


def _finalize(words: Words, scratch: Words) -> None:
    """Mix the bits of each word in place: the finaliser of SplitMix64, a bijection."""
    for shift, multiplier in _MULTIPLIERS:
        np.right_shift(words, np.uint64(shift), out=scratch)
        words ^= scratch
        words *= np.uint64(multiplier)
    np.right_shift(words, np.uint64(31), out=scratch)
    words ^= scratch


# ── groups of rows, as files are read in ────────────────────────────────────────────────

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
        self._order = torch.randperm(len(ends), generator=drawing, device="cpu").numpy()
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
