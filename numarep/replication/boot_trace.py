"""The boot's own work as a trace: what the series adds to a boot, and nothing else (R14).

One fetch of the kernel's first line of text, then the work of `boot.replicate`, of patching, of
`boot.seal` and of `boot.publish` on the boot CPU: tables and text copied to every further node, the
copies patched like the original, rodata copied, the linear map's aliases dropped. The rest of a
boot, which any kernel does, is left out. Walks read the boot CPU's own node's tables from the
start.

>>> from tests.kernels import SmallKernel
>>> trace = boot_trace(SmallKernel(nodes=2).unbooted())
>>> words = int(trace.records.count[trace.records.kind == Kind.STORE].sum())
>>> words * 8 >> 21  # units of 2 MiB
4
"""

import numpy as np

from numarep.linux.image import Image
from numarep.linux.tables import PageTables
from numarep.memory.kinds import Kind
from numarep.replication.boot import publish, replicate, reserve, seal, start
from numarep.replication.kernel import Kernel
from numarep.replication.patching import patch_boot_sites
from numarep.replication.splice import Splice
from numarep.units import PAGE_SHIFT, shown
from numarep.workload.trace import ITERATION, Pages, Records, Trace, TraceError


def first_fetch(tables: PageTables, image: Image, root: int) -> Trace:
    """Return a window that fetches one instruction, of the first line of text."""
    vpn = image.text.start >> PAGE_SHIFT
    found = tables.walk(root, vpn)
    if found is None:
        raise TraceError(f"page tables: {shown(vpn << PAGE_SHIFT)} is not mapped")
    return Trace(
        Records(
            np.array([Kind.FETCH], np.uint8),
            np.zeros(1, np.int32),
            np.zeros(1, np.uint8),
            np.ones(1, np.int32),
        ),
        Pages(
            np.array([vpn], np.int64),
            np.array([found.pfn], np.int64),
            np.array([found.leaf], np.uint8),
            np.array([found.flags], np.uint8),
            np.array([found.table], np.int64),
        ),
        np.zeros(1, np.int64),
        (ITERATION,),
    )


def boot_trace(kernel: Kernel) -> Trace:
    """Boot a kernel and return the work of it, on the boot CPU."""
    cpu = kernel.cpus[0]
    splice = Splice(first_fetch(kernel.tables, kernel.image, kernel.root), kernel)
    reserve(kernel)
    splice.add(0, cpu, replicate(kernel))
    for sites in kernel.image.patched:
        splice.add(0, cpu, patch_boot_sites(kernel, sites))
    for step in (seal, publish):
        splice.add(0, cpu, step(kernel))
    for other in kernel.cpus[1:]:
        start(kernel, other)
    return splice.spliced()
