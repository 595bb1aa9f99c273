"""Processes: a PGD per memory node, from fork to exit (R15-R21).

`fork` allocates and fills the PGDs, `fill_slot` and `clear_slot` keep their user halves equal (only
the PGD level is replicated, R17), `switch_to` loads the CPU's own node's, `leave` frees them. Which
nodes have a PGD, and when, is the policy's (`ReplicationSpec.pgds`); see `placement` for the
policies that keep one PGD. All are all-or-nothing: where memory is missing nothing has changed.

>>> from numarep.memory.kinds import Kind
>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=3).booted()
>>> mm, work = fork(kernel, kernel.cpus[1])
>>> sorted(mm.pgd), work.references(Kind.STORE, node=1)  # node 1's is not replication's
([0, 1, 2], 0)
>>> work.references(Kind.STORE, node=2)  # two zeroed pages, a half copied, one struct page
1281
"""

from numarep.linux.frames import FrameError
from numarep.linux.tables import NO_EXECUTE, PRESENT, USER, WRITABLE, entry_pfn, repointed
from numarep.replication.kernel import (
    KERNEL_HALF,
    PGD_PAGES,
    Cpu,
    Kernel,
    Mm,
    MmKind,
    ReplicationError,
)
from numarep.replication.mitosis import copy_user_table, free_user_copies, original_of
from numarep.replication.placement import (
    give_private_tables,
    point_at_private_tables,
    run_in_one_place,
    take_private_tables,
)
from numarep.replication.work import Work
from numarep.units import LINES_PER_PAGE, PAGE_SHIFT

_HALF_LINES = LINES_PER_PAGE // 2
_TABLE_FLAGS = PRESENT | WRITABLE | USER


def fork(kernel: Kernel, cpu: Cpu, *, captured: int | None = None) -> tuple[Mm, Work]:
    """Give a new process its PGDs, each with the kernel half of its node's init PGD (R16).

    Parameters
    ----------
    captured : int, optional
        Pfn of the PGD that a trace's process has: it is used where it lies.

    Raises
    ------
    FrameError
        If a node has no room; then nothing has changed.
    """
    node = kernel.node_home(cpu)
    if captured is not None:
        node = kernel.frames.node_of(captured)
    mm = Mm(MmKind.USER, {}, node, kernel.node_home(cpu))
    first = captured if captured is not None else _allocate_pair(kernel, node, None)
    mm.pgd[node] = first
    work = Work()
    try:
        for other in _nodes_at_birth(kernel, node):
            if other != node:
                mm.pgd[other] = _allocate_pair(kernel, other, captured)
        if kernel.spec.pgds == "retarget":
            give_private_tables(kernel, mm, work)
    except FrameError:
        _free_pairs(kernel, mm, keep=captured)
        raise
    for at, pair in mm.pgd.items():
        _fill_kernel_half(kernel, mm, at)
        if at != node:
            _charge_new_pair(kernel, work, pair, kernel.pgd_numa(at))
    kernel.mms.append(mm)
    if captured is not None:
        kernel.captured.add(captured)
    return mm, work


def _nodes_at_birth(kernel: Kernel, node: int) -> tuple[int, ...]:
    eager = kernel.spec.active and kernel.spec.pgds == "eager"
    return kernel.replica_nodes if eager else (node,)


def _allocate_pair(kernel: Kernel, node: int, captured: int | None) -> int:
    like = kernel.root if captured is None else captured
    pfn = kernel.frames.allocate(
        node, like=like, count=PGD_PAGES, align=PGD_PAGES, recycle=captured is not None
    )
    kernel.held["pgds"] += PGD_PAGES
    return pfn


def _free_pairs(kernel: Kernel, mm: Mm, *, keep: int | None) -> None:
    for pair in mm.pgd.values():
        for page in range(PGD_PAGES):
            if pair + page in kernel.tables.pages:
                kernel.tables.drop_table(pair + page)
        if pair != keep:
            kernel.frames.free(pair, PGD_PAGES)
            kernel.held["pgds"] -= PGD_PAGES


