"""What a traced event was about: its arguments, read off the accesses around it.

A trace holds no values, but the kernel's own accesses give them away exactly: `pgd_alloc` zeroes
the two pages it returns; `pgd_free` writes the struct page of the second one; `__pud_alloc` writes
the PGD entry, after zeroing the new table; the entry is cleared right before `___pud_free_tlb`;
`switch_mm_irqs_off` loads CR3; `text_poke` stores through a user address to a frame of text. Where
a clue is missing (None) the caller says what it assumes.

Source: arch/x86/mm/pgtable.c, mm/memory.c, arch/x86/mm/tlb.c, arch/x86/kernel/alternative.c.

>>> _zeroed_pages([(7, line) for line in range(64)])
[7]
>>> _zeroed_pages([(7, line) for line in range(63)])
[]
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from numarep.linux.image import Image
from numarep.memory.kinds import Kind
from numarep.units import LINE_SHIFT, LINES_PER_PAGE, PAGE_SHIFT
from numarep.workload.trace import Trace

# How many records an event's own accesses may be away. In the bundled traces 350 is the longest,
# but for a tick in between (two in a loop of 32 forks): then there is no clue.
_REACH = 4000
_BEFORE = 60
_STRUCT_PAGE_SHIFT = 6


def _zeroed_pages(stores: Sequence[tuple[int, int]]) -> list[int]:
    """List frames all of whose lines are stored, first to last, in a list of (pfn, line)."""
    found: list[int] = []
    run = 0
    for (pfn, line), before in zip(stores, [(-1, -1), *stores], strict=False):
        run = run + 1 if before == (pfn, line - 1) and line else int(line == 0)
        if run == LINES_PER_PAGE:
            found.append(pfn)
    return found


@dataclass(frozen=True)
class Clues:
    """A trace, and where the kernel's direct map and struct pages lie."""

    trace: Trace
    bases: Mapping[str, int]
    image: Image

    @cached_property
    def _row_frame(self) -> NDArray[np.int64]:
        """Frame that each row reaches through the direct map, or -1."""
        pages = self.trace.pages
        first = self.bases["direct_map"] >> PAGE_SHIFT
        return np.where(pages.vpn - first == pages.pfn, pages.pfn, -1)

    def direct_stores(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """List (record, pfn, line) of stores through the direct map among records."""
        records = self.trace.records
        part = slice(max(start, 0), stop)
        frame = self._row_frame[records.page[part]]
        at = np.flatnonzero((records.kind[part] == Kind.STORE) & (frame >= 0))
        lines = records.line[part][at].tolist()
        return list(zip((at + part.start).tolist(), frame[at].tolist(), lines, strict=True))

    def new_pgd(self, event: int) -> int | None:
        """Return the PGD that pgd_alloc made: the first pair of pages zeroed."""
        stores = [(pfn, line) for _, pfn, line in self.direct_stores(event, event + _REACH)]
        zeroed = _zeroed_pages(stores)
        pairs = itertools.pairwise(zeroed)
        return next((a for a, b in pairs if a % 2 == 0 and b == a + 1), None)

    def freed_pgd(self, event: int, alive: Collection[int]) -> int | None:
        """Return the PGD that pgd_free frees: the struct page of its second page is written."""
        records, pages = self.trace.records, self.trace.pages
        part = slice(event, event + _REACH)
        va = (pages.vpn[records.page[part]] << PAGE_SHIFT) + (
            records.line[part].astype(np.int64) << LINE_SHIFT
        )
        pfn = (va - self.bases["vmemmap"]) >> _STRUCT_PAGE_SHIFT
        stored = pfn[records.kind[part] == Kind.STORE].tolist()
        return next((p - 1 for p in stored if p % 2 and p - 1 in alive), None)

    def filled_slot(self, event: int, alive: Collection[int]) -> tuple[int, int, int | None] | None:
        """Return (PGD, line of the slot, new table) of a fill: the next store to a live PGD."""
        seen: list[tuple[int, int]] = []
        for _, pfn, line in self.direct_stores(event, event + _REACH):
            if pfn & ~1 in alive:
                zeroed = _zeroed_pages(seen)
                return pfn & ~1, line, zeroed[-1] if zeroed else None
            seen.append((pfn, line))
        return None

    def cleared_slot(self, event: int, alive: Collection[int]) -> tuple[int, int] | None:
        """Return (PGD, line of the slot) of a teardown: the last store to a live PGD before."""
        for _, pfn, line in reversed(self.direct_stores(event - _BEFORE, event)):
            if pfn & ~1 in alive:
                return pfn & ~1, line
        return None

    def loaded_root(self, event: int) -> int | None:
        """Return the root that a context switch loads next."""
        records = self.trace.records
        part = records.kind[event : event + _REACH]
        at = np.flatnonzero(part == Kind.CR3)
        if not len(at):
            return None
        return int(self.trace.pages.root[records.page[event + int(at[0])]])

    def user_stores(self, event: int, stop: int) -> list[tuple[int, int]]:
        """List (pfn, line) of stores through user addresses right after an event."""
        records, pages = self.trace.records, self.trace.pages
        part = slice(event, min(stop, event + _REACH))
        rows = records.page[part]
        at = (records.kind[part] == Kind.STORE) & (pages.vpn[rows] >= 0)
        lines = records.line[part][at].tolist()
        return list(zip(pages.pfn[rows[at]].tolist(), lines, strict=True))
