"""Modules on another node than they were captured on: base copies, and the PTE pages above them.

The series puts every module's base copy on one fixed node (R30), while a capture's modules lie on
the node of the CPU that was measured. `move_modules` gives the pages of modules frames of the
wanted node, and PTE pages of it, too, as the loading CPU's node is where those come from (R29).

>>> tables = PageTables(4)
>>> for level, table, index, below in ((4, 1, 511, 2), (3, 2, 511, 3), (2, 3, 0, 4), (1, 4, 0, 9)):
...     tables.set_entry(level, table, index, below << 12 | 1)
>>> frames = Frames([(0, 16), (16, 32)], used=[1, 2, 3, 4, 9], colours=1)
>>> first = -(1 << 30) >> 12
>>> move_modules(tables, 1, frames, 1, [range(first, first + 2)])
{9: 16, 4: 17}
>>> tables.walk(1, first).pfn, tables.walk(1, first).table[0]
(16, 17)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from numarep.linux.boot_node import moved
from numarep.linux.frames import Frames
from numarep.linux.tables import PageTables, entry_index, repointed
from numarep.units import PMD, PTE
from numarep.workload.trace import Trace


def move_modules(
    tables: PageTables,
    root: int,
    frames: Frames,
    node: int,
    modules: Sequence[range],
    *,
    shared: Mapping[int, int] = MappingProxyType({}),
) -> dict[int, int]:
    """Move pages of modules and their PTE pages to a node, in place; return old and new pfns.

    Parameters
    ----------
    modules : sequence of range
        Pages of each module (vpns); those not mapped, or in larger leaves, stay.
    shared : mapping
        Where another CPU's modules were moved, old pfn to new: the same frame is the same page.

    Raises
    ------
    FrameError
        If the node has no room.
    """
    new: dict[int, int] = {}

    def there(old: int) -> int:
        if old not in new and frames.node_of(old) != node:
            # The old frame stays taken: it may be somebody else's later in the window.
            new[old] = shared[old] if old in shared else frames.allocate(node, like=old)
        return new.get(old, old)

    for vpn in (vpn for pages in modules for vpn in pages):
        found = tables.walk(root, vpn)
        if found is None or found.leaf != PTE:
            continue
        table, index = found.table[PTE - 1], entry_index(vpn, PTE)
        entry = repointed(tables.entry(table, index), there(found.pfn))
        tables.set_entry(PTE, table, index, entry)
        below = there(table)
        if below != table:
            above, place = found.table[PMD - 1], entry_index(vpn, PMD)
            tables.add_table(PTE, below, tables.pages[table])
            tables.set_entry(PMD, above, place, repointed(tables.entry(above, place), below))
            tables.drop_table(table)
    return new


def with_modules_moved(
    trace: Trace,
    tables: PageTables,
    root: int,
    new: Mapping[int, int],
    direct_map: int,
    modules: Sequence[range],
) -> Trace:
    """Return the trace as it is with modules moved; `direct_map` is where that starts."""
    trace = moved(trace, tables, root, new, direct_map)
    pages = trace.pages
    inside = np.zeros(len(pages.vpn), np.bool_)
    for each in modules:
        inside |= (pages.vpn >= each.start) & (pages.vpn < each.stop)
    inside &= pages.leaf == PTE
    pfn = pages.pfn.copy()
    pfn[inside] = [new.get(old, old) for old in pfn[inside].tolist()]
    return dataclasses.replace(trace, pages=dataclasses.replace(pages, pfn=pfn))
