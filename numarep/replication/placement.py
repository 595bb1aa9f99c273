"""Policies that keep one PGD a process and move it to the node it runs on.

- `single_node`: while all CPUs that run a process are on one node, the window's slot of its PGD
  points at that node's tables; while they are on several, at the master's.
- `retarget` (proposed for i386 in 2003): the process has private P4D, PUD and PMD pages for the
  window, and a switch to another node rewrites their text and rodata entries and flushes those
  pages from the TLB; a process that runs on several nodes at once is refused.

>>> from numarep.memory.kinds import Kind
>>> from tests.kernels import SmallKernel
>>> from numarep.replication.process import fork, switch_to
>>> kernel = SmallKernel(nodes=2).booted(pgds="single_node")
>>> mm, _ = fork(kernel, kernel.cpus[0])
>>> work = switch_to(kernel, kernel.cpus[1], mm)
>>> mm.window, work.references(Kind.STORE)
(1, 1)
"""

from numarep.linux.frames import FrameError
from numarep.linux.layout import WINDOW_VPN
from numarep.linux.tables import LARGE, entry_index, entry_pfn, repointed
from numarep.replication.kernel import PGD_PAGES, Cpu, Kernel, Mm, ReplicationError
from numarep.replication.work import Sync, Work
from numarep.units import LINES_PER_PAGE, PAGES_PER_PMD, PMD, TABLE_ENTRIES, TABLE_SHIFT


def give_private_tables(kernel: Kernel, mm: Mm, work: Work) -> None:
    """Copy the window's tables of the process's node for the process alone, all or nothing."""
    node = mm.window
    own = kernel.own.get(node, {})
    tables = [(level, table) for level, table in kernel.window_tables() if kernel.spec.active]
    try:
        for _, table in tables:
            mm.private[table] = kernel.frames.allocate(node, like=table)
    except FrameError:
        for pfn in mm.private.values():
            kernel.frames.free(pfn)
        mm.private.clear()
        raise
    kernel.held["private"] += len(tables)
    for level, table in tables:
        source, copy = own.get(table, table), mm.private[table]
        kernel.tables.add_table(level, copy, kernel.tables.pages[source])
        back = {pfn: original for original, pfn in own.items()}
        for index, entry in kernel.tables.pages[source].items():
            below = back.get(entry_pfn(entry), entry_pfn(entry))
            if level > PMD and below in mm.private and not entry & LARGE:
                kernel.tables.set_entry(level, copy, index, repointed(entry, mm.private[below]))
        kernel.touch_struct_page(work, copy)
        kernel.copy(work, source, copy, lines=LINES_PER_PAGE)
    work.instructions(kernel.spec.instructions.fork * len(tables) // PGD_PAGES)


def point_at_private_tables(kernel: Kernel, mm: Mm) -> None:
    """Point the window's slot of a process's PGD at its private tables."""
    level, pgd = kernel.tables.levels, mm.pgd[mm.original]
    slot = entry_index(-1, level)
    entry = kernel.tables.entry(kernel.root, slot)
    kernel.tables.set_entry(level, pgd, slot, repointed(entry, mm.private[entry_pfn(entry)]))


def take_private_tables(kernel: Kernel, mm: Mm, work: Work) -> None:
    """Free a process's private tables."""
    for pfn in mm.private.values():
        kernel.touch_struct_page(work, pfn)
        kernel.free_table(pfn, "private")
    work.instructions(kernel.spec.instructions.exit * len(mm.private) // PGD_PAGES)


def run_in_one_place(kernel: Kernel, cpu: Cpu, mm: Mm, work: Work) -> None:
    """Move a process's only PGD to where it is about to run."""
    node = kernel.node_home(cpu)
    elsewhere = [c for c in kernel.cpus if c.mm is mm and not c.lazy and c is not cpu]
    away = any(kernel.node_home(c) != node for c in elsewhere)
    if kernel.spec.pgds == "retarget":
        if away:
            raise ReplicationError(
                "retarget: a process can't run on several nodes at once; expected another policy "
                "(pgds) or a process whose threads stay on one node"
            )
        _retarget(kernel, cpu, mm, node, work)
    else:
        _point_window(kernel, mm, kernel.master if away else node, work)


def _point_window(kernel: Kernel, mm: Mm, node: int, work: Work) -> None:
    """Point the window's PGD slot at a node's tables; what stays cached is byte-identical."""
    if node == mm.window:
        return
    mm.window = node
    level, pgd = kernel.tables.levels, mm.pgd[mm.original]
    slot = entry_index(-1, level)
    entry = kernel.tables.entry(kernel.pgd_numa(node), slot)
    kernel.tables.set_entry(level, pgd, slot, entry)
    kernel.store_entry(work, pgd, slot)


def _retarget(kernel: Kernel, cpu: Cpu, mm: Mm, node: int, work: Work) -> None:
    """Rewrite the replicated leaves of a process's private PMD pages, and flush them (2003)."""
    if node == mm.window:
        return
    mm.window = node
    for (table, index), frames in kernel.replicated.items():
        entry = kernel.tables.entry(table, index)
        private = mm.private[table]
        kernel.tables.set_entry(PMD, private, index, repointed(entry, frames.get(node)))
        kernel.store_entry(work, private, index)
        work.event(Sync.FLUSH_PAGE, cpu.number, _vpn_of(kernel, table, index))
        work.instructions(kernel.spec.instructions.entry)


def _vpn_of(kernel: Kernel, pmd_table: int, index: int) -> int:
    """Return the page that a leaf entry of one of the window's PMD pages maps."""
    for vpn in range(WINDOW_VPN, 0, PAGES_PER_PMD * TABLE_ENTRIES):
        if (PMD, pmd_table) in kernel.path(kernel.root, vpn, PMD):
            return vpn + (index << TABLE_SHIFT)
    raise ReplicationError(f"table {pmd_table:#x} does not map the window")
