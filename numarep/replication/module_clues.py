"""Which pages a traced module load, unload or protection change was about.

Read off the accesses around the event, as in `clues`:

- `load_module` stores to all pages of the module, which nothing maps before. In one allocation lie
  text, rodata and data in this order: text ends with the last page that is ever executable,
  rodata with the last one that is ever read-only. Pages apart from the first ones are init
  sections, which are never replicated (R7).
- `free_module` clears the PTEs of the module's pages, through the direct map.
- `set_memory_*` stores to the PTEs of its range, one store a page.

Source: kernel/module/main.c (layout_sections, move_module, free_module), mm/vmalloc.c,
arch/x86/mm/pat/set_memory.c.

>>> _runs([3, 4, 5, 9])
[range(3, 6), range(9, 10)]
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from numarep.linux.layout import MODULES_END_VPN, MODULES_VPN
from numarep.linux.tables import LARGE, NO_EXECUTE, PageTables, entry_index, entry_pfn
from numarep.replication.adopt import INIT, Part
from numarep.replication.clues import Clues
from numarep.replication.kernel import ENTRIES_PER_LINE, Area, Kernel
from numarep.units import PAGE_SHIFT, PAGES_PER_PMD, PMD, PTE
from numarep.workload.trace import Flag

LOAD, FREE = "load_module", "free_module"
_CHANGES = ("ro", "rw", "x", "nx", "rox", "np", "global", "nonglobal")
PROTECT = tuple(f"set_memory_{change}" for change in _CHANGES)


def _runs(numbers: Iterable[int]) -> list[range]:
    """Cut sorted numbers into runs of consecutive ones."""
    runs: list[range] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


@dataclass(frozen=True)
class ModuleClues:
    """A trace's clues, the kernel it is replayed on, and the tables the window ends with."""

    clues: Clues
    kernel: Kernel
    at_end: PageTables | None = None

    def until(self, event: int, *names: str) -> int:
        """Return the record of the next event of some names, or the window's end."""
        trace = self.clues.trace
        marks = zip(trace.event_record.tolist(), trace.event_name, strict=True)
        later = (at for at, name in marks if at > event and name in names)
        return next(later, len(trace.records.kind))

    def sealed_at(self, event: int) -> int:
        """Return where a module's first protection change begins, or the event without one.

        There its text is relocated and patched: the series replicates right before (R30).
        """
        sealed, end = self.until(event, *PROTECT), self.until(event, LOAD, FREE)
        return sealed if sealed < end else event

    def loaded(self, event: int) -> list[Part]:
        """Return the parts of the module that a load_module maps; none without a clue."""
        trace, walk = self.clues.trace, self.kernel.tables.walk
        rows = np.unique(trace.records.page[event : self.until(event, LOAD)])
        vpn = trace.pages.vpn[rows]
        inside = (vpn >= MODULES_VPN) & (vpn < MODULES_END_VPN) & (trace.pages.leaf[rows] == PTE)
        rows_of: dict[int, list[int]] = {}
        for page, row in zip(vpn[inside].tolist(), rows[inside].tolist(), strict=True):
            if walk(self.kernel.root, page) is None:
                rows_of.setdefault(page, []).append(row)
        pages = sorted(rows_of)
        runs = _runs(pages)
        parts = self._parts(runs[0], rows_of) if runs else []
        return parts + [self._part(run, rows_of, INIT) for run in runs[1:]]

    def _parts(self, run: range, rows_of: dict[int, list[int]]) -> list[Part]:
        """Cut a module's pages into text, rodata and data."""
        flags = {vpn: self._flags(vpn, rows_of[vpn]) for vpn in run}
        text = [vpn for vpn in run if any(f & Flag.EXECUTABLE for f in flags[vpn])]
        text_end = text[-1] + 1 if text else run.start
        rodata = [vpn for vpn in run if not all(f & Flag.WRITABLE for f in flags[vpn])]
        rodata_end = max(text_end, rodata[-1] + 1 if rodata else 0)
        cut = (
            (range(run.start, text_end), "text"),
            (range(text_end, rodata_end), "rodata"),
            (range(rodata_end, run.stop), "data"),
        )
        return [self._part(part, rows_of, what) for part, what in cut if part]

    def _flags(self, vpn: int, rows: Sequence[int]) -> list[int]:
        """List a page's permissions: in the trace, and at the window's end if still mapped so."""
        pages = self.clues.trace.pages
        flags = [int(pages.flags[row]) for row in rows]
        end = self.at_end.walk(self.kernel.root, vpn) if self.at_end is not None else None
        if end is not None and end.pfn == int(pages.pfn[rows[-1]]):
            flags.append(end.flags)
        return flags

    def _part(self, run: range, rows_of: dict[int, list[int]], what: str) -> Part:
        pages = self.clues.trace.pages
        frames = [int(pages.pfn[rows_of[vpn][0]]) for vpn in run]
        table = tuple(pages.table[rows_of[run.start][0]].tolist())
        return Part(run.start, frames, what, table)

    def freed(self, event: int, modules: Sequence[Sequence[Area]]) -> int | None:
        """Return which module a free_module unmaps: most of its PTE lines are stored to."""
        end = self.until(event, LOAD, FREE)
        stored = {(pfn, line) for _, pfn, line in self.clues.direct_stores(event, end)}
        hits = [len(stored & {self._line(v) for a in areas for v in a.vpns}) for areas in modules]
        return hits.index(max(hits)) if any(hits) else None

    def _line(self, vpn: int) -> tuple[int, int]:
        """Return (PTE page, line) of a page's entry in the master's table."""
        level, table = list(self.kernel.path(self.kernel.root, vpn, PTE))[-1]
        return table, entry_index(vpn, level) // ENTRIES_PER_LINE

    def protected(self, event: int) -> range | None:
        """Return the pages that a set_memory_* changes, in the window; None without a clue.

        Empty if it changes entries elsewhere: those tables are shared, so there is no more work.
        """
        end = self.until(event, LOAD, FREE, *PROTECT)
        counts = self.clues.trace.records.count
        tables, upper = self._window_ptes(), {table for _, table in self.kernel.window_tables()}
        lines: dict[tuple[int, int], int] = {}
        elsewhere = False
        for record, pfn, line in self.clues.direct_stores(event, end):
            if pfn in tables:
                lines[pfn, line] = lines.get((pfn, line), 0) + int(counts[record])
            elsewhere |= pfn in self.kernel.tables.pages and pfn not in upper
        if not lines:
            return range(0) if elsewhere else None
        table, line = next(iter(lines))
        first = tables[table] + line * ENTRIES_PER_LINE
        mapped = [v for v in range(first, first + ENTRIES_PER_LINE) if self._is_mapped(v)]
        starts = [area.start for area in self.kernel.areas if area.start in mapped]
        start = min(starts or mapped, default=first)
        stop = start + sum(lines.values())
        return range(start, next((v for v in range(start, stop) if not self._is_mapped(v)), stop))

    def text_at(self, pfn: int) -> int | None:
        """Return the page of the window where a frame is executable: the image's, or a module's."""
        kernel, text = self.kernel, self.kernel.image.text
        first = kernel.tables.walk(kernel.root, text.start >> PAGE_SHIFT)
        if first is not None and 0 <= pfn - first.pfn < text.pages:
            return (text.start >> PAGE_SHIFT) + pfn - first.pfn
        found = (
            start + index
            for table, start in self._window_ptes().items()
            for index, entry in kernel.tables.pages[table].items()
            if entry_pfn(entry) == pfn and not entry & NO_EXECUTE
        )
        return next(found, None)

    def _is_mapped(self, vpn: int) -> bool:
        return self.kernel.tables.walk(self.kernel.root, vpn) is not None

    def _window_ptes(self) -> dict[int, int]:
        """Return the master's PTE pages of the module area, each with the first page it maps."""
        found = {}
        for vpn in range(MODULES_VPN, MODULES_END_VPN, PAGES_PER_PMD):
            path = dict(self.kernel.path(self.kernel.root, vpn, PTE))
            entry = self.kernel.tables.entry(path[PMD], entry_index(vpn, PMD)) if PMD in path else 0
            if PTE in path and entry and not entry & LARGE:
                found[path[PTE]] = vpn
        return found
