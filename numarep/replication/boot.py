"""The boot as the series does it, step by step (R14), and what it refuses (R1, R4).

`new_kernel` takes the tables of an unreplicated kernel; `reserve`, `replicate`, `start`,
`seal` and `publish` are R14's steps a, b, d, e and f (c, patching during boot, is `patching`'s
`patch_boot` and `patch_boot_sites`). `booted` runs all but c. Each step returns its work on the
boot CPU; what other CPUs do as they start is not in it.

Assumed: a word is copied by one load and one store, setting memory aside touches none of it
(memblock), and every table page is copied whole, so it is not zeroed before.

R33: nothing here depends on where in the window the image lies. R35: KASAN's shadow lies outside
the window, so its tables are shared like all others.

>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=3).booted()
>>> kernel.stage.name, {node: len(own) for node, own in kernel.own.items()}
('PUBLISHED', {1: 5, 2: 5})
"""

from collections.abc import Mapping, Sequence

from numarep.linux.frames import FrameError, Frames
from numarep.linux.image import Image, Section
from numarep.linux.tables import (
    LARGE,
    PRESENT,
    WRITABLE,
    PageTables,
    entry_index,
    entry_pfn,
    large_entry,
    repointed,
)
from numarep.replication.kernel import (
    ENTRIES_PER_LINE,
    KERNEL_HALF,
    PGD_PAGES,
    Cpu,
    Kernel,
    Mm,
    MmKind,
    ReplicationError,
    Stage,
    flush_everywhere,
    nearest_nodes,
    uncharged,
)
from numarep.replication.work import Sync, Work
from numarep.spec import ReplicationSpec
from numarep.units import (
    LINES_PER_PAGE,
    MAX_LEVELS,
    PAGE_SHIFT,
    PAGES_PER_PMD,
    PMD,
    PTE,
    PUD,
    TABLE_ENTRIES,
    shown,
)
from numarep.workload.trace import TraceError

_TABLE_FLAGS = PRESENT | WRITABLE


def kernel_root_of(tables: PageTables, image: Image) -> int:
    """Find a root that maps the whole kernel (a KPTI user half maps its entry text only)."""
    for root in tables.roots():
        sections = (image.text, image.rodata)
        if all(tables.walk(root, section.start >> PAGE_SHIFT) for section in sections):
            return root
    raise TraceError("page tables: expected a root that maps the kernel's text and rodata")


def first_frame(tables: PageTables, root: int, section: Section) -> int:
    """Return the frame a mapped section starts at."""
    found = tables.walk(root, section.start >> PAGE_SHIFT)
    if found is None:
        raise TraceError(f"page tables: {shown(section.start)} is not mapped")
    return found.pfn


def check_configuration(spec: ReplicationSpec, levels: int, *, kasan: bool) -> None:
    """Refuse what the kernel's own configuration refuses (R1).

    Raises
    ------
    ReplicationError
        If there would be replicas with KASAN on 5-level page tables.
    """
    if kasan and levels == MAX_LEVELS and spec.active:
        raise ReplicationError(
            "replication depends on !(KASAN && X86_5LEVEL) (R1): expected kernel.kasan false, a "
            "dataset with 4-level page tables, or a policy without per-node tables"
        )


def new_kernel(
    spec: ReplicationSpec,
    image: Image,
    tables: PageTables,
    frames: Frames,
    *,
    bases: Mapping[str, int],
    pti: bool = False,
    kasan: bool = False,
    distance: Sequence[Sequence[float]] | None = None,
    cpu_nodes: Sequence[int] | None = None,
) -> Kernel:
    """Describe the kernel before anything is replicated.

    Parameters
    ----------
    tables : PageTables
        Of the unreplicated kernel, text and rodata in 2 MiB leaves where they are to be
        replicated; modified in place.
    frames : Frames
        Memory of all nodes; what is in use already must be marked so.
    bases : mapping
        Start addresses of `direct_map`, `vmalloc` and `vmemmap`.
    distance : matrix, optional
        Between nodes, for memoryless ones (R2); a node's number decides where it is missing.
    cpu_nodes : sequence of int, optional
        Node of every CPU, the boot CPU first; one a node where missing.

    Raises
    ------
    ReplicationError
        If the configuration can't exist (R1).
    TraceError
        If the tables don't map the kernel.
    """
    check_configuration(spec, tables.levels, kasan=kasan)
    if not frames.memory_nodes:
        raise ReplicationError("no node has memory")
    root = kernel_root_of(tables, image)
    nodes = range(frames.nodes)
    flat = [[abs(i - j) for j in nodes] for i in nodes]
    home = nearest_nodes(frames.ranges, distance or flat)
    master = frames.node_of(first_frame(tables, root, image.text))
    init = Mm(MmKind.INIT, dict.fromkeys(frames.memory_nodes, root), master, master)
    cpus = [Cpu(number, node) for number, node in enumerate(cpu_nodes or nodes)]
    kernel = Kernel(spec, image, tables, frames, home, bases, pti, root, master, cpus, init)
    start(kernel, cpus[0])
    return kernel


