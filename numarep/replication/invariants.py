"""What must hold at any moment, as code: `violations` names every behaviour that does not.

Tables are compared entry by entry, copy against original, so a check costs what is copied, not
what is mapped. What is allowed to differ between a copy and its original: pointers to the node's
own lower tables, and the frames of replicated leaves. Everything else being equal gives R8, R9,
R12, R13 and R25 at once.

>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=2).booted()
>>> violations(kernel)
[]
>>> from numarep.replication.hotplug import hotplug
>>> work = hotplug(kernel, kernel.cpus[0], 300)  # the known gap
>>> violations(kernel)
["R39: node 1: kernel PGD slot 300 is not the master's"]
"""

from collections.abc import Iterator

from numarep.linux.tables import LARGE, entry_index, entry_pfn, repointed
from numarep.replication.kernel import (
    KERNEL_HALF,
    PGD_PAGES,
    Kernel,
    Mm,
    MmKind,
    Stage,
    has_replicas,
)
from numarep.units import PAGE_SHIFT, PAGES_PER_PMD, PMD, PTE, shown


def violations(kernel: Kernel) -> list[str]:
    """List everything that is wrong, each line beginning with the behaviour's id."""
    checks = (_nodes, _copies, _contents, _processes, _cpus, _areas, _frames)
    return [line for check in checks for line in check(kernel)]


def _nodes(kernel: Kernel) -> Iterator[str]:
    """R2, R3, R10: who has copies, and where they lie."""
    if kernel.own.get(kernel.master):
        yield "R3: the master node has copies"
    memory = set(kernel.frames.memory_nodes)
    if not set(kernel.own) <= memory or not set(kernel.home) <= memory:
        yield "R2: a node without memory has replicas"
    for node, own in kernel.own.items():
        for original, copy in own.items():
            level = kernel.tables.level_of[copy]
            elsewhere = kernel.frames.node_of(copy) != node
            if elsewhere and (level > PTE or kernel.spec.area_ptes != "loader"):
                yield f"R10: node {node}: the copy of table {original:#x} lies on another node"


def _copies(kernel: Kernel) -> Iterator[str]:
    """R8, R9, R12, R13, R25, R39: every copied table against its original."""
    for node, own in kernel.own.items():
        for original, copy in own.items():
            if original in kernel.tables.pages:
                yield from _compare(kernel, f"node {node}", own, original, copy, node)
    for mm in kernel.mms:
        own = kernel.own.get(mm.window, {})
        for original, copy in mm.private.items():
            yield from _compare(kernel, "private", {**own, **mm.private}, original, copy, mm.window)


def _compare(
    kernel: Kernel, who: str, own: dict[int, int], original: int, copy: int, node: int
) -> Iterator[str]:
    theirs, ours = kernel.tables.pages[original], kernel.tables.pages[copy]
    level = kernel.tables.level_of[original]
    for index in theirs.keys() | ours.keys():
        entry, found = theirs.get(index, 0), ours.get(index, 0)
        wanted = _wanted(kernel, own, level, original, index, entry, node)
        if found == wanted:
            continue
        if level == kernel.tables.levels:
            yield f"R39: {who}: kernel PGD slot {index} is not the master's"
        elif entry_pfn(found) == entry_pfn(wanted) and found and wanted:
            yield f"R25: {who}: table {original:#x}[{index}]: other permissions than the master"
        elif not entry or not found:
            yield f"R26: {who}: table {original:#x}[{index}] is not mapped alike"
        else:
            yield f"R8: {who}: table {original:#x}[{index}] resolves to another frame"


def _wanted(
    kernel: Kernel,
    own: dict[int, int],
    level: int,
    original: int,
    index: int,
    entry: int,
    node: int,
) -> int:
    """Return what a copy's entry must be."""
    frames = kernel.replicated.get((original, index))
    if frames is not None and entry:
        return repointed(entry, frames.get(node))
    if level > PTE and not entry & LARGE and entry:
        return repointed(entry, own.get(entry_pfn(entry)))
    return entry


def _contents(kernel: Kernel) -> Iterator[str]:
    """R9: all replicas of a leaf are byte-identical; R5, R6: they are whole, and in the window."""
    for (table, index), frames in kernel.replicated.items():
        level = kernel.tables.level_of[table]
        pages = PAGES_PER_PMD if level == PMD else 1
        base = frames[kernel.master]
        for node, pfn in frames.items():
            if not kernel.contents.same(base, pfn, pages):
                yield f"R9: node {node}: the copy behind {table:#x}[{index}] differs"
            if pfn % pages:
                yield f"R6: node {node}: the copy behind {table:#x}[{index}] is not aligned"


