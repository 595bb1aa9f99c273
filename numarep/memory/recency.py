"""True LRU by order: a set is one row, most recently used first, empty ways last.

There is no separate LRU state. A hit moves its entry to the front, a fill pushes at the front and
the entry that falls off the end is the victim; a dropped entry closes the gap. So equal contents
and equal history-relevant order always mean equal arrays, which `passes` relies on.

All rows of all caches lie in one int64 array, `words`; a row is its first word and its ways. An
entry is `tag << FLAG_BITS | flags`; what the flags mean is up to the cache. EMPTY is -1, whose tag
(-1) matches no line. Rows are read and rotated eight ways at a time
(see `vector`), all of a row always, so that no branch depends on where a hit was; MOST_WAYS is how
far that is written out. Rows lie whole eights apart, the words between them EMPTY for good: rows
that shared eights would wait for each other's stores.

>>> words = np.full(pitch_of(3), EMPTY)
>>> words[:2] = 5 << FLAG_BITS, 7 << FLAG_BITS
>>> touch(words, 0, 3, find(words, 0, 3, 7))
>>> int(push(words, 0, 3, 9 << FLAG_BITS)) == EMPTY
True
>>> (words[:3] >> FLAG_BITS).tolist(), int(find(words, 0, 3, 6))
([9, 7, 5], -1)
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.vector import LANES, at, close, lowest, match, rotate

# Numba links constants used in doctests too.
__all__ = ["EMPTY", "FLAG_BITS", "drop", "find", "matches", "move", "pitch_of", "push"]
__all__ += ["take_back", "touch"]

EMPTY = -1
FLAG_BITS = 11  # a line is below 2^51, so 62 bits in all
FLAGS = (1 << FLAG_BITS) - 1
ALL = -1
MOST_WAYS = 4 * LANES  # of a row, as `matches` and `move` are written out


def pitch_of(ways: int) -> int:
    """Return how many words rows of so many ways lie apart."""
    return -(-ways // LANES) * LANES


@jit
def matches(words: NDArray[np.int64], first: int, ways: int, value: int, mask: int) -> int:
    """Return a bit for each way of a row: whether its entry is `value` under `mask`."""
    found = match(words, first, value, mask)
    if ways > LANES:
        found |= match(words, first + LANES, value, mask) << LANES
        if ways > 2 * LANES:
            found |= match(words, first + 2 * LANES, value, mask) << 2 * LANES
            if ways > 3 * LANES:
                found |= match(words, first + 3 * LANES, value, mask) << 3 * LANES
    return int(found)


@jit
def find(words: NDArray[np.int64], first: int, ways: int, tag: int) -> int:
    """Return the way that holds `tag` in a row, -1 if none does."""
    found = matches(words, first, ways, tag << FLAG_BITS, ~FLAGS)
    return int(lowest(found)) if found != 0 else -1


@jit
def _move_eight(words: NDArray[np.int64], first: int, way: int, last: int) -> None:
    """Move the eight ways from `way` on that come before `last`, and the one before them, up."""
    before = words[at(first + way - 1)]
    rotate(words, first + way, last - way, before)


@jit
def move(words: NDArray[np.int64], first: int, ways: int, last: int, entry: int) -> None:
    """Put `entry` at the front of a row, moving the ways before `last` up by one, over it."""
    if ways > LANES:
        if ways > 2 * LANES:
            if ways > 3 * LANES:
                _move_eight(words, first, 3 * LANES, last)
            _move_eight(words, first, 2 * LANES, last)
        _move_eight(words, first, LANES, last)
    rotate(words, first, last, entry)


@jit
def touch(words: NDArray[np.int64], first: int, ways: int, way: int) -> None:
    """Move the entry at `way` to the front of a row, in place."""
    move(words, first, ways, way, words[at(first + way)])


@jit
def push(words: NDArray[np.int64], first: int, ways: int, entry: int) -> int:
    """Fill `entry` at the front of a row, in place; return the victim or EMPTY."""
    victim = words[at(first + ways - 1)]
    move(words, first, ways, ways - 1, entry)
    return int(victim)


@jit
def _close_eight(words: NDArray[np.int64], first: int, start: int, way: int) -> None:
    """Move the eight ways from `start` on that follow `way`, and the one after them, down."""
    after = words[at(first + start + LANES)]
    close(words, first + start, way - start, after)


@jit
def drop(words: NDArray[np.int64], first: int, ways: int, way: int) -> None:
    """Remove the entry at `way` of a row and close the gap, in place."""
    if ways > LANES:
        _close_eight(words, first, 0, way)
        if ways > 2 * LANES:
            _close_eight(words, first, LANES, way)
            if ways > 3 * LANES:
                _close_eight(words, first, 2 * LANES, way)
    start = (ways - 1) // LANES * LANES
    close(words, first + start, way - start, EMPTY)


@jit
def take_back(words: NDArray[np.int64], first: int, way: int, old: int) -> None:
    """Undo that `way`, which held `old`, came to the front of a row, in place.

    >>> words = np.arange(8) << FLAG_BITS  # a row of three and what lies beyond
    >>> move(words, 0, 3, 2, 9 << FLAG_BITS)  # a fill
    >>> take_back(words, 0, 2, 2 << FLAG_BITS)
    >>> (words >> FLAG_BITS).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    for word in range(first, first + way):
        words[word] = words[word + 1]
    words[first + way] = old
