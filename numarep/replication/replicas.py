"""The replicas: per-node copies of text, rodata and the tables that map them (R3, R5-R13).

Built on the captured kernel's own tables. Every memory node but the master gets frames for text
and rodata; every memory node that lacks them gets its own page of every PGD and of the window's
P4D, PUD and PMD levels. In a copied PMD page only the text and rodata entries differ from the
master's. All other tables stay shared, as on x86. So what a node's walk reads follows from which
table pages have a copy there: a translation of the trace is moved to a node by replacing the
table pages that have a copy and, where the page that holds its leaf entry is one of them, its
frame. `Replicas.tables` holds the same as real tables, to walk and to dump.

Leaves out (later versions): modules, BPF, patching, protection changes, lazily made PGDs.

>>> tuple(displaced(np.array([4, 9]), {9: 2}).tolist())
(4, 2)
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from numarep.linux.frames import Frames
from numarep.linux.image import Image, Section
from numarep.linux.layout import WINDOW_VPN
from numarep.linux.tables import PageTables, entry_index, entry_pfn, large_entry, repointed
from numarep.spec import ReplicationSpec
from numarep.units import PAGE_BYTES, PAGE_SHIFT, PAGES_PER_PMD, PMD
from numarep.workload.trace import Pages, TraceError

# A PGD is two pages, the second for KPTI's user half, also when booted with pti=off.
# Source: PGD_ALLOCATION_ORDER with CONFIG_PAGE_TABLE_ISOLATION, arch/x86/include/asm/pgalloc.h.
PGD_PAGES = 2


@dataclass(frozen=True)
class NodeReplica:
    """What one node has of its own, beside the originals that lie on it."""

    table: dict[int, int]  # original table page -> this node's copy, pfns
    displacement: tuple[tuple[Section, int], ...]  # frames of a section lie that far away
    bytes: int  # text and rodata copies
    table_pages: int  # pages of its own kernel PGD, P4D, PUD and PMD copies (R11)


@dataclass(frozen=True)
class Replicas:
    """All nodes' replicas, and the tables, copies included, that a walk reads."""

    nodes: tuple[NodeReplica, ...]
    tables: PageTables
    master_node: int

    def root(self, node: int, pgd: int) -> int:
        """Return the PGD page a CPU of `node` loads for the mm whose captured PGD is `pgd`."""
        return self.nodes[node].table.get(pgd, pgd)

    def on_node(self, pages: Pages, node: int) -> Pages:
        """Return the trace's translations as the CPUs of `node` see them (R10, R12, R13, R20)."""
        replica = self.nodes[node]
        own_leaf = (pages.leaf == PMD) & np.isin(pages.table[:, PMD - 1], list(replica.table))
        pfn = pages.pfn.copy()
        for section, offset in replica.displacement:
            pfn[own_leaf & section.holds(pages.vpn)] += offset
        return Pages(pages.vpn, pfn, pages.leaf, pages.flags, displaced(pages.table, replica.table))


def displaced(values: NDArray[np.int64], mapping: dict[int, int]) -> NDArray[np.int64]:
    """Replace every value that is a key of `mapping`, int64 like `values`."""
    if not mapping:
        return values
    keys = np.array(sorted(mapping), dtype=np.int64)
    targets = np.array([mapping[key] for key in keys.tolist()], dtype=np.int64)
    at = np.clip(np.searchsorted(keys, values), 0, len(keys) - 1)
    return np.where(keys[at] == values, targets[at], values)


def static_bytes(image: Image, spec: ReplicationSpec) -> int:
    """Return the bytes of text and rodata copies one extra node needs (R6)."""
    return sum(section.bytes for section in _copied_sections(image, spec))


def new_replicas(
    spec: ReplicationSpec, image: Image, tables: PageTables, roots: Iterable[int], frames: Frames
) -> Replicas:
    """Give every memory node its copies, on the captured kernel's tables (modified in place).

    Parameters
    ----------
    spec : ReplicationSpec
    image : Image
    tables : PageTables
        Must map the kernel in whole 2 MiB leaves wherever text or rodata are to be copied.
    roots : iterable of int
        Pfns of all PGDs of the trace, those of processes born in it included.
    frames : Frames
        Where the copies are taken from.

    Raises
    ------
    FrameError
        If a node has no room for its copies (R4).
    TraceError
        If the tables do not map the kernel.
    """
    root = kernel_root_of(tables, image)
    window = _window_tables(tables, root)
    builder = _Builder(spec, image, tables, root, window, sorted({*roots, *tables.roots()}), frames)
    nodes = tuple(builder.replicate(node) for node in range(frames.nodes))
    return Replicas(nodes, tables, builder.master_node)