def _fill_kernel_half(kernel: Kernel, mm: Mm, node: int) -> None:
    """Copy the kernel half of both pages from the node's init PGD (pgd_ctor; R16, R34)."""
    source = kernel.pgd_numa(node if kernel.spec.pgds != "single_node" else mm.window)
    for page in range(PGD_PAGES):
        entries = kernel.tables.pages.get(source + page, {}).items()
        half = {i: e for i, e in entries if i >= KERNEL_HALF}
        kernel.tables.add_table(kernel.tables.levels, mm.pgd[node] + page, half)
    if mm.private:
        point_at_private_tables(kernel, mm)


def _charge_new_pair(kernel: Kernel, work: Work, pair: int, init_pgd: int) -> None:
    """Add the work of one further PGD: allocated, zeroed, kernel half copied (R16).

    With KPTI the user page's kernel half is copied too, as the captured pgd_alloc does.
    """
    work.instructions(kernel.spec.instructions.fork)
    kernel.touch_struct_page(work, pair)
    kernel.store(work, pair, lines=PGD_PAGES * LINES_PER_PAGE)
    for page in range(PGD_PAGES if kernel.pti else 1):
        kernel.copy(work, init_pgd + page, pair + page, line=_HALF_LINES, lines=_HALF_LINES)


def fill_slot(kernel: Kernel, cpu: Cpu, mm: Mm, slot: int, *, captured: int | None = None) -> Work:
    """Point a user PGD slot of all PGDs at one new table page (R17, R18).

    Parameters
    ----------
    captured : int, optional
        Pfn of the table page; without it one is allocated on the CPU's node (first touch).

    Raises
    ------
    ReplicationError
        If the slot is a kernel slot or filled already, or the process has left.
    FrameError
        If the node has no room; then nothing has changed.
    """
    _check_alive(kernel, mm)
    if not 0 <= slot < KERNEL_HALF:
        raise ReplicationError(f"PGD slot {slot}: expected a user slot, 0 to {KERNEL_HALF - 1}")
    if kernel.tables.entry(mm.pgd[mm.original], slot):
        raise ReplicationError(f"PGD slot {slot} is filled already")
    table, work = captured, Work()
    if table is None:
        level, node = kernel.tables.levels - 1, kernel.node_home(cpu)
        table = kernel.new_table(level, node, like=mm.pgd[mm.original], what="user")
        kernel.user_tables.add(table)
    if kernel.spec.user_tables:
        try:
            copy_user_table(kernel, mm, table, work)
        except FrameError:
            _free_user_table(kernel, table)
            raise
    costs = kernel.spec.instructions
    _set_slot(kernel, mm, slot, table << PAGE_SHIFT | _TABLE_FLAGS, work)
    _charge_slot(kernel, mm, work, costs.slot_fill, costs.slot_fill_further)
    return work


def clear_slot(kernel: Kernel, mm: Mm, slot: int) -> Work:
    """Clear a user PGD slot in all PGDs and free its table page (R18).

    Raises
    ------
    ReplicationError
        If the slot is not a filled user slot, or the process has left.
    """
    _check_alive(kernel, mm)
    entry = kernel.tables.entry(mm.pgd[mm.original], slot)
    if not entry or slot >= KERNEL_HALF:
        raise ReplicationError(f"PGD slot {slot} is not a filled user slot")
    work = Work()
    costs = kernel.spec.instructions
    _set_slot(kernel, mm, slot, 0, work)
    _charge_slot(kernel, mm, work, costs.slot_clear, costs.slot_clear_further)
    table = entry_pfn(entry)
    if kernel.spec.user_tables:
        table = original_of(kernel, table)  # which may lie on another node than the PGD
        free_user_copies(kernel, table, work)
    _free_user_table(kernel, table)
    return work


