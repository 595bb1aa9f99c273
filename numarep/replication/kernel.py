"""The kernel's state: nodes, frames, tables, processes, areas and CPUs, and who has which copy.

Other modules are its operations (`boot`, `process`, `patching`, `protection`, `areas`, `modules`),
each changing this state and returning `Work`; `invariants` checks it at any moment. Table pages
and frames are real ones: `Kernel.tables` holds originals and copies, to walk and to dump.

Models the memory-management side only: no scheduler, no locks (operations are atomic except where
one is a generator), no user pages below the PGD.

>>> nearest_nodes([(0, 8), (8, 8), (8, 16)], [[10, 20, 30], [20, 10, 15], [30, 15, 10]])
(0, 2, 2)
>>> has_replicas(-1), has_replicas(-(1 << 19) - 1)
(True, False)
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from numarep.linux.contents import Contents
from numarep.linux.frames import Frames
from numarep.linux.image import Image
from numarep.linux.layout import WINDOW_VPN
from numarep.linux.tables import LARGE, PageTables, entry_index, entry_pfn
from numarep.memory.kinds import Kind
from numarep.replication.work import Run, Sync, Work
from numarep.spec import ReplicationSpec
from numarep.units import (
    ENTRY_BYTES,
    LINE_BYTES,
    LINE_SHIFT,
    PAGE_BYTES,
    PAGE_SHIFT,
    PMD,
    TABLE_ENTRIES,
    TABLE_SHIFT,
    shown,
)

# A PGD is two pages, the second for KPTI's user half, also when booted with pti=off.
# Source: PGD_ALLOCATION_ORDER with CONFIG_PAGE_TABLE_ISOLATION, arch/x86/include/asm/pgalloc.h.
PGD_PAGES = 2
KERNEL_HALF = TABLE_ENTRIES // 2  # first PGD index of the kernel half
ENTRIES_PER_LINE = LINE_BYTES // ENTRY_BYTES
# Source: include/linux/mm_types.h, struct page is 64 bytes with the captured configuration.
_STRUCT_PAGE_SHIFT = 6


class ReplicationError(ValueError):
    """What the kernel refuses to do; the message says what to change."""


class Stage(IntEnum):
    """How far the boot is (R14); each step is a function of `boot`."""

    EARLY = 0  # one set of tables
    RESERVED = 1  # a: memory for text and rodata is set aside on every node
    REPLICATED = 2  # b: node tables built, text copied and redirected
    SEALED = 3  # e: read-only is marked, rodata copied and redirected
    PUBLISHED = 4  # f: linear-map aliases dropped, diagnostics there


class MmKind(IntEnum):
    """What an mm is for."""

    USER = 0
    INIT = 1  # init_mm: swapper's PGD and its copies
    POKING = 2  # one PGD for all nodes (R20)
    EFI = 3  # one PGD for all nodes (R36)


@dataclass(eq=False)
class Mm:
    """A process's address space: one PGD per memory node (R15); equal PGDs are aliases."""

    kind: MmKind
    pgd: dict[int, int]  # memory node -> pfn of its PGD page pair
    original: int  # memory node of the PGD the unreplicated kernel would have
    window: int  # memory node whose window tables the only PGD reaches (single_node, retarget)
    private: dict[int, int] = field(default_factory=dict)  # retarget: own copies of window tables

    def root(self, node: int) -> int:
        """Return the PGD for CPUs of a memory node; the only one where it has none (R20)."""
        return self.pgd.get(node, self.pgd[self.original])


@dataclass(eq=False)
class Cpu:
    """A CPU: its node, what it runs, and CR3."""

    number: int
    node: int
    mm: Mm | None = None  # None: not started yet
    lazy: bool = False  # a kernel thread on the last process's PGD
    cr3: int = -1


@dataclass(eq=False)
class Area:
    """A mapped range of kernel addresses (vm_struct)."""

    start: int  # vpn
    frames: list[int]  # master pages
    node: int | None  # memory node it is bound to (R27)
    replicas: dict[int, list[int]] = field(default_factory=dict)  # memory node -> its pages
    captured: bool = False  # its frames are a trace's, never given to anybody else

    @property
    def vpns(self) -> range:
        """Pages of the area."""
        return range(self.start, self.start + len(self.frames))


