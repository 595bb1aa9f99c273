"""The last stage of a batch: interval analysis and the counts by level, node, region, function.

Most records hit the first TLB and L1, which can't open or close a window, and `front` has counted
them so. The others are visited here in order: how much of a window is left when one's turn comes
follows from the instructions passed since the one before (see `interval`).

>>> int(left_now(192, passed=100, since=20))
112
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.batch import (
    MARK_BITS,
    MARKS,
    NODE_BITS,
    Batch,
    kind_of,
    page_of,
    served_by,
)
from numarep.memory.counts import Access, Event, Overlap, Service
from numarep.memory.interval import overlap_of, pass_instructions, window_after
from numarep.memory.kinds import Kind
from numarep.memory.pages import PAGE_BITS, Of
from numarep.memory.vector import at, lowest, prefetch
from numarep.units import MAX_LEVELS

ACCESSES, SERVICES, OVERLAPS = len(Access), len(Service), len(Overlap)
NODE_MASK = (1 << NODE_BITS) - 1


@jit
def left_now(left: int, passed: int, since: int) -> int:
    """Return what is left of a window that had `left` when `since` instructions had passed."""
    return pass_instructions(left, passed - since)


@jit
def _cell(regions: int, nodes: int, access: int, level: int, region: int) -> int:
    """Return where the counts of an access, level and region begin in the flat array."""
    by = (access * (MAX_LEVELS + 1) + level) * regions + region
    return by * SERVICES * nodes * OVERLAPS


@jit
def _place(nodes: int, by: int, overlap: int) -> int:
    """Return where, from there on, those of a level, node and overlap lie."""
    return ((by >> NODE_BITS) * nodes + (by & NODE_MASK)) * OVERLAPS + overlap


@jit
def _function_cell(nodes: int, function: int, access: int) -> int:
    """Return where the counts of a function's accesses of a kind begin in their flat array."""
    return (function * ACCESSES + access) * SERVICES * nodes * OVERLAPS


@jit
def _list(functions: NDArray[np.int64], batch: NDArray[np.int64], listed: int, cell: int) -> int:
    """List a cell of the counts by function, in place; return how many are listed by now."""
    batch[at(Batch.CELLS + listed)] = cell
    prefetch(functions, cell)
    return listed + 1


@jit
def _count_chain(
    served: NDArray[np.int64],
    functions: NDArray[np.int64],
    nodes: int,
    batch: NDArray[np.int64],
    run: int,
    region: int,
    regions: int,
    walks: int,
    overlap: int,
    listed: int,
) -> int:
    """Count what a run's walk read and its access, in place; the access with a store's overlap.

    What counts by function is listed in CELLS, and the host asked for it: the counts come once it
    had time to fetch them. Returns how many are listed by now.
    """
    kind, function = kind_of(batch[at(Batch.KEY + run)]), batch[at(Batch.FUNCTION + run)]
    last = batch[at(Batch.CHAIN + run)] if walks > 0 else run
    first = last - batch[at(Batch.READS + run)]
    batch[at(Batch.READS + run)] = 0
    for op in range(first, last):
        place = _place(nodes, batch[at(Batch.SERVED_BY + op)], overlap)
        level, access = batch[at(Batch.LEVEL + op)], kind + Access.FETCH_WALK
        served[at(_cell(regions, nodes, access, level, region) + place)] += 1
        if len(functions) > 0:
            listed = _list(
                functions, batch, listed, _function_cell(nodes, function, access) + place
            )
    by = batch[at(Batch.SERVED_BY + last)]
    place = _place(nodes, by, Overlap.OVERLAPPED.value if kind == Kind.STORE else overlap)
    served[at(_cell(regions, nodes, kind, 0, region) + place)] += 1
    if len(functions) > 0:
        _list(functions, batch, listed, _function_cell(nodes, function, kind) + place)
        listed += 1 if by >> NODE_BITS > Service.L1 else 0
    return listed


@jit_apart
def tally(
    served: NDArray[np.int64],
    functions: NDArray[np.int64],
    nodes: int,
    hits: NDArray[np.int64],
    pages: NDArray[np.int64],
    batch: NDArray[np.int64],
    size: int,
    walks: int,
    left: int,
    reorder_window: int,
) -> int:
    """Count what `front` counted wrong, in place; return what is left of the window."""
    since, listed = 0, 0
    regions = len(hits) // (Kind.STORE + 1)
    for word in range((size + MARKS - 1) >> MARK_BITS):
        marked, long = batch[at(Batch.MARKED + word)], batch[at(Batch.LONG + word)]
        batch[at(Batch.MARKED + word)], batch[at(Batch.LONG + word)] = 0, 0
        while marked != 0:
            run = word << MARK_BITS | lowest(marked)
            is_long = long >> lowest(marked) & 1 != 0
            marked &= marked - 1
            key, passed = batch[at(Batch.KEY + run)], batch[at(Batch.PASSED + run)]
            kind, region = kind_of(key), pages[at((page_of(key) << PAGE_BITS) + Of.REGION)]
            left = left_now(left, passed, since)
            since = passed
            overlap = overlap_of(kind, is_long, left)
            left = window_after(kind, is_long, overlap, left, reorder_window)
            hits[at(kind * regions + region)] -= 1
            listed = _count_chain(
                served, functions, nodes, batch, run, region, regions, walks, overlap, listed
            )
    for each in range(listed):
        functions[at(batch[at(Batch.CELLS + each)])] += 1
    return left_now(left, batch[at(Batch.PASSED + size)], since)


@jit
def _accesses(served: NDArray[np.int64], nodes: int, regions: int, kind: int) -> int:
    """Return how many accesses of a kind were served."""
    total = 0
    for cell in range(_cell(regions, nodes, kind, 0, 0), _cell(regions, nodes, kind, 1, 0)):
        total += served[at(cell)]
    return total


@jit_apart
def settle(
    served: NDArray[np.int64],
    events: NDArray[np.int64],
    nodes: int,
    node: int,
    hits: NDArray[np.int64],
) -> None:
    """Add L1 hits, which become 0, and what follows from the laws of `counts`; in place."""
    regions = len(hits) // (Kind.STORE + 1)
    by = served_by(Service.L1.value, node)
    for kind in range(Kind.STORE + 1):
        place = _place(nodes, by, overlap_of(kind, False, 0))
        for region in range(regions):
            cell = _cell(regions, nodes, kind, 0, region) + place
            served[at(cell)] += hits[at(kind * regions + region)]
            hits[at(kind * regions + region)] = 0
    fetches = _accesses(served, nodes, regions, Kind.FETCH.value)
    data = _accesses(served, nodes, regions, Kind.LOAD.value)
    data += _accesses(served, nodes, regions, Kind.STORE.value)
    events[Event.REFERENCES] = fetches + data
    events[Event.ITLB_HITS] = fetches - events[Event.ITLB_MISSES]
    events[Event.DTLB_HITS] = data - events[Event.DTLB_MISSES]
