"""Coherence: who answers what an LLC lacks, and what a store takes away.

Two circles. Domains, each an LLC with the CPUs that share it, keep a line by MESIF (see `view` for
the states). On a miss in the own domain the others are probed: their directories, and their LLCs if
these are victim caches. If one holds the line exclusively or in FORWARD, it forwards it; at most
one can. A clean line comes as REMOTE_LLC. Changed data comes as REMOTE_DIRTY where the line is of
that domain's own memory, so that the request goes to no third party, else as REMOTE_DIRTY_AWAY: it
goes to the home first, the reader's own or a third node's, which has the holder asked. If all
holders are merely SHARED (the forwarder evicted its copy
silently), or nobody holds it, the home node's memory serves it (DRAM).

- A load leaves every former holder SHARED and makes the reader FORWARD (or exclusive, if alone);
  a dirty copy, in whichever cache, is written back to DRAM.
- A store drops all other copies, upper levels included; dirty data moves to the writer unwritten.
- A store to a line the own domain held, but not exclusively, drops the others too: an upgrade.

Within a domain the directory knows of each exclusive line which CPU, if only one, may have changed
it: its owner, the one that first brought it in or last stored to it. A CPU that needs what another
owns has that core asked (PEER), be it dirty or not; it becomes clean there and has no owner from
then on, so that the LLC answers. A store drops the copies in all other cores of the domain, and its
CPU owns the line.

Snoops never touch recency. Source: Goodman and Hum, "MESIF: A Two-Hop Cache Coherency Protocol"
(2009); Kanter, "Inside Nehalem" (2008), on the core-valid bits of an inclusive LLC: one bit set may
mean a modified copy, so that core is asked, two mean clean copies; Molka et al., ICPP 2015, measure
44 to 53 ns for that against 21 ns of the LLC. Assumed: evictions of clean lines are silent between
domains, and neither they nor writebacks end ownership in an inclusive LLC (L1 may still have the
line); code is fetched as exclusively as data; a domain answers from its first modelled CPU's node.

>>> owner_of(5 << FLAG_BITS | as_owner(2) | DIRTY), owner_of(5 << FLAG_BITS | FORWARD)
(2, -1)
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart, jit_entry
from numarep.memory.copies import clean_above, clean_in_domain, drop_from, drop_in_domain, mark_in
from numarep.memory.counts import Event, Service
from numarep.memory.recency import EMPTY, FLAG_BITS, FLAGS
from numarep.memory.view import (
    ABSENT,
    DIRTY,
    FORWARD,
    NOT_ALONE,
    OWNER,
    OWNER_SHIFT,
    SHARED,
    Cache,
    View,
    domain_of,
    home_of,
    is_memory_of,
    node_of,
    row_of,
    shared_row_of,
    word_in,
)

__all__ = ["as_owner", "ask_owner", "drop_lines", "own", "owner_of", "request"]


@jit
def owner_of(entry: int) -> int:
    """Return the CPU that may have changed an exclusive line, or ABSENT."""
    return ((entry & OWNER) >> OWNER_SHIFT) - 1


@jit
def as_owner(cpu: int) -> int:
    """Return the flags of an exclusive line that a CPU owns."""
    return (cpu + 1) << OWNER_SHIFT


@jit
def _node_of_domain(view: View, domain: int) -> int:
    """Return the node of a domain's first CPU."""
    cpu = 0
    while domain_of(view, cpu) != domain:
        cpu += 1
    return node_of(view, cpu)


@jit
def _entry_in(view: View, domain: int, line: int) -> int:
    """Return the word that carries a domain's right to a line, or ABSENT."""
    word = word_in(view, domain, view.directory, line)
    return word if word >= 0 else word_in(view, domain, view.victim, line)


@jit
def _drop_outer(view: View, domain: int, cache: Cache | None, line: int) -> int:
    """Drop a line from a domain's cache, if there is one, in place; return its entry, or EMPTY."""
    if cache is None:
        return EMPTY
    return drop_from(view.words, shared_row_of(view, domain, cache, line), cache, line)


