"""One access through L1, L2 and the LLC: hits, fills, evictions, writebacks.

- L1I and L1D in front of a unified L2; L2 is neither inclusive nor exclusive of L1 (Haswell): an
  L1 miss fills both, an L2 eviction leaves L1 alone.
- The LLC is inclusive: evicting a line drops it from L1I, L1D and L2 (back-invalidation).
- Write-allocate, write-back. A store dirties the L1D copy. A dirty line evicted from L1D dirties
  the L2 copy, or the LLC's if L2 has none; one evicted from L2 dirties the LLC's. DRAM is written
  (WRITEBACKS) when a line leaves the LLC of which it, L2 or L1D held dirty data, and when another
  socket reads a dirty line. Evictions into a lower level never touch its recency.
- Fills go from the LLC inwards, so that back-invalidation happens before an inner victim is chosen.

Source: SDM vol. 3A 11.1 and the Optimization Reference Manual, Haswell cache hierarchy.
Assumed: an L1D victim whose line L2 has lost is not allocated in L2 again. Left out: L1I and L1D
of one core are not kept coherent (self-modifying code), prefetchers, uncached memory.

>>> rows = np.array([[5 << FLAG_BITS, 7 << FLAG_BITS]])
>>> bool(mark_dirty(rows, 7)), bool(mark_dirty(rows, 6)), (rows[0] & DIRTY).tolist()
(True, False, [0, 1])
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.coherence import drop_above, is_dirty_above, own, request
from numarep.memory.counts import Event, Service
from numarep.memory.recency import EMPTY, FLAG_BITS, find, push, touch
from numarep.memory.view import DIRTY, View


@jit
def mark_dirty(rows: NDArray[np.int64], line: int) -> bool:
    """Flag a line dirty if the cache holds it, in place; tell whether it does."""
    row = line % rows.shape[0]
    way = find(rows, row, line)
    if way >= 0:
        rows[row, way] |= DIRTY
    return way >= 0


@jit
def access(view: View, l1: NDArray[np.int64], line: int, write: bool) -> tuple[int, int]:
    """Read or write a line through `l1` (L1I or L1D); caches and events are modified in place.

    Returns
    -------
    service, node : int
        Which level served it, and on which node.
    """
    row = line % l1.shape[0]
    way = find(l1, row, line)
    if way >= 0:
        if way > 0:
            touch(l1, row, way)
        if write and not l1[row, 0] & DIRTY:
            _own_hit(view, line)
            l1[row, 0] |= DIRTY
        return Service.L1.value, view.node
    return _fill_l1(view, l1, line, write)


@jit
def _own_hit(view: View, line: int) -> None:
    """Make a line that L1D or L2 holds exclusive to this socket, in place."""
    if len(view.cpu_node) > 1:
        row = line % view.llc.shape[0]
        own(view, row, find(view.llc, row, line), line)


@jit
def _fill_l1(view: View, l1: NDArray[np.int64], line: int, write: bool) -> tuple[int, int]:
    """Serve an L1 miss and fill L1."""
    service, node = _access_l2(view, line, write)
    victim = push(l1, line % l1.shape[0], line << FLAG_BITS | int(write))
    if victim != EMPTY and victim & DIRTY:
        evicted = victim >> FLAG_BITS
        if not mark_dirty(view.l2, evicted):
            mark_dirty(view.llc, evicted)
    return service, node


@jit
def _access_l2(view: View, line: int, write: bool) -> tuple[int, int]:
    """Look up L2 for L1, filling it on a miss."""
    row = line % view.l2.shape[0]
    way = find(view.l2, row, line)
    if way >= 0:
        touch(view.l2, row, way)
        if write:
            _own_hit(view, line)
        return Service.L2.value, view.node
    service, node = _access_llc(view, line, write)
    victim = push(view.l2, row, line << FLAG_BITS)
    if victim != EMPTY:
        view.events[Event.L2_EVICTIONS] += 1
        if victim & DIRTY:
            mark_dirty(view.llc, victim >> FLAG_BITS)
    return service, node


@jit
def _access_llc(view: View, line: int, write: bool) -> tuple[int, int]:
    """Look up the LLC for L2, filling it on a miss."""
    row = line % view.llc.shape[0]
    way = find(view.llc, row, line)
    if way >= 0:
        touch(view.llc, row, way)
        if write:
            own(view, row, 0, line)
        return Service.LLC.value, view.node
    service, node, state = request(view, line, write)
    victim = push(view.llc, row, line << FLAG_BITS | state)
    if victim != EMPTY:
        _evict(view, victim)
    return service, node


@jit
def _evict(view: View, victim: int) -> None:
    """Drop an evicted LLC entry from the levels above, writing dirty data back; in place."""
    line = victim >> FLAG_BITS
    dirty_above = is_dirty_above(view.caches, view.cpu, line)
    if dirty_above or victim & DIRTY:
        view.events[Event.WRITEBACKS] += 1
    view.events[Event.LLC_EVICTIONS] += 1
    view.events[Event.BACK_INVALIDATIONS] += drop_above(view.caches, view.cpu, line)
