"""Protection changes: to every node's table, so that no replica is more permissive (R25).

A change to part of a large leaf splits it, in all tables alike, as the kernel does; a replicated
leaf is never split: text and rodata are whole 2 MiB units (R6), and what the kernel protects of
them it protects as a whole (mark_rodata_ro), so such a change is refused.

Source: change_page_attr_set_clr and split_large_page, arch/x86/mm/pat/set_memory.c.

>>> from tests.kernels import SmallKernel
>>> from numarep.replication.areas import new_area
>>> kernel = SmallKernel(nodes=3).booted()
>>> area, _ = new_area(kernel, kernel.cpus[0], pages=1)
>>> work = set_memory(kernel, area.start, 1, "rox")
>>> [step.runs[0].times for step in work.steps]  # one entry in each of two further tables
[1, 1]
"""

from collections.abc import Iterator
from typing import Literal, get_args

from numarep.linux.tables import (
    GLOBAL,
    LARGE,
    NO_EXECUTE,
    PRESENT,
    WRITABLE,
    entry_index,
    entry_pfn,
)
from numarep.replication.areas import own_pte_pages
from numarep.replication.kernel import Kernel, ReplicationError, has_replicas
from numarep.replication.work import Work
from numarep.units import PAGE_SHIFT, PTE, TABLE_ENTRIES, TABLE_SHIFT, shown

Change = Literal["ro", "rw", "x", "nx", "rox", "np", "p", "global", "nonglobal"]
# Bits to set and to clear.
_BITS = {
    "ro": (0, WRITABLE),
    "rw": (WRITABLE, 0),
    "x": (0, NO_EXECUTE),
    "nx": (NO_EXECUTE, 0),
    "rox": (0, WRITABLE | NO_EXECUTE),
    "global": (GLOBAL, 0),
    "nonglobal": (0, GLOBAL),
}


def set_memory(kernel: Kernel, vpn: int, pages: int, change: Change) -> Work:
    """Change the protection of a range in every node's table (R25).

    `np` makes pages not present and `p` present again.

    Raises
    ------
    ReplicationError
        If the change is none of `Change`, part of the range is not mapped, or is part of a
        replicated leaf; then nothing has changed.
    FrameError
        If a large leaf can't be split; then no protection has changed.
    """
    if change not in get_args(Change):
        raise ReplicationError(
            f"protection change {change!r}: expected {', '.join(get_args(Change))}"
        )
    work = Work()
    for edge in (vpn, vpn + pages):
        _split_at(kernel, edge, work)
    leaves = list(_leaves(kernel, vpn, pages))
    for table, index, _ in leaves:
        if change != "p" and not kernel.tables.entry(table, index):
            raise ReplicationError(f"{shown(vpn << PAGE_SHIFT)}: expected mapped pages")
    for table, index, level in leaves:
        _change(kernel, level, table, index, table, change)
        for _, copy in kernel.copies_of(table):
            _change(kernel, level, copy, index, copy, change)
            work.instructions(kernel.spec.instructions.entry)
            kernel.store_entry(work, copy, index)
    return work


def _leaf(kernel: Kernel, vpn: int) -> tuple[int, int, int]:
    """Return (original table, index, level) of the leaf entry of a page, or of where it is none."""
    for level, table in kernel.path(kernel.root, vpn, PTE):
        index = entry_index(vpn, level)
        if level == PTE or kernel.tables.entry(table, index) & LARGE:
            break
    return table, index, level


def _leaves(kernel: Kernel, vpn: int, pages: int) -> Iterator[tuple[int, int, int]]:
    """Yield (original table, index, level) of the leaf entries of a range."""
    end = vpn + pages
    while vpn < end:
        table, index, level = _leaf(kernel, vpn)
        yield table, index, level
        vpn += 1 << (TABLE_SHIFT * (level - 1))


def _split_at(kernel: Kernel, vpn: int, work: Work) -> None:
    """Split the large leaves that begin before a page and end after it."""
    table, index, level = _leaf(kernel, vpn)
    while level > PTE and vpn % (1 << (TABLE_SHIFT * (level - 1))):
        if not kernel.tables.entry(table, index):
            return
        if (table, index) in kernel.replicated:
            raise ReplicationError(
                f"{shown(vpn << PAGE_SHIFT)} lies within a replicated leaf: expected whole "
                "units of 2 MiB, as text and rodata are protected (R6)"
            )
        _split(kernel, level, table, index, work)
        if kernel.spec.clone_ptes and has_replicas(vpn):
            own_pte_pages(kernel, kernel.cpus[0], vpn, work)
        table, index, level = _leaf(kernel, vpn)


def _split(kernel: Kernel, level: int, table: int, index: int, work: Work) -> None:
    """Replace a large leaf by a table of smaller ones, in the master's and all other tables.

    Further nodes' entries are what that adds; the new table, shared, any kernel makes.
    """
    entry, below = kernel.tables.entry(table, index), level - 1
    flags = entry & ~(entry_pfn(entry) << PAGE_SHIFT)
    flags = flags & ~LARGE if below == PTE else flags
    pages = 1 << (TABLE_SHIFT * (below - 1))
    made = kernel.new_table(below, kernel.node_home(kernel.cpus[0]), like=table, what="shared")
    for place in range(TABLE_ENTRIES):
        pfn = entry_pfn(entry) + place * pages
        kernel.tables.set_entry(below, made, place, pfn << PAGE_SHIFT | flags)
    pointer = made << PAGE_SHIFT | PRESENT | WRITABLE
    kernel.tables.set_entry(level, table, index, pointer)
    for _, copy in kernel.copies_of(table):
        kernel.tables.set_entry(level, copy, index, pointer)
        work.instructions(kernel.spec.instructions.entry)
        kernel.store_entry(work, copy, index)


def _change(kernel: Kernel, level: int, table: int, index: int, key: int, change: Change) -> None:
    entry = kernel.tables.entry(table, index)
    if change == "p":
        entry = kernel.hidden.pop((key, index), entry)
    elif change == "np":
        kernel.hidden[key, index] = entry
        entry &= ~PRESENT
    else:
        on, off = _BITS[change]
        entry = (entry | on) & ~off
    kernel.tables.set_entry(level, table, index, entry)
