"""Work spliced into a trace: after each event, the records that replication adds there.

Bursts become loads and stores through the page tables of the process that ran, instructions a
fetch of the event's own line, CR3 loads, flushes and interrupts by the own CPU their records. What
other CPUs do when interrupted (their flushes) is not in a trace of one CPU and left out: the wait
for it is the interrupt's price.

>>> [kind.name for kind in _SYNC_KIND.values()]
['CR3', 'INVLPG', 'FLUSH', 'IPI']
"""

import dataclasses
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numarep.memory.kinds import Kind
from numarep.replication.kernel import Cpu, Kernel
from numarep.replication.work import CURRENT, Burst, Event, Instructions, Run, Sync, Work
from numarep.units import LINES_PER_PAGE, MAX_LEVELS, PAGE_SHIFT, PTE, shown
from numarep.workload.trace import Flag, Pages, Records, Trace, TraceError

_SYNC_KIND = {
    Sync.CR3_LOAD: Kind.CR3,
    Sync.FLUSH_PAGE: Kind.INVLPG,
    Sync.FLUSH_ALL: Kind.FLUSH,
    Sync.IPI: Kind.IPI,
}
_RECORD = np.dtype(
    [("kind", np.uint8), ("page", np.int32), ("line", np.uint8), ("count", np.int32)]
)
_FIELDS = _RECORD.names or ()
_Record = tuple[int, int, int, int]
_Row = tuple[int, ...]  # vpn, pfn, leaf, flags, table pages from PTE to the 5-level PGD


