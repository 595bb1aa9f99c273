"""Memory added after boot: the series' known gap at the level of the PGD (R39).

Where new memory needs a PGD slot, the kernel fills it in swapper's PGD and, slot by slot, in the
PGD of every process that it has on its list. It knows of one PGD a process, and of no other nodes'
init PGDs: there the slot stays empty, and so it does in every PGD that is made from them. A CPU of
such a node faults on the new memory; `lacking` tells which nodes those are, and
`invariants.violations` names them until somebody fills the slot.

Source: sync_global_pgds_l4 and _l5, arch/x86/mm/init_64.c.

>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=3).booted()
>>> work = hotplug(kernel, kernel.cpus[0], 300)
>>> work.steps, lacking(kernel)
([], {300: (1, 2)})
"""

from numarep.linux.tables import PRESENT, WRITABLE
from numarep.replication.kernel import KERNEL_HALF, Cpu, Kernel, ReplicationError
from numarep.replication.work import Work
from numarep.units import PAGE_SHIFT, TABLE_ENTRIES


def hotplug(kernel: Kernel, cpu: Cpu, slot: int) -> Work:
    """Fill a kernel PGD slot for new memory, as a kernel that knows one PGD a process does (R39).

    Replication adds no work: that it adds none is the gap.

    Raises
    ------
    ReplicationError
        If the slot is no kernel slot, or filled already.
    FrameError
        If there is no memory for the table below; then nothing has changed.
    """
    if not KERNEL_HALF <= slot < TABLE_ENTRIES:
        known = f"{KERNEL_HALF} to {TABLE_ENTRIES - 1}"
        raise ReplicationError(f"PGD slot {slot}: expected a kernel slot, {known}")
    if kernel.tables.entry(kernel.root, slot):
        raise ReplicationError(f"PGD slot {slot} is filled already: its memory is there")
    level = kernel.tables.levels
    table = kernel.new_table(level - 1, kernel.node_home(cpu), like=kernel.root, what="shared")
    # Assumed: the PGD on the list is the one that mm->pgd aliases, the master's (R15).
    listed = [*kernel.mms, kernel.poking] if kernel.poking else kernel.mms
    for pgd in {kernel.root, *(mm.root(kernel.master) for mm in listed)}:
        kernel.tables.set_entry(level, pgd, slot, table << PAGE_SHIFT | PRESENT | WRITABLE)
    return Work()


def lacking(kernel: Kernel) -> dict[int, tuple[int, ...]]:
    """Return the kernel PGD slots that some nodes' init PGDs lack, and which nodes those are."""
    slots = [slot for slot in kernel.tables.pages[kernel.root] if slot >= KERNEL_HALF]
    found = {
        slot: tuple(
            node
            for node in kernel.further_nodes
            if not kernel.tables.entry(kernel.pgd_numa(node), slot)
        )
        for slot in sorted(slots)
    }
    return {slot: nodes for slot, nodes in found.items() if nodes}
