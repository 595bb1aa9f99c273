"""What replication costs in memory, exact in bytes, by mechanism; closed formulas and the account.

The formulas say what a kernel of given sizes needs; `account` counts what a model's kernel holds.
A test holds them equal, and to two boot logs of the series.

>>> static_bytes_of(20480 << 10, 15196 << 10) >> 20, static_bytes_of(14340 << 10, 4560 << 10) >> 20
(36, 22)
>>> process_bytes(nodes=2, max_numnodes=1024), process_bytes(nodes=1, max_numnodes=1024)
(16384, 8192)
"""

from collections import Counter
from typing import NamedTuple

from numarep.linux.image import Image
from numarep.replication.boot import copied_sections
from numarep.replication.kernel import PGD_PAGES, Kernel
from numarep.spec import ReplicationSpec
from numarep.units import ENTRY_BYTES, MAX_LEVELS, PAGE_BYTES, PAGES_PER_PMD, PMD_BYTES, PTE


class Row(NamedTuple):
    """Memory of one mechanism on one node.

    static: copies of text and rodata. tables: of the kernel's tables, made at boot; area_tables:
    PTE pages made later. modules: copies of modules, BPF images and other areas. processes: further
    PGDs; private: tables a process has for itself; user_tables: copies of tables below its PGD.
    pointers: the PGD pointers in every mm_struct. padding: of text and rodata to 2 MiB, once.
    """

    mechanism: str
    node: int
    pages: int  # that the bytes fill, the last one perhaps in part
    bytes: int


def _row(mechanism: str, node: int, size: int) -> Row:
    return Row(mechanism, node, -(-size // PAGE_BYTES), size)


def static_bytes_of(text_bytes: int, rodata_bytes: int) -> int:
    """Return the bytes of text and rodata copies one further node needs (R6)."""
    return sum(-(-size // PMD_BYTES) * PMD_BYTES for size in (text_bytes, rodata_bytes))


def static_bytes(image: Image, spec: ReplicationSpec) -> int:
    """Return the same for an image and a policy."""
    return sum(section.bytes for section in copied_sections(image, spec))


def padding_bytes(image: Image) -> int:
    """Return the bytes that aligning text and rodata to 2 MiB costs once, replicated or not."""
    sections = zip(image.replicated, (image.text, image.rodata), strict=True)
    return sum(whole.bytes - section.bytes for whole, section in sections)


def table_pages(levels: int) -> int:
    """Return the table pages of one further node: PGD, P4D with 5 levels, PUD, two PMD (R11).

    Without KPTI a PGD would fit one page; the series allocates two in any case.
    """
    return PGD_PAGES + (levels == MAX_LEVELS) + 1 + 2


def process_bytes(nodes: int, max_numnodes: int) -> int:
    """Return what one process costs: its further PGDs, and a pointer a possible node in mm_struct.

    The pointers are paid with one node, too.
    """
    return (nodes - 1) * PGD_PAGES * PAGE_BYTES + ENTRY_BYTES * max_numnodes


def module_bytes(nodes: int, text_pages: int, rodata_pages: int, *, own_ptes: bool) -> int:
    """Return what one replicated module costs, alone in its 2 MiB of addresses."""
    pages = text_pages + rodata_pages
    ptes = -(-pages // PAGES_PER_PMD) if own_ptes else 0
    return (nodes - 1) * (pages + ptes) * PAGE_BYTES


def padding(image: Image, spec: ReplicationSpec, master: int) -> list[Row]:
    """List what alignment costs the master node, replicated or not."""
    size = padding_bytes(image) if spec.aligned else 0
    return [_row("padding", master, size)] if size else []


def account(kernel: Kernel, max_numnodes: int) -> list[Row]:
    """List the memory that replication holds now, by mechanism and node; zeros left out.

    Parameters
    ----------
    max_numnodes : int
        Nodes the kernel is built for: as many pointers are in every mm_struct.
    """
    spec, node_of = kernel.spec, kernel.frames.node_of
    pages: Counter[tuple[str, int]] = Counter()
    for node, reserved in kernel.reserved.items():
        pages["static", node] += sum(count for _, count in reserved)
    boot_ptes = PTE if spec.clone_ptes else PTE + 1
    for own in kernel.own.values():
        for copy in own.values():
            is_boot = kernel.tables.level_of[copy] >= boot_ptes
            pages["tables" if is_boot else "area_tables", node_of(copy)] += 1
    for area in kernel.areas:
        for node, frames in area.replicas.items():
            pages["modules", node] += len(frames)
    for mm in kernel.mms:
        for node in mm.pgd:
            if node != mm.original:
                pages["processes", node] += PGD_PAGES
        for copy in mm.private.values():
            pages["private", node_of(copy)] += 1
    for copy in {c for copies in kernel.user_copies.values() for c in copies.values()}:
        if not kernel.frames.is_free(copy):
            pages["user_tables", node_of(copy)] += 1
    rows = [_row(*key, count * PAGE_BYTES) for key, count in pages.items()]
    if spec.built_in:
        pointers = Counter(mm.original for mm in kernel.mms)
        size = ENTRY_BYTES * max_numnodes
        rows += [_row("pointers", node, number * size) for node, number in pointers.items()]
    return sorted(row for row in (*rows, *padding(kernel.image, spec, kernel.master)) if row.bytes)