def has_replicas(vpn: int) -> bool:
    """Tell whether an address may have replicas: a test of the address alone (R5)."""
    return WINDOW_VPN <= vpn < 0


def nearest_nodes(
    ranges: Sequence[tuple[int, int]], distance: Sequence[Sequence[float]]
) -> tuple[int, ...]:
    """Return the memory node that serves each node: itself, or the nearest one (R2)."""
    memory = [node for node, (start, end) in enumerate(ranges) if start < end]
    return tuple(
        node if node in memory else min(memory, key=lambda m: (distance[node][m], m))
        for node in range(len(ranges))
    )


@dataclass
class Kernel:
    """Everything the operations read and change; built by `boot.new_kernel`."""

    spec: ReplicationSpec
    image: Image
    tables: PageTables
    frames: Frames
    home: tuple[int, ...]  # memory node that serves each node (R2)
    bases: Mapping[str, int]
    pti: bool
    root: int  # swapper's PGD: the master's
    master: int  # node that holds the physical image (R3)
    cpus: list[Cpu]
    init_mm: Mm
    stage: Stage = Stage.EARLY
    contents: Contents = field(default_factory=Contents)
    # Per memory node, original kernel table page -> its own copy; the master's is empty.
    own: dict[int, dict[int, int]] = field(default_factory=dict)
    # Leaf entries whose frames are replicated: (original table, index) -> node -> first pfn.
    replicated: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)
    # The same of captured areas that are freed, by (original table, index, captured pfn).
    released: dict[tuple[int, int, int], dict[int, int]] = field(default_factory=dict)
    reserved: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # (first pfn, pages)
    mms: list[Mm] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)
    hidden: dict[tuple[int, int], int] = field(default_factory=dict)  # entries made not present
    held: Counter[str] = field(default_factory=Counter)  # frames taken, by what for
    captured: set[int] = field(default_factory=set)  # PGDs that lie where a trace has them
    user_tables: set[int] = field(default_factory=set)  # below PGDs, taken here
    # Mitosis: table below a PGD -> memory node -> its copy, kept when gone (see `Replay`).
    user_copies: dict[int, dict[int, int]] = field(default_factory=dict)
    poking: Mm | None = None
    is_charged: bool = True  # False: operations list no accesses (see `uncharged`)
    taken_before: int = field(init=False)

    def __post_init__(self) -> None:
        """Remember how many frames others hold."""
        self.taken_before = self.frames.taken

    @cached_property
    def replica_nodes(self) -> tuple[int, ...]:
        """Memory nodes, the master among them (R2)."""
        return self.frames.memory_nodes

    @property
    def further_nodes(self) -> tuple[int, ...]:
        """Memory nodes that have tables of their own, now."""
        return tuple(node for node in self.replica_nodes if self.own.get(node))

    def pgd_numa(self, node: int) -> int:
        """Return the init PGD of a memory node (R10)."""
        return self.own.get(node, {}).get(self.root, self.root)

    def node_home(self, cpu: Cpu) -> int:
        """Return the memory node of a CPU."""
        return self.home[cpu.node]

    def window_tables(self, bottom: int = PMD) -> list[tuple[int, int]]:
        """List (level, original pfn) of table pages that map the window, top down (R10, R11)."""
        found: dict[int, int] = {}
        first = -TABLE_ENTRIES << (TABLE_SHIFT * (self.tables.levels - 1))
        self._find_window(self.tables.levels, self.root, first, bottom, found)
        return sorted(((level, table) for table, level in found.items()), reverse=True)

    def _find_window(
        self, level: int, table: int, first: int, bottom: int, found: dict[int, int]
    ) -> None:
        """Add the tables below one that maps from page `first` on, if they map the window."""
        shift = TABLE_SHIFT * (level - 1)
        for index, entry in self.tables.pages[table].items():
            start, below = first + (index << shift), entry_pfn(entry)
            if start >= WINDOW_VPN - (1 << shift) + 1 and not entry & LARGE:
                if below not in self.tables.pages:
                    continue
                found[below] = level - 1
                if level - 1 > bottom:
                    self._find_window(level - 1, below, start, bottom, found)

    def path(self, root: int, vpn: int, bottom: int) -> Iterator[tuple[int, int]]:
        """Yield (level, table) from the root down to `bottom`, or to where nothing is below."""
        table = root
        for level in range(self.tables.levels, bottom - 1, -1):
            if table not in self.tables.pages:
                return
            yield level, table
            entry = self.tables.entry(table, entry_index(vpn, level))
            if not entry:
                return
            table = entry_pfn(entry)

    def copies_of(self, table: int) -> list[tuple[int, int]]:
        """List (memory node, pfn) of all copies of an original table page, without itself."""
        copies = [(node, own[table]) for node, own in self.own.items() if table in own]
        return copies + [(mm.window, mm.private[table]) for mm in self.mms if table in mm.private]

    # Frames and table pages

    def new_table(self, level: int, node: int, *, like: int, what: str) -> int:
        """Allocate an empty table page on a memory node."""
        pfn = self.frames.allocate(node, like=like)
        self.held[what] += 1
        self.tables.add_table(level, pfn)
        return pfn

    def free_table(self, pfn: int, what: str) -> None:
        """Free a table page."""
        self.tables.drop_table(pfn)
        self.frames.free(pfn)
        self.held[what] -= 1

    # What operations cost

    def run(
        self, kind: Kind, pfn: int, *, line: int = 0, lines: int = 1, times: int = ENTRIES_PER_LINE
    ) -> Run:
        """Describe lines of a frame reached through the direct map."""
        vpn = (self.bases["direct_map"] >> PAGE_SHIFT) + pfn
        return Run(kind, vpn, pfn, self.frames.node_of(pfn), line, lines, times)

    def copy(
        self,
        work: Work,
        source: int,
        target: int,
        *,
        line: int = 0,
        lines: int,
        instructions: int = 0,
    ) -> None:
        """Add the copying of lines of one frame to the same lines of another.

        `instructions` are a line's; by default they are among those of the whole operation.
        """
        if not self.is_charged:
            return
        work.burst(
            self.run(Kind.LOAD, source, line=line, lines=lines),
            self.run(Kind.STORE, target, line=line, lines=lines),
            instructions=instructions,
        )

    def touch_struct_page(self, work: Work, pfn: int) -> None:
        """Add a read and a write of a frame's struct page.

        Assumed: once at each end of a frame's life; the allocator's other data is what the
        unreplicated kernel's own allocation has just touched.
        """
        if not self.is_charged:
            return
        va = self.bases["vmemmap"] + (pfn << _STRUCT_PAGE_SHIFT)
        found = self.tables.walk(self.root, va >> PAGE_SHIFT)
        if found is None:
            raise ReplicationError(f"page tables: struct page {shown(va)} is not mapped")
        line = (va % PAGE_BYTES) >> LINE_SHIFT
        node = self.frames.node_of(found.pfn)
        for kind in (Kind.LOAD, Kind.STORE):
            work.burst(Run(kind, va >> PAGE_SHIFT, found.pfn, node, line))

    def store(
        self, work: Work, pfn: int, *, line: int = 0, lines: int = 1, times: int = ENTRIES_PER_LINE
    ) -> None:
        """Add stores to lines of a frame."""
        if self.is_charged:
            work.burst(self.run(Kind.STORE, pfn, line=line, lines=lines, times=times))

    def store_entry(self, work: Work, table: int, index: int) -> None:
        """Add the write of one entry."""
        self.store(work, table, line=index // ENTRIES_PER_LINE, times=1)


@contextmanager
def uncharged(kernel: Kernel) -> Iterator[None]:
    """Let operations list no accesses meanwhile: for what is done before a window begins.

    Their `Work` is incomplete and to be dropped; listing it would take most of their time.
    """
    before, kernel.is_charged = kernel.is_charged, False
    try:
        yield
    finally:
        kernel.is_charged = before


def flush_everywhere(kernel: Kernel, cpu: Cpu, work: Work) -> None:
    """Add a flush on all CPUs: one round of interrupts to the others, and a wait for them."""
    if not kernel.is_charged:
        return
    if len(kernel.cpus) > 1:
        work.event(Sync.IPI, cpu.number)
    for other in kernel.cpus:
        work.event(Sync.FLUSH_ALL, other.number)
