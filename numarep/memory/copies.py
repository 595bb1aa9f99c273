"""Copies of a line in the cores' caches: cleaned, dropped, looked for.

What the levels beyond do to L1 and L2 of a CPU, or of all CPUs of a domain. None of it touches
recency.

>>> row = np.array([5 << FLAG_BITS | DIRTY, 7 << FLAG_BITS, *[EMPTY] * 6])
>>> clean_in(row, 0, 3, 5), clean_in(row, 0, 3, 5), bool(mark_in(row, 0, 3, 7, DIRTY))
(1, 0, True)
>>> cache = new_cache(offset=0, sets=1, ways=3)
>>> drop_from(row, 0, cache, 7) == 7 << FLAG_BITS | DIRTY, drop_from(row, 0, cache, 7) == EMPTY
(True, True)
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.recency import EMPTY, FLAG_BITS, find
from numarep.memory.replacement import drop
from numarep.memory.vector import at
from numarep.memory.view import ABSENT, DIRTY, Cache, View, domain_of, new_cache, row_of

__all__ = [
    "FLAG_BITS",
    "clean_above",
    "clean_in",
    "clean_in_domain",
    "drop_above",
    "drop_from",
    "drop_in_domain",
    "holder_beside",
    "mark_in",
    "new_cache",
]


@jit
def clean_in(words: NDArray[np.int64], first: int, ways: int, line: int) -> int:
    """Clear a line's DIRTY flag in the row at `first`, in place; return 1 if it was set, else 0."""
    way = find(words, first, ways, line)
    if way < 0 or not words[first + way] & DIRTY:
        return 0
    words[first + way] &= ~DIRTY
    return 1


@jit
def drop_from(words: NDArray[np.int64], first: int, cache: Cache, line: int) -> int:
    """Drop a line from the row at `first`, in place; return its entry, or EMPTY."""
    way = find(words, first, cache.ways, line)
    if way < 0:
        return EMPTY
    entry = int(words[first + way])
    drop(words, first, cache.ways, cache.policy, way)
    return entry


@jit
def mark_in(words: NDArray[np.int64], first: int, ways: int, line: int, flags: int) -> bool:
    """Set flags of a line in the row at `first`, in place; tell whether it is there."""
    way = find(words, first, ways, line)
    if way < 0:
        return False
    words[at(first + way)] |= flags
    return True


@jit
def _clean(view: View, cpu: int, cache: Cache, line: int) -> int:
    """Clear a line's DIRTY flag in a CPU's cache, in place; return 1 if it was set, else 0."""
    return clean_in(view.words, row_of(view, cpu, cache, line), cache.ways, line)


@jit
def _drop(view: View, cpu: int, cache: Cache, line: int) -> int:
    """Drop a line from a CPU's cache, in place; return 1 if it was there, else 0."""
    entry = drop_from(view.words, row_of(view, cpu, cache, line), cache, line)
    return 1 if entry != EMPTY else 0


@jit
def clean_above(view: View, cpu: int, line: int) -> int:
    """Clear a line's DIRTY flags in L1D and L2 of a CPU, in place; return how many were set."""
    return _clean(view, cpu, view.l1d, line) + _clean(view, cpu, view.l2, line)


@jit
def drop_above(view: View, cpu: int, line: int) -> int:
    """Drop a line from L1I, L1D and L2 of a CPU, in place; return the number of copies."""
    copies = _drop(view, cpu, view.l1i, line) + _drop(view, cpu, view.l1d, line)
    return copies + _drop(view, cpu, view.l2, line)


@jit_apart
def clean_in_domain(view: View, domain: int, line: int) -> int:
    """Clear a line's DIRTY flags in a domain's cores, in place; return how many were set."""
    dirty = 0
    for cpu in range(len(view.cpu_place)):
        if domain_of(view, cpu) == domain:
            dirty += clean_above(view, cpu, line)
    return dirty


@jit_apart
def drop_in_domain(view: View, domain: int, line: int, kept: int) -> int:
    """Drop a line from a domain's cores but the CPU `kept`, in place; return how many copies."""
    copies = 0
    for cpu in range(len(view.cpu_place)):
        if domain_of(view, cpu) == domain and cpu != kept:
            copies += drop_above(view, cpu, line)
    return copies


@jit
def holder_beside(view: View, line: int) -> int:
    """Return the first other CPU of the own domain whose L2 holds a line, or ABSENT."""
    for cpu in range(len(view.cpu_place)):
        if domain_of(view, cpu) == view.domain and cpu != view.cpu:
            first = row_of(view, cpu, view.l2, line)
            if find(view.words, first, view.l2.ways, line) >= 0:
                return cpu
    return ABSENT
