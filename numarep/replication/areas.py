"""Areas of kernel addresses: mapped everywhere, replicated on demand, freed everywhere (R26-R29).

An area inside the window is mapped into every node's tables to the same pages; outside the window
there is one mapping in shared tables. `replicate_area` gives every further node its own pages.
`map_range` and `unmap_range` are the page-table work that both share. The page tables themselves
come from the loading CPU's node or from their own (`ReplicationSpec.area_ptes`), and stay when an
area goes, as the kernel's do.

Assumed: first fit with a guard page, from where the window's module range begins.

>>> from numarep.memory.kinds import Kind
>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=2).booted()
>>> area, _ = new_area(kernel, kernel.cpus[0], pages=2, node=0)
>>> work = replicate_area(kernel, kernel.cpus[0], area)
>>> work.references(Kind.STORE, node=1) - 2 * 512  # struct pages; page tables are node 0's (R29)
2
"""

from collections.abc import Iterable

from numarep.linux.frames import FrameError
from numarep.linux.layout import MODULES_END_VPN, MODULES_VPN
from numarep.linux.tables import (
    NO_EXECUTE,
    PRESENT,
    WRITABLE,
    entry_index,
    repointed,
)
from numarep.replication.kernel import (
    Area,
    Cpu,
    Kernel,
    ReplicationError,
    flush_everywhere,
    has_replicas,
)
from numarep.replication.work import Work
from numarep.units import LINES_PER_PAGE, PAGE_SHIFT, PAGES_PER_PMD, PMD, PTE, shown

_TABLE_FLAGS = PRESENT | WRITABLE
_PAGE_FLAGS = PRESENT | WRITABLE | NO_EXECUTE  # PAGE_KERNEL


def new_area(
    kernel: Kernel, cpu: Cpu, pages: int, *, node: int | None = None, window: bool = True
) -> tuple[Area, Work]:
    """Allocate pages and map them: in the window everywhere, outside in shared tables (R26).

    Parameters
    ----------
    node : int, optional
        Memory node to bind the area to; without one, pages come from the CPU's node (R27).

    Raises
    ------
    ReplicationError
        If the node has no memory or does not exist, no pages are asked for, or no addresses are
        left; then nothing has changed.
    FrameError
        If there is no memory; then nothing has changed.
    """
    if pages < 1:
        raise ReplicationError(f"an area of {pages} pages: expected at least one")
    if node is not None and node not in kernel.replica_nodes:
        known = 0 <= node < len(kernel.frames.ranges)
        nodes = ", ".join(map(str, kernel.replica_nodes))
        reason = "has no memory" if known else "does not exist"
        raise ReplicationError(f"node {node} {reason} (nodes with memory: {nodes})")
    start = _free_range(kernel, pages, window=window)
    source = kernel.node_home(cpu) if node is None else node
    frames = take_frames(kernel, source, [kernel.root] * pages, "areas")
    area = Area(start, frames, node)
    work = Work()
    try:
        add_pte_pages(kernel, cpu, area.vpns, work)
    except FrameError:
        give_frames(kernel, frames, "areas")
        raise
    map_range(kernel, area, work)
    kernel.areas.append(area)
    return area, work


def _free_range(kernel: Kernel, pages: int, *, window: bool) -> int:
    vmalloc = kernel.bases["vmalloc"] >> PAGE_SHIFT
    start, end = (MODULES_VPN, MODULES_END_VPN) if window else (vmalloc, vmalloc + (1 << 27))
    taken = [range(a.start - 1, a.vpns.stop + 1) for a in kernel.areas]  # with guard pages
    while start + pages <= end:
        wanted = range(start, start + pages)
        stops = [r.stop for r in taken if r.start < wanted.stop and start < r.stop]
        if stops:
            start = max(stops)
        elif any(_is_mapped(kernel, start, pages)):  # by what was there before any area
            start += PAGES_PER_PMD - start % PAGES_PER_PMD
        else:
            return start
    raise ReplicationError(f"no room for {pages} pages of kernel addresses")