def booted(kernel: Kernel) -> Kernel:
    """Run the whole boot, uncharged, and start every CPU."""
    with uncharged(kernel):
        for step in (reserve, replicate, seal, publish):
            step(kernel)
    for cpu in kernel.cpus[1:]:
        start(kernel, cpu)
    return kernel


def align_tables(tables: PageTables, image: Image, root: int) -> None:
    """Map text and rodata in whole 2 MiB leaves, in place (R6); the twin of `layout.aligned`."""
    for section in image.replicated:
        for vpn in blocks(section):
            found = tables.walk(root, vpn)
            if found is None:
                raise TraceError(f"page tables: {shown(vpn << PAGE_SHIFT)} is not mapped")
            entry = large_entry(found.pfn, found.flags)
            tables.set_entry(PMD, found.table[PMD - 1], entry_index(vpn, PMD), entry)


def copied_sections(image: Image, spec: ReplicationSpec) -> list[Section]:
    """List the sections a policy copies, in whole 2 MiB units (R6)."""
    wanted = zip(image.replicated, (spec.text, spec.rodata), strict=True)
    return [section for section, copied in wanted if copied]


def blocks(section: Section) -> range:
    """First page of every 2 MiB unit of a section."""
    return range(section.start >> PAGE_SHIFT, section.end >> PAGE_SHIFT, PAGES_PER_PMD)


def _enter(kernel: Kernel, stage: Stage) -> None:
    if kernel.stage != stage - 1:
        raise ReplicationError(f"boot: expected {Stage(stage - 1).name}, is {kernel.stage.name}")
    kernel.stage = stage


def reserve(kernel: Kernel) -> Work:
    """Set node-local memory aside for all copies, all or nothing (R14a, R4); touches none of it.

    Raises
    ------
    FrameError
        Naming the node and the size that it lacks.
    """
    taken: list[tuple[int, int]] = []
    reserved: dict[int, list[tuple[int, int]]] = {}
    try:
        for node in kernel.replica_nodes:
            if node == kernel.master or not kernel.spec.active:
                continue
            reserved[node] = []
            for section in copied_sections(kernel.image, kernel.spec):
                like, pages = first_frame(kernel.tables, kernel.root, section), section.pages
                pfn = kernel.frames.allocate(node, like=like, count=pages, align=PAGES_PER_PMD)
                reserved[node].append((pfn, pages))
                taken.append((pfn, pages))
    except FrameError as error:
        for pfn, pages in taken:
            kernel.frames.free(pfn, pages)
        raise FrameError(
            f"{error}, and without its copies of text and rodata the kernel does not boot (R4): "
            "expected more free memory there, or a policy with text: false or rodata: false"
        ) from None
    _enter(kernel, Stage.RESERVED)
    kernel.reserved = reserved
    kernel.held["static"] += sum(pages for _, pages in taken)
    _preallocate_vmalloc(kernel)
    return Work()


def _preallocate_vmalloc(kernel: Kernel) -> None:
    """Fill vmalloc's PGD slot, so that it needs no synchronisation later.

    Source: preallocate_vmalloc_pages, arch/x86/mm/init_64.c. Assumed: one slot (512 GiB) is used.
    """
    level = kernel.tables.levels
    index = entry_index(kernel.bases["vmalloc"] >> PAGE_SHIFT, level)
    if not kernel.tables.entry(kernel.root, index):
        node = kernel.node_home(kernel.cpus[0])
        table = kernel.new_table(level - 1, node, like=kernel.root, what="shared")
        kernel.tables.set_entry(level, kernel.root, index, table << PAGE_SHIFT | _TABLE_FLAGS)


