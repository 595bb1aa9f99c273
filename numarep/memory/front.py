"""The first stage of a batch: the records' runs, first-level TLBs, the operations to come.

Runs (see `runs`) are looked up in the ITLB or DTLB; whether a page is there depends on the pages
alone, not on what caches hold, so it may be done for all of them before any line is accessed. Every
access is counted as an L1 hit here; `tally` puts right those that weren't.

>>> words = np.full(8, EMPTY)
>>> pages = np.zeros(1 << PAGE_BITS, np.int64)
>>> pages[Of.DATA], pages[Of.DATA_ENTRY] = 0 << WAYS_BITS | 4, 5 << OWNER_BITS
>>> [bool(_is_near(words, pages, 0, Kind.LOAD)) for _ in range(2)]
[False, True]
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.batch import Batch, Stream, kind_of, line_within, operation, page_of
from numarep.memory.kinds import Kind
from numarep.memory.pages import PAGE_BITS, WAYS_BITS, Of, ways_of
from numarep.memory.recency import EMPTY
from numarep.memory.runs import merge
from numarep.memory.tlb import OWNER_BITS, lookup_or_fill
from numarep.memory.vector import at
from numarep.memory.view import View, may_skip

# Numba links constants used in doctests too.
__all__ = ["EMPTY", "OWNER_BITS", "take"]


@jit
def _is_near(words: NDArray[np.int64], pages: NDArray[np.int64], page: int, kind: int) -> bool:
    """Look the page described at `page` up in the first-level TLB of a kind of access; in place."""
    side = page + (0 if kind == Kind.FETCH else 1)
    place, entry = pages[at(side + Of.FETCH)], pages[at(side + Of.FETCH_ENTRY)]
    first = place >> WAYS_BITS
    # The last used of its row: nothing to look for, nothing to move.
    if words[at(first)] == entry:
        return True
    return lookup_or_fill(words, first, ways_of(place), entry, pages[at(page + Of.ROOT)])


@jit_apart
def take(
    view: View,
    pages: NDArray[np.int64],
    batch: NDArray[np.int64],
    stream: Stream,
    start: int,
    stop: int,
    hits: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Take records from `start` on until the batch is full or one serialises.

    TLBs, batch and `hits`, int64[kind * regions + region], are modified in place.

    Returns
    -------
    next, size, missed : int
        The first record not taken, the number of runs that those taken became, and how many of
        them missed their TLB.
    """
    record, size = merge(0 if may_skip(view) else 1, pages, batch, stream, start, stop)
    regions, missed = len(hits) // (Kind.STORE + 1), 0
    for run in range(size):
        key = batch[at(Batch.KEY + run)]
        kind, page = kind_of(key), page_of(key) << PAGE_BITS
        line = pages[at(page + Of.LINE)] + line_within(key)
        batch[at(Batch.ACCESS + run)] = operation(line, run, kind)
        batch[at(Batch.MISSED + missed)] = run
        missed += 0 if _is_near(view.words, pages, page, kind) else 1
        accesses = batch[at(Batch.ACCESSES + run + 1)] - batch[at(Batch.ACCESSES + run)]
        hits[at(kind * regions + pages[at(page + Of.REGION)])] += accesses
    return record, size, missed
