"""Small traces for tests: one on a `SmallKernel`, and arbitrary ones."""

import numpy as np

from numarep.linux.tables import entry_index
from numarep.memory.kinds import Kind
from numarep.units import MAX_LEVELS, PAGE_SHIFT, PTE
from numarep.workload.trace import ITERATION, Flag, Pages, Records, Trace
from tests.kernels import MODULE_VA, SmallKernel

# A module that a window loads: two pages of text, one of rodata, one of data, then one of init.
LOADED_VPN = (MODULE_VA >> PAGE_SHIFT) + 16
LOADED_PFN = 0x5000
_TYPES = (np.uint8, np.int32, np.uint8, np.int32)


def kernel_trace(kernel: SmallKernel, root: int, *, events: tuple[tuple[int, str], ...]) -> Trace:
    """Fetch, load and store every page of the kernel once, in two iterations, with events."""
    pages = kernel.pages(root)
    executable = [int(np.flatnonzero(kernel.image.text.holds(pages.vpn))[0])]
    rows = [row for row in range(len(pages.vpn)) for _ in range(3)]
    kinds = [Kind.FETCH, Kind.LOAD, Kind.STORE] * len(pages.vpn)
    rows = [
        executable[0] if kind == Kind.FETCH else row for row, kind in zip(rows, kinds, strict=True)
    ]
    half = len(rows) // 6 * 3
    marks = sorted([(0, ITERATION), (half, ITERATION), *events])
    return Trace(
        Records(
            np.array(kinds, np.uint8),
            np.array(rows, np.int32),
            np.arange(len(rows), dtype=np.uint8) % 64,
            np.full(len(rows), 2, np.int32),
        ),
        pages,
        np.array([record for record, _ in marks], np.int64),
        tuple(name for _, name in marks),
    )


def module_trace(kernel: SmallKernel, root: int, *, clues: bool = True) -> Trace:
    """Load a module, seal and run it, unload it; twice, as two iterations of a loop.

    Without `clues` the kernel's own stores, to the module and to its PTEs, are left out.
    """
    old, events, records = kernel.pages(root), [], []
    text = int(np.flatnonzero(kernel.image.text.holds(old.vpn))[0])
    walk = kernel.tables.walk(root, MODULE_VA >> PAGE_SHIFT)
    assert walk is not None
    pte_page, direct_map = walk.table[PTE - 1], kernel.bases["direct_map"] >> PAGE_SHIFT
    pte_walk = kernel.tables.walk(root, direct_map + pte_page)
    assert pte_walk is not None
    rw, rx, ro = Flag.WRITABLE, Flag.EXECUTABLE, 0
    wanted = [(place, rw) for place in (0, 1, 2, 3, 5)] + [(0, rx), (2, ro)]
    rows = [
        (LOADED_VPN + place, LOADED_PFN + place, PTE, flags, *walk.table) for place, flags in wanted
    ]
    rows.append((direct_map + pte_page, pte_page, pte_walk.leaf, rw, *pte_walk.table))
    new = np.array(rows, np.int64)
    *loaded, runs, reads, ptes = range(len(old.vpn), len(old.vpn) + len(rows))

    def enter(name: str) -> None:
        events.append((len(records), name))
        records.append((Kind.FETCH, text, 0, 3))

    def store_ptes(place: int, count: int) -> None:
        line = entry_index(LOADED_VPN + place, PTE) // 8
        if clues:
            records.append((Kind.STORE, ptes, line, count))

    for _ in range(2):
        enter(ITERATION)
        enter("load_module")
        if clues:
            records.extend((Kind.STORE, row, line, 1) for row in loaded for line in (0, 1))
        for name, place, pages in (("ro", 0, 2), ("x", 0, 2), ("ro", 2, 1)):
            enter(f"set_memory_{name}")
            store_ptes(place, pages)
        if clues:
            records += [(Kind.FETCH, runs, 7, 9), (Kind.LOAD, reads, 7, 1)]
        enter("free_module")
        store_ptes(0, 4)
    return Trace(
        Records(*(np.array(c, d) for c, d in zip(zip(*records, strict=True), _TYPES, strict=True))),
        Pages(
            np.concatenate([old.vpn, new[:, 0]]),
            np.concatenate([old.pfn, new[:, 1]]),
            np.concatenate([old.leaf, new[:, 2].astype(np.uint8)]),
            np.concatenate([old.flags, new[:, 3].astype(np.uint8)]),
            np.concatenate([old.table, new[:, 4 : 4 + MAX_LEVELS]]),
        ),
        np.array([record for record, _ in events], np.int64),
        tuple(name for _, name in events),
    )


def tiny_trace() -> Trace:
    """Three records on one translation."""
    return Trace(
        Records(
            np.array([0, 1, 2], np.uint8),
            np.zeros(3, np.int32),
            np.array([0, 1, 63], np.uint8),
            np.array([5, 1, 1], np.int32),
        ),
        Pages(
            np.array([-5], np.int64),
            np.array([7], np.int64),
            np.array([2], np.uint8),
            np.array([3], np.uint8),
            np.array([[-1, 1, 2, 3, -1]], np.int64),
        ),
        np.array([0], np.int64),
        (ITERATION,),
    )