def replicate(kernel: Kernel) -> Work:
    """Build node tables, copy text, redirect, switch the boot CPU and flush (R14b, R10-R13)."""
    _enter(kernel, Stage.REPLICATED)
    work = Work()
    bottom = PTE if kernel.spec.clone_ptes else PMD
    tables = kernel.window_tables(bottom)
    for node in kernel.reserved:
        own = _new_pgd_pair(kernel, node)
        for _, table in tables:
            own[table] = kernel.frames.allocate(node, like=table)
        kernel.held["tables"] += PGD_PAGES + len(tables)
        for original, copy in own.items():
            _clone(kernel, original, copy, own)
            if original in kernel.tables.level_of:
                kernel.touch_struct_page(work, copy)
                _copy(kernel, work, original, copy, pages=1)
        kernel.own[node] = own
        kernel.init_mm.pgd[node] = own[kernel.root]
    if kernel.spec.text:
        _redirect(kernel, kernel.image.replicated[0], 0, work)
    start(kernel, kernel.cpus[0])
    if kernel.reserved:
        work.event(Sync.CR3_LOAD, kernel.cpus[0].number, kernel.cpus[0].cr3)
        work.event(Sync.FLUSH_ALL, kernel.cpus[0].number)
    return work


def _new_pgd_pair(kernel: Kernel, node: int) -> dict[int, int]:
    pair = kernel.frames.allocate(node, like=kernel.root, count=PGD_PAGES, align=PGD_PAGES)
    return {kernel.root + page: pair + page for page in range(PGD_PAGES)}


def _clone(kernel: Kernel, original: int, copy: int, own: Mapping[int, int]) -> None:
    """Copy a table page; entries that point at copied pages point at the node's own."""
    tables = kernel.tables
    level = tables.level_of.get(original, tables.levels)
    entries = tables.pages.get(original, {})
    if level > PTE:
        entries = {
            index: entry if entry & LARGE else repointed(entry, own.get(entry_pfn(entry)))
            for index, entry in entries.items()
        }
    tables.add_table(level, copy, entries)


def _copy(kernel: Kernel, work: Work, source: int, target: int, *, pages: int) -> None:
    lines = pages * LINES_PER_PAGE
    kernel.copy(work, source, target, lines=lines, instructions=2 * ENTRIES_PER_LINE)


def _redirect(kernel: Kernel, section: Section, place: int, work: Work) -> None:
    """Copy a section to every node and point the node's PMD entries at it."""
    tables = kernel.tables
    first = first_frame(tables, kernel.root, section)
    vpns = blocks(section)
    for vpn, found in zip(vpns, tables.walk_all(kernel.root, vpns), strict=True):
        if found is None or found.leaf != PMD:
            raise ReplicationError(f"{shown(vpn << PAGE_SHIFT)}: expected a 2 MiB leaf (R6)")
        table, index = found.table[PMD - 1], entry_index(vpn, PMD)
        frames = dict.fromkeys(kernel.replica_nodes, found.pfn)
        if kernel.reserved:
            kernel.replicated[table, index] = frames
        for node, reserved in kernel.reserved.items():
            pfn = reserved[place][0] + found.pfn - first
            frames[node] = pfn
            kernel.contents.copy(found.pfn, pfn, PAGES_PER_PMD)
            _copy(kernel, work, found.pfn, pfn, pages=PAGES_PER_PMD)
            entry = repointed(tables.entry(table, index), pfn)
            tables.set_entry(PMD, kernel.own[node][table], index, entry)
            work.instructions(kernel.spec.instructions.entry)
            kernel.store_entry(work, kernel.own[node][table], index)


