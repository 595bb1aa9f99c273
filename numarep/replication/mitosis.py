"""User page tables on every node: Mitosis (Achermann et al., ASPLOS 2020), on top of the series.

Every table page below a PGD has a copy on every other memory node, each PGD leads to its own
node's, and every store to a user page table is repeated to all copies. In the model that is the
table a PGD slot points at; in a trace, all of them: the accesses are the trace's own stores to
page tables (zeroing included), mirrored right after.

Assumed: a mirrored store costs `InstructionSpec.entry` instructions; accessed and dirty bits, which
the hardware sets in the copy it walks, are collected at no cost.

>>> from numarep.linux.tables import PageTables
>>> tables = PageTables(4)
>>> for level, table, index, below in ((4, 1, 0, 2), (3, 2, 5, 3), (4, 1, 300, 9)):
...     tables.set_entry(level, table, index, below << 12 | 1)
>>> tables.add_table(2, 3), user_tables_of(tables)
(None, frozenset({2, 3}))
"""

from collections.abc import Collection

import numpy as np

from numarep.linux.frames import FrameError
from numarep.linux.tables import PageTables, entry_pfn
from numarep.replication.clues import Clues
from numarep.replication.kernel import KERNEL_HALF, Cpu, Kernel, Mm
from numarep.replication.splice import Splice
from numarep.replication.work import Work
from numarep.units import LINES_PER_PAGE, MAX_LEVELS, PTE
from numarep.workload.trace import Trace


def copy_user_table(kernel: Kernel, mm: Mm, table: int, work: Work) -> None:
    """Give every other node of a process a copy of one user table page, all or nothing."""
    made = _allocate(kernel, table, [n for n in mm.pgd if n != kernel.frames.node_of(table)])
    for copy in made.values():
        kernel.tables.add_table(kernel.tables.levels - 1, copy)
        kernel.touch_struct_page(work, copy)
        if table in kernel.user_tables:  # a trace's own zeroing is mirrored
            kernel.store(work, copy, lines=LINES_PER_PAGE)


def _allocate(kernel: Kernel, table: int, nodes: Collection[int]) -> dict[int, int]:
    made: dict[int, int] = {}
    try:
        for node in nodes:
            made[node] = kernel.frames.allocate(node, like=table, recycle=True)
    except FrameError:
        for copy in made.values():
            kernel.frames.free(copy)
        raise
    kernel.user_copies[table] = made
    kernel.held["user_copies"] += len(made)
    return made


def original_of(kernel: Kernel, table: int) -> int:
    """Return the table page that one is a copy of, or itself; no two originals share a copy."""
    copied = (own for own, copies in kernel.user_copies.items() if table in copies.values())
    return next(copied, table)


def free_user_copies(kernel: Kernel, table: int, work: Work) -> None:
    """Free the copies of a table page; which frames they were stays known."""
    for copy in kernel.user_copies.get(table, {}).values():
        kernel.touch_struct_page(work, copy)
        kernel.free_table(copy, "user_copies")


def user_tables_of(tables: PageTables) -> frozenset[int]:
    """List the table pages below the user halves of all PGDs."""
    return frozenset().union(*(user_tables_below(tables, root) for root in tables.roots()))


def user_tables_below(tables: PageTables, root: int) -> frozenset[int]:
    """List the table pages below the user half of one PGD."""
    found: set[int] = set()
    level = [entry for index, entry in tables.pages[root].items() if index < KERNEL_HALF]
    while level:
        here = {entry_pfn(entry) for entry in level} & tables.pages.keys()
        upper = [t for t in here - found if tables.level_of[t] > PTE]
        level = [entry for table in upper for entry in tables.pages[table].values()]
        found |= here
    return frozenset(found)


def _walked(trace: Trace) -> set[int]:
    """List user table pages that the trace's own walks read."""
    pages = trace.pages
    below_root = pages.table[(pages.vpn >= 0) & (pages.leaf > 0), : MAX_LEVELS - 2]
    return set(below_root.ravel().tolist()) - {-1}


def mirror_stores(splice: Splice, cpu: Cpu, clues: Clues, known: Collection[int]) -> None:
    """Repeat every store to a user page table to its copies, right after it."""
    kernel, trace = splice.kernel, splice.trace
    tables = (_walked(trace) | set(known)) - set(np.unique(trace.pages.root).tolist())
    nodes = kernel.replica_nodes
    for table in sorted(tables - kernel.user_copies.keys()):
        _allocate(kernel, table, [n for n in nodes if n != kernel.frames.node_of(table)])
    counts = trace.records.count
    for record, pfn, line in clues.direct_stores(0, len(trace.records.kind)):
        if pfn in tables:
            work = Work()
            times = int(counts[record])
            for copy in kernel.user_copies[pfn].values():
                work.instructions(kernel.spec.instructions.entry * times)
                kernel.store(work, copy, line=line, times=times)
            splice.add(record, cpu, work)
