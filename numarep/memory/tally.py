"""The last stage of a batch: interval analysis and the counts by level, node, region, function.

Most records hit the first TLB and L1, which can't open or close a window, and `front` has counted
them so. The others are visited here in order: how much of a window is left when one's turn comes
follows from the instructions passed since the one before (see `interval`).

>>> int(left_now(192, passed=100, since=20))
112
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart, jit_within
from numarep.memory.batch import (
    KIND_BITS,
    KIND_MASK,
    MARK_BITS,
    MARKS,
    NODE_BITS,
    Batch,
    served_by,
)
from numarep.memory.counts import Access, Event, Overlap, Service
from numarep.memory.front import PAGE_BITS, Of
from numarep.memory.interval import overlap_of, pass_instructions, window_after
from numarep.memory.kinds import Kind
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


@jit_within
def _count_walk(
    served: NDArray[np.int64],
    nodes: int,
    regions: int,
    region: int,
    batch: Batch,
    first: int,
    last: int,
    access: int,
    overlap: int,
) -> None:
    """Count what a chain's walk read, operations [first, last), in place."""
    for op in range(first, last):
        cell = _cell(regions, nodes, access, batch.level[at(op)], region)
        served[at(cell + _place(nodes, batch.served_by[at(op)], overlap))] += 1


@jit_within
def _list_function(
    functions: NDArray[np.int64],
    nodes: int,
    function: int,
    batch: Batch,
    listed: int,
    first: int,
    last: int,
    kind: int,
    overlap: int,
    own: int,
) -> int:
    """List where a chain's walk, and its access unless L1 served it, count for its function.

    The host is asked for what is listed in `batch.cells`; the counts come once it had time to
    fetch it. Returns how many are listed by now.
    """
    cell = _function_cell(nodes, function, kind + Access.FETCH_WALK)
    for op in range(first, last):
        batch.cells[at(listed)] = cell + _place(nodes, batch.served_by[at(op)], overlap)
        prefetch(functions, batch.cells[at(listed)])
        listed += 1
    by = batch.served_by[at(last)]
    batch.cells[at(listed)] = _function_cell(nodes, function, kind) + _place(nodes, by, own)
    prefetch(functions, batch.cells[at(listed)])
    return listed + (1 if by >> NODE_BITS > Service.L1 else 0)


@jit_within
def _is_long(batch: Batch, first: int, last: int, kind: int) -> bool:
    """Tell whether any part of a chain was served beyond L2, a store's own access set aside."""
    beyond = (Service.L2 + 1) << NODE_BITS
    is_long = (batch.served_by[at(last)] >= beyond) & (kind != Kind.STORE)
    for op in range(first, last):
        is_long |= batch.served_by[at(op)] >= beyond
    return bool(is_long)


@jit_apart
def tally(
    served: NDArray[np.int64],
    functions: NDArray[np.int64],
    nodes: int,
    hits: NDArray[np.int64],
    pages: NDArray[np.int64],
    batch: Batch,
    size: int,
    walks: int,
    left: int,
    reorder_window: int,
) -> int:
    """Count what `front` counted wrong, in place; return what is left of the window."""
    since, listed = 0, 0
    regions = len(hits) // (Kind.STORE + 1)
    for word in range((size + MARKS - 1) >> MARK_BITS):
        marked, batch.marked[word] = batch.marked[word], 0
        while marked != 0:
            record = word << MARK_BITS | lowest(marked)
            marked &= marked - 1
            what = batch.what[at(record)]
            kind, region = what & KIND_MASK, pages[at((what >> KIND_BITS << PAGE_BITS) + Of.REGION)]
            left = left_now(left, batch.passed[at(record)], since)
            since = batch.passed[at(record)]
            first = batch.chain[at(record)] if walks > 0 else record
            last = first + batch.reads[at(record)]
            batch.reads[at(record)] = 0
            is_long = _is_long(batch, first, last, kind)
            overlap = overlap_of(kind, is_long, left)
            left = window_after(kind, is_long, overlap, left, reorder_window)
            hits[at(kind * regions + region)] -= 1
            access = kind + Access.FETCH_WALK
            _count_walk(served, nodes, regions, region, batch, first, last, access, overlap)
            by = batch.served_by[at(last)]
            own = Overlap.OVERLAPPED.value if kind == Kind.STORE else overlap
            cell = _cell(regions, nodes, kind, 0, region)
            served[at(cell + _place(nodes, by, own))] += 1
            if len(functions) > 0:
                function = batch.function[at(record)]
                listed = _list_function(
                    functions, nodes, function, batch, listed, first, last, kind, overlap, own
                )
    for each in range(listed):
        functions[at(batch.cells[each])] += 1
    return left_now(left, batch.passed[at(size)], since)


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
