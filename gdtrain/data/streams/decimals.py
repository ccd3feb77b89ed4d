"""Plain decimal numbers in many lines of text, read at once and to the bits of ``float()``."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Numbers worked on at a time: their work arrays stay in a core's cache.
_AT_ONCE = 8192
_LONGEST = 16  # characters of a number, its sign not counted
_EXACT = np.uint64(1 << 53)  # every whole number below it is a float64

_U = np.uint64
_ZEROS, _DOTS = _U(0x3030303030303030), _U(0x1E1E1E1E1E1E1E1E)  # a dot is 0x1E less "0"
_LOW, _HIGH = _U(0x7F7F7F7F7F7F7F7F), _U(0x8080808080808080)
_TO_NINE = _U(0x7676767676767676)  # carries a byte over 9 into its high bit
_PAIRS = _U(0x000000FF000000FF)
_MUL_1, _MUL_2 = _U(100 + (1_000_000 << 32)), _U(1 + (10_000 << 32))

# By the exponent of the bit that marks a dot, over 8: digits after a dot in byte 0 … 7 of a word.
_AFTER = np.zeros(136, dtype=np.int64)
_AFTER[128:] = np.arange(7, -1, -1)
_POWERS = 10.0 ** np.arange(_LONGEST)
_WHOLE_POWERS = 10 ** np.arange(9, dtype=np.uint64)


class DecimalGrid:
    """Reads lines of ``num_cells`` numbers between commas.

    chosen: the numbers of the cells that are wanted, in their order; None for all.

    What is read is ``-``, digits, a dot, digits, up to 16 characters, as 3, -0.25 or 12.5: as a
    whole number below 2^53 over a power of ten up to 10^15. Both are float64 numbers, so that
    their quotient, rounded once, is the nearest float64 (Clinger, 1990, section 5), which is what
    ``float()`` gives. Eight digits are added up in one 64-bit word.
    """

    def __init__(self, num_cells: int, chosen: list[int] | None) -> None:
        self.num_cells = num_cells
        self.chosen = None if chosen is None else np.array(chosen)
        self.width = num_cells if chosen is None else len(chosen)

    def read(self, block: bytes) -> tuple[Array, Array, Array] | None:
        """The numbers of whole lines, each with its end, as float64.

        Returns the rows [lines, cells wanted]; the places after the lines' ends [lines]; and the
        numbers of the rows with a cell that is something else, which were not read. None if a
        line has another number of cells, or holds blanks, quotes or signs.
        """
        # Eight bytes of filling, so that a word can end with the first cell.
        held = np.frombuffer(b"00000000" + block, np.uint8)
        text = held[8:]
        marks = np.flatnonzero(text < 45)  # commas, ends of lines, and what does not belong
        if not len(marks) or len(marks) % self.num_cells:
            return None
        grid = marks.reshape(-1, self.num_cells)
        after = text[grid]
        if not ((after[:, :-1] == 44).all() and (after[:, -1] == 10).all()):
            return None
        words: Array = np.ndarray((len(held) - 7,), "<u8", held, strides=(1,))
        firsts = np.empty_like(marks)
        firsts[0] = 0
        np.add(marks[:-1], 1, out=firsts[1:])
        ends = grid[:, -1] + 1
        if self.chosen is not None:
            marks = grid[:, self.chosen].reshape(-1)
            firsts = firsts.reshape(grid.shape)[:, self.chosen].reshape(-1)
        numbers = np.empty(len(marks))
        odd = np.empty(len(marks), dtype=bool)
        for start in range(0, len(marks), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            _read(text, words, firsts[part], marks[part], numbers[part], odd[part])
        rows_odd = odd.reshape(-1, self.width).any(axis=1)
        return numbers.reshape(-1, self.width), ends, np.flatnonzero(rows_odd)


def _read(
    text: Array, words: Array, firsts: Array, ends: Array, numbers: Array, odd: Array
) -> None:
    """The numbers in ``text[first:end]``, and which are odd: not read.

    words: word i holds the eight characters before ``text[i]``.
    """
    minus = text[firsts] == 45
    lengths = ends - firsts
    lengths -= minus
    word = words[ends]
    value, after, has_dot, bad = _digits(word, lengths)
    bad |= lengths == has_dot  # no digit
    over = np.flatnonzero(lengths > 8)
    if len(over):
        before, after_before, dot_before, bad_before = _digits(
            words[ends[over] - 8], np.minimum(lengths[over] - 8, 8)
        )
        has, tail = has_dot[over], value[over]
        before *= _WHOLE_POWERS[8 - has]
        before += tail
        value[over] = before
        after[over] += np.where(dot_before, 8 + after_before, 0)
        bad_before |= (has & dot_before) | (before >= _EXACT) | (lengths[over] > _LONGEST)
        bad[over] |= bad_before
    odd[:] = bad
    np.minimum(after, _LONGEST - 1, out=after)  # of those that are read, there are no more
    np.divide(value, _POWERS[after], out=numbers)
    numbers *= 1.0 - 2.0 * minus


def _digits(word: Array, lengths: Array) -> tuple[Array, Array, Array, Array]:
    """The last ``lengths`` characters of each word, at most eight, as a whole number.

    Returns the number without its dot, the digits after the dot, whether there is one, and
    whether there is anything but digits and one dot.
    """
    unused = (8 - np.minimum(lengths, 8)).astype(np.uint64)
    unused <<= _U(3)
    word ^= _ZEROS
    word >>= unused
    word <<= unused  # what is before the number is 0 now
    # A bit at the top of each byte that holds a dot (Mycroft, 1987).
    mark = word ^ _DOTS
    scratch = mark & _LOW
    scratch += _LOW
    mark |= scratch
    mark |= _LOW
    np.invert(mark, out=mark)
    has_dot = mark != 0
    # Close the gap: what is before the dot moves up by a byte.
    below = mark - _U(1)
    bad = (mark & below) != 0  # several
    np.bitwise_or(mark, below, out=scratch)
    np.invert(scratch, out=scratch)
    scratch &= word  # the bytes after the dot
    below = mark >> _U(7)
    below -= _U(1)
    below &= word  # those before it
    below <<= has_dot.astype(np.uint64) << _U(3)
    below |= scratch
    np.add(below, _TO_NINE, out=scratch)
    scratch |= below
    scratch &= _HIGH
    bad |= scratch != 0
    # Two digits of each two bytes, then four, then eight (Lemire, 2018).
    np.right_shift(below, _U(8), out=scratch)
    below *= _U(10)
    below += scratch
    np.right_shift(below, _U(16), out=scratch)
    below &= _PAIRS
    below *= _MUL_1
    scratch &= _PAIRS
    scratch *= _MUL_2
    below += scratch
    below >>= _U(32)
    after = _AFTER[mark.astype(np.float64).view(np.int64) >> 55]
    return below, after, has_dot, bad
