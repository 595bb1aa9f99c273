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
from numarep.memory.vector import at, choose, lowest, prefetch
from numarep.units import MAX_LEVELS

ACCESSES, SERVICES, OVERLAPS = len(Access), len(Service), len(Overlap)
NODE_MASK = (1 << NODE_BITS) - 1


@jit
def left_now(left: int, passed: int, since: int) -> int:
    """Return what is left of a window that had `left` when `since` instructions had passed."""
    return pass_instructions(left, passed - since)


@jit
def region_of(pages: NDArray[np.int64], key: int) -> int:
    """Return the region of a run's page."""
    return int(pages[at((page_of(key) << PAGE_BITS) + Of.REGION)])


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
def _count(
    served: NDArray[np.int64],
    functions: NDArray[np.int64],
    nodes: int,
    regions: int,
    batch: NDArray[np.int64],
    op: int,
    access: int,
    level: int,
    region: int,
    function: int,
    overlap: int,
    listed: int,
) -> int:
    """Count an operation, in place.

    What counts by function is listed in CELLS, and the host asked for it: the counts come once it
    had time to fetch them. Returns how many are listed by now.
    """
    by = batch[at(Batch.SERVED_BY + op)]
    place = _place(nodes, by, overlap)
    served[at(_cell(regions, nodes, access, level, region) + place)] += 1
    if len(functions) == 0:
        return listed
    cell = _function_cell(nodes, function, access) + place
    batch[at(Batch.CELLS + listed)] = cell
    prefetch(functions, cell)
    # Not a run's hit in L1, of which the counts by function know nothing.
    return listed + (1 if level > 0 or by >> NODE_BITS > Service.L1 else 0)


@jit
def _count_walks(
    served: NDArray[np.int64],
    functions: NDArray[np.int64],
    nodes: int,
    regions: int,
    pages: NDArray[np.int64],
    batch: NDArray[np.int64],
    walks: int,
    listed: int,
) -> int:
    """Count what walks read, in place; return how many counts by function are listed by now."""
    shift = 0
    for each in range(walks):
        run = batch[at(Batch.WALKS + each)]
        key, function = batch[at(Batch.KEY + run)], batch[at(Batch.FUNCTION + run)]
        region, overlap = region_of(pages, key), batch[at(Batch.OVERLAP + run)]
        first, reads = run + shift, batch[at(Batch.READS + run)]
        batch[at(Batch.READS + run)] = 0
        access = kind_of(key) + Access.FETCH_WALK
        for op in range(first, first + reads):
            level = batch[at(Batch.LEVEL + op)]
            listed = _count(
                *(served, functions, nodes, regions, batch, op),
                *(access, level, region, function, overlap, listed),
            )
        shift += reads
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
    since, listed, shift = 0, 0, 0
    regions = len(hits) // (Kind.STORE + 1)
    for word in range((size + MARKS - 1) >> MARK_BITS):
        marks = batch[at(Batch.MARKED + word)]
        batch[at(Batch.MARKED + word)] = 0
        marked, long = marks & ((1 << MARKS) - 1), marks >> MARKS
        while marked != 0:
            run = word << MARK_BITS | lowest(marked)
            is_long = long >> lowest(marked) & 1
            marked &= marked - 1
            key, passed = batch[at(Batch.KEY + run)], batch[at(Batch.PASSED + run)]
            kind, region = kind_of(key), region_of(pages, key)
            left = left_now(left, passed, since)
            since = passed
            overlap = overlap_of(kind, is_long, left)
            left = window_after(kind, is_long, overlap, left, reorder_window)
            batch[at(Batch.OVERLAP + run)] = overlap
            hits[at(kind * regions + region)] -= 1
            shift += batch[at(Batch.READS + run)]
            own = choose(1 if kind == Kind.STORE else 0, Overlap.OVERLAPPED.value, overlap)
            function = batch[at(Batch.FUNCTION + run)]
            listed = _count(
                *(served, functions, nodes, regions, batch, run + shift),
                *(kind, 0, region, function, own, listed),
            )
    listed = _count_walks(served, functions, nodes, regions, pages, batch, walks, listed)
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
        place = _place(nodes, by, overlap_of(kind, 0, 0))
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