@dataclass(frozen=True)
class _Lines:
    """A burst's records, made when they are written: those of a boot's copies are millions.

    fetch : a record before every line, if any. runs : each with the translation of each of its
    pages.
    """

    lines: int
    fetch: _Record | None
    runs: tuple[tuple[Run, NDArray[np.int32]], ...]

    def __len__(self) -> int:
        return self.lines * (len(self.runs) + (self.fetch is not None))

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return one column of the records."""
        beside, field_ = int(self.fetch is not None), _FIELDS.index(name)
        made = np.empty((self.lines, beside + len(self.runs)), _RECORD[name])
        if self.fetch is not None:
            made[:, 0] = self.fetch[field_]
        for column, (run, rows) in enumerate(self.runs, start=beside):
            page, line = np.divmod(run.line + run.stride * np.arange(self.lines), LINES_PER_PAGE)
            values = {"kind": run.kind, "page": rows[page], "line": line, "count": run.times}
            made[:, column] = values[name]
        return made.reshape(-1)


@dataclass
class Splice:
    """Records and translations to add, built event by event."""

    trace: Trace
    kernel: Kernel
    rows: dict[tuple[int, int, int], int] = field(default_factory=dict)
    new_pages: "array[int]" = field(default_factory=lambda: array("q"))  # rows, end to end
    blocks: list[NDArray[np.void] | _Lines] = field(default_factory=list)  # of records
    after: list[int] = field(default_factory=list)  # the event of each block
    single: list[_Record] = field(default_factory=list)  # rows that are no block yet

    def add(self, event: int, cpu: Cpu, work: Work) -> None:
        """Add an operation's work right after record `event`, which `cpu` ran."""
        records = self.trace.records
        page, line = int(records.page[event]), int(records.line[event])
        root = int(self.trace.pages.root[page])
        for step in work.steps:
            if isinstance(step, Burst):
                fetch = (Kind.FETCH, page, line, step.instructions)
                self._add_burst(step, fetch if step.instructions else None, root)
            elif isinstance(step, Instructions):
                self.single.append((Kind.FETCH, page, line, step.number))
            else:
                self._add_event(step, cpu, root)
        self._end_block()
        self.after += [event] * (len(self.blocks) - len(self.after))

    def _end_block(self) -> None:
        """Make a block of the single rows."""
        if self.single:
            self.blocks.append(np.array(self.single, _RECORD))
            self.single.clear()

    def _add_burst(self, burst: Burst, fetch: _Record | None, root: int) -> None:
        """Add the runs' records line by line, after a fetch for every line if there is one."""
        lines = burst.runs[0].lines
        if lines == 1:  # most bursts: an entry, a struct page
            self.single += [fetch] if fetch else []
            self.single += [(r.kind, self._row(root, r), r.line, r.times) for r in burst.runs]
            return
        self._end_block()
        runs = []
        for run in burst.runs:
            pages = range((run.line + run.stride * (lines - 1)) // LINES_PER_PAGE + 1)
            rows = [self._row(root, run._replace(vpn=run.vpn + p, pfn=run.pfn + p)) for p in pages]
            runs.append((run, np.array(rows, np.int32)))
        self.blocks.append(_Lines(lines, fetch, tuple(runs)))

    def _add_event(self, event: Event, cpu: Cpu, root: int) -> None:
        if event.cpu != cpu.number:
            return
        vpn = event.argument if event.sync == Sync.FLUSH_PAGE else 0
        new_root = root
        if event.sync == Sync.CR3_LOAD and event.argument != cpu.cr3:
            new_root = event.argument
        key = (new_root, vpn, CURRENT)
        if key not in self.rows:
            table = [-1] * MAX_LEVELS
            table[self.kernel.tables.levels - 1] = new_root
            self._new_row(key, (vpn, 0, 0, 0, *table))
        self.single.append((_SYNC_KIND[event.sync], self.rows[key], 0, 0))

    def _row(self, root: int, run: Run) -> int:
        key = (root if run.root == CURRENT else run.root, run.vpn, run.pfn)
        if key not in self.rows:
            foreign = run.root != CURRENT
            self._new_row(key, self._through(run) if foreign else self._mapped(root, run))
        return self.rows[key]

    def _new_row(self, key: tuple[int, int, int], row: _Row) -> None:
        self.rows[key] = len(self.trace.pages.vpn) + len(self.rows)
        self.new_pages.extend(row)

    def _mapped(self, root: int, run: Run) -> _Row:
        """Translate a kernel address as the captured tables do, under the current root."""
        found = self.kernel.tables.walk(self.kernel.root, run.vpn)
        if found is None:
            raise TraceError(f"page tables: {shown(run.vpn << PAGE_SHIFT)} is not mapped")
        table = list(found.table)
        table[self.kernel.tables.levels - 1] = root
        return run.vpn, found.pfn, found.leaf, found.flags, *table

    def _through(self, run: Run) -> _Row:
        """Translate a page mapped for a moment under another root (the poking mm's)."""
        table = [-1] * MAX_LEVELS
        for level, pfn in self.kernel.path(run.root, run.vpn, PTE):
            table[level - 1] = pfn
        return run.vpn, run.pfn, PTE, Flag.WRITABLE, *table

    def spliced(self) -> Trace:
        """Return the trace with everything added; the very same if that is nothing."""
        if not self.blocks:
            return self.trace
        order = np.argsort(self.after, kind="stable").tolist()
        events, blocks = [self.after[at] for at in order], [self.blocks[at] for at in order]
        old = self.trace.records
        columns = (_merged(getattr(old, name), name, events, blocks) for name in _FIELDS)
        added = np.cumsum([0, *map(len, blocks)])
        passed = np.searchsorted(events, self.trace.event_record, side="left")
        return dataclasses.replace(
            self.trace,
            records=Records(*columns),
            pages=self._more_pages(),
            event_record=self.trace.event_record + added[passed],
        )

    def _more_pages(self) -> Pages:
        old = self.trace.pages
        new = np.array(self.new_pages, np.int64).reshape(-1, 4 + MAX_LEVELS)
        return Pages(
            np.concatenate([old.vpn, new[:, 0]]),
            np.concatenate([old.pfn, new[:, 1]]),
            np.concatenate([old.leaf, new[:, 2].astype(np.uint8)]),
            np.concatenate([old.flags, new[:, 3].astype(np.uint8)]),
            np.concatenate([old.table, new[:, 4:]]),
        )


def _merged(
    old: NDArray[Any],
    name: str,
    events: Sequence[int],
    blocks: Sequence[NDArray[np.void] | _Lines],
) -> NDArray[Any]:
    """Return a column of records with a block's inserted after each of these rising events."""
    merged = np.empty(len(old) + sum(map(len, blocks)), old.dtype)
    done = at = 0
    for event, block in zip(events, blocks, strict=True):
        stop = at + event + 1 - done
        merged[at:stop] = old[done : event + 1]
        done, at = event + 1, stop + len(block)
        merged[stop:at] = block[name]
    merged[at:] = old[done:]
    return merged
