"""The first stage of a batch: run-length filter, first-level TLBs, the operations to come.

A record of the same kind, page and line as the one before it adds to that one's accesses and does
no more: it finds its line and page the last used of their rows, hits, and changes nothing. So such
records are one run. (With a prefetcher every record is one, as what it brings may drive that line
out.) Runs are looked up in the ITLB or DTLB; whether a page is there depends on the pages alone,
not on what caches hold, so it may be done for all of them before any line is accessed. Every access
is counted as an L1 hit here; `tally` puts right those that weren't.

>>> tlbs = Tlbs(*[new_tlb(128 * n, 16, 4) for n in range(9)])
>>> none = np.array([0])
>>> table = np.array([[2, 3, 4, 5, -1]])
>>> page = pages_of(np.array([513]), np.array([7]), none + 1, none, none + 3, table, none, tlbs, 0)
>>> int(page[Of.LINE]), int(page[Of.FETCH]) >> WAYS_BITS  # row 1 of the first TLB
(448, 8)
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.batch import (
    BATCH,
    Batch,
    Stream,
    key_of,
    kind_of,
    line_within,
    operation,
    page_of,
)
from numarep.memory.kinds import Kind
from numarep.memory.tlb import (
    DTLB_4K,
    GLOBAL,
    ITLB_4K,
    LEVEL_BITS,
    OWNER_BITS,
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
NONE = -1

__all__ = ["Of", "new_tlb", "pages_of", "take", "ways_of"]


class Of(IntEnum):
    """Columns of what the stages need of each page, two host cache lines a page.

    FETCH, DATA and STLB say where the page's row of that TLB of the CPU lies and how long it is,
    `first << 8 | ways`; the STLB's is NONE for 1G pages. Walks alone read from VPN on.
    """

    LINE = 0  # of the frame's first byte
    FETCH_ENTRY = 1  # of the ITLB
    DATA_ENTRY = 2  # of the DTLB and STLB
    ROOT = 3  # as small number
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
    base: int,
) -> NDArray[np.int64]:
    """Return what the stages need of each page, int64[p * 16]; `root` in small numbers.

    `base` is the first word of the CPU's block. The ITLB holds 1G pages as 2M splinters: the
    number of a 2M page, the level of a 1G leaf.
    """
    pages = new_words(len(vpn) << PAGE_BITS).reshape(-1, 1 << PAGE_BITS)
    pages[:, Of.LINE] = pfn * LINES_PER_PAGE
    pages[:, Of.ROOT] = root
    owner = np.where(is_global != 0, GLOBAL, root)
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
            first = base + tlb.offset + number % tlb.sets * tlb.pitch
            pages[rows, column] = first << WAYS_BITS | tlb.ways
            entry = Of.FETCH_ENTRY if column == Of.FETCH else Of.DATA_ENTRY
            pages[rows, entry] = (number << LEVEL_BITS | size) << OWNER_BITS | owner[rows]
    return pages.reshape(-1)


@jit
def ways_of(place: int) -> int:
    """Return the ways of the row at a place."""
    return place & ((1 << WAYS_BITS) - 1)


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


@jit
def _merge(
    view: View,
    pages: NDArray[np.int64],
    batch: NDArray[np.int64],
    stream: Stream,
    start: int,
    stop: int,
) -> tuple[int, int]:
    """Make runs of the records from `start` on, as `take` says; batch is modified in place.

    What would be a run's is written for every record, and overwritten unless the record begins one:
    whether it does can't be foreseen. Returns the first record not taken and the number of runs.
    """
    always = 0 if may_skip(view) else 1
    has_functions = len(stream.function) > 0
    size, last, instructions, accesses, record = 0, NONE, 0, 0, start
    while record < stop:
        kind, page = int(stream.kind[at(record)]), int(stream.page[at(record)])
        key = key_of(page, int(stream.line[at(record)]), kind)
        begins = always | (1 if key != last else 0)
        if kind > Kind.STORE or size + begins > BATCH:
            break
        prefetch(pages, page << PAGE_BITS)
        batch[at(Batch.KEY + size)] = key
        batch[at(Batch.PASSED + size)] = instructions
        batch[at(Batch.ACCESSES + size)] = accesses
        if has_functions:
            batch[at(Batch.FUNCTION + size)] = stream.function[at(record)]
        repeats = int(stream.repeats[at(record)])
        instructions += repeats if kind == Kind.FETCH else 0
        accesses += max(repeats, 1)
        size, last = size + begins, key
        record += 1
    batch[at(Batch.PASSED + size)] = instructions
    batch[at(Batch.ACCESSES + size)] = accesses
    return record, size


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
    record, size = _merge(view, pages, batch, stream, start, stop)
    regions, missed = len(hits) // (Kind.STORE + 1), 0
    for run in range(size):
        key = batch[at(Batch.KEY + run)]
        kind, page = kind_of(key), page_of(key) << PAGE_BITS
        line = pages[at(page + Of.LINE)] + line_within(key)
        batch[at(Batch.OP + run)] = operation(line, run, kind)
        batch[at(Batch.MISSED + missed)] = run
        missed += 0 if _is_near(view.words, pages, page, kind) else 1
        accesses = batch[at(Batch.ACCESSES + run + 1)] - batch[at(Batch.ACCESSES + run)]
        hits[at(kind * regions + pages[at(page + Of.REGION)])] += accesses
    return record, size, missed