def _check_alive(kernel: Kernel, mm: Mm) -> None:
    """Refuse a process that has left: its PGDs are free, or another's."""
    if mm.kind == MmKind.USER and mm not in kernel.mms:
        raise ReplicationError("expected a living process, not one that has left")


def _free_user_table(kernel: Kernel, table: int) -> None:
    """Free a table page below a PGD, unless it lies where a trace has it."""
    if table in kernel.user_tables:
        kernel.user_tables.remove(table)
        kernel.free_table(table, "user")


def _set_slot(kernel: Kernel, mm: Mm, slot: int, entry: int, work: Work) -> None:
    """Write a slot in all PGDs; with KPTI in both halves, the kernel's not executable.

    Source: pti_set_user_pgtbl, arch/x86/mm/pti.c.
    """
    level = kernel.tables.levels
    copies = kernel.user_copies.get(entry_pfn(entry), {}) if kernel.spec.user_tables else {}
    for node, pgd in mm.pgd.items():
        to = repointed(entry, copies.get(node)) if entry else 0
        own = to | NO_EXECUTE if kernel.pti and to else to
        writes = ((pgd + 1, to), (pgd, own)) if kernel.pti else ((pgd, own),)
        for table, value in writes:
            kernel.tables.set_entry(level, table, slot, value)
            if node != mm.original:
                kernel.store_entry(work, table, slot)


def _charge_slot(kernel: Kernel, mm: Mm, work: Work, first: int, further: int) -> None:
    for number in range(len(mm.pgd) - 1):
        work.instructions(further if number else first)


def switch_to(kernel: Kernel, cpu: Cpu, mm: Mm) -> Work:
    """Let a CPU run a process: its node's PGD goes into CR3 (R20, R21).

    The load of CR3 itself is the unreplicated kernel's, too; what is returned is the work of
    finding the PGD and, under the lazy policies, of making it.

    Raises
    ------
    ReplicationError
        If the policy is `retarget` and the process runs on another node (2003's limit), or the
        process has left.
    FrameError
        If a lazily made PGD finds no room; then nothing has changed.
    """
    _check_alive(kernel, mm)
    node = kernel.node_home(cpu)
    work = Work()
    left = cpu.mm
    if kernel.spec.active:
        work.instructions(kernel.spec.instructions.switch)
        if mm.kind == MmKind.USER:
            _prepare(kernel, cpu, mm, work)
    cpu.mm, cpu.lazy, cpu.cr3 = mm, False, mm.root(node)
    if kernel.spec.pgds == "lazy_shrink" and left is not None and left.kind == MmKind.USER:
        _shrink(kernel, left, node, work)
    return work


def _prepare(kernel: Kernel, cpu: Cpu, mm: Mm, work: Work) -> None:
    node, policy = kernel.node_home(cpu), kernel.spec.pgds
    if policy in ("lazy", "lazy_shrink") and node not in mm.pgd:
        _make_pgd(kernel, mm, node, work)
    elif policy in ("single_node", "retarget"):
        run_in_one_place(kernel, cpu, mm, work)


def _make_pgd(kernel: Kernel, mm: Mm, node: int, work: Work) -> None:
    """Make the PGD of a node the process had none on: the user half from another PGD."""
    source = mm.pgd[mm.original]
    pair = mm.pgd[node] = _allocate_pair(kernel, node, None)
    _fill_kernel_half(kernel, mm, node)
    _charge_new_pair(kernel, work, pair, kernel.pgd_numa(node))
    for page in range(PGD_PAGES if kernel.pti else 1):
        for slot, entry in list(kernel.tables.pages[source + page].items()):
            if slot < KERNEL_HALF:
                kernel.tables.set_entry(kernel.tables.levels, pair + page, slot, entry)
        kernel.copy(work, source + page, pair + page, lines=_HALF_LINES)


