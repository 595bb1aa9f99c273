"""The straight loop over a stream's records: translate, access, classify, count.

A record with `repeats` r stands for r references to one line: the first is looked up, the others
hit L1 and the first-level TLB and change nothing, since the line and the page are then the most
recently used of their rows. A FETCH with r = 0 is the second line of a straddling instruction: an
access, no instruction. So a record makes max(r, 1) accesses, and a FETCH r instructions.

The TLB is looked up first (ITLB for fetches, DTLB else), then the STLB (not for 1G pages), then
the page tables are walked; then the line itself is accessed. Serving a reference from the same
page as the side's last one skips the lookup: that page is at the front of its row, so the lookup
would hit and change nothing. Only records that drop translations end that.

Source: SDM vol. 3A 4.10.4.1: MOV to CR3 drops all non-global TLB entries and all PSCs, INVLPG the
page's TLB entries, global ones too, and all PSCs; a FLUSH record (such as a write of CR4.PGE)
drops everything.

>>> _accesses(0), _accesses(7)
(1, 7)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.counts import Access, Counts, Event, Overlap, Service
from numarep.memory.hierarchy import access
from numarep.memory.interval import overlap_of, pass_instructions, window_after
from numarep.memory.kinds import Kind
from numarep.memory.tlb import (
    GLOBAL,
    Found,
    Tlbs,
    clear_all,
    find_page,
    invalidate_page,
    switch_root,
)
from numarep.memory.view import View
from numarep.memory.walk import Pscs, Step, clear_pscs, walk
from numarep.units import LINES_PER_PAGE

NO_PAGE = -1


class Stream(NamedTuple):
    """Records of one CPU in order, n of them.

    kind : uint8[n], see `Kind`; page : int32[n], row of the translations;
    line : uint8[n], line within the page; repeats : int32[n].
    """

    kind: NDArray[np.uint8]
    page: NDArray[np.int32]
    line: NDArray[np.uint8]
    repeats: NDArray[np.int32]


class Translations(NamedTuple):
    """What the stream's pages translate to, p of them.

    vpn : int64[p]; sign-extended va >> 12.
    pfn : int64[p]; 4 KiB frame of this page, whatever its leaf.
    leaf : int64[p]; level of the leaf: 1 4K, 2 2M, 3 1G, 0 no translation.
    is_global : int64[p]; 0 or 1.
    root : int64[p]; pfn of the top table.
    table : int64[p, 5]; pfn of the table page read at level l in column l - 1, -1 if none is.
    region : int64[p]; small number of the address region, opaque here.
    """

    vpn: NDArray[np.int64]
    pfn: NDArray[np.int64]
    leaf: NDArray[np.int64]
    is_global: NDArray[np.int64]
    root: NDArray[np.int64]
    table: NDArray[np.int64]
    region: NDArray[np.int64]


@jit
def _accesses(repeats: int) -> int:
    """Return the number of accesses a record makes."""
    return max(repeats, 1)


@jit
def _translate(
    view: View,
    tlbs: Tlbs,
    pscs: Pscs,
    translations: Translations,
    page: int,
    is_fetch: bool,
    steps: NDArray[np.int64],
) -> int:
    """Translate by TLB, STLB or walk, in place; return the number of entries the walk reads."""
    words, events, base = view.words, view.events, view.cpu * view.stride
    vpn, leaf, root = translations.vpn[page], translations.leaf[page], translations.root[page]
    owner = GLOBAL if translations.is_global[page] else root
    found = find_page(words, base, tlbs, is_fetch, vpn, leaf, root, owner)
    if found == Found.NEAR:
        return 0
    events[Event.ITLB_MISSES if is_fetch else Event.DTLB_MISSES] += 1
    if found == Found.STLB:
        events[Event.STLB_FETCH_HITS if is_fetch else Event.STLB_DATA_HITS] += 1
        return 0
    events[Event.FETCH_WALKS if is_fetch else Event.DATA_WALKS] += 1
    return walk(view, pscs, vpn, leaf, root, translations.table, page, steps)


@jit
def _access_all(view: View, kind: int, read: int, steps: NDArray[np.int64]) -> bool:
    """Access a chain's lines in order, noting in `steps` what served each; all in place.

    Returns
    -------
    bool
        Whether any was served beyond L2, a store's own access not considered.
    """
    is_long = False
    for step in range(read + 1):
        is_walk = step < read
        is_store = kind == Kind.STORE and not is_walk
        l1 = view.l1i if kind == Kind.FETCH and not is_walk else view.l1d
        service, node = access(view, l1, steps[step, Step.LINE], is_store)
        steps[step, Step.SERVICE] = service
        steps[step, Step.NODE] = node
        is_long = is_long or (service > Service.L2 and not is_store)
    return is_long


@jit
def _serialise(view: View, tlbs: Tlbs, pscs: Pscs, kind: int, vpn: int) -> None:
    """Do what a CR3, INVLPG or FLUSH record does to TLBs and PSCs, in place."""
    words, events, base = view.words, view.events, view.cpu * view.stride
    clear_pscs(words, base, pscs)
    if kind == Kind.CR3:
        events[Event.CR3_WRITES] += 1
        switch_root(words, base, tlbs)
    elif kind == Kind.INVLPG:
        events[Event.INVLPGS] += 1
        invalidate_page(words, base, tlbs, vpn)
    else:
        events[Event.TLB_FLUSHES] += 1
        clear_all(words, base, tlbs)


@jit
def _count(
    served: NDArray[np.int64],
    kind: int,
    region: int,
    read: int,
    steps: NDArray[np.int64],
    overlap: int,
) -> None:
    """Count a chain's walk and its first access, in place."""
    for step in range(read):
        level, service, node = (
            steps[step, Step.LEVEL],
            steps[step, Step.SERVICE],
            steps[step, Step.NODE],
        )
        served[kind + Access.FETCH_WALK, level, region, service, node, overlap] += 1
    service, node = steps[read, Step.SERVICE], steps[read, Step.NODE]
    own = Overlap.OVERLAPPED.value if kind == Kind.STORE else overlap
    served[kind, 0, region, service, node, own] += 1


