"""Plain reference streams through the latency core: addresses in, counts out, no kernel around.

For cross-checking the core against other simulators, and for synthetic patterns such as the
pointer chase. Virtual addresses are physical ones; every page has a real 4-level walk, whose
tables lie on the node of the memory they map, below that node's end.

>>> from numarep.memory.counts import Access, Service
>>> machine = toy_machine()
>>> address = np.array([0, 64, 0, 4096])
>>> counts = count_stream(machine, np.full(4, Kind.LOAD, np.uint8), address)
>>> served = counts.served[Access.LOAD, 0].sum(axis=(0, 2, 3))
>>> {service.name: int(served[service]) for service in Service if served[service]}
{'L1': 1, 'DRAM': 3}
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.memory.counts import Counts, Overlap, new_counts
from numarep.memory.kinds import Kind
from numarep.memory.passes import repeat
from numarep.memory.system import Stream, Translations, new_system
from numarep.spec import MachineSpec, SpecError, parse
from numarep.units import LINE_SHIFT, LINES_PER_PAGE, MAX_LEVELS, PAGE_SHIFT, TABLE_SHIFT

# Leaf level by page size, and the levels that are walked.
LEAVES = {"4K": 1, "2M": 2, "1G": 3}
NODE_BYTES = 1 << 34
_LEVELS = 4
_REGIONS = 1


class _Pages(NamedTuple):
    """Distinct 4 KiB pages of a stream, and each reference's page."""

    vpn: NDArray[np.int64]
    of_reference: NDArray[np.int64]


def count_stream(
    machine: MachineSpec,
    kind: NDArray[np.uint8],
    address: NDArray[np.int64],
    *,
    page: str = "4K",
    cpu_node: int = 0,
    node_bytes: int = NODE_BYTES,
    unmeasured_passes: int = 0,
    passes: int = 1,
    dependent: bool = False,
    function: NDArray[np.int32] | None = None,
) -> Counts:
    """Count what one CPU's references do on a machine that starts empty.

    Parameters
    ----------
    machine : MachineSpec
    kind : uint8[n]
        `Kind.FETCH`, `LOAD` or `STORE`; a fetch is one instruction.
    address : int64[n]
        Byte addresses, virtual and physical alike, 0 to nodes x `node_bytes`.
    page : {"4K", "2M", "1G"}
        Size of all pages.
    cpu_node : int
        Node of the CPU.
    node_bytes : int
        Memory of each node: an address lies on node `address // node_bytes`.
    unmeasured_passes, passes : int
        How often the stream runs before counting begins, and how often it is counted.
    dependent : bool
        Each reference needs the one before, as in a pointer chase: nothing overlaps.
    function : int32[n], optional
        Small number of the code each reference belongs to, from 0: to count by it, too.

    Returns
    -------
    Counts
        With one address region.

    Raises
    ------
    SpecError
        If the arrays differ in length, or an address, kind or page size is none.
    """
    _check(machine, kind, address, page, node_bytes)
    node_pages = node_bytes >> PAGE_SHIFT
    ends = np.arange(1, machine.nodes + 1, dtype=np.int64) * node_pages
    pages = _Pages(*np.unique(address >> PAGE_SHIFT, return_inverse=True))
    stream = Stream(
        kind,
        pages.of_reference.astype(np.int32),
        ((address >> LINE_SHIFT) % LINES_PER_PAGE).astype(np.uint8),
        np.ones(len(address), np.int32),
        *(() if function is None else (function,)),
    )
    functions = int(stream.function.max(initial=-1)) + 1
    translations = _identity(pages.vpn, LEAVES[page], node_pages)
    system = new_system(machine, (cpu_node,), ends)
    counts, unmeasured = (new_counts(machine.nodes, _REGIONS, functions) for _ in range(2))
    repeat(system, 0, stream, translations, unmeasured_passes, unmeasured)
    repeat(system, 0, stream, translations, passes, counts)
    if dependent:
        counts.served[..., Overlap.LEADING] += counts.served[..., Overlap.OVERLAPPED]
        counts.served[..., Overlap.OVERLAPPED] = 0
        counts.functions[..., Overlap.LEADING] += counts.functions[..., Overlap.OVERLAPPED]
        counts.functions[..., Overlap.OVERLAPPED] = 0
    return counts


