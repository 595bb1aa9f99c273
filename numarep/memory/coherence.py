"""Coherence between sockets: who answers an LLC miss, and what a store takes away.

MESIF over inclusive LLCs (see `view` for the states). On an LLC miss the other sockets' LLCs are
probed. If one holds the line exclusively or in FORWARD, it forwards it (REMOTE_LLC); at most one
can. If all holders are merely SHARED (the forwarder evicted its copy silently), or nobody holds
it, the home node's memory serves it (DRAM).

- A load leaves every former holder SHARED and makes the reader FORWARD (or exclusive, if alone);
  a dirty copy is written back to DRAM.
- A store drops all other copies, upper levels included; dirty data moves to the writer unwritten.
- A store hit on a line that isn't exclusive drops the others too and counts an upgrade.

Snoops never touch recency. Source: Goodman and Hum, "MESIF: A Two-Hop Cache Coherency Protocol"
(2009). Assumed: evictions of clean lines are silent; the upper levels are not told apart (a snoop
cleans or drops L1I, L1D and L2 together).

>>> from numarep.memory import recency
>>> rows = np.array([[5 << FLAG_BITS | DIRTY, recency.EMPTY]])
>>> bool(_clean(rows, 5)), bool(_clean(rows, 5)), bool(_drop(rows, 5)), bool(_drop(rows, 5))
(True, False, True, False)
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.counts import Event, Service
from numarep.memory.recency import FLAG_BITS, drop, find
from numarep.memory.view import DIRTY, FORWARD, SHARED, Caches, View, home_of

ABSENT = -1


@jit
def _drop(rows: NDArray[np.int64], line: int) -> bool:
    """Drop a line from a cache if it's there, in place; tell whether it was."""
    row = line % rows.shape[0]
    way = find(rows, row, line)
    if way >= 0:
        drop(rows, row, way)
    return way >= 0


@jit
def _clean(rows: NDArray[np.int64], line: int) -> bool:
    """Clear a line's DIRTY flag if it's there, in place; tell whether it was dirty."""
    row = line % rows.shape[0]
    way = find(rows, row, line)
    if way < 0 or not rows[row, way] & DIRTY:
        return False
    rows[row, way] &= ~DIRTY
    return True


@jit
def is_dirty_above(caches: Caches, cpu: int, line: int) -> bool:
    """Tell whether L1D or L2 of a CPU holds a dirty copy, clearing it in place."""
    in_l1d = _clean(caches.l1d[cpu], line)
    in_l2 = _clean(caches.l2[cpu], line)
    return in_l1d or in_l2


@jit
def drop_above(caches: Caches, cpu: int, line: int) -> int:
    """Drop a line from L1I, L1D and L2 of a CPU, in place; return the number of copies."""
    copies = int(_drop(caches.l1i[cpu], line))
    copies += int(_drop(caches.l1d[cpu], line))
    return copies + int(_drop(caches.l2[cpu], line))


@jit
def _downgrade(view: View, other: int, row: int, way: int, line: int) -> None:
    """Leave another socket's copy clean and SHARED, writing dirty data back; in place."""
    llc = view.caches.llc[other]
    dirty_above = is_dirty_above(view.caches, other, line)
    if dirty_above or llc[row, way] & DIRTY:
        view.events[Event.WRITEBACKS] += 1
    llc[row, way] = line << FLAG_BITS | SHARED


@jit
def _take(view: View, other: int, row: int, way: int, line: int) -> None:
    """Drop another socket's copy and all above it, in place."""
    drop(view.caches.llc[other], row, way)
    drop_above(view.caches, other, line)
    view.events[Event.REMOTE_INVALIDATIONS] += 1


@jit
def request(view: View, line: int, write: bool) -> tuple[int, int, int]:
    """Serve an LLC miss; other sockets' caches are modified in place.

    Returns
    -------
    service : int
        REMOTE_LLC or DRAM.
    node : int
        The forwarding node, or the line's home.
    state : int
        Flags the requesting LLC fills the line with: 0 (exclusive) or FORWARD.
    """
    row = line % view.llc.shape[0]
    forwarder = ABSENT
    is_shared = False
    for other in range(len(view.cpu_node)):
        if other == view.cpu:
            continue
        llc = view.caches.llc[other]
        way = find(llc, row, line)
        if way < 0:
            continue
        if not llc[row, way] & SHARED:
            forwarder = other
        if write:
            _take(view, other, row, way, line)
        else:
            is_shared = True
            _downgrade(view, other, row, way, line)
    state = FORWARD if is_shared else 0
    if forwarder == ABSENT:
        return Service.DRAM.value, home_of(line, view.node_end_pfn), state
    return Service.REMOTE_LLC.value, int(view.cpu_node[forwarder]), state


@jit
def own(view: View, row: int, way: int, line: int) -> None:
    """Make the line at `way` of the own LLC exclusive before a store, in place."""
    if not view.llc[row, way] & (SHARED | FORWARD):
        return
    view.llc[row, way] = line << FLAG_BITS
    view.events[Event.UPGRADES] += 1
    for other in range(len(view.cpu_node)):
        if other != view.cpu:
            theirs = find(view.caches.llc[other], row, line)
            if theirs >= 0:
                _take(view, other, row, theirs, line)
