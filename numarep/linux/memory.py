"""Memory of nodes a capture did not have: mapped like the captured kernel maps its own.

A machine may have more nodes than the capture. Their direct map and their struct pages (vmemmap)
are mapped in 2 MiB leaves, in the shared tables; the struct pages and the tables lie on the node
itself, at the end of its memory.

>>> struct_page_frames(1 << 18)
4096
"""

from collections.abc import Iterator, Mapping, Sequence

from numarep.linux.tables import (
    GLOBAL,
    LARGE,
    NO_EXECUTE,
    PRESENT,
    WRITABLE,
    PageTables,
    entry_index,
    entry_pfn,
)
from numarep.units import PAGE_BYTES, PAGE_SHIFT, PAGES_PER_PMD, PMD

# Source: include/linux/mm_types.h, 64 bytes with the captured configuration.
STRUCT_PAGE_BYTES = 64
_LEAF = PRESENT | WRITABLE | LARGE | NO_EXECUTE
_TABLE_FLAGS = PRESENT | WRITABLE


def struct_page_frames(frames: int) -> int:
    """Return how many frames the struct pages of `frames` frames fill, in whole 2 MiB leaves."""
    pages = -(-frames * STRUCT_PAGE_BYTES // PAGE_BYTES)
    return -(-pages // PAGES_PER_PMD) * PAGES_PER_PMD


def map_node(
    tables: PageTables,
    root: int,
    memory: tuple[int, int],
    bases: Mapping[str, int],
    *,
    global_pages: bool,
) -> list[int]:
    """Map one node's memory where it is not mapped yet, in place.

    Parameters
    ----------
    memory : tuple of int
        [start_pfn, end_pfn), whole 2 MiB.
    bases : mapping
        Start addresses of `direct_map` and `vmemmap`.

    Returns
    -------
    list of int
        Frames now in use on the node: struct pages and table pages.
    """
    start, end = memory
    direct_map, vmemmap = (bases[name] >> PAGE_SHIFT for name in ("direct_map", "vmemmap"))
    if start == end or tables.walk(root, direct_map + start) is not None:
        return []
    struct_pages = range(end - struct_page_frames(end - start), end)
    spare = iter(range(struct_pages.start - 1, start, -1))
    flags = _LEAF | (GLOBAL if global_pages else 0)
    used = list(struct_pages)
    for pfn in range(start, end, PAGES_PER_PMD):
        used += _map(tables, root, direct_map + pfn, pfn << PAGE_SHIFT | flags, spare)
    first = vmemmap + (start * STRUCT_PAGE_BYTES >> PAGE_SHIFT)
    for page in range(0, len(struct_pages), PAGES_PER_PMD):
        entry = struct_pages[page] << PAGE_SHIFT | flags
        used += _map(tables, root, first + page, entry, spare)
    return used


def _map(
    tables: PageTables, root: int, vpn: int, entry: int, spare: Iterator[int]
) -> Sequence[int]:
    """Map one 2 MiB leaf; return the frames its new tables took."""
    taken = []
    table = root
    for level in range(tables.levels, PMD, -1):
        index = entry_index(vpn, level)
        if not tables.entry(table, index):
            below = next(spare)
            tables.add_table(level - 1, below)
            tables.set_entry(level, table, index, below << PAGE_SHIFT | _TABLE_FLAGS)
            taken.append(below)
        table = entry_pfn(tables.entry(table, index))
    tables.set_entry(PMD, table, entry_index(vpn, PMD), entry)
    return taken
