"""True LRU by order: a set is one row, most recently used first, empty ways last.

There is no separate LRU state. A hit moves its entry to the front, a fill pushes at the front and
the entry that falls off the end is the victim; a dropped entry closes the gap. So equal contents
and equal history-relevant order always mean equal arrays, which `system.repeat` relies on.

An entry is `tag << FLAG_BITS | flags`; what the flags mean is up to the cache. EMPTY is -1, whose
tag (-1) matches no line.

>>> rows = np.array([[5 << FLAG_BITS, 7 << FLAG_BITS, EMPTY]])
>>> way = find(rows, 0, 7)
>>> touch(rows, 0, way)
>>> int(push(rows, 0, 9 << FLAG_BITS)) == EMPTY
True
>>> (rows[0] >> FLAG_BITS).tolist()
[9, 7, 5]
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit

EMPTY = -1
FLAG_BITS = 3


@jit
def find(rows: NDArray[np.int64], row: int, tag: int) -> int:
    """Return the way that holds `tag` in a row, -1 if none does."""
    for way in range(rows.shape[1]):
        if rows[row, way] >> FLAG_BITS == tag:
            return way
    return -1


@jit
def touch(rows: NDArray[np.int64], row: int, way: int) -> None:
    """Move the entry at `way` to the front; rows is modified in place."""
    entry = rows[row, way]
    for later in range(way, 0, -1):
        rows[row, later] = rows[row, later - 1]
    rows[row, 0] = entry


@jit
def push(rows: NDArray[np.int64], row: int, entry: int) -> int:
    """Fill `entry` at the front, modifying rows in place; return the victim or EMPTY."""
    last = rows.shape[1] - 1
    victim = int(rows[row, last])
    for later in range(last, 0, -1):
        rows[row, later] = rows[row, later - 1]
    rows[row, 0] = entry
    return victim


@jit
def drop(rows: NDArray[np.int64], row: int, way: int) -> None:
    """Remove the entry at `way` and close the gap; rows is modified in place."""
    last = rows.shape[1] - 1
    for earlier in range(way, last):
        rows[row, earlier] = rows[row, earlier + 1]
    rows[row, last] = EMPTY