def _shrink(kernel: Kernel, mm: Mm, node: int, work: Work) -> None:
    """Free the PGD of a node on which no CPU has the process loaded any more; never the first."""
    running = {kernel.node_home(cpu) for cpu in kernel.cpus if cpu.mm is mm}
    if node in running or node == mm.original or node not in mm.pgd:
        return
    pair = mm.pgd.pop(node)
    for page in range(PGD_PAGES):
        kernel.tables.drop_table(pair + page)
    kernel.frames.free(pair, PGD_PAGES)
    kernel.held["pgds"] -= PGD_PAGES
    work.instructions(kernel.spec.instructions.exit)
    kernel.touch_struct_page(work, pair)


def go_lazy(cpu: Cpu) -> None:
    """Let a kernel thread run on the PGD that is loaded: node-correct already (R21)."""
    cpu.lazy = True


def leave(kernel: Kernel, mm: Mm) -> Work:
    """End a process: clear its user half, free its PGDs (R16).

    CPUs that use it lazily are moved to init_mm first, as by the flush of its freed tables.

    Raises
    ------
    ReplicationError
        If a CPU still runs it, or it has left already.
    """
    _check_alive(kernel, mm)
    users = [cpu for cpu in kernel.cpus if cpu.mm is mm]
    if any(not cpu.lazy for cpu in users):
        raise ReplicationError("exit: a CPU still runs the process")
    work = Work()
    for cpu in users:
        cpu.mm, cpu.lazy, cpu.cr3 = kernel.init_mm, False, kernel.pgd_numa(kernel.node_home(cpu))
    user_slots = [i for i in kernel.tables.pages[mm.pgd[mm.original]] if i < KERNEL_HALF]
    for slot in user_slots:
        work.extend(clear_slot(kernel, mm, slot))
    for node, pair in mm.pgd.items():
        if node != mm.original:
            work.instructions(kernel.spec.instructions.exit)
            kernel.touch_struct_page(work, pair)
    take_private_tables(kernel, mm, work)
    _free_pairs(kernel, mm, keep=_captured_pgd(kernel, mm))
    kernel.captured.discard(mm.pgd[mm.original])
    kernel.mms.remove(mm)
    return work


def _captured_pgd(kernel: Kernel, mm: Mm) -> int | None:
    """Return the PGD of a process that lies where a trace has it, if one does."""
    pgd = mm.pgd[mm.original]
    return pgd if pgd in kernel.captured else None


def execute(kernel: Kernel, cpu: Cpu) -> tuple[Mm, Work]:
    """Replace the process a CPU runs by a new address space (exec; R16).

    Raises
    ------
    ReplicationError
        If the CPU runs no process, or another CPU runs it too.
    """
    old = cpu.mm
    if old is None or old.kind != MmKind.USER or cpu.lazy:
        raise ReplicationError("exec: the CPU runs no process")
    if any(other.mm is old and not other.lazy for other in kernel.cpus if other is not cpu):
        raise ReplicationError("exec: another CPU still runs the process")
    mm, work = fork(kernel, cpu)
    work.extend(switch_to(kernel, cpu, mm))
    work.extend(leave(kernel, old))
    return mm, work


def efi_mm(kernel: Kernel, cpu: Cpu) -> tuple[Mm, Work]:
    """Make the mm for calls into firmware: one PGD, aliased for all nodes (R36).

    Its mappings are its own; the kernel half is the master's. Any kernel makes it, so replication
    adds no work.
    """
    node = kernel.node_home(cpu)
    pgd = kernel.frames.allocate(node, like=kernel.root, count=PGD_PAGES, align=PGD_PAGES)
    kernel.held["efi"] += PGD_PAGES
    half = kernel.tables.pages[kernel.root].items()
    kernel.tables.add_table(kernel.tables.levels, pgd, {i: e for i, e in half if i >= KERNEL_HALF})
    mm = Mm(MmKind.EFI, dict.fromkeys(kernel.replica_nodes, pgd), node, kernel.master)
    return mm, Work()
