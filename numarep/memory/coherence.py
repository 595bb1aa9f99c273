"""Coherence between sockets: who answers an LLC miss, and what a store takes away.

MESIF over inclusive LLCs (see `view` for the states). On an LLC miss the other sockets' LLCs are
probed. If one holds the line exclusively or in FORWARD, it forwards it (REMOTE_LLC); at most one
can. If all holders are merely SHARED (the forwarder evicted its copy silently), or nobody holds
it, the home node's memory serves it (DRAM).

- A load leaves every former holder SHARED and makes the reader FORWARD (or exclusive, if alone);
  a dirty copy is written back to DRAM.
- A store drops all other copies, upper levels included; dirty data moves to the writer unwritten.
- A store to a line the own LLC held, but not exclusively, drops the others too: an upgrade.

Snoops never touch recency. Source: Goodman and Hum, "MESIF: A Two-Hop Cache Coherency Protocol"
(2009). Assumed: evictions of clean lines are silent.

>>> import numpy as np
>>> cache = new_cache(offset=0, sets=1, ways=2)
>>> words = np.full(8, -1)
>>> words[0] = 5 << FLAG_BITS | DIRTY
>>> none = np.zeros(1, np.int64)
>>> ahead = Ahead(*[none] * 7)
>>> view = View(words, none, none, none, 8, 0, 0, cache, cache, cache, cache, ahead, none, 0)
>>> int(_clean(view, 0, cache, 5)), int(_clean(view, 0, cache, 5))
(1, 0)
>>> int(_drop(view, 0, cache, 5)), int(_drop(view, 0, cache, 5))
(1, 0)
"""

from numarep.jit import jit, jit_apart, jit_within
from numarep.memory.counts import Event, Service
from numarep.memory.recency import FLAG_BITS, drop, find
from numarep.memory.view import (
    DIRTY,
    FORWARD,
    SHARED,
    Ahead,
    Cache,
    View,
    home_of,
    new_cache,
    row_of,
)

ABSENT = -1

__all__ = ["Ahead", "clean_above", "drop_above", "new_cache", "own", "request"]


@jit
def _drop(view: View, cpu: int, cache: Cache, line: int) -> int:
    """Drop a line from a CPU's cache, in place; return 1 if it was there, else 0."""
    first = row_of(view, cpu, cache, line)
    way = find(view.words, first, cache.ways, line)
    if way < 0:
        return 0
    drop(view.words, first, cache.ways, way)
    return 1


@jit
def _clean(view: View, cpu: int, cache: Cache, line: int) -> int:
    """Clear a line's DIRTY flag in a CPU's cache, in place; return 1 if it was set, else 0."""
    first = row_of(view, cpu, cache, line)
    way = find(view.words, first, cache.ways, line)
    if way < 0 or not view.words[first + way] & DIRTY:
        return 0
    view.words[first + way] &= ~DIRTY
    return 1


@jit_apart
def clean_above(view: View, cpu: int, line: int) -> int:
    """Clear a line's DIRTY flags in L1D and L2 of a CPU, in place; return how many were set."""
    return _clean(view, cpu, view.l1d, line) + _clean(view, cpu, view.l2, line)


@jit_apart
def drop_above(view: View, cpu: int, line: int) -> int:
    """Drop a line from L1I, L1D and L2 of a CPU, in place; return the number of copies."""
    copies = _drop(view, cpu, view.l1i, line) + _drop(view, cpu, view.l1d, line)
    return copies + _drop(view, cpu, view.l2, line)


@jit_apart
def _downgrade(view: View, other: int, word: int, line: int) -> None:
    """Leave another socket's copy clean and SHARED, writing dirty data back; in place."""
    if clean_above(view, other, line) or view.words[word] & DIRTY:
        view.events[Event.WRITEBACKS] += 1
    view.words[word] = line << FLAG_BITS | SHARED


@jit_apart
def _take(view: View, other: int, first: int, way: int, line: int) -> None:
    """Drop another socket's copy and all above it, in place."""
    drop(view.words, first, view.llc.ways, way)
    drop_above(view, other, line)
    view.events[Event.REMOTE_INVALIDATIONS] += 1


@jit_within
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
    forwarder = ABSENT
    state = 0
    for other in range(len(view.cpu_node)):
        if other == view.cpu:
            continue
        first = row_of(view, other, view.llc, line)
        way = find(view.words, first, view.llc.ways, line)
        if way < 0:
            continue
        if not view.words[first + way] & SHARED:
            forwarder = other
        if write:
            _take(view, other, first, way, line)
        else:
            state = FORWARD
            _downgrade(view, other, first + way, line)
    if forwarder == ABSENT:
        return Service.DRAM.value, home_of(line, view.node_end_pfn), state
    return Service.REMOTE_LLC.value, view.cpu_node[forwarder], state


@jit_within
def own(view: View, word: int, line: int) -> None:
    """Make the own LLC's entry at `word` exclusive before a store, in place."""
    if not view.words[word] & (SHARED | FORWARD):
        return
    view.words[word] = line << FLAG_BITS
    view.events[Event.UPGRADES] += 1
    for other in range(len(view.cpu_node)):
        if other != view.cpu:
            first = row_of(view, other, view.llc, line)
            way = find(view.words, first, view.llc.ways, line)
            if way >= 0:
                _take(view, other, first, way, line)
