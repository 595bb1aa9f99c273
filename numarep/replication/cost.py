"""What replication adds to the traced kernel's work: a PGD per node at fork and exit (R16, R18).

The trace says where the work arises: a fetch of a watched function's entry is the event. There,
records are spliced in, to be run through the caches like any other: the accesses follow from
what the series does to tables, the instructions are measured ones (`ProcessCostSpec`).

- `pgd_alloc`: for every further memory node, take the node's page pair, zero it, and copy the
  kernel half from that node's init PGD.
- `pgd_free`: give the pair back.
- `__pud_alloc`: write the new user PGD entry into every further node's PGD.

Assumed: struct page is read and written once at each end of a frame's life (the page allocator's
other data is shared with the allocation the trace holds already); frames recycle first in, first
out, as children exit in the order of their birth; a new PUD is for the youngest process and for
entry 0. The lists, locks and flags that the measured instructions touch beyond that hit L1.

>>> sorted(WATCHED)
['__pud_alloc', 'pgd_alloc', 'pgd_free']
"""

import dataclasses
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from numarep.linux.frames import Frames
from numarep.linux.tables import PageTables
from numarep.memory.kinds import Kind
from numarep.replication.replicas import PGD_PAGES, Replicas
from numarep.spec import ProcessCostSpec
from numarep.units import (
    ENTRY_BYTES,
    LINE_BYTES,
    LINE_SHIFT,
    LINES_PER_PAGE,
    MAX_LEVELS,
    PAGE_BYTES,
    PAGE_SHIFT,
)
from numarep.workload.trace import Pages, Records, Trace, TraceError