def _is_mapped(kernel: Kernel, start: int, pages: int) -> Iterable[bool]:
    return (kernel.tables.walk(kernel.root, vpn) is not None for vpn in range(start, start + pages))


def take_frames(kernel: Kernel, node: int, like: list[int], what: str) -> list[int]:
    """Allocate single frames on a memory node, all or nothing."""
    frames: list[int] = []
    try:
        for original in like:
            frames.append(kernel.frames.allocate(node, like=original))  # noqa: PERF401
    except FrameError:
        for pfn in frames:
            kernel.frames.free(pfn)
        raise
    kernel.held[what] += len(frames)
    return frames


def give_frames(kernel: Kernel, frames: list[int], what: str) -> None:
    """Free single frames and what they hold."""
    for pfn in frames:
        kernel.contents.drop(pfn, 1)
        kernel.frames.free(pfn)
    kernel.held[what] -= len(frames)


def add_pte_pages(kernel: Kernel, cpu: Cpu, vpns: range, work: Work) -> None:
    """Give the masters' and, by policy, every node's tables the PTE pages a range needs (R29).

    Pages made before memory runs out stay, empty, in all tables alike: the kernel keeps them, too.
    """
    first = vpns.start - vpns.start % PAGES_PER_PMD
    for vpn in range(first, vpns.stop, PAGES_PER_PMD):
        _make_path(kernel, cpu, vpn, work)
        if has_replicas(vpn) and kernel.spec.area_ptes != "shared":
            own_pte_pages(kernel, cpu, vpn, work)


def _make_path(kernel: Kernel, cpu: Cpu, vpn: int, work: Work) -> None:
    """Make the tables down to the PTE page; copied PMD pages share it until they have their own."""
    tables, node = kernel.tables, kernel.node_home(cpu)
    level, table = list(kernel.path(kernel.root, vpn, PTE))[-1]
    while level > PTE:
        below = kernel.new_table(level - 1, node, like=table, what="shared")
        index, entry = entry_index(vpn, level), below << PAGE_SHIFT | _TABLE_FLAGS
        tables.set_entry(level, table, index, entry)
        for _, copy in kernel.copies_of(table):
            _write(kernel, work, level, copy, index, entry)
        level, table = level - 1, below


def own_pte_pages(kernel: Kernel, cpu: Cpu, vpn: int, work: Work) -> None:
    """Give every further node its own PTE page for a range, from where the policy says (R29).

    Raises
    ------
    FrameError
        If a node has no room; then nothing has changed.
    """
    levels = dict(kernel.path(kernel.root, vpn, PTE))
    pmd, pte, index = levels[PMD], levels[PTE], entry_index(vpn, PMD)
    lacking = [node for node in kernel.further_nodes if pte not in kernel.own[node]]
    copies: dict[int, int] = {}
    try:
        for node in lacking:
            loader = kernel.spec.area_ptes == "loader"
            target = kernel.node_home(cpu) if loader else node
            copies[node] = kernel.new_table(PTE, target, like=pte, what="area_ptes")
    except FrameError:
        for copy in copies.values():
            kernel.free_table(copy, "area_ptes")
        raise
    for node, copy in copies.items():
        kernel.tables.add_table(PTE, copy, kernel.tables.pages[pte])
        kernel.own[node][pte] = copy
        gone = {i: entry for (table, i), entry in kernel.hidden.items() if table == pte}
        kernel.hidden |= {(copy, i): entry for i, entry in gone.items()}
        kernel.touch_struct_page(work, copy)
        kernel.store(work, copy, lines=LINES_PER_PAGE)
        entry = repointed(kernel.tables.entry(pmd, index), copy)
        _write(kernel, work, PMD, kernel.own[node][pmd], index, entry)