def start(kernel: Kernel, cpu: Cpu) -> Work:
    """Load a CPU's own node's init PGD as it starts (R14d); a full flush goes with it.

    On the master's node that is swapper's, which any kernel loads there.
    """
    cpu.mm, cpu.lazy = kernel.init_mm, False
    cpu.cr3 = kernel.init_mm.root(kernel.node_home(cpu))
    work = Work()
    if cpu.cr3 != kernel.root:
        work.event(Sync.CR3_LOAD, cpu.number, cpu.cr3)
    return work


def seal(kernel: Kernel) -> Work:
    """Copy rodata after read-only is marked and redirect it (R14e, R7).

    Early enough for all that is written while init runs, ro_after_init included, to be in the copy.
    """
    _enter(kernel, Stage.SEALED)
    work = Work()
    if kernel.spec.rodata:
        _redirect(kernel, kernel.image.replicated[1], int(kernel.spec.text), work)
    if kernel.reserved:
        flush_everywhere(kernel, kernel.cpus[0], work)
    return work


def publish(kernel: Kernel) -> Work:
    """Drop the linear-map aliases of the replicas, so that nothing can write to them (R14f)."""
    _enter(kernel, Stage.PUBLISHED)
    work = Work()
    direct_map = kernel.bases["direct_map"] >> PAGE_SHIFT
    for reserved in kernel.reserved.values():
        for pfn, pages in reserved:
            for block in range(pfn, pfn + pages, PAGES_PER_PMD):
                _unmap_alias(kernel, direct_map + block, work)
    if any(kernel.reserved.values()):
        flush_everywhere(kernel, kernel.cpus[0], work)
    _new_poking_mm(kernel)
    return work


def _unmap_alias(kernel: Kernel, vpn: int, work: Work) -> None:
    tables = kernel.tables
    found = tables.walk(kernel.root, vpn)
    if found is None:
        return
    if found.leaf == PUD:
        table, index = found.table[PUD - 1], entry_index(vpn, PUD)
        pmd = _split_pud(kernel, table, index, found.pfn, found.flags)
        kernel.touch_struct_page(work, pmd)
        kernel.store(work, pmd, lines=LINES_PER_PAGE)
        kernel.store_entry(work, table, index)
        found = tables.walk(kernel.root, vpn)
        assert found is not None
    if found.leaf == PMD:
        table, index = found.table[PMD - 1], entry_index(vpn, PMD)
        tables.set_entry(PMD, table, index, 0)
        kernel.store_entry(work, table, index)
    else:
        for index in range(TABLE_ENTRIES):
            tables.set_entry(PTE, found.table[PTE - 1], index, 0)
        kernel.store(work, found.table[PTE - 1], lines=LINES_PER_PAGE)


def _split_pud(kernel: Kernel, table: int, index: int, pfn: int, flags: int) -> int:
    """Split a 1 GiB leaf into 2 MiB ones (split_large_page, arch/x86/mm/pat/set_memory.c)."""
    first = pfn - pfn % (PAGES_PER_PMD * TABLE_ENTRIES)
    pmd = kernel.new_table(PMD, kernel.node_home(kernel.cpus[0]), like=table, what="shared")
    for block in range(TABLE_ENTRIES):
        entry = large_entry(first + block * PAGES_PER_PMD, flags)
        kernel.tables.set_entry(PMD, pmd, block, entry)
    kernel.tables.set_entry(PUD, table, index, pmd << PAGE_SHIFT | _TABLE_FLAGS)
    return pmd


def _new_poking_mm(kernel: Kernel) -> None:
    """Make the mm that text is patched through: one PGD, one path to one PTE (poking_init)."""
    node = kernel.node_home(kernel.cpus[0])
    levels = kernel.tables.levels
    pgd = kernel.frames.allocate(node, like=kernel.root, count=PGD_PAGES, align=PGD_PAGES)
    kernel.held["poking"] += PGD_PAGES
    half = kernel.tables.pages[kernel.root].items()
    kernel.tables.add_table(levels, pgd, {i: e for i, e in half if i >= KERNEL_HALF})
    table = pgd
    for level in range(levels, PTE, -1):
        below = kernel.new_table(level - 1, node, like=table, what="poking")
        kernel.tables.set_entry(level, table, 0, below << PAGE_SHIFT | _TABLE_FLAGS)
        table = below
    kernel.poking = Mm(MmKind.POKING, {node: pgd}, node, kernel.master)
