"""A victim LLC and its snoop filter: what leaves the L2s goes in, what they need goes out.

- What L1 and L2 miss is looked up in the filter and the LLC at once. Memory and other LLCs fill L2
  past the LLC. The filter then has an entry, as recent as the access: it holds just the lines of
  its CPUs' L2s.
- A line that only the LLC holds moves out of it into L2, dirty data and right with it. One that
  other cores hold, too: if one of them owns it, that core is asked (PEER, see `coherence`), and
  what it changed goes into the LLC if a load asked, to the writer if a store did; else the LLC
  serves it if it has a copy, which stays; else the first core that holds it does (PEER).
- What L2 evicts, clean or dirty, is allocated in the LLC, as the most recent of its row; a copy
  that is there already takes the dirty data and stays in its place. When no other L2 holds the
  line the filter drops its entry, and the LLC's has the domain's right from then on.
- L2 includes L1: what it evicts is dropped from L1I and L1D (BACK_INVALIDATIONS), dirty data
  going the same way. So it is always L2 that takes what L1D evicts dirty.
- A filter entry that is evicted (FILTER_EVICTIONS) drops its line from the cores
  (BACK_INVALIDATIONS). Dirty data goes into the LLC, a clean line is gone unless that has a copy.
- The LLC writes what it evicts dirty to DRAM. A store drops the LLC's copy, taking dirty data over.
- Fills go from the filter inwards: filter, L2, L1.

Source: Cornell Virtual Workshop, "Last Level Cache" (Skylake, Cascade Lake): non-inclusive, it
holds mainly what left the L2s, and a snoop filter tracks what is in these. Assumed: it gives up
what it serves unless other cores' L2s hold it, too (AMD says so of Bulldozer's L3, Arm of the
DSU's; of Intel's no text was found); L2 tells the filter of every eviction; L2 includes L1, though
CPUID says it need not: a line in L1 alone would be out of the filter's sight.

>>> line, evicted = 5, 5 << FLAG_BITS | DIRTY  # by L2; its filter entry says who may have it
>>> evicted >> FLAG_BITS == line, evicted & NOT_ALONE
(True, 0)
"""

from numarep.jit import jit, jit_apart
from numarep.memory.ahead import recall
from numarep.memory.coherence import as_owner, ask_owner, owner_of, request
from numarep.memory.copies import (
    clean_above,
    clean_in_domain,
    drop_above,
    drop_from,
    drop_in_domain,
    holder_beside,
    mark_in,
)
from numarep.memory.counts import Event, Service
from numarep.memory.recency import EMPTY, FLAG_BITS, find
from numarep.memory.replacement import drop, push, touch
from numarep.memory.view import ABSENT, DIRTY, NOT_ALONE, Cache, View, node_of, shared_row_of

__all__ = ["ABSENT", "access_victim", "leave_l2"]


@jit
def _llc_row(view: View, llc: Cache, line: int) -> int:
    """Return the first word of a line's row in the own LLC."""
    return shared_row_of(view, view.domain, llc, line)


@jit
def _allocate(view: View, llc: Cache, entry: int) -> None:
    """Put a line into the LLC, in place; flags are added to those of a copy that is there."""
    line, flags = entry >> FLAG_BITS, entry & (NOT_ALONE | DIRTY)
    first = _llc_row(view, llc, line)
    if mark_in(view.words, first, llc.ways, line, flags):
        return
    gone = push(view.words, first, llc.ways, llc.policy, line << FLAG_BITS | flags)
    if gone != EMPTY:
        view.events[Event.LLC_EVICTIONS] += 1
        view.events[Event.WRITEBACKS] += gone & DIRTY


@jit_apart
def _leave_filter(view: View, llc: Cache, entry: int) -> None:
    """Drop the line of an evicted filter entry from the cores, in place."""
    line, right = entry >> FLAG_BITS, entry & NOT_ALONE
    view.events[Event.FILTER_EVICTIONS] += 1
    recall(view, line)
    dirty = clean_in_domain(view, view.domain, line)
    view.events[Event.BACK_INVALIDATIONS] += drop_in_domain(view, view.domain, line, ABSENT)
    if dirty != 0:
        _allocate(view, llc, line << FLAG_BITS | right | DIRTY)
    else:
        mark_in(view.words, _llc_row(view, llc, line), llc.ways, line, right)


@jit
def leave_l2(view: View, llc: Cache, entry: int) -> None:
    """Move what the running CPU's L2 evicted into the LLC, in place."""
    line = entry >> FLAG_BITS
    dirty, right = entry & DIRTY, 0
    if recall(view, line):
        dirty += clean_above(view, view.cpu, line)
        view.events[Event.BACK_INVALIDATIONS] += drop_above(view, view.cpu, line)
    if holder_beside(view, line) == ABSENT:
        first = shared_row_of(view, view.domain, view.directory, line)
        right = drop_from(view.words, first, view.directory, line) & NOT_ALONE
    _allocate(view, llc, line << FLAG_BITS | right | (DIRTY if dirty != 0 else 0))


@jit
def access_victim(
    view: View, llc: Cache, line: int, write: bool, first: int
) -> tuple[int, int, int]:
    """Find a line that L1 and L2 lack, and enter it into the filter, in its row at `first`.

    All but the running CPU's L2 is modified in place.

    Returns
    -------
    service, node : int
        Who served it, and on which node.
    flags : int
        Of L2's copy: DIRTY if it takes dirty data over, else 0.
    """
    way = find(view.words, first, view.directory.ways, line)
    if way >= 0:
        way = touch(view.words, first, view.directory.ways, view.directory.policy, way)
        return _share(view, llc, line, write, first + way)
    here = _llc_row(view, llc, line)
    way = find(view.words, here, llc.ways, line)
    if way >= 0:
        entry = int(view.words[here + way])
        drop(view.words, here, llc.ways, llc.policy, way)
        service, node, flags = Service.LLC.value, view.node, entry & DIRTY
        state = entry & NOT_ALONE if entry & NOT_ALONE else as_owner(view.cpu)
    else:
        service, node, state = request(view, line, write)
        flags = 0
    entry = line << FLAG_BITS | state
    gone = push(view.words, first, view.directory.ways, view.directory.policy, entry)
    if gone != EMPTY:
        _leave_filter(view, llc, gone)
    return service, node, flags


@jit_apart
def _share(view: View, llc: Cache, line: int, write: bool, word: int) -> tuple[int, int, int]:
    """Find a line that other cores hold, whose filter entry is at `word`; see `access_victim`."""
    owner = owner_of(view.words[word])
    if owner != ABSENT:
        dirty = ask_owner(view, word, line)
        if dirty != 0 and not write:
            _allocate(view, llc, line << FLAG_BITS | DIRTY)
            dirty = 0
        return Service.PEER.value, node_of(view, owner), dirty
    here = _llc_row(view, llc, line)
    way = find(view.words, here, llc.ways, line)
    if way >= 0:
        touch(view.words, here, llc.ways, llc.policy, way)
        return Service.LLC.value, view.node, 0
    return Service.PEER.value, node_of(view, holder_beside(view, line)), 0