def _write(kernel: Kernel, work: Work, level: int, table: int, index: int, entry: int) -> None:
    """Write an entry of a further node's table."""
    kernel.tables.set_entry(level, table, index, entry)
    kernel.store_entry(work, table, index)


def ptes_of(kernel: Kernel, vpns: range) -> list[tuple[int, int]]:
    """List the master's PTE page and index of every page of a range."""
    found = []
    first = vpns.start
    while first < vpns.stop:  # as far as one PTE page goes
        end = min(vpns.stop, first - first % PAGES_PER_PMD + PAGES_PER_PMD)
        table = dict(kernel.path(kernel.root, first, PTE))[PTE]
        found += [(table, entry_index(vpn, PTE)) for vpn in range(first, end)]
        first = end
    return found


def map_range(kernel: Kernel, area: Area, work: Work) -> None:
    """Map an area's pages in the master's and all other tables, writable and not executable."""
    for (table, index), pfn in zip(ptes_of(kernel, area.vpns), area.frames, strict=True):
        entry = pfn << PAGE_SHIFT | _PAGE_FLAGS
        kernel.tables.set_entry(PTE, table, index, entry)
        for _, copy in kernel.copies_of(table):
            work.instructions(kernel.spec.instructions.entry)
            _write(kernel, work, PTE, copy, index, entry)


def unmap_range(kernel: Kernel, area: Area, work: Work) -> None:
    """Clear an area's entries in all tables (R28)."""
    for table, index in ptes_of(kernel, area.vpns):
        kernel.tables.set_entry(PTE, table, index, 0)
        kernel.replicated.pop((table, index), None)
        kernel.hidden.pop((table, index), None)
        for _, copy in kernel.copies_of(table):
            kernel.hidden.pop((copy, index), None)
            work.instructions(kernel.spec.instructions.entry)
            _write(kernel, work, PTE, copy, index, 0)


def replicate_area(kernel: Kernel, cpu: Cpu, area: Area) -> Work:
    """Give every further node its own pages of an area (R27).

    Raises
    ------
    ReplicationError
        If the area lies outside the window, is not allocated, is bound to no node, is replicated
        already, or the policy has no per-node tables.
    FrameError
        If a node has no room; then the area is shared as before (R31).
    """
    _check_replicable(kernel, area)
    work = Work()
    for vpn in range(area.start - area.start % PAGES_PER_PMD, area.vpns.stop, PAGES_PER_PMD):
        own_pte_pages(kernel, cpu, vpn, work)
    taken: dict[int, list[int]] = {}
    try:
        for node in kernel.replica_nodes if kernel.further_nodes else ():
            if node == area.node:
                continue
            taken[node] = take_frames(kernel, node, area.frames, "replicas")
    except FrameError:
        for frames in taken.values():
            give_frames(kernel, frames, "replicas")
        raise
    for node, frames in taken.items():
        _use_copies(kernel, area, node, frames, work)
    area.replicas = taken
    if taken:
        flush_everywhere(kernel, cpu, work)
    return work


def _check_replicable(kernel: Kernel, area: Area) -> None:
    if not has_replicas(area.start):
        raise ReplicationError(
            f"area at {shown(area.start << PAGE_SHIFT)} lies outside the window (the top 2 GiB): "
            "expected one that new_area maps there"
        )
    if area not in kernel.areas:
        raise ReplicationError("expected an existing area, not one that is freed")
    if area.node is None:
        raise ReplicationError("expected an area bound to one node; allocate it with node=")
    if area.replicas:
        raise ReplicationError("the area is replicated already")
    if kernel.hidden and not kernel.hidden.keys().isdisjoint(ptes_of(kernel, area.vpns)):
        raise ReplicationError("expected pages that are present")
    if kernel.spec.pgds == "retarget":
        raise ReplicationError("retarget switches PMD entries only: areas stay shared")
    if not kernel.spec.tables:
        raise ReplicationError("expected a policy with per-node tables")


