"""True LRU by order: a set is one row, most recently used first, empty ways last.

There is no separate LRU state. A hit moves its entry to the front, a fill pushes at the front and
the entry that falls off the end is the victim; a dropped entry closes the gap. So equal contents
and equal history-relevant order always mean equal arrays, which `system.repeat` relies on.

All rows of all caches lie in one int64 array, `words`; a row is its first word and its ways. An
entry is `tag << FLAG_BITS | flags`; what the flags mean is up to the cache. EMPTY is -1, whose tag
(-1) matches no line.

>>> words = np.array([5 << FLAG_BITS, 7 << FLAG_BITS, EMPTY])
>>> way = find(words, 0, 3, 7)
>>> touch(words, 0, way)
>>> int(push(words, 0, 3, 9 << FLAG_BITS)) == EMPTY
True
>>> (words >> FLAG_BITS).tolist()
[9, 7, 5]
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit

EMPTY = -1
FLAG_BITS = 3


@jit
def find(words: NDArray[np.int64], first: int, ways: int, tag: int) -> int:
    """Return the way that holds `tag` in a row, -1 if none does."""
    for way in range(ways):
        if words[first + way] >> FLAG_BITS == tag:
            return way
    return -1


@jit
def touch(words: NDArray[np.int64], first: int, way: int) -> None:
    """Move the entry at `way` to the front of a row, in place."""
    entry = words[first + way]
    for word in range(first + way, first, -1):
        words[word] = words[word - 1]
    words[first] = entry


@jit
def push(words: NDArray[np.int64], first: int, ways: int, entry: int) -> int:
    """Fill `entry` at the front of a row, in place; return the victim or EMPTY."""
    victim = words[first + ways - 1]
    for word in range(first + ways - 1, first, -1):
        words[word] = words[word - 1]
    words[first] = entry
    return int(victim)


@jit
def drop(words: NDArray[np.int64], first: int, ways: int, way: int) -> None:
    """Remove the entry at `way` of a row and close the gap, in place."""
    last = first + ways - 1
    for word in range(first + way, last):
        words[word] = words[word + 1]
    words[last] = EMPTY
