"""One access through L1, L2 and the LLC: hits, fills, evictions, writebacks.

- L1I and L1D in front of a unified L2; L2 is neither inclusive nor exclusive of L1 (Haswell): an
  L1 miss fills both, an L2 eviction leaves L1 alone.
- The LLC is inclusive: evicting a line drops it from L1I, L1D and L2 (back-invalidation).
- Write-allocate, write-back. A store dirties the L1D copy. A dirty line evicted from L1D dirties
  the L2 copy, or the LLC's if L2 has none; one evicted from L2 dirties the LLC's. DRAM is written
  (WRITEBACKS) when a line leaves the LLC of which it, L2 or L1D held dirty data, and when another
  socket reads a dirty line. Evictions into a lower level never touch its recency.
- A store to a line that isn't dirty in L1D makes it exclusive first (see `coherence.own`); if it
  is, it's exclusive already.
- Fills go from the LLC inwards, so that back-invalidation happens before an inner victim is chosen.

Source: SDM vol. 3A 11.1 and the Optimization Reference Manual, Haswell cache hierarchy.
Assumed: an L1D victim whose line L2 has lost is not allocated in L2 again. Left out: L1I and L1D
of one core are not kept coherent (self-modifying code), uncached memory.

>>> import numpy as np
>>> cache = new_cache(offset=0, sets=1, ways=2)
>>> words, none = np.full(8, EMPTY), np.zeros(1, np.int64)
>>> words[:2] = 5 << FLAG_BITS, 7 << FLAG_BITS
>>> ahead = Ahead(*[none] * 7)
>>> view = View(words, none, none, none, 2, 0, 0, cache, cache, cache, cache, ahead, none, 0)
>>> bool(mark_dirty(view, cache, 7)), bool(mark_dirty(view, cache, 6)), (words[:2] & 1).tolist()
(True, False, [0, 1])
"""

from numarep.jit import jit, jit_apart, jit_within
from numarep.memory.ahead import recall
from numarep.memory.coherence import clean_above, drop_above, own, request
from numarep.memory.counts import Event, Service
from numarep.memory.recency import EMPTY, FLAG_BITS, find, push, touch
from numarep.memory.vector import LANES, at, prefetch
from numarep.memory.view import DIRTY, Ahead, Cache, View, new_cache, row_of

__all__ = [
    "Ahead",
    "access_l2",
    "expect",
    "make_exclusive",
    "mark_dirty",
    "new_cache",
    "prefetch_l2",
    "write_down",
]


@jit
def mark_dirty(view: View, cache: Cache, line: int) -> bool:
    """Flag a line dirty if the own cache holds it, in place; tell whether it does."""
    first = row_of(view, view.cpu, cache, line)
    way = find(view.words, first, cache.ways, line)
    if way < 0:
        return False
    view.words[at(first + way)] |= DIRTY
    return True


@jit_within
def make_exclusive(view: View, line: int, llc: int) -> None:
    """Make a line this socket holds, in the LLC row at `llc`, exclusive to it; in place."""
    if len(view.cpu_node) > 1:
        own(view, llc + find(view.words, llc, view.llc.ways, line), line)


@jit_within
def write_down(view: View, victim: int) -> None:
    """Put what L1D evicted where it belongs: dirty data into L2 or the LLC, in place."""
    if victim != EMPTY and victim & DIRTY:
        evicted = victim >> FLAG_BITS
        if not mark_dirty(view, view.l2, evicted):
            mark_dirty(view, view.llc, evicted)


@jit_within
def expect(view: View, line: int) -> int:
    """Have the host fetch the rows of L2 and the LLC where a line belongs; return the latter."""
    prefetch(view.words, row_of(view, view.cpu, view.l2, line))
    first = row_of(view, view.cpu, view.llc, line)
    prefetch(view.words, first)
    if view.llc.ways > LANES:
        prefetch(view.words, first + LANES)
        if view.llc.ways > 2 * LANES:
            prefetch(view.words, first + 2 * LANES)
    return first


@jit_within
def access_l2(view: View, line: int, write: bool, llc: int) -> tuple[int, int]:
    """Read a line, for a write or not, that L1 lacks; all but L1 is modified in place.

    `llc` is the first word of the line's row there.

    Returns
    -------
    service, node : int
        Which level served it, and on which node.
    """
    first = row_of(view, view.cpu, view.l2, line)
    way = find(view.words, first, view.l2.ways, line)
    if way >= 0:
        touch(view.words, first, view.l2.ways, way)
        return Service.L2.value, view.node
    return _fill_l2(view, line, write, first, llc)


@jit_within
def _fill_l2(view: View, line: int, write: bool, first: int, llc: int) -> tuple[int, int]:
    """Bring a line from beyond into its row of L2 at `first`, in place."""
    service, node = _access_llc(view, line, write, llc)
    victim = push(view.words, first, view.l2.ways, line << FLAG_BITS)
    if victim != EMPTY:
        view.events[Event.L2_EVICTIONS] += 1
        if victim & DIRTY:
            mark_dirty(view, view.llc, victim >> FLAG_BITS)
    return service, node


@jit_apart
def prefetch_l2(view: View, line: int) -> None:
    """Bring a line into L2 that nobody asked for, unless it is there; in place."""
    first = row_of(view, view.cpu, view.l2, line)
    if find(view.words, first, view.l2.ways, line) < 0:
        view.events[Event.PREFETCHES] += 1
        _fill_l2(view, line, False, first, row_of(view, view.cpu, view.llc, line))


@jit_within
def _access_llc(view: View, line: int, write: bool, first: int) -> tuple[int, int]:
    """Look up the LLC, in its row at `first`, for L2, filling it on a miss."""
    way = find(view.words, first, view.llc.ways, line)
    if way >= 0:
        touch(view.words, first, view.llc.ways, way)
        return Service.LLC.value, view.node
    service, node, state = request(view, line, write)
    victim = push(view.words, first, view.llc.ways, line << FLAG_BITS | state)
    if victim != EMPTY:
        _evict(view, victim)
    return service, node


@jit_within
def _evict(view: View, victim: int) -> None:
    """Drop an evicted LLC entry from the levels above, writing dirty data back; in place."""
    line = victim >> FLAG_BITS
    recall(view, line)
    if clean_above(view, view.cpu, line) or victim & DIRTY:
        view.events[Event.WRITEBACKS] += 1
    view.events[Event.LLC_EVICTIONS] += 1
    view.events[Event.BACK_INVALIDATIONS] += drop_above(view, view.cpu, line)