def _use_copies(kernel: Kernel, area: Area, node: int, frames: list[int], work: Work) -> None:
    """Unmap the range in one node's table, map the new pages as 4 KiB, copy (R27)."""
    costs, own = kernel.spec.instructions, kernel.own.get(node, {})
    ptes = ptes_of(kernel, area.vpns)
    for (table, index), original, pfn in zip(ptes, area.frames, frames, strict=True):
        copy = own.get(table, table)  # the master's table is the original
        entry = repointed(kernel.tables.entry(table, index), pfn)
        kernel.tables.set_entry(PTE, copy, index, entry)
        kernel.contents.copy(original, pfn, 1)
        if kernel.is_charged:
            work.instructions(costs.area_page)
            kernel.touch_struct_page(work, pfn)
            for _ in ("unmapped", "mapped"):
                kernel.store_entry(work, copy, index)
            kernel.copy(work, original, pfn, lines=LINES_PER_PAGE)
        everywhere = dict.fromkeys(kernel.replica_nodes, original)
        kernel.replicated.setdefault((table, index), everywhere)[node] = pfn


def free_area(kernel: Kernel, area: Area) -> Work:
    """Unmap an area everywhere and free its pages, all replicas included (R28).

    Raises
    ------
    ReplicationError
        If it is freed already.
    """
    if area not in kernel.areas:
        raise ReplicationError("expected an existing area, not one that is freed")
    work = Work()
    if area.captured:
        _remember(kernel, area)
    unmap_range(kernel, area, work)
    for frames in area.replicas.values():
        for pfn in frames:
            kernel.touch_struct_page(work, pfn)
        give_frames(kernel, frames, "replicas")
    if area.captured:
        kernel.held["areas"] -= len(area.frames)
        kernel.taken_before += len(area.frames)
    else:
        give_frames(kernel, area.frames, "areas")
    kernel.areas.remove(area)
    return work


def _remember(kernel: Kernel, area: Area) -> None:
    """Keep which copies an area of a trace had: earlier records of the trace mean them."""
    for key, pfn in zip(ptes_of(kernel, area.vpns), area.frames, strict=True):
        if key in kernel.replicated:
            kernel.released[(*key, pfn)] = kernel.replicated[key]


def page_of(kernel: Kernel, vpn: int) -> int:
    """Return the master page of a kernel address (vmalloc_to_page; R28).

    Raises
    ------
    ReplicationError
        If nothing is mapped there.
    """
    for area in kernel.areas:
        if vpn in area.vpns:
            return area.frames[vpn - area.start]
    found = kernel.tables.walk(kernel.root, vpn)
    if found is None:
        raise ReplicationError(f"{shown(vpn << PAGE_SHIFT)} is not mapped")
    return found.pfn


def node_frame(kernel: Kernel, node: int, vpn: int) -> int:
    """Return the frame that a memory node's tables map a kernel page to.

    Raises
    ------
    ReplicationError
        If nothing is mapped there.
    """
    found = kernel.tables.walk(kernel.pgd_numa(node), vpn)
    if found is None:
        raise ReplicationError(f"{shown(vpn << PAGE_SHIFT)} is not mapped")
    return found.pfn


def share_again(kernel: Kernel, cpu: Cpu, area: Area) -> Work:
    """Point all tables at an area's master pages again and free its replicas (R31)."""
    work = Work()
    for (table, index), pfn in zip(ptes_of(kernel, area.vpns), area.frames, strict=True):
        kernel.replicated.pop((table, index), None)
        entry = repointed(kernel.tables.entry(table, index), pfn)
        kernel.tables.set_entry(PTE, table, index, entry)
        for _, copy in kernel.copies_of(table):
            work.instructions(kernel.spec.instructions.entry)
            _write(kernel, work, PTE, copy, index, entry)
    flush_everywhere(kernel, cpu, work)
    for frames in area.replicas.values():
        for pfn in frames:
            kernel.touch_struct_page(work, pfn)
        give_frames(kernel, frames, "replicas")
    area.replicas = {}
    return work