@jit_apart
def _clean(view: View, domain: int, word: int, line: int) -> bool:
    """Leave another domain's copies clean but for `word`, in place; tell whether any was dirty."""
    dirty = clean_in_domain(view, domain, line) + (view.words[word] & DIRTY)
    copy = word_in(view, domain, view.victim, line)
    if copy >= 0:
        dirty += view.words[copy] & DIRTY
        view.words[copy] &= ~DIRTY
    return bool(dirty != 0)


@jit_apart
def _take(view: View, domain: int, line: int) -> None:
    """Drop another domain's copies, in place."""
    _drop_outer(view, domain, view.directory, line)
    _drop_outer(view, domain, view.victim, line)
    drop_in_domain(view, domain, line, ABSENT)
    view.events[Event.REMOTE_INVALIDATIONS] += 1


@jit_entry
def drop_lines(view: View, lines: NDArray[np.int64]) -> None:
    """Drop lines from all caches of all domains, in place; what it counts means nothing."""
    for domain in range(view.domains):
        for line in lines:
            _take(view, domain, line)


@jit
def request(view: View, line: int, write: bool) -> tuple[int, int, int]:
    """Serve what the own domain lacks; other domains' caches are modified in place.

    Returns
    -------
    service : int
        REMOTE_LLC, REMOTE_DIRTY, REMOTE_DIRTY_AWAY or DRAM.
    node : int
        The forwarding node, or the line's home.
    state : int
        Flags of the entry that will carry the own domain's right: `as_owner` or FORWARD.
    """
    forwarder, is_dirty = ABSENT, False
    state = as_owner(view.cpu)
    for other in range(view.domains):
        if other == view.domain:
            continue
        word = _entry_in(view, other, line)
        if word < 0:
            continue
        if not view.words[word] & SHARED:
            forwarder = other
            is_dirty = _clean(view, other, word, line)
        if write:
            _take(view, other, line)
        else:
            state = FORWARD
            view.words[word] = line << FLAG_BITS | SHARED
    home = home_of(line, view.node_place)
    if forwarder == ABSENT:
        return Service.DRAM.value, home, state
    service = Service.REMOTE_LLC.value
    if is_dirty:
        view.events[Event.WRITEBACKS] += 0 if write else 1
        is_near = is_memory_of(forwarder, home, view.node_place)
        service = Service.REMOTE_DIRTY.value if is_near else Service.REMOTE_DIRTY_AWAY.value
    return service, _node_of_domain(view, forwarder), state


@jit_apart
def ask_owner(view: View, word: int, line: int) -> int:
    """End another core's ownership of a line, its copies clean from now on; in place.

    `word` is that of the directory's entry. Returns 1 if the core had changed the line, else 0.
    """
    dirty = clean_above(view, owner_of(view.words[word]), line)
    view.words[word] &= ~OWNER
    return 1 if dirty != 0 else 0


@jit
def own(view: View, word: int, line: int) -> None:
    """Make the running CPU a line's owner before a store, in place.

    `word` is that of the own directory's entry.
    """
    if view.words[word] & FLAGS & ~DIRTY != as_owner(view.cpu):
        _become_owner(view, word, line)


@jit_apart
def _become_owner(view: View, word: int, line: int) -> None:
    """Drop all other copies of a line the running CPU holds, in place."""
    entry = view.words[word]
    if entry & NOT_ALONE:
        view.events[Event.UPGRADES] += 1
        for other in range(view.domains):
            if other != view.domain and _entry_in(view, other, line) >= 0:
                _take(view, other, line)
    view.events[Event.PEER_INVALIDATIONS] += drop_in_domain(view, view.domain, line, view.cpu)
    view.words[word] = line << FLAG_BITS | as_owner(view.cpu) | (entry & DIRTY)
    copy = _drop_outer(view, view.domain, view.victim, line)
    if copy != EMPTY and copy & DIRTY:
        mark_in(view.words, row_of(view, view.cpu, view.l2, line), view.l2.ways, line, DIRTY)
