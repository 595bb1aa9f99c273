"""The second stage of a batch: for what missed the first TLB, the STLB and page-table walks.

Like the first stage it depends on pages alone, so the order of the records among each other is all
that matters. `spread` then makes room for what the walks read among the batch's operations.

>>> batch = new_batch()
>>> batch.ops[:2] = operation(7, 0, 0), operation(8, 1, 2)
>>> batch.reads[0], batch.walks[0], batch.walk_line[:2] = 2, 0, (70, 80)
>>> int(spread(batch, 2, 1)), [line_of(op) for op in batch.ops[:4].tolist()]
(4, [70, 80, 7, 8])
>>> batch.chain[:2].tolist()
[0, 3]
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit_apart, jit_within
from numarep.memory.batch import KIND_BITS, KIND_MASK, Batch, line_of, mark, new_batch, operation
from numarep.memory.counts import Event
from numarep.memory.front import NONE, PAGE_BITS, WAYS_BITS, Of, ways_of
from numarep.memory.kinds import Kind
from numarep.memory.tlb import OWNER_BITS, OWNERS, lookup_or_fill
from numarep.memory.vector import at, prefetch
from numarep.memory.view import View
from numarep.memory.walk import walk
from numarep.units import MAX_LEVELS

__all__ = ["line_of", "new_batch", "spread", "translate"]


@jit_within
def _far(view: View, pages: NDArray[np.int64], batch: Batch, missed: int) -> int:
    """Look up in the STLB what missed, in place; return how many pages must be walked for."""
    walks, fetches, fetch_walks = 0, 0, 0
    base = view.cpu * view.stride
    for each in range(missed):
        record = batch.missed[each]
        what = batch.what[at(record)]
        is_fetch = 1 if what & KIND_MASK == Kind.FETCH else 0
        page = what >> KIND_BITS << PAGE_BITS
        prefetch(pages, page + Of.VPN)
        place, owners = pages[at(page + Of.STLB)], pages[at(page + Of.OWNERS)]
        is_hit = False
        if place != NONE:
            first, key = base + (place >> WAYS_BITS), pages[at(page + Of.DATA_KEY)]
            root, owner = owners >> OWNER_BITS, owners & (OWNERS - 1)
            is_hit = lookup_or_fill(view.words, first, ways_of(place), key, root, owner)
        batch.walks[at(walks)] = record
        walks += 0 if is_hit else 1
        fetches += is_fetch
        fetch_walks += 0 if is_hit else is_fetch
    events = view.events
    events[Event.ITLB_MISSES] += fetches
    events[Event.DTLB_MISSES] += missed - fetches
    events[Event.FETCH_WALKS] += fetch_walks
    events[Event.DATA_WALKS] += walks - fetch_walks
    events[Event.STLB_FETCH_HITS] += fetches - fetch_walks
    events[Event.STLB_DATA_HITS] += missed - fetches - (walks - fetch_walks)
    return walks


@jit_apart
def translate(
    view: View,
    tlbs: NDArray[np.int64],
    pages: NDArray[np.int64],
    batch: Batch,
    missed: int,
) -> int:
    """Translate what missed the first TLB; TLBs, PSCs, events and batch are modified in place.

    Returns
    -------
    int
        Number of walks.
    """
    walks = _far(view, pages, batch, missed)
    for each in range(walks):
        record = batch.walks[each]
        page = batch.what[at(record)] >> KIND_BITS << PAGE_BITS
        vpn, leaf = pages[at(page + Of.VPN)], pages[at(page + Of.LEAF)]
        root = pages[at(page + Of.OWNERS)] >> OWNER_BITS
        batch.reads[at(record)] = walk(
            *(view, tlbs, vpn, leaf, root, pages, page + Of.TABLE),
            *(batch.walk_line, batch.walk_level, each * MAX_LEVELS),
        )
        mark(batch, record)
    return walks


@jit_apart
def spread(batch: Batch, size: int, walks: int) -> int:
    """Insert what walks read before the operations they are for, in place; return how many."""
    ops = 0
    for record in range(size):
        batch.chain[record] = ops
        ops += batch.reads[record] + 1
    # From the last record back, so that no operation is overwritten before it has moved.
    each = walks - 1
    for record in range(size - 1, -1, -1):
        first, reads = batch.chain[record], batch.reads[record]
        batch.ops[at(first + reads)] = batch.ops[record]
        if reads == 0:
            continue
        for read in range(reads):
            line = batch.walk_line[at(each * MAX_LEVELS + read)]
            batch.ops[at(first + read)] = operation(line, record, Kind.LOAD)
            batch.level[at(first + read)] = batch.walk_level[at(each * MAX_LEVELS + read)]
        each -= 1
    return ops
