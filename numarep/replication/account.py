"""What replication costs in memory, exact in bytes, by mechanism; closed formulas and the account.

The formulas say what a kernel of given sizes needs; `account` counts what a model's kernel holds.
A test holds them equal, and to two boot logs of the series.

>>> static_bytes_of(20480 << 10, 15196 << 10) >> 20, static_bytes_of(14340 << 10, 4560 << 10) >> 20
(36, 22)
>>> process_bytes(nodes=2, max_numnodes=1024), process_bytes(nodes=1, max_numnodes=1024)
(16384, 8192)
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from numarep.linux.image import Image
from numarep.replication.boot import copied_sections
from numarep.replication.kernel import PGD_PAGES, Area, Kernel, Mm
from numarep.replication.mitosis import user_tables_below
from numarep.spec import ReplicationSpec
from numarep.units import (
    ENTRY_BYTES,
    MAX_LEVELS,
    PAGE_BYTES,
    PAGE_SHIFT,
    PAGES_PER_PMD,
    PMD_BYTES,
    PTE,
    shown,
)


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


class Owned(NamedTuple):
    """The same of one owner."""

    owner: str
    mechanism: str
    node: int
    pages: int
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
    sizes: Counter[tuple[str, int]] = Counter()
    for row in account_by_owner(kernel, max_numnodes):
        sizes[row.mechanism, row.node] += row.bytes
    return sorted(_row(*key, size) for key, size in sizes.items())


def account_by_owner(
    kernel: Kernel, max_numnodes: int, modules: Mapping[str, Sequence[Area]] | None = None
) -> list[Owned]:
    """List the same for the kernel itself, every module and every process.

    Parameters
    ----------
    modules : mapping, optional
        Areas of each module by its name; an area of none is listed by its address.

    Returns
    -------
    list of Owned
        `kernel`, `module NAME`, `area ADDRESS` and `process N`, in the order of `Kernel.mms`. PTE
        pages of areas are the kernel's: modules share them, and they stay. Copies of user tables
        that no process's PGD leads to, of processes a trace alone knows, are `other processes`'.
    """
    names = {id(area): f"module {name}" for name, own in (modules or {}).items() for area in own}
    sizes: Counter[tuple[str, str, int]] = Counter()
    for node, reserved in kernel.reserved.items():
        sizes["kernel", "static", node] += sum(pages for _, pages in reserved) * PAGE_BYTES
    boot_ptes = PTE if kernel.spec.clone_ptes else PTE + 1
    for own in kernel.own.values():
        for copy in own.values():
            what = "tables" if kernel.tables.level_of[copy] >= boot_ptes else "area_tables"
            sizes["kernel", what, kernel.frames.node_of(copy)] += PAGE_BYTES
    for area in kernel.areas:
        owner = names.get(id(area), f"area {shown(area.start << PAGE_SHIFT)}")
        for node, frames in area.replicas.items():
            sizes[owner, "modules", node] += len(frames) * PAGE_BYTES
    for number, mm in enumerate(kernel.mms):
        _add_process(kernel, mm, f"process {number}", max_numnodes, sizes)
    for copy, owner in _user_copies(kernel).items():
        sizes[owner, "user_tables", kernel.frames.node_of(copy)] += PAGE_BYTES
    for row in padding(kernel.image, kernel.spec, kernel.master):
        sizes["kernel", row.mechanism, row.node] += row.bytes
    return sorted(
        Owned(owner, *_row(mechanism, node, size))
        for (owner, mechanism, node), size in sizes.items()
        if size
    )


def _add_process(
    kernel: Kernel, mm: Mm, owner: str, max_numnodes: int, sizes: Counter[tuple[str, str, int]]
) -> None:
    """Add a process's further PGDs, its private tables and its pointers."""
    for node in mm.pgd:
        if node != mm.original:
            sizes[owner, "processes", node] += PGD_PAGES * PAGE_BYTES
    for copy in mm.private.values():
        sizes[owner, "private", kernel.frames.node_of(copy)] += PAGE_BYTES
    if kernel.spec.built_in:
        sizes[owner, "pointers", mm.original] += ENTRY_BYTES * max_numnodes


def _user_copies(kernel: Kernel) -> dict[int, str]:
    """Return whose every copy of a user table is, of those in use."""
    owners = {
        table: f"process {number}"
        for number, mm in enumerate(kernel.mms)
        for pgd in mm.pgd.values()
        for table in (user_tables_below(kernel.tables, pgd) if kernel.user_copies else ())
    }
    found: dict[int, str] = {}  # a frame may have been a gone table's copy before
    for original, copies in kernel.user_copies.items():
        for copy in copies.values():
            if not kernel.frames.is_free(copy):
                owner = owners.get(original, owners.get(copy))
                found[copy] = owner or found.get(copy, "other processes")
    return found
