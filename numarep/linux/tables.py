"""Real x86-64 page tables, rebuilt from a capture's snapshot.

Models present entries only; accessed and dirty bits are kept but mean nothing here.

>>> tables = PageTables(levels=4)
>>> for level, index in ((4, 0), (3, 0), (2, 1)):
...     tables.set_entry(level, 10 - level, index, ((11 - level) << 12) | 0x3)
>>> tables.set_entry(2, 8, 1, (512 << 12) | 0x83)
>>> tables.walk(6, 512 + 5)
Translation(pfn=517, leaf=2, flags=3, table=(-1, 8, 7, 6, -1))
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from numarep.units import MAX_LEVELS, PAGE_SHIFT, PTE, TABLE_ENTRIES, TABLE_SHIFT
from numarep.workload.trace import Flag

# Source: SDM volume 3, 4.5, tables 4-15 to 4-20.
PRESENT, WRITABLE, USER, LARGE, GLOBAL, NO_EXECUTE = 1, 2, 4, 1 << 7, 1 << 8, 1 << 63
_FLAG_BITS = PRESENT | WRITABLE | USER | LARGE | GLOBAL | NO_EXECUTE
_PFN_MASK = (1 << 40) - 1
_NO_ENTRIES: Mapping[int, int] = {}
_WRITABLE, _EXECUTABLE, _USER, _GLOBAL = (int(flag) for flag in Flag)


class Translation(NamedTuple):
    """Result of a walk; `table[level - 1]` is the pfn of the table page read, or -1."""

    pfn: int
    leaf: int
    flags: int
    table: tuple[int, ...]


def entry_pfn(entry: int) -> int:
    """Return the frame a (non-large or aligned large) entry points at."""
    return (entry >> PAGE_SHIFT) & _PFN_MASK


def repointed(entry: int, pfn: int | None) -> int:
    """Return the entry pointing at another table page, or as it is with None."""
    return entry if pfn is None else (entry & ~(_PFN_MASK << PAGE_SHIFT)) | (pfn << PAGE_SHIFT)


def large_entry(pfn: int, flags: int) -> int:
    """Make the PMD entry of a 2 MiB leaf with the given permissions (`trace.Flag`)."""
    return (
        (pfn << PAGE_SHIFT)
        | PRESENT
        | LARGE
        | (WRITABLE if flags & Flag.WRITABLE else 0)
        | (USER if flags & Flag.USER else 0)
        | (GLOBAL if flags & Flag.GLOBAL else 0)
        | (0 if flags & Flag.EXECUTABLE else NO_EXECUTE)
    )


def entry_index(vpn: int, level: int) -> int:
    """Return the index of the entry that a walk for `vpn` reads at `level`."""
    return (vpn >> (TABLE_SHIFT * (level - 1))) & (TABLE_ENTRIES - 1)


class PageTables:
    """All table pages of a machine, by pfn; each a mapping of index to present entry."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.pages: dict[int, dict[int, int]] = {}
        self.level_of: dict[int, int] = {}

    def copy(self) -> "PageTables":
        """Return tables of their own that hold the same entries."""
        tables = PageTables(self.levels)
        tables.pages = {pfn: page.copy() for pfn, page in self.pages.items()}
        tables.level_of = self.level_of.copy()
        return tables

    def set_entry(self, level: int, table: int, index: int, entry: int) -> None:
        """Set, or with 0 clear, one entry; a table page exists from its first entry on."""
        page = self.pages.setdefault(table, {})
        self.level_of[table] = level
        if entry & PRESENT:
            page[index] = entry
        else:
            page.pop(index, None)

    def entry(self, table: int, index: int) -> int:
        """Return one entry, 0 where nothing is present."""
        return self.pages[table].get(index, 0)

    def add_table(self, level: int, table: int, entries: Mapping[int, int] | None = None) -> None:
        """Add a table page, empty or with the given entries."""
        self.pages[table] = dict(entries or {})
        self.level_of[table] = level

    def drop_table(self, table: int) -> None:
        """Forget a table page whose frame is freed."""
        del self.pages[table], self.level_of[table]

    def roots(self) -> list[int]:
        """List the pfns of all top-level tables."""
        return sorted(pfn for pfn, level in self.level_of.items() if level == self.levels)

    def walk(self, root: int, vpn: int) -> Translation | None:
        """Translate one page as the hardware walker does; None where nothing is mapped."""
        tables = [-1] * MAX_LEVELS
        table, allowed = root, -1  # permissions that all levels give, executing as a set bit
        for level in range(self.levels, 0, -1):
            tables[level - 1] = table
            entry = self.pages.get(table, _NO_ENTRIES).get(entry_index(vpn, level), 0)
            if not entry & PRESENT:
                return None
            allowed &= entry ^ NO_EXECUTE
            if level == PTE or (entry & LARGE and level < self.levels):
                break
            table = entry_pfn(entry)
        offset_mask = (1 << (TABLE_SHIFT * (level - 1))) - 1
        pfn = (entry_pfn(entry) & ~offset_mask) | (vpn & offset_mask)
        flags = (
            (_WRITABLE if allowed & WRITABLE else 0)
            | (_EXECUTABLE if allowed & NO_EXECUTE else 0)
            | (_USER if allowed & USER else 0)
            | (_GLOBAL if entry & GLOBAL else 0)
        )
        return Translation(pfn, level, flags, tuple(tables))

    def walk_all(self, root: int, vpns: Iterable[int]) -> Iterator[Translation | None]:
        """Translate pages in turn; quick where neighbours' leaf entries lie side by side.

        Their walks differ in the last entry only, and in flags only if that entry's differ.
        """
        found, shift, leaves, flags = None, 0, _NO_ENTRIES, 0
        block = None  # what the table page of the last leaf maps
        for vpn in vpns:
            if found is not None and vpn >> shift + TABLE_SHIFT == block:
                entry = leaves.get((vpn >> shift) & (TABLE_ENTRIES - 1), 0)
                if entry & _FLAG_BITS == flags:
                    pfn = entry_pfn(entry) >> shift << shift | vpn & ((1 << shift) - 1)
                    yield Translation(pfn, found.leaf, found.flags, found.table)
                    continue
            found = self.walk(root, vpn)
            yield found
            if found is not None:
                shift = TABLE_SHIFT * (found.leaf - 1)
                block, leaves = vpn >> shift + TABLE_SHIFT, self.pages[found.table[found.leaf - 1]]
                flags = leaves[entry_index(vpn, found.leaf)] & _FLAG_BITS


def tables_from_snapshot(
    snapshot: pa.Table, levels: int, windows: Sequence[str] = (), *, at_end: bool = False
) -> PageTables:
    """Rebuild the tables as they were when a capture's window began, or ended.

    Parameters
    ----------
    snapshot : Table
        Schema `dataset.TABLES`: the first workload's begin holds every present entry, what
        follows holds changes.
    levels : int
        4 or 5.
    windows : sequence of str
        All windows up to the wanted one, in the order they ran; empty for the first.
    """
    workload = snapshot.column("workload").to_numpy(zero_copy_only=False)
    moment = snapshot.column("moment").to_numpy(zero_copy_only=False)
    last = windows[-1] if windows else workload[0]
    wanted = np.isin(workload, list(windows[:-1])) | (
        (workload == last) & ((moment == "begin") | at_end)
    )
    columns = ("level", "table", "index", "value")
    rows = (snapshot.column(name).to_numpy()[wanted].tolist() for name in columns)
    tables = PageTables(levels)
    for level, table, index, value in zip(*rows, strict=True):
        tables.set_entry(level, table, index, value)
    for table in [table for table, page in tables.pages.items() if not page]:
        tables.drop_table(table)
    return tables
