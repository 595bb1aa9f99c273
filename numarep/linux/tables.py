"""Real x86-64 page tables, rebuilt from a capture's snapshot.

Models present entries only; accessed and dirty bits are kept but mean nothing here.

>>> tables = PageTables(levels=4)
>>> for level, index in ((4, 0), (3, 0), (2, 1)):
...     tables.set_entry(level, 10 - level, index, ((11 - level) << 12) | 0x3)
>>> tables.set_entry(2, 8, 1, (512 << 12) | 0x83)
>>> tables.walk(6, 512 + 5)
Translation(pfn=517, leaf=2, flags=3, table=(-1, 8, 7, 6, -1))
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from numarep.units import MAX_LEVELS, PAGE_SHIFT, PTE, TABLE_ENTRIES, TABLE_SHIFT
from numarep.workload.trace import Flag

# Source: SDM volume 3, 4.5, tables 4-15 to 4-20.
PRESENT, WRITABLE, USER, LARGE, GLOBAL, NO_EXECUTE = 1, 2, 4, 1 << 7, 1 << 8, 1 << 63
_PFN_MASK = (1 << 40) - 1


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

    def _path(self, root: int, vpn: int) -> Iterator[tuple[int, int, int]]:
        """Yield (level, table, entry) from the root down to the leaf or a hole."""
        table = root
        for level in range(self.levels, 0, -1):
            entry = self.pages.get(table, {}).get(entry_index(vpn, level), 0)
            yield level, table, entry
            if not entry & PRESENT or level == PTE or (entry & LARGE and level < self.levels):
                return
            table = entry_pfn(entry)

    def walk(self, root: int, vpn: int) -> Translation | None:
        """Translate one page as the hardware walker does; None where nothing is mapped."""
        tables = [-1] * MAX_LEVELS
        writable = user = executable = True
        entry = 0
        for level, table, entry in self._path(root, vpn):
            tables[level - 1] = table
            leaf = level
            writable &= bool(entry & WRITABLE)
            user &= bool(entry & USER)
            executable &= not entry & NO_EXECUTE
        if not entry & PRESENT:
            return None
        offset_mask = (1 << (TABLE_SHIFT * (leaf - 1))) - 1
        pfn = (entry_pfn(entry) & ~offset_mask) | (vpn & offset_mask)
        flags = (
            writable * Flag.WRITABLE
            | executable * Flag.EXECUTABLE
            | user * Flag.USER
            | bool(entry & GLOBAL) * Flag.GLOBAL
        )
        return Translation(pfn, leaf, int(flags), tuple(tables))


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
