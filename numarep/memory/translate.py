"""The second stage of a batch: for what missed the first TLB, the STLB and page-table walks.

Like the first stage it depends on pages alone, so the order of the records among each other is all
that matters. `spread` then makes room for what the walks read among the batch's operations.

>>> batch = new_batch()
>>> batch[Batch.OP : Batch.OP + 2] = operation(7, 0, 0), operation(8, 1, 2)
>>> batch[Batch.WALKS], batch[Batch.READS] = 0, 2  # the first run's walk read two entries
>>> batch[Batch.WALK_LINE : Batch.WALK_LINE + 2] = 70, 80
>>> int(spread(batch, 2, 1)), [line_of(op) for op in batch[Batch.OP : Batch.OP + 4].tolist()]
(4, [70, 80, 7, 8])
>>> batch[Batch.CHAIN : Batch.CHAIN + 2].tolist()
[2, 3]
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.batch import Batch, kind_of, line_of, mark, new_batch, operation, page_of
from numarep.memory.counts import Event
from numarep.memory.kinds import Kind
from numarep.memory.pages import NONE, PAGE_BITS, WAYS_BITS, Of, ways_of
from numarep.memory.tlb import lookup_or_fill
from numarep.memory.vector import at, prefetch
from numarep.memory.view import View
from numarep.memory.walk import walk
from numarep.units import MAX_LEVELS

__all__ = ["line_of", "new_batch", "spread", "translate"]


@jit
def _far(view: View, pages: NDArray[np.int64], batch: NDArray[np.int64], missed: int) -> int:
    """Look up in the STLB what missed, in place; return how many pages must be walked for."""
    walks, fetches, fetch_walks = 0, 0, 0
    for each in range(missed):
        run = batch[at(Batch.MISSED + each)]
        key = batch[at(Batch.KEY + run)]
        is_fetch = 1 if kind_of(key) == Kind.FETCH else 0
        page = page_of(key) << PAGE_BITS
        prefetch(pages, page + Of.VPN)
        place = pages[at(page + Of.STLB)]
        is_hit = False
        if place != NONE:
            entry, root = pages[at(page + Of.DATA_ENTRY)], pages[at(page + Of.ROOT)]
            first = place >> WAYS_BITS
            is_hit = lookup_or_fill(view.words, first, ways_of(place), entry, root)
        batch[at(Batch.WALKS + walks)] = run
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
    batch: NDArray[np.int64],
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
        run = batch[at(Batch.WALKS + each)]
        page = page_of(batch[at(Batch.KEY + run)]) << PAGE_BITS
        vpn, leaf = pages[at(page + Of.VPN)], pages[at(page + Of.LEAF)]
        batch[at(Batch.READS + run)] = walk(
            *(view, tlbs, vpn, leaf, pages[at(page + Of.ROOT)], pages, page + Of.TABLE),
            *(batch, each * MAX_LEVELS),
        )
        mark(batch, run, 0)
    return walks


@jit_apart
def spread(batch: NDArray[np.int64], size: int, walks: int) -> int:
    """Insert what walks read before the operations they are for, in place; return how many."""
    ops = size
    for each in range(walks):
        ops += batch[at(Batch.READS + batch[at(Batch.WALKS + each)])]
    # From the last walk back, so that no operation is overwritten before it has moved.
    end, shift = size, ops - size
    for each in range(walks - 1, -1, -1):
        run = batch[at(Batch.WALKS + each)]
        for later in range(end - 1, run - 1, -1):
            batch[at(Batch.OP + later + shift)] = batch[at(Batch.OP + later)]
            batch[at(Batch.CHAIN + later)] = later + shift
        reads = batch[at(Batch.READS + run)]
        shift -= reads
        for read in range(reads):
            entry, op = each * MAX_LEVELS + read, run + shift + read
            batch[at(Batch.OP + op)] = operation(batch[at(Batch.WALK_LINE + entry)], run, Kind.LOAD)
            batch[at(Batch.LEVEL + op)] = batch[at(Batch.WALK_LEVEL + entry)]
        end = run
    for run in range(end):
        batch[at(Batch.CHAIN + run)] = run
    return ops