WATCHED = ("pgd_alloc", "pgd_free", "__pud_alloc")
_ENTRIES_PER_LINE = LINE_BYTES // ENTRY_BYTES
_KERNEL_HALF = range(LINES_PER_PAGE // 2, LINES_PER_PAGE)
# Source: include/linux/mm_types.h, struct page is 64 bytes with the captured configuration.
_STRUCT_PAGE_SHIFT = 6


@dataclass
class _Splice:
    """Records and translations to add, built event by event."""

    trace: Trace
    tables: PageTables
    kernel_root: int
    rows: dict[tuple[int, int], int] = field(default_factory=dict)
    new_pages: list[tuple[int, ...]] = field(default_factory=list)
    records: list[tuple[int, int, int, int]] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    def access(self, event: int, kind: Kind, va: int, lines: range, count: int) -> None:
        """Add one record a line of the 4 KiB page at `va`, right after record `event`."""
        root = int(self.trace.pages.root[self.trace.records.page[event]])
        page = self._row(root, va >> PAGE_SHIFT)
        self.records += [(kind, page, line, count) for line in lines]
        self.after += [event] * len(lines)

    def instructions(self, event: int, count: int) -> None:
        """Add instructions to the line that record `event` fetches."""
        records = self.trace.records
        self.records.append((Kind.FETCH, records.page[event], records.line[event], count))
        self.after.append(event)

    def _row(self, root: int, vpn: int) -> int:
        if (root, vpn) not in self.rows:
            found = self.tables.walk(self.kernel_root, vpn)
            if found is None:
                raise TraceError(
                    f"page tables: kernel address {vpn << PAGE_SHIFT:#x} is not mapped"
                )
            table = list(found.table)
            table[self.tables.levels - 1] = root
            self.rows[root, vpn] = len(self.trace.pages.vpn) + len(self.new_pages)
            self.new_pages.append((vpn, found.pfn, found.leaf, found.flags, *table))
        return self.rows[root, vpn]

    def spliced(self) -> Trace:
        """Return the trace with everything added."""
        if not self.records:
            return self.trace
        at = np.array(self.after, dtype=np.int64) + 1
        added = np.array(self.records, dtype=np.int64)
        old = self.trace.records
        merged = Records(
            np.insert(old.kind, at, added[:, 0].astype(np.uint8)),
            np.insert(old.page, at, added[:, 1].astype(np.int32)),
            np.insert(old.line, at, added[:, 2].astype(np.uint8)),
            np.insert(old.count, at, added[:, 3].astype(np.int32)),
        )
        shift = np.searchsorted(np.sort(at), self.trace.event_record, side="right")
        return dataclasses.replace(
            self.trace,
            records=merged,
            pages=self._more_pages(),
            event_record=self.trace.event_record + shift,
        )

    def _more_pages(self) -> Pages:
        old = self.trace.pages
        new = np.array(self.new_pages, dtype=np.int64).reshape(-1, 4 + MAX_LEVELS)
        return Pages(
            np.concatenate([old.vpn, new[:, 0]]),
            np.concatenate([old.pfn, new[:, 1]]),
            np.concatenate([old.leaf, new[:, 2].astype(np.uint8)]),
            np.concatenate([old.flags, new[:, 3].astype(np.uint8)]),
            np.concatenate([old.table, new[:, 4:]]),
        )


@dataclass
class _PgdPool:
    """One node's PGD page pairs: taken at fork, given back at exit, youngest last."""

    node: int
    frames: Frames
    free: deque[int] = field(default_factory=deque)
    live: deque[int] = field(default_factory=deque)
    made: int = 0

    def take(self) -> int:
        if not self.free:
            # Neighbouring pairs, as a fresh run of a node's free memory gives them.
            like = self.made * PGD_PAGES
            self.free.append(
                self.frames.allocate(self.node, like=like, count=PGD_PAGES, align=PGD_PAGES)
            )
            self.made += 1
        self.live.append(self.free.popleft())
        return self.live[-1]

    def youngest(self) -> int:
        return self.live[-1] if self.live else self.take()

    def give_back(self) -> int:
        """Free the oldest; one that was born before the window is made up now."""
        if not self.live:
            self.take()
        self.free.append(self.live.popleft())
        return self.free[-1]


@dataclass(frozen=True)
class ProcessCost:
    """The costs of processes with one PGD per memory node, on one kernel's tables."""

    spec: ProcessCostSpec
    replicas: Replicas
    frames: Frames
    kernel_root: int
    direct_map: int
    vmemmap: int

    def charge(self, trace: Trace, cpu_node: int) -> Trace:
        """Return the trace with replication's extra work spliced in after each event."""
        splice = _Splice(trace, self.replicas.tables, self.kernel_root)
        others = [node for node in range(self.frames.nodes) if node != cpu_node]
        pools = [_PgdPool(node, self.frames) for node in others]
        for event, name in zip(trace.event_record.tolist(), trace.event_name, strict=True):
            if name == "pgd_alloc":
                self._allocate(splice, event, pools)
            elif name == "pgd_free":
                self._free(splice, event, pools)
            elif name == "__pud_alloc":
                self._fill(splice, event, pools)
        return splice.spliced()

    def _allocate(self, splice: _Splice, event: int, pools: list[_PgdPool]) -> None:
        for pool in pools:
            pair = pool.take()
            splice.instructions(event, self.spec.fork_instructions)
            self._touch_struct_page(splice, event, pair)
            for page in range(PGD_PAGES):
                whole = range(LINES_PER_PAGE)
                splice.access(event, Kind.STORE, self._va(pair + page), whole, _ENTRIES_PER_LINE)
            init_pgd = self.replicas.root(pool.node, self.kernel_root)
            for line in _KERNEL_HALF:
                one = range(line, line + 1)
                splice.access(event, Kind.LOAD, self._va(init_pgd), one, _ENTRIES_PER_LINE)
                splice.access(event, Kind.STORE, self._va(pair), one, _ENTRIES_PER_LINE)

    def _free(self, splice: _Splice, event: int, pools: list[_PgdPool]) -> None:
        for pool in pools:
            splice.instructions(event, self.spec.exit_instructions)
            self._touch_struct_page(splice, event, pool.give_back())

    def _fill(self, splice: _Splice, event: int, pools: list[_PgdPool]) -> None:
        for number, pool in enumerate(pools):
            first = self.spec.pud_instructions
            splice.instructions(event, self.spec.pud_further_instructions if number else first)
            splice.access(event, Kind.STORE, self._va(pool.youngest()), range(1), 1)

    def _touch_struct_page(self, splice: _Splice, event: int, pfn: int) -> None:
        va = self.vmemmap + (pfn << _STRUCT_PAGE_SHIFT)
        line = (va % PAGE_BYTES) >> LINE_SHIFT
        splice.access(event, Kind.LOAD, va, range(line, line + 1), 1)
        splice.access(event, Kind.STORE, va, range(line, line + 1), 1)

    def _va(self, pfn: int) -> int:
        """Direct-map address of a frame."""
        return self.direct_map + (pfn << PAGE_SHIFT)