def kernel_root_of(tables: PageTables, image: Image) -> int:
    """Find a root that maps the whole kernel (a KPTI user half maps its entry text only)."""
    for root in tables.roots():
        sections = (image.text, image.rodata)
        if all(tables.walk(root, section.start >> PAGE_SHIFT) for section in sections):
            return root
    raise TraceError("page tables: expected a root that maps the kernel's text and rodata")


def align_tables(tables: PageTables, image: Image, root: int) -> None:
    """Map text and rodata in whole 2 MiB leaves, in place (R6); the twin of `layout.aligned`."""
    for section in image.replicated:
        for vpn in _blocks(section):
            found = tables.walk(root, vpn)
            if found is None:
                raise TraceError(f"page tables: {vpn << PAGE_SHIFT:#x} is not mapped")
            pmd_page, index = found.table[PMD - 1], entry_index(vpn, PMD)
            tables.set_entry(PMD, pmd_page, index, large_entry(found.pfn, found.flags))


def _copied_sections(image: Image, spec: ReplicationSpec) -> list[Section]:
    wanted = zip(image.replicated, (spec.text, spec.rodata), strict=True)
    return [section for section, copied in wanted if copied]


def _blocks(section: Section) -> range:
    """First page of every 2 MiB unit of a section."""
    return range(section.start >> PAGE_SHIFT, section.end >> PAGE_SHIFT, PAGES_PER_PMD)


def _window_tables(tables: PageTables, root: int) -> list[tuple[int, int]]:
    """List (level, pfn) of the table pages below the PGD that map the window, top down (R10)."""
    found: list[tuple[int, int]] = []
    for vpn in range(WINDOW_VPN, 0, PAGES_PER_PMD):
        table = root
        for level in range(tables.levels, PMD, -1):
            entry = tables.pages[table].get(entry_index(vpn, level), 0)
            if not entry:
                break
            table = entry_pfn(entry)
            if (level - 1, table) not in found:
                found.append((level - 1, table))
    return sorted(found, reverse=True)


@dataclass(frozen=True)
class _Builder:
    """Makes the copies of one node after the other."""

    spec: ReplicationSpec
    image: Image
    tables: PageTables
    root: int
    window: list[tuple[int, int]]
    roots: list[int]
    frames: Frames

    @property
    def master_node(self) -> int:
        """The node that holds the physical kernel image (R3)."""
        return self.frames.node_of(self._first_frame(self.image.text))

    def replicate(self, node: int) -> NodeReplica:
        """Make one node's copies: the master keeps the originals, a PGD stays where it lies."""
        copies = self._copy_pgds(node)
        if node == self.master_node:
            self._clone(copies)
            return NodeReplica(copies, (), 0, 0)
        copies |= {pfn: self.frames.allocate(node, like=pfn) for _, pfn in self.window}
        self._clone(copies)
        displacement = tuple(
            (section, self._copy_frames(section, node, copies))
            for section in _copied_sections(self.image, self.spec)
        )
        size = sum(section.bytes for section, _ in displacement)
        return NodeReplica(copies, displacement, size, PGD_PAGES + len(self.window))

    def _first_frame(self, section: Section) -> int:
        found = self.tables.walk(self.root, section.start >> PAGE_SHIFT)
        assert found is not None  # kernel_root_of looked
        return found.pfn

    def _copy_pgds(self, node: int) -> dict[int, int]:
        """Give the node its own page pair of every PGD that lies elsewhere (R10, R15)."""
        copies: dict[int, int] = {}
        for pgd in sorted({root - root % PGD_PAGES for root in self.roots}):
            if self.frames.node_of(pgd) != node:
                copy = self.frames.allocate(node, like=pgd, count=PGD_PAGES, align=PGD_PAGES)
                copies |= {pgd + page: copy + page for page in range(PGD_PAGES)}
        return copies

    def _clone(self, copies: dict[int, int]) -> None:
        """Fill the copies with their originals' entries, pointing at each other (R12, R13)."""
        for source, copy in copies.items():
            if source not in self.tables.pages:
                continue  # a PGD born and gone between the snapshots
            level = self.tables.level_of[source]
            for index, entry in self.tables.pages[source].items():
                target = copies.get(entry_pfn(entry)) if level > PMD else None
                self.tables.set_entry(level, copy, index, repointed(entry, target))

    def _copy_frames(self, section: Section, node: int, copies: dict[int, int]) -> int:
        """Copy a section's frames and redirect the node's PMD entries; return how far away."""
        first = self._first_frame(section)
        pages = section.bytes // PAGE_BYTES
        copy = self.frames.allocate(node, like=first, count=pages, align=PAGES_PER_PMD)
        for vpn in _blocks(section):
            found = self.tables.walk(self.root, vpn)
            assert found is not None  # aligned tables map whole blocks
            entry = large_entry(found.pfn + copy - first, found.flags)
            self.tables.set_entry(PMD, copies[found.table[PMD - 1]], entry_index(vpn, PMD), entry)
        return copy - first
