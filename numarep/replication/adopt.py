"""A captured kernel taken over: its modules become areas of the model, as if loaded after boot.

A capture's snapshot is of a running, unreplicated kernel. Its modules' pages are mapped by PTE
pages that a boot would have found empty, so every node gets its own for them (R26, R29), and text
and rodata are replicated if the policy says so (R30).

Assumed: a module's parts are told by their permissions: executable is text, read-only is rodata
(ro_after_init data is read-only, too, by the time of the snapshot), the rest is data.

>>> _parts([(0, Flag.EXECUTABLE), (1, Flag.EXECUTABLE), (2, Flag.GLOBAL), (4, Flag.WRITABLE)])
[range(0, 2), range(2, 3), range(4, 5)]
"""

from collections.abc import Sequence

from numarep.replication.areas import add_pte_pages, replicate_area
from numarep.replication.kernel import Area, Cpu, Kernel
from numarep.replication.work import Work
from numarep.workload.trace import Flag


def adopt_module(kernel: Kernel, cpu: Cpu, vpns: range) -> list[Area]:
    """Make areas of a loaded module's mapped pages and replicate what the policy replicates."""
    found = [(vpn, kernel.tables.walk(kernel.root, vpn)) for vpn in vpns]
    mapped = {vpn: t for vpn, t in found if t is not None}
    areas = []
    for part in _parts([(vpn, t.flags) for vpn, t in mapped.items()]):
        frames = [mapped[vpn].pfn for vpn in part]
        area = Area(part.start, frames, kernel.frames.node_of(frames[0]))
        kernel.areas.append(area)
        before = kernel.frames.taken
        kernel.frames.claim(frames)
        kernel.held["areas"] += len(frames)
        kernel.taken_before -= len(frames) - (kernel.frames.taken - before)
        add_pte_pages(kernel, cpu, part, Work())
        if kernel.spec.modules and not mapped[part.start].flags & Flag.WRITABLE:
            replicate_area(kernel, cpu, area)
        areas.append(area)
    return areas


def _parts(pages: Sequence[tuple[int, int]]) -> list[range]:
    """Cut (vpn, flags) into runs of neighbouring pages of the same kind."""
    parts: list[range] = []
    kind = -1
    for vpn, flags in pages:
        now = flags & (Flag.WRITABLE | Flag.EXECUTABLE)
        if parts and parts[-1].stop == vpn and kind == now:
            parts[-1] = range(parts[-1].start, vpn + 1)
        else:
            parts.append(range(vpn, vpn + 1))
        kind = now
    return parts
