"""One access through L1, L2 and the LLC: hits, fills, evictions, writebacks.

- L1I and L1D in front of a unified L2; L2 is neither inclusive nor exclusive of L1 (Haswell): an
  L1 miss fills both, an L2 eviction leaves L1 alone (but see `victim`).
- An inclusive LLC: evicting a line drops it from L1I, L1D and L2 of every CPU that shares the LLC
  (back-invalidation). `victim` describes the other kind.
- A line that another core under the LLC owns is asked for there (PEER, see `coherence`); if that
  core had changed it, the LLC's copy is dirty from then on.
- Write-allocate, write-back. A store dirties the L1D copy. A dirty line evicted from L1D dirties
  the L2 copy, or the LLC's if L2 has none; one evicted from L2 dirties the LLC's. DRAM is written
  (WRITEBACKS) when a line leaves the LLC of which it, an L2 or L1D held dirty data, and when a CPU
  of another LLC reads a dirty line. Evictions into a lower level never touch its recency.
- A store to a line that isn't dirty in L1D makes it exclusive first (see `coherence.own`); if it
  is, it's exclusive already.
- Fills go from the LLC inwards, so that back-invalidation happens before an inner victim is chosen.

Source: SDM vol. 3A 11.1 and the Optimization Reference Manual, Haswell cache hierarchy.
Assumed: an L1D victim whose line L2 has lost is not allocated in L2 again. Left out: L1I and L1D
of one core are not kept coherent (self-modifying code), uncached memory.

>>> [service.name for service in Service]
['L1', 'L2', 'LLC', 'PEER', 'REMOTE_LLC', 'REMOTE_DIRTY', 'REMOTE_DIRTY_AWAY', 'DRAM']
"""

from numarep.jit import jit, jit_apart
from numarep.memory.ahead import recall
from numarep.memory.coherence import ask_owner, own, owner_of, request
from numarep.memory.copies import clean_in_domain, drop_in_domain, mark_in
from numarep.memory.counts import Event, Service
from numarep.memory.dirty import flag_all, flag_if_many, flag_later
from numarep.memory.recency import EMPTY, FLAG_BITS, find
from numarep.memory.replacement import push, touch
from numarep.memory.vector import LANES, at, prefetch
from numarep.memory.victim import access_victim, leave_l2
from numarep.memory.view import ABSENT, DIRTY, Cache, View, node_of, row_of, shared_row_of

__all__ = ["access_l2", "expect", "expect_eviction", "make_exclusive", "prefetch_l2", "write_down"]


@jit
def make_exclusive(view: View, line: int, row: int) -> None:
    """Make the running CPU the owner of a line in the directory's row at `row`; in place."""
    if len(view.cpu_place) > 1:
        own(view, row + find(view.words, row, view.directory.ways, line), line)


@jit
def write_down(view: View, victim: int) -> None:
    """Put what L1D evicted where it belongs: dirty data into L2 or the LLC, in place."""
    if victim != EMPTY and victim & DIRTY:
        evicted = victim >> FLAG_BITS
        first = row_of(view, view.cpu, view.l2, evicted)
        if not mark_in(view.words, first, view.l2.ways, evicted, DIRTY):
            flag_later(view, evicted, 1)


@jit
def _expect_row(view: View, first: int, cache: Cache) -> None:
    """Have the host fetch a row."""
    prefetch(view.words, first)
    if cache.pitch > LANES:
        prefetch(view.words, first + LANES)
        if cache.pitch > 2 * LANES:
            prefetch(view.words, first + 2 * LANES)


@jit
def _expect_in(view: View, cache: Cache | None, line: int) -> None:
    """Have the host fetch a line's row of the own domain's cache, if there is one."""
    if cache is None:
        return
    _expect_row(view, shared_row_of(view, view.domain, cache, line), cache)


@jit
def expect(view: View, line: int) -> int:
    """Have the host fetch the row of the directory where a line belongs; return it.

    Where they are two, that of the LLC, too. L2 is small enough to be at hand.
    """
    first = shared_row_of(view, view.domain, view.directory, line)
    _expect_row(view, first, view.directory)
    _expect_in(view, view.victim, line)
    return first


