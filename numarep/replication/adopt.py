"""A captured kernel's modules taken over: those loaded before the window, and those loaded in it.

A capture's snapshot is of a running, unreplicated kernel. Its modules' pages are mapped by PTE
pages that a boot would have found empty, so every node gets its own for them (R26, R29), and text
and rodata are replicated if the policy says so (R30). A module that the window loads is mapped and
replicated at its captured addresses and frames, and that is charged.

Assumed: a module's parts are told by their permissions: executable is text, read-only is rodata
(ro_after_init data is read-only, too, by the time of the snapshot), the rest is data.

>>> _parts([(0, Flag.EXECUTABLE), (1, Flag.EXECUTABLE), (2, Flag.GLOBAL), (4, Flag.WRITABLE)])
[range(0, 2), range(2, 3), range(4, 5)]
"""

from collections.abc import Sequence
from typing import NamedTuple

from numarep.linux.tables import PRESENT, WRITABLE, entry_index
from numarep.replication.areas import add_pte_pages, map_range, replicate_area
from numarep.replication.kernel import Area, Cpu, Kernel, uncharged
from numarep.replication.modules import REPLICATED, replicate_all
from numarep.replication.work import Work
from numarep.units import PAGE_SHIFT, PTE
from numarep.workload.trace import Flag

INIT = "init"


class Part(NamedTuple):
    """Neighbouring pages of a module that a window loads, where the trace has them."""

    start: int  # vpn
    frames: list[int]
    what: str  # text | rodata | data | init
    table: tuple[int, ...]  # table pages its walks read, from PTE up; -1 where none


def adopt_module(kernel: Kernel, cpu: Cpu, vpns: range) -> list[Area]:
    """Make areas of a loaded module's mapped pages and replicate what the policy replicates.

    Uncharged: it was done when the module was loaded, before the window.
    """
    with uncharged(kernel):
        return _adopted(kernel, cpu, vpns)


def _adopted(kernel: Kernel, cpu: Cpu, vpns: range) -> list[Area]:
    found = zip(vpns, kernel.tables.walk_all(kernel.root, vpns), strict=True)
    mapped = {vpn: t for vpn, t in found if t is not None}
    areas = []
    for part in _parts([(vpn, t.flags) for vpn, t in mapped.items()]):
        area = _captured_area(kernel, part.start, [mapped[vpn].pfn for vpn in part])
        add_pte_pages(kernel, cpu, part, Work())
        if kernel.spec.modules and not mapped[part.start].flags & Flag.WRITABLE:
            replicate_area(kernel, cpu, area)
        areas.append(area)
    return areas


def load_captured(kernel: Kernel, cpu: Cpu, parts: Sequence[Part]) -> tuple[list[Area], Work]:
    """Map and, by policy, replicate a module that the window loads (R30).

    Where a node lacks memory for its copies the module stays shared (R31).
    """
    areas, work = [], Work()
    for part in parts:
        area = _captured_area(kernel, part.start, part.frames)
        for vpn in area.vpns:
            _take_tables(kernel, vpn, part.table, work)
        add_pte_pages(kernel, cpu, area.vpns, work)
        map_range(kernel, area, work)
        areas.append(area)
    if kernel.spec.modules:
        wanted = [a for a, part in zip(areas, parts, strict=True) if part.what in REPLICATED]
        replicate_all(kernel, cpu, wanted, work)
    return areas, work


def _captured_area(kernel: Kernel, start: int, frames: list[int]) -> Area:
    area = Area(start, frames, kernel.frames.node_of(frames[0]), captured=True)
    kernel.areas.append(area)
    _claim(kernel, frames)
    kernel.held["areas"] += len(frames)
    kernel.taken_before -= len(frames)
    return area


def _claim(kernel: Kernel, frames: Sequence[int]) -> None:
    """Mark frames of a trace as in use, which is nothing that replication took."""
    before = kernel.frames.taken
    kernel.frames.claim(frames)
    kernel.taken_before += kernel.frames.taken - before


def _take_tables(kernel: Kernel, vpn: int, captured: Sequence[int], work: Work) -> None:
    """Make the tables down to the PTE page where the trace's walks read them, in all tables."""
    level, table = list(kernel.path(kernel.root, vpn, PTE))[-1]
    while level > PTE and captured[level - 2] >= 0:
        below = captured[level - 2]
        _claim(kernel, [below])
        kernel.tables.add_table(level - 1, below)
        index, entry = entry_index(vpn, level), below << PAGE_SHIFT | PRESENT | WRITABLE
        kernel.tables.set_entry(level, table, index, entry)
        for _, copy in kernel.copies_of(table):
            kernel.tables.set_entry(level, copy, index, entry)
            kernel.store_entry(work, copy, index)
        level, table = level - 1, below


def _parts(pages: Sequence[tuple[int, int]]) -> list[range]:
    """Cut (vpn, flags) into runs of neighbouring pages of the same kind."""
    parts: list[range] = []
    kind, told_by = -1, int(Flag.WRITABLE | Flag.EXECUTABLE)
    for vpn, flags in pages:
        now = flags & told_by
        if parts and parts[-1].stop == vpn and kind == now:
            parts[-1] = range(parts[-1].start, vpn + 1)
        else:
            parts.append(range(vpn, vpn + 1))
        kind = now
    return parts