@jit
def run_records(
    view: View,
    tlbs: Tlbs,
    pscs: Pscs,
    window_left: NDArray[np.int64],
    reorder_window: int,
    stream: Stream,
    translations: Translations,
    start: int,
    stop: int,
    steps: NDArray[np.int64],
    counts: Counts,
) -> None:
    """Process records [start, stop) of one CPU; all state and counts are modified in place.

    `steps` is scratch, int64[6, 4] (see `walk.Step`): compiled code allocates nothing.
    """
    served, events = counts
    left = window_left[view.cpu]
    fetch_page, data_page = NO_PAGE, NO_PAGE
    instructions, fetches, data = 0, 0, 0
    itlb_misses, dtlb_misses = events[Event.ITLB_MISSES], events[Event.DTLB_MISSES]
    for record in range(start, stop):
        kind = int(stream.kind[record])
        page = int(stream.page[record])
        if kind > Kind.STORE:
            _serialise(view, tlbs, pscs, kind, translations.vpn[page])
            left, fetch_page, data_page = 0, NO_PAGE, NO_PAGE
            continue
        is_fetch = kind == Kind.FETCH
        read = 0
        if page != (fetch_page if is_fetch else data_page):
            read = _translate(view, tlbs, pscs, translations, page, is_fetch, steps)
        line = translations.pfn[page] * LINES_PER_PAGE + int(stream.line[record])
        steps[read, Step.LINE] = line
        is_long = _access_all(view, kind, read, steps)
        overlap = overlap_of(kind, is_long, left)
        left = window_after(kind, is_long, overlap, left, reorder_window)
        region = translations.region[page]
        _count(served, kind, region, read, steps, overlap)
        repeats = int(stream.repeats[record])
        accesses = _accesses(repeats)
        rest = Overlap.LEADING.value if is_fetch else Overlap.OVERLAPPED.value
        served[kind, 0, region, Service.L1.value, view.node, rest] += accesses - 1
        if is_fetch:
            fetch_page = page
            fetches += accesses
            instructions += repeats
            left = pass_instructions(left, repeats)
        else:
            data_page = page
            data += accesses
    window_left[view.cpu] = left
    events[Event.INSTRUCTIONS] += instructions
    events[Event.REFERENCES] += fetches + data
    events[Event.ITLB_HITS] += fetches - (events[Event.ITLB_MISSES] - itlb_misses)
    events[Event.DTLB_HITS] += data - (events[Event.DTLB_MISSES] - dtlb_misses)
