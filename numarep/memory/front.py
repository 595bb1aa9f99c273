"""The first stage of a batch: run-length filter, first-level TLBs, the operations to come.

A record of the same kind, page and line as the one before it adds to that one's accesses and does
no more: it finds its line and page the last used of their rows, hits, and changes nothing. (With a
prefetcher nothing is merged, as what it brings may drive that line out.) The records left are
looked up in the ITLB or DTLB; whether a page is there depends on the pages alone, not on what
caches hold, so it may be done for all of them before any line is accessed. Every access is counted
as an L1 hit here; `tally` puts right those that weren't.

>>> tlbs = Tlbs(*[new_tlb(128 * n, 16, 4) for n in range(9)])
>>> none = np.array([0])
>>> table = np.array([[2, 3, 4, 5, -1]])
>>> page = pages_of(np.array([513]), np.array([7]), none + 1, none, none + 3, table, none, tlbs)
>>> int(page[Of.LINE]), int(page[Of.FETCH]) >> WAYS_BITS  # row 1 of the first TLB
(448, 8)
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart, jit_within
from numarep.memory.batch import BATCH, KIND_BITS, Batch, Stream, operation
from numarep.memory.kinds import Kind
from numarep.memory.tlb import (
    DTLB_4K,
    GLOBAL,
    ITLB_4K,
    LEVEL_BITS,
    OWNER_BITS,
    OWNERS,
    VPN_MASK,
    Tlbs,
    lookup_or_fill,
    new_tlb,
)
from numarep.memory.vector import at, new_words, prefetch
from numarep.memory.view import View, may_skip
from numarep.units import LINES_PER_PAGE, MAX_LEVELS, PMD, PUD, TABLE_SHIFT

WAYS_BITS = 8
PAGE_BITS = 4  # of the columns of a page
AHEAD = 16  # records that the host is asked ahead for their pages
NONE = -1

__all__ = ["Of", "new_tlb", "pages_of", "take", "ways_of"]


class Of(IntEnum):
    """Columns of what the stages need of each page, two host cache lines a page.

    FETCH, DATA and STLB say where in a CPU's block the page's row of that TLB lies and how long it
    is, `first << 8 | ways`; the STLB's is NONE for 1G pages. Walks alone read from VPN on.
    """

    LINE = 0  # of the frame's first byte
    FETCH_KEY = 1  # TLB entries without owner
    DATA_KEY = 2
    OWNERS = 3  # root << 15 | root or GLOBAL, as small numbers
    FETCH = 4
    DATA = 5
    STLB = 6
    REGION = 7
    VPN = 8
    LEAF = 9
    TABLE = 10  # pfn of the table read at level 1, the other levels' follow


def pages_of(
    vpn: NDArray[np.int64],
    pfn: NDArray[np.int64],
    leaf: NDArray[np.int64],
    is_global: NDArray[np.int64],
    root: NDArray[np.int64],
    table: NDArray[np.int64],
    region: NDArray[np.int64],
    tlbs: Tlbs,
) -> NDArray[np.int64]:
    """Return what the stages need of each page, int64[p * 16]; `root` in small numbers.

    The ITLB holds 1G pages as 2M splinters: the number of a 2M page, the level of a 1G leaf.
    """
    pages = new_words(len(vpn) << PAGE_BITS).reshape(-1, 1 << PAGE_BITS)
    pages[:, Of.LINE] = pfn * LINES_PER_PAGE
    pages[:, Of.OWNERS] = root << OWNER_BITS | np.where(is_global != 0, GLOBAL, root)
    pages[:, Of.REGION] = region
    pages[:, Of.VPN], pages[:, Of.LEAF] = vpn, leaf
    pages[:, Of.TABLE : Of.TABLE + MAX_LEVELS] = table
    for size in (1, PMD, PUD):
        rows = np.flatnonzero(leaf == size)
        fetch_size = min(size, PMD)
        places = [
            (Of.FETCH, fetch_size, tlbs[ITLB_4K + fetch_size - 1]),
            (Of.DATA, size, tlbs[DTLB_4K + size - 1]),
            (Of.STLB, size, tlbs.stlb),
        ]
        for column, page_size, tlb in places if size < PUD else places[:2]:
            number = (vpn[rows] & VPN_MASK) >> (TABLE_SHIFT * (page_size - 1))
            first = tlb.offset + number % tlb.sets * tlb.pitch
            pages[rows, column] = first << WAYS_BITS | tlb.ways
            key = Of.FETCH_KEY if column == Of.FETCH else Of.DATA_KEY
            pages[rows, key] = (number << LEVEL_BITS | size) << OWNER_BITS
    return pages.reshape(-1)


@jit
def ways_of(place: int) -> int:
    """Return the ways of the row at a place."""
    return place & ((1 << WAYS_BITS) - 1)


@jit_within
def _is_near(
    words: NDArray[np.int64], base: int, pages: NDArray[np.int64], page: int, kind: int
) -> bool:
    """Look the page described at `page` up in the first-level TLB of a kind of access; in place."""
    is_fetch = kind == Kind.FETCH
    side = page + (0 if is_fetch else 1)
    place, key = pages[at(side + Of.FETCH)], pages[at(side + Of.FETCH_KEY)]
    owners = pages[at(page + Of.OWNERS)]
    first, owner = base + (place >> WAYS_BITS), owners & (OWNERS - 1)
    # The last used of its row: nothing to look for, nothing to move.
    if words[at(first)] == key | owner:
        return True
    return lookup_or_fill(words, first, ways_of(place), key, owners >> OWNER_BITS, owner)


@jit_apart
def take(
    view: View,
    pages: NDArray[np.int64],
    batch: Batch,
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
    base, regions = view.cpu * view.stride, len(hits) // (Kind.STORE + 1)
    size, missed, instructions, last_what, last_line = 0, 0, 0, NONE, NONE
    may_lose = not may_skip(view)
    has_functions = len(stream.function) > 0
    record, last = start, len(stream.page) - 1
    while record < stop:
        kind = int(stream.kind[at(record)])
        if kind > Kind.STORE:
            break
        row, line = int(stream.page[at(record)]), int(stream.line[at(record)])
        repeats = int(stream.repeats[at(record)])
        what, page = row << KIND_BITS | kind, row << PAGE_BITS
        if what != last_what or line != last_line or may_lose:
            if size == BATCH:
                break
            prefetch(pages, int(stream.page[at(min(record + AHEAD, last))]) << PAGE_BITS)
            last_what, last_line = what, line
            batch.what[at(size)] = what
            batch.passed[at(size)] = instructions
            if has_functions:
                batch.function[at(size)] = stream.function[at(record)]
            batch.ops[at(size)] = operation(pages[at(page + Of.LINE)] + line, size, kind)
            batch.missed[at(missed)] = size
            missed += 0 if _is_near(view.words, base, pages, page, kind) else 1
            size += 1
        hits[at(kind * regions + pages[at(page + Of.REGION)])] += max(repeats, 1)
        instructions += repeats if kind == Kind.FETCH else 0
        record += 1
    batch.passed[at(size)] = instructions
    return record, size, missed
