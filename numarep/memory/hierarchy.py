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
of one core are not kept coherent (self-modifying code), prefetchers, uncached memory.

>>> import numpy as np
>>> cache = Cache(offset=0, sets=1, ways=2, mask=0)
>>> words, none = np.array([5 << FLAG_BITS, 7 << FLAG_BITS]), np.zeros(1, np.int64)
>>> view = View(words, none, none, none, 2, 0, 0, cache, cache, cache, cache)
>>> bool(mark_dirty(view, cache, 7)), bool(mark_dirty(view, cache, 6)), (words & DIRTY).tolist()
(True, False, [0, 1])
"""

from numarep.jit import jit
from numarep.memory.coherence import clean_above, drop_above, own, request
from numarep.memory.counts import Event, Service
from numarep.memory.recency import EMPTY, FLAG_BITS, find, push, touch
from numarep.memory.view import DIRTY, Cache, View, row_of


@jit
def mark_dirty(view: View, cache: Cache, line: int) -> bool:
    """Flag a line dirty if the own cache holds it, in place; tell whether it does."""
    first = row_of(view, view.cpu, cache, line)
    way = find(view.words, first, cache.ways, line)
    if way < 0:
        return False
    view.words[first + way] |= DIRTY
    return True


@jit
def access(view: View, l1: Cache, line: int, write: bool) -> tuple[int, int]:
    """Read or write a line through `l1` (L1I or L1D); caches and events are modified in place.

    Returns
    -------
    service, node : int
        Which level served it, and on which node.
    """
    first = row_of(view, view.cpu, l1, line)
    way = find(view.words, first, l1.ways, line)
    service, node = Service.L1.value, view.node
    if way > 0:
        touch(view.words, first, way)
    elif way < 0:
        service, node = _access_l2(view, line, write)
        _fill_l1(view, l1, first, line)
    if write and not view.words[first] & DIRTY:
        _own(view, line)
        view.words[first] |= DIRTY
    return service, node


@jit
def _own(view: View, line: int) -> None:
    """Make a line this socket holds exclusive to it, in place."""
    if len(view.cpu_node) > 1:
        first = row_of(view, view.cpu, view.llc, line)
        own(view, first + find(view.words, first, view.llc.ways, line), line)


@jit
def _fill_l1(view: View, l1: Cache, first: int, line: int) -> None:
    """Fill a line into its row of L1, in place."""
    victim = push(view.words, first, l1.ways, line << FLAG_BITS)
    if victim != EMPTY and victim & DIRTY:
        evicted = victim >> FLAG_BITS
        if not mark_dirty(view, view.l2, evicted):
            mark_dirty(view, view.llc, evicted)


@jit
def _access_l2(view: View, line: int, write: bool) -> tuple[int, int]:
    """Look up L2 for L1, filling it on a miss."""
    first = row_of(view, view.cpu, view.l2, line)
    way = find(view.words, first, view.l2.ways, line)
    if way >= 0:
        touch(view.words, first, way)
        return Service.L2.value, view.node
    service, node = _access_llc(view, line, write)
    victim = push(view.words, first, view.l2.ways, line << FLAG_BITS)
    if victim != EMPTY:
        view.events[Event.L2_EVICTIONS] += 1
        if victim & DIRTY:
            mark_dirty(view, view.llc, victim >> FLAG_BITS)
    return service, node


@jit
def _access_llc(view: View, line: int, write: bool) -> tuple[int, int]:
    """Look up the LLC for L2, filling it on a miss."""
    first = row_of(view, view.cpu, view.llc, line)
    way = find(view.words, first, view.llc.ways, line)
    if way >= 0:
        touch(view.words, first, way)
        return Service.LLC.value, view.node
    service, node, state = request(view, line, write)
    victim = push(view.words, first, view.llc.ways, line << FLAG_BITS | state)
    if victim != EMPTY:
        _evict(view, victim)
    return service, node


@jit
def _evict(view: View, victim: int) -> None:
    """Drop an evicted LLC entry from the levels above, writing dirty data back; in place."""
    line = victim >> FLAG_BITS
    if clean_above(view, view.cpu, line) or victim & DIRTY:
        view.events[Event.WRITEBACKS] += 1
    view.events[Event.LLC_EVICTIONS] += 1
    view.events[Event.BACK_INVALIDATIONS] += drop_above(view, view.cpu, line)
