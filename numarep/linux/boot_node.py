"""Another boot CPU: the kernel's own table pages on another node than they were captured on.

Table pages that the boot CPU allocates lie on its node: those of the direct map, vmalloc, vmemmap
and the rest, below swapper's PGD (R13, R14). Those linked into the image (swapper's PGD, the
window's) go with the image. `move_tables` exchanges the frames of the former for free ones of the
wanted node, `moved` makes a trace agree: its walks read the new pages, and what it accesses in
them through the direct map lies where the new pages are.

>>> tables = PageTables(4)
>>> for level, table, index, below in ((4, 1, 300, 2), (3, 2, 0, 3), (4, 9, 300, 2)):
...     tables.set_entry(level, table, index, below << 12 | 1)
>>> frames = Frames([(0, 16), (16, 32)], used=[1, 2, 3, 9], colours=1)
>>> move_tables(tables, 1, frames, node=1)
{2: 16}
>>> [entry_pfn(tables.entry(root, 300)) for root in (1, 9)]
[16, 16]
"""

import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType

import numpy as np

from numarep.linux.frames import Frames
from numarep.linux.tables import LARGE, PageTables, entry_index, entry_pfn, repointed
from numarep.units import PAGE_SHIFT, PTE, TABLE_ENTRIES
from numarep.workload.trace import Pages, Trace


def move_tables(
    tables: PageTables,
    root: int,
    frames: Frames,
    node: int,
    *,
    image: Collection[int] = (),
    shared: Mapping[int, int] = MappingProxyType({}),
) -> dict[int, int]:
    """Move the kernel's table pages to a node, in place; return old and new pfn of each.

    Parameters
    ----------
    root : int
        Swapper's PGD; it stays, as do the frames of `image` and what maps the top 2 GiB.
    shared : mapping
        Where another CPU's tables were moved, old pfn to new: the same frame is the same page.

    Raises
    ------
    FrameError
        If the node has no room.
    """
    stays = {root, *image}
    found = [t for t in _below(tables, root) if t not in stays and frames.node_of(t) != node]
    new = {
        table: shared[table] if table in shared else frames.allocate(node, like=table)
        for table in found
    }
    for table, entries in tables.pages.items():
        if tables.level_of[table] > PTE:
            for index, entry in entries.items():
                if not entry & LARGE and entry_pfn(entry) in new:
                    entries[index] = repointed(entry, new[entry_pfn(entry)])
    for old, pfn in new.items():
        tables.add_table(tables.level_of[old], pfn, tables.pages[old])
        tables.drop_table(old)
        frames.free(old)
    return new


def _below(tables: PageTables, root: int) -> list[int]:
    """List the table pages below the kernel half of a PGD, but for the window's."""
    window = entry_index(-1, tables.levels)
    kernel = range(TABLE_ENTRIES // 2, TABLE_ENTRIES)
    level = [e for i, e in tables.pages[root].items() if i in kernel and i != window]
    found: dict[int, None] = {}
    while level:
        here = [entry_pfn(e) for e in level if not e & LARGE and entry_pfn(e) in tables.pages]
        upper = [table for table in here if table not in found and tables.level_of[table] > PTE]
        found |= dict.fromkeys(here)
        level = [entry for table in upper for entry in tables.pages[table].values()]
    return list(found)


def moved(
    trace: Trace, tables: PageTables, root: int, new: Mapping[int, int], direct_map: int
) -> Trace:
    """Return the trace as it is with table pages moved; `direct_map` is where that starts."""
    if not new:
        return trace
    pages = trace.pages
    vpn, pfn = pages.vpn.copy(), pages.pfn.copy()
    leaf, table = pages.leaf.copy(), pages.table.copy()
    for old, now in new.items():
        table[pages.table == old] = now
    first = direct_map >> PAGE_SHIFT
    aliases = np.isin(pages.pfn, list(new)) & (pages.vpn - first == pages.pfn)
    for row in np.flatnonzero(aliases & (pages.leaf > 0)).tolist():
        pfn[row] = new[int(pages.pfn[row])]
        vpn[row] = first + pfn[row]
        found = tables.walk(root, int(vpn[row]))
        if found is not None:
            own = table[row, tables.levels - 1]  # the PGD of whoever runs
            leaf[row], table[row] = found.leaf, found.table
            table[row, tables.levels - 1] = own
    return dataclasses.replace(trace, pages=Pages(vpn, pfn, leaf, pages.flags, table))