@jit
def expect_eviction(view: View, line: int) -> None:
    """Have the host fetch what a line that L2 likely evicts needs: its row of the LLC, its filter.

    An inclusive LLC is told of dirty lines only, and later (see `dirty`).
    """
    if view.victim is None:
        return
    last = row_of(view, view.cpu, view.l2, line) + view.l2.ways - 1
    gone = max(view.words[at(last)] >> FLAG_BITS, 0)  # no line is 0 as well
    _expect_in(view, view.directory, gone)
    _expect_in(view, view.victim, gone)


@jit
def access_l2(view: View, line: int, write: bool, row: int) -> tuple[int, int]:
    """Read a line, for a write or not, that L1 lacks; all but L1 is modified in place.

    `row` is the first word of the line's row in the directory.

    Returns
    -------
    service, node : int
        Which level served it, and on which node.
    """
    first = row_of(view, view.cpu, view.l2, line)
    way = find(view.words, first, view.l2.ways, line)
    if way >= 0:
        touch(view.words, first, view.l2.ways, view.l2.policy, way)
        return Service.L2.value, view.node
    return _fill_l2(view, line, write, first, row)


@jit
def _fill_l2(view: View, line: int, write: bool, first: int, row: int) -> tuple[int, int]:
    """Bring a line from beyond into its row of L2 at `first`, in place."""
    service, node, flags = _access_beyond(view, view.victim, line, write, row)
    victim = push(view.words, first, view.l2.ways, view.l2.policy, line << FLAG_BITS | flags)
    if victim != EMPTY:
        view.events[Event.L2_EVICTIONS] += 1
        _leave(view, view.victim, victim)
    return service, node


@jit
def _access_beyond(
    view: View, llc: Cache | None, line: int, write: bool, row: int
) -> tuple[int, int, int]:
    """Find a line that L2 lacks, in a victim LLC or an inclusive one; see `access_victim`."""
    if llc is None:
        service, node = _access_llc(view, line, write, row)
        return service, node, 0
    return access_victim(view, llc, line, write, row)


@jit
def _leave(view: View, llc: Cache | None, entry: int) -> None:
    """Move what L2 evicted into a victim LLC, or dirty data into an inclusive one; in place."""
    if llc is None:
        flag_later(view, entry >> FLAG_BITS, entry & DIRTY)
        return
    leave_l2(view, llc, entry)


@jit_apart
def prefetch_l2(view: View, line: int) -> None:
    """Bring a line into L2 that nobody asked for, unless it is there; in place."""
    first = row_of(view, view.cpu, view.l2, line)
    if find(view.words, first, view.l2.ways, line) < 0:
        view.events[Event.PREFETCHES] += 1
        row = shared_row_of(view, view.domain, view.directory, line)
        _fill_l2(view, line, False, first, row)
        flag_if_many(view)


@jit
def _access_llc(view: View, line: int, write: bool, first: int) -> tuple[int, int]:
    """Look up an inclusive LLC, in its row at `first`, for L2, filling it on a miss."""
    llc = view.directory
    way = find(view.words, first, llc.ways, line)
    if way >= 0:
        word = first + touch(view.words, first, llc.ways, llc.policy, way)
        owner = owner_of(view.words[at(word)])
        if owner not in (view.cpu, ABSENT):
            if ask_owner(view, word, line) != 0:
                view.words[word] |= DIRTY
            return Service.PEER.value, node_of(view, owner)
        return Service.LLC.value, view.node
    service, node, state = request(view, line, write)
    flag_all(view)
    victim = push(view.words, first, llc.ways, llc.policy, line << FLAG_BITS | state)
    if victim != EMPTY:
        _evict(view, victim)
    return service, node


@jit_apart
def _evict(view: View, victim: int) -> None:
    """Drop an evicted LLC entry from the levels above, writing dirty data back; in place."""
    line = victim >> FLAG_BITS
    recall(view, line)
    if clean_in_domain(view, view.domain, line) or victim & DIRTY:
        view.events[Event.WRITEBACKS] += 1
    view.events[Event.LLC_EVICTIONS] += 1
    view.events[Event.BACK_INVALIDATIONS] += drop_in_domain(view, view.domain, line, ABSENT)
