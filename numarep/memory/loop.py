"""The loop over a stream's records, in batches of four stages: translate, L1, beyond, count.

A record with `repeats` r stands for r references to one line: the first is looked up, the others
hit L1 and the first-level TLB and change nothing, since the line and the page are then the most
recently used of their rows. A FETCH with r = 0 is the second line of a straddling instruction: an
access, no instruction. So a record makes max(r, 1) accesses, and a FETCH r instructions.

Each record is a chain of operations: the reads of its page-table walk, if it needs one, then the
access itself. The stages work on whole batches (see `batch`), one after the other, each on what
the one before couldn't settle: `translate` (TLBs, walks), L1 (`ahead`), L2 and beyond
(`hierarchy`), `tally` (intervals, counts). Short loops with few branches that can't be foreseen
are several times as fast as one long path per record. The counts are those of one record at a
time, exactly: `translate` and `tally` say why for themselves, `ahead` proves it for L1.

Source: SDM vol. 3A 4.10.4.1: MOV to CR3 drops all non-global TLB entries and all PSCs, INVLPG the
page's TLB entries, global ones too, and all PSCs; with PCIDs (4.10.1), here one a root, a CR3 write
drops nothing; a FLUSH record (such as a write of CR4.PGE) drops everything.

>>> translations = Translations(*[np.zeros(1, np.int64)] * 7)
>>> translations.region.dtype
dtype('int64')
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart, jit_entry
from numarep.memory.ahead import hit_of, run_ahead
from numarep.memory.batch import (
    NODE_BITS,
    OPS,
    Batch,
    Stream,
    kind_of,
    line_of,
    mark,
    run_of,
    served_by,
)
from numarep.memory.counts import Event, Service
from numarep.memory.dirty import flag_all, flag_if_many
from numarep.memory.front import take
from numarep.memory.hierarchy import access_l2, expect, expect_eviction, make_exclusive, write_down
from numarep.memory.kinds import Kind
from numarep.memory.pages import PAGE_BITS, Of
from numarep.memory.prefetch import expect_prefetches, prefetch_after
from numarep.memory.tally import settle, tally
from numarep.memory.tlb import clear_all, invalidate_page, switch_root
from numarep.memory.translate import translate
from numarep.memory.vector import at
from numarep.memory.view import Ahead, View

# Operations L1 runs ahead of an L2 that often takes lines from it: all that follow are done again.
RECALLED = 64
AHEAD = 16  # misses that the host is asked ahead for what settling them takes


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
def _expect_all(view: View, batch: NDArray[np.int64], start: int, stop: int) -> None:
    """Prepare for misses [start, stop) that are logged, in place."""
    for each in range(start, stop):
        number = view.ahead[at(Ahead.MISSES + each)]
        line = line_of(batch[at(Batch.OP + number)])
        view.ahead[at(Ahead.ROW + number)] = expect(view, line)
        expect_prefetches(view, view.prefetch, line)
    for each in range(start, stop):
        expect_eviction(view, line_of(batch[at(Batch.OP + view.ahead[at(Ahead.MISSES + each)])]))


@jit_apart
def _access(view: View, batch: NDArray[np.int64], start: int, stop: int) -> None:
    """Send operations [start, stop) through the caches; caches, events, batch modified in place."""
    ahead = view.ahead
    missed = run_ahead(view, batch, start, stop, 0)
    each, expected = 0, 0
    while each < missed:
        if expected < min(each + AHEAD, missed):
            _expect_all(view, batch, expected, min(each + 2 * AHEAD, missed))
            expected = min(each + 2 * AHEAD, missed)
            flag_if_many(view)
        number = ahead[at(Ahead.MISSES + each)]
        is_hit, op = hit_of(ahead[at(Ahead.USED + number)]), batch[at(Batch.OP + number)]
        line, is_store = line_of(op), kind_of(op) == Kind.STORE
        ahead[Ahead.SETTLING] = number
        if is_hit == 0:
            service, node = access_l2(view, line, is_store, ahead[at(Ahead.ROW + number)])
            if ahead[Ahead.STOP] == number:
                missed, expected = run_ahead(view, batch, number, stop, each), each
            batch[at(Batch.SERVED_BY + number)] = served_by(service, node)
            mark(batch, run_of(op), 1 if service > Service.L2 and not is_store else 0)
            write_down(view, ahead[at(Ahead.OLD + number)])
        if is_store:
            make_exclusive(view, line, ahead[at(Ahead.ROW + number)])
        if is_hit == 0 and view.prefetch is not None:
            # Complete, so the access itself stays if L1 is called back.
            ahead[Ahead.SETTLING] = number + 1
            service = batch[at(Batch.SERVED_BY + number)] >> NODE_BITS
            prefetch_after(view, view.prefetch, line, kind_of(op), service)
            if ahead[Ahead.STOP] == number + 1:
                missed, expected = run_ahead(view, batch, number + 1, stop, each + 1), each + 1
        each += 1
    flag_all(view)


@jit_apart
def _serialise(view: View, tlbs: NDArray[np.int64], kind: int, vpn: int, pcid: bool) -> None:
    """Do what a CR3, INVLPG, FLUSH or IPI record does to TLBs and PSCs, in place."""
    words, events = view.words, view.events
    if kind == Kind.IPI:  # what it does is done on other CPUs
        events[Event.IPIS] += 1
        return
    if kind == Kind.CR3:
        events[Event.CR3_WRITES] += 1
        if not pcid:
            switch_root(words, tlbs)
    elif kind == Kind.INVLPG:
        events[Event.INVLPGS] += 1
        invalidate_page(words, tlbs, vpn)
    else:
        events[Event.TLB_FLUSHES] += 1
        clear_all(words, tlbs)


@jit_entry
def run_records(
    view: View,
    tlbs: NDArray[np.int64],
    window_left: NDArray[np.int64],
    reorder_window: int,
    pcid: bool,
    stream: Stream,
    pages: NDArray[np.int64],
    start: int,
    stop: int,
    batch: NDArray[np.int64],
    hits: NDArray[np.int64],
    served: NDArray[np.int64],
    functions: NDArray[np.int64],
) -> None:
    """Process records [start, stop) of one CPU; all state and counts are modified in place.

    `batch` is scratch; `hits`, int64[3 * regions], 0 before and after, counts accesses as L1 hits
    until `tally` knows better; `pages` is made by `pages_of`: compiled code allocates nothing.
    """
    nodes = len(view.node_place)
    ahead = OPS if view.victim is None else RECALLED
    left = window_left[view.cpu]
    instructions = 0
    record = start
    while record < stop:
        record, size, missed = take(view, pages, batch, stream, record, stop, hits)
        walks, ops = translate(view, tlbs, pages, batch, size, missed)
        for first in range(0, ops, ahead):
            _access(view, batch, first, min(first + ahead, ops))
        left = tally(
            served, functions, nodes, hits, pages, batch, size, walks, left, reorder_window
        )
        instructions += batch[at(Batch.PASSED + size)]
        if record < stop and stream.kind[at(record)] > Kind.STORE:
            page = int(stream.page[at(record)]) << PAGE_BITS
            kind, vpn = int(stream.kind[at(record)]), pages[at(page + Of.VPN)]
            _serialise(view, tlbs, kind, vpn, pcid)
            left = 0
            record += 1
    window_left[view.cpu] = left
    view.events[Event.INSTRUCTIONS] += instructions
    settle(served, view.events, nodes, view.node, hits)