def chase(
    footprint_bytes: int, base: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return a pointer chase: every line of a buffer loaded once, in a random order.

    Returns
    -------
    kind : uint8[n]
    address : int64[n]
        n is the number of lines of the buffer, which starts at byte `base`.
    """
    lines = np.random.default_rng(seed).permutation(footprint_bytes >> LINE_SHIFT)
    return np.full(len(lines), Kind.LOAD, np.uint8), base + (lines.astype(np.int64) << LINE_SHIFT)


def toy_machine() -> MachineSpec:
    """Return a one-node machine of a few lines, for examples and quick tests."""
    cache = {"size_bytes": 4096, "ways": 4, "replacement": "lru"}
    tlb = {"entries": 4, "ways": 4}
    sizes = ("itlb_4k", "itlb_2m", "dtlb_4k", "dtlb_2m", "dtlb_1g", "stlb")
    cycles = {"l1_cycles": 4.0, "l2_cycles": 12.0, "stlb_cycles": 8.0}
    latency = cycles | {"llc_ns": 20.0, "peer_ns": 40.0}
    writes = {"cr3_write_cycles": 100.0, "invlpg_cycles": 100.0, "ipi_cycles": 0.0}
    return parse(
        MachineSpec,
        {
            "name": "toy",
            **dict.fromkeys(("l1i", "l1d", "l2"), cache),
            "llc": {**cache, "shared_by": "node", "policy": "inclusive"},
            "tlbs": dict.fromkeys(sizes, tlb),
            "psc": dict.fromkeys(("pgd", "pud", "pmd"), tlb),
            "core": {"ghz": 2.0, "base_ipc": 2.0, "reorder_window": 192},
            "latency": latency | writes | {"remote_llc_ns": [[20.0]], "dram_ns": [[100.0]]},
            "prefetch": dict.fromkeys(("next_line_fetch", "adjacent_line", "stream"), False),
            "pcid": False,
        },
    )


def _check(
    machine: MachineSpec,
    kind: NDArray[np.uint8],
    address: NDArray[np.int64],
    page: str,
    node_bytes: int,
) -> None:
    if page not in LEAVES:
        raise SpecError(f"page: expected one of {', '.join(LEAVES)}, got {page!r}")
    if kind.shape != address.shape or kind.ndim != 1:
        raise SpecError(f"kind, address: expected equal lengths, got {kind.shape}, {address.shape}")
    if len(address) == 0 or kind.max() > Kind.STORE:
        raise SpecError("kind: expected at least one FETCH, LOAD or STORE, and nothing else")
    # The tables of a fully used node take a 512th of it, so leave that free at its end.
    usable = node_bytes - node_bytes // 256
    if address.min() < 0 or address.max() >= machine.nodes * node_bytes:
        raise SpecError(f"address: expected 0 to {machine.nodes * node_bytes - 1}")
    if (address % node_bytes).max() >= usable:
        raise SpecError(f"address: expected the first {usable} bytes of each node only")


def _identity(vpn: NDArray[np.int64], leaf: int, node_pages: int) -> Translations:
    """Map pages to themselves; a table page lies on the node of the first page it maps."""
    table = np.full((len(vpn), MAX_LEVELS), -1, np.int64)
    used = np.zeros(int(vpn.max()) // node_pages + 1, np.int64)
    for level in range(leaf, _LEVELS + 1):
        keys, first, inverse = np.unique(
            vpn >> (TABLE_SHIFT * level), return_index=True, return_inverse=True
        )
        node = vpn[first] // node_pages
        frames = np.empty(len(keys), np.int64)
        for home in np.unique(node).tolist():
            here = np.flatnonzero(node == home)
            frames[here] = (home + 1) * node_pages - 1 - used[home] - np.arange(len(here))
            used[home] += len(here)
        table[:, level - 1] = frames[inverse]
    zero = np.zeros(len(vpn), np.int64)
    root = table[:, _LEVELS - 1].copy()
    return Translations(vpn, vpn.copy(), zero + leaf, zero, root, table, zero.copy())
