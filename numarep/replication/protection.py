"""Protection changes: to every node's table, so that no replica is more permissive (R25).

Source: change_page_attr_set_clr, arch/x86/mm/pat/set_memory.c. Leaves out the splitting of 2 MiB
leaves: a change to part of one is refused, since text and rodata are protected as a whole.

>>> from tests.kernels import SmallKernel
>>> from numarep.replication.areas import new_area
>>> kernel = SmallKernel(nodes=3).booted()
>>> area, _ = new_area(kernel, kernel.cpus[0], pages=1)
>>> work = set_memory(kernel, area.start, 1, "rox")
>>> [step.runs[0].times for step in work.steps]  # one entry in each of two further tables
[1, 1]
"""

from collections.abc import Iterator
from typing import Literal

from numarep.linux.tables import (
    GLOBAL,
    LARGE,
    NO_EXECUTE,
    PRESENT,
    WRITABLE,
    entry_index,
)
from numarep.replication.kernel import Kernel, ReplicationError
from numarep.replication.work import Work
from numarep.units import PAGE_SHIFT, PTE, TABLE_SHIFT

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
        If part of the range is not mapped, or is part of a large leaf; then nothing has changed.
    """
    leaves = list(_leaves(kernel, vpn, pages))
    for table, index, _ in leaves:
        if change != "p" and not kernel.tables.entry(table, index):
            raise ReplicationError(f"{vpn << PAGE_SHIFT:#x}: expected mapped pages")
    work = Work()
    for table, index, level in leaves:
        _change(kernel, level, table, index, table, change)
        for _, copy in kernel.copies_of(table):
            _change(kernel, level, copy, index, copy, change)
            work.instructions(kernel.spec.instructions.entry)
            kernel.store_entry(work, copy, index)
    return work


def _leaves(kernel: Kernel, vpn: int, pages: int) -> Iterator[tuple[int, int, int]]:
    """Yield (original table, index, level) of the leaf entries of a range."""
    end = vpn + pages
    while vpn < end:
        level, table = list(kernel.path(kernel.root, vpn, PTE))[-1]
        index = entry_index(vpn, level)
        for above, at in kernel.path(kernel.root, vpn, PTE):
            entry = kernel.tables.entry(at, entry_index(vpn, above))
            if entry & LARGE and above > PTE:
                level, table, index = above, at, entry_index(vpn, above)
                break
        span = 1 << (TABLE_SHIFT * (level - 1))
        if vpn % span or end - vpn < span:
            raise ReplicationError(
                f"{vpn << PAGE_SHIFT:#x}: expected whole leaves; the series would split this one "
                f"of {span} pages, which is not modelled"
            )
        yield table, index, level
        vpn += span


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
