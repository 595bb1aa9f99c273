"""The second stage of a batch: the STLB and page-table walks for what missed the first TLB.

Like the first stage it depends on pages alone, so the order of the records among each other is all
that matters. It lists the batch's operations: every run's own access, after what its walk reads.

>>> batch = new_batch()
>>> batch[Batch.ACCESS : Batch.ACCESS + 12] = 30 + np.arange(12)
>>> _move(batch, start=2, stop=12, shift=3)
>>> [int(op) for op in batch[Batch.OP + 5 : Batch.OP + 15]]
[32, 33, 34, 35, 36, 37, 38, 39, 40, 41]
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.batch import Batch, kind_of, mark, new_batch, page_of
from numarep.memory.counts import Event
from numarep.memory.kinds import Kind
from numarep.memory.pages import NONE, PAGE_BITS, WAYS_BITS, Of, ways_of
from numarep.memory.tlb import lookup_or_fill
from numarep.memory.vector import LANES, at, choose, copy, prefetch
from numarep.memory.view import View
from numarep.memory.walk import walk

__all__ = ["new_batch", "translate"]


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
        is_walk = 1
        if place != NONE:
            entry, root = pages[at(page + Of.DATA_ENTRY)], pages[at(page + Of.ROOT)]
            first = place >> WAYS_BITS
            is_hit = lookup_or_fill(view.words, first, ways_of(place), entry, root)
            is_walk = choose(1 if is_hit else 0, 0, 1)
        batch[at(Batch.WALKS + walks)] = run
        walks += is_walk
        fetches += is_fetch
        fetch_walks += is_walk & is_fetch
    events = view.events
    events[Event.ITLB_MISSES] += fetches
    events[Event.DTLB_MISSES] += missed - fetches
    events[Event.FETCH_WALKS] += fetch_walks
    events[Event.DATA_WALKS] += walks - fetch_walks
    events[Event.STLB_FETCH_HITS] += fetches - fetch_walks
    events[Event.STLB_DATA_HITS] += missed - fetches - (walks - fetch_walks)
    return walks


@jit
def _move(batch: NDArray[np.int64], start: int, stop: int, shift: int) -> None:
    """List the own accesses of runs [start, stop) as operations, `shift` places on; in place."""
    for run in range(start, stop, LANES):  # what is copied beyond `stop` comes later again
        copy(batch, Batch.OP + run + shift, Batch.ACCESS + run)


@jit_apart
def translate(
    view: View,
    tlbs: NDArray[np.int64],
    pages: NDArray[np.int64],
    batch: NDArray[np.int64],
    size: int,
    missed: int,
) -> tuple[int, int]:
    """Translate what missed the first TLB; TLBs, PSCs, events and batch are modified in place.

    Returns
    -------
    walks, ops : int
        Number of walks and of operations.
    """
    walks = _far(view, pages, batch, missed)
    moved, shift = 0, 0
    for each in range(walks):
        run = batch[at(Batch.WALKS + each)]
        _move(batch, moved, run, shift)
        page = page_of(batch[at(Batch.KEY + run)]) << PAGE_BITS
        vpn, leaf = pages[at(page + Of.VPN)], pages[at(page + Of.LEAF)]
        reads = walk(
            *(view, tlbs, vpn, leaf, pages[at(page + Of.ROOT)], pages, page + Of.TABLE),
            *(batch, run, run + shift),
        )
        batch[at(Batch.READS + run)] = reads
        mark(batch, run, 0)
        moved, shift = run, shift + reads
    _move(batch, moved, size, shift)
    return walks, size + shift