def _processes(kernel: Kernel) -> Iterator[str]:
    """R15-R19, R34: one PGD a node, equal user halves, the node's kernel half."""
    for number, mm in enumerate(kernel.mms):
        yield from _nodes_of_process(kernel, mm, number)
        for page in range(PGD_PAGES if kernel.pti else 1):
            halves = [_user_half(kernel, node, pgd + page) for node, pgd in mm.pgd.items()]
            if any(half != halves[0] for half in halves):
                yield f"R19: process {number}: user halves differ"
            for node, pgd in mm.pgd.items():
                place = mm.window if kernel.spec.pgds in ("single_node", "retarget") else node
                wanted = _half(kernel, kernel.pgd_numa(place) + page, user=False)
                found = _half(kernel, pgd + page, user=False)
                if mm.private and page == 0:
                    slot = entry_index(-1, kernel.tables.levels)
                    top = entry_pfn(kernel.tables.entry(kernel.root, slot))
                    wanted[slot] = repointed(wanted[slot], mm.private[top])
                if found != wanted:
                    yield f"R19: process {number}: kernel half is not that of node {place}"


def _nodes_of_process(kernel: Kernel, mm: Mm, number: int) -> Iterator[str]:
    eager = kernel.spec.active and kernel.spec.pgds == "eager"
    if eager and set(mm.pgd) != {*kernel.replica_nodes}:
        yield f"R16: process {number}: expected a PGD on every memory node"
    for node, pgd in mm.pgd.items():
        if kernel.frames.node_of(pgd) != node:
            yield f"R16: process {number}: the PGD of node {node} lies on another node"


def _user_half(kernel: Kernel, node: int, table: int) -> dict[int, int]:
    """Return a PGD's user half; where it leads to a node's own tables, as if to the originals."""
    half = _half(kernel, table, user=True)
    if not kernel.spec.user_tables:
        return half
    back = {c[node]: table for table, c in kernel.user_copies.items() if node in c}
    return {i: repointed(entry, back.get(entry_pfn(entry))) for i, entry in half.items()}


def _half(kernel: Kernel, table: int, *, user: bool) -> dict[int, int]:
    entries = kernel.tables.pages.get(table, {})
    return {i: e for i, e in entries.items() if (i < KERNEL_HALF) == user}


def _cpus(kernel: Kernel) -> Iterator[str]:
    """R14, R20, R21, R36: every started CPU is on its node's PGD of what it runs."""
    if kernel.stage < Stage.REPLICATED:
        return
    for cpu in kernel.cpus:
        if cpu.mm is None:
            continue
        node = kernel.node_home(cpu)
        if cpu.cr3 != cpu.mm.root(node):
            yield f"R20: CPU {cpu.number} is not on node {node}'s PGD"
        if cpu.mm.kind == MmKind.USER and cpu.mm not in kernel.mms:
            yield f"R21: CPU {cpu.number} is on the PGD of a process that has left"


def _areas(kernel: Kernel) -> Iterator[str]:
    """R26-R28, R31: areas are replicated on all nodes or none, and in the window only."""
    for area in kernel.areas:
        at = f"area {shown(area.start << PAGE_SHIFT)}"
        if not area.replicas:
            continue
        if not has_replicas(area.start):
            yield f"R27: {at} has replicas outside the window"
        if set(area.replicas) != set(kernel.replica_nodes) - {area.node}:
            yield f"R31: {at} is replicated on some nodes only"
        for node, frames in area.replicas.items():
            if any(kernel.frames.node_of(pfn) != node for pfn in frames):
                yield f"R27: {at}: a copy for node {node} lies on another node"


def _frames(kernel: Kernel) -> Iterator[str]:
    """R4, R28, R31: the frames taken are those that something holds."""
    in_use = {
        "pgds": PGD_PAGES * (sum(len(mm.pgd) for mm in kernel.mms) - len(kernel.captured)),
        "user": len(kernel.user_tables),
        "private": sum(len(mm.private) for mm in kernel.mms),
        "areas": sum(len(area.frames) for area in kernel.areas),
        "replicas": sum(len(f) for area in kernel.areas for f in area.replicas.values()),
        "static": sum(pages for taken in kernel.reserved.values() for _, pages in taken),
    }
    for what, count in in_use.items():
        if kernel.held[what] != count:
            yield f"R28: {kernel.held[what]} frames taken for {what}, {count} in use"
    if kernel.frames.taken != kernel.taken_before + kernel.held.total():
        yield "R28: frames are taken that nothing holds"
