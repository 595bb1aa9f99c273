"""Plain reference streams through the latency core: addresses in, counts out, no kernel around.

For cross-checking the core against other simulators, and for synthetic patterns such as the
pointer chase. Virtual addresses are physical ones; every page has a real walk of 4 or 5 levels,
whose tables lie on the node of the memory they map, below that node's end.

>>> from numarep.memory.counts import Access, Service
>>> machine = toy_machine()
>>> address = np.array([0, 64, 0, 4096])
>>> counts = count_stream(machine, np.full(4, Kind.LOAD, np.uint8), address)
>>> served = counts.served[Access.LOAD, 0].sum(axis=(0, 2, 3))
>>> {service.name: int(served[service]) for service in Service if served[service]}
{'L1': 1, 'DRAM': 3}
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numarep.memory.counts import Counts, Overlap, new_counts
from numarep.memory.kinds import Kind
from numarep.memory.passes import repeat
from numarep.memory.system import Stream, Translations, new_system
from numarep.spec import MachineSpec, SpecError, parse
from numarep.spec.base import require
from numarep.units import (
    LINE_BYTES,
    LINE_SHIFT,
    LINES_PER_PAGE,
    MAX_LEVELS,
    P4D,
    PAGE_SHIFT,
    PGD5,
    TABLE_SHIFT,
    parts,
)

LEAVES = {"4K": 1, "2M": 2, "1G": 3}  # leaf level by page size
NODE_BYTES = 1 << 34
# From here on the last 256th of a node holds the tables of all the rest.
_LEAST_NODE_BYTES = 1 << 24
# What a user program can map of a 4-level space; beyond that there would be several roots.
_MOST_BYTES = 1 << 47
_MOST_FUNCTIONS = 1 << 17
# Loads of a drawn chase, at most, unless the buffer has more lines: those of 256 MiB.
_DRAWN = 1 << 22
_REGIONS = 1


def count_stream(
    machine: MachineSpec,
    kind: ArrayLike,
    address: ArrayLike,
    *,
    page: str = "4K",
    levels: int = P4D,
    cpu_node: int = 0,
    node_bytes: int = NODE_BYTES,
    unmeasured_passes: int = 0,
    passes: int = 1,
    dependent: bool = False,
    function: ArrayLike | None = None,
) -> Counts:
    """Count what one CPU's references do on a machine that starts empty.

    Parameters
    ----------
    machine : MachineSpec
    kind : integers[n]
        `Kind.FETCH`, `LOAD` or `STORE`; a fetch is one instruction.
    address : integers[n]
        Byte addresses, virtual and physical alike, 0 to nodes x `node_bytes`.
    page : {"4K", "2M", "1G"}
        Size of all pages.
    levels : {4, 5}
        Levels of the page tables.
    cpu_node : int
        Node of the CPU.
    node_bytes : int
        Memory of each node, whole pages: an address lies on node `address // node_bytes`.
    unmeasured_passes, passes : int
        How often the stream runs before counting begins (0 or more), and how often it is counted
        (1 or more).
    dependent : bool
        Each reference needs the one before, as in a pointer chase: nothing overlaps.
    function : integers[n], optional
        Small number of the code each reference belongs to, from 0: to count by it, too.

    Returns
    -------
    Counts
        With one address region.

    Raises
    ------
    SpecError
        If the arrays aren't integers of one length, or an address, kind, function, page size or
        number is none; the message names what was expected.
    """
    _check_numbers(machine, page, levels, node_bytes)
    require(unmeasured_passes >= 0, f"unmeasured_passes: expected >= 0, got {unmeasured_passes}")
    require(passes >= 1, f"passes: expected >= 1, got {passes}")
    stream, vpn = _stream(machine, kind, address, node_bytes, function)
    translations = _identity(vpn, LEAVES[page], levels, node_bytes >> PAGE_SHIFT)
    counts = _counted(
        machine, stream, translations, cpu_node, node_bytes, (unmeasured_passes, passes)
    )
    return _one_by_one(counts) if dependent else counts


def count_chase(
    machine: MachineSpec,
    footprint_bytes: int,
    *,
    home_node: int = 0,
    seed: int,
    order: Literal["cycle", "drawn"] = "cycle",
    page: str = "4K",
    cpu_node: int = 0,
    unmeasured_passes: int = 0,
) -> Counts:
    """Count a pointer chase through a buffer at the start of a node's memory.

    The same as `count_stream` of its loads, but hardly more than their lines is held in memory.

    Parameters
    ----------
    machine : MachineSpec
    footprint_bytes, seed, order
        See `chase_lines`.
    home_node : int
        Node of the buffer.
    page, cpu_node, unmeasured_passes
        See `count_stream`.

    Raises
    ------
    SpecError
        If the buffer doesn't fit a node, or a page size or number is none.
    """
    _check_numbers(machine, page, P4D, NODE_BYTES)
    most = _usable(NODE_BYTES)
    require(
        LINE_BYTES <= footprint_bytes <= most,
        f"footprint_bytes: expected {LINE_BYTES} to {most}, got {footprint_bytes}",
    )
    node_pages = NODE_BYTES >> PAGE_SHIFT
    lines = chase_lines(footprint_bytes, seed, order)
    vpn, line = _chased_pages(lines)
    vpn += home_node * node_pages
    kind = np.broadcast_to(np.full(1, Kind.LOAD, np.uint8), len(lines))
    once = np.broadcast_to(np.ones(1, np.int32), len(lines))
    translations = _identity(vpn, LEAVES[page], P4D, node_pages)
    stream, passes = Stream(kind, lines, line, once), (unmeasured_passes, 1)
    return _one_by_one(_counted(machine, stream, translations, cpu_node, NODE_BYTES, passes))


def chase_lines(
    footprint_bytes: int, seed: int, order: Literal["cycle", "drawn"] = "cycle"
) -> NDArray[np.int32]:
    """Return which line of a buffer each load of a pointer chase reads, int32[n].

    Parameters
    ----------
    footprint_bytes, seed : int
    order : {"cycle", "drawn"}
        cycle: every line once, in a random order; passes go round and round, so where lines don't
        fit LRU caches, none is found there. drawn: every load's line is drawn anew, so a cache
        holds the next one as often as its share of the buffer. Enough are drawn that repeating
        them makes no difference to caches of up to 128 MiB.

    Returns
    -------
    int32[n]
        n is the number of lines of the buffer if cycled, else more where those are few.
    """
    rng, count = np.random.default_rng(seed), footprint_bytes >> LINE_SHIFT
    if order == "drawn":
        return rng.integers(0, count, max(count, min(4 * count, _DRAWN)), np.int32)
    lines = np.arange(count, dtype=np.int32)
    rng.shuffle(lines)
    return lines


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
            "tlbs": {**dict.fromkeys(sizes, tlb), "stlb_holds_2m": True},
            "psc": dict.fromkeys(("pgd", "pud", "pmd"), tlb),
            "core": {"ghz": 2.0, "base_ipc": 2.0, "reorder_window": 192},
            "cores_per_node": 1,
            "latency": latency | writes | {"remote_llc_ns": [[20.0]], "dram_ns": [[100.0]]},
            "prefetch": dict.fromkeys(("next_line_fetch", "adjacent_line", "stream"), False),
            "pcid": False,
        },
    )


def _check_numbers(machine: MachineSpec, page: str, levels: int, node_bytes: int) -> None:
    """Refuse pages and nodes that can't be."""
    require(page in LEAVES, f"page: expected one of {', '.join(LEAVES)}, got {page!r}")
    require(levels in (P4D, PGD5), f"levels: expected {P4D} or {PGD5}, got {levels}")
    page_bytes = 1 << PAGE_SHIFT + TABLE_SHIFT * (LEAVES[page] - 1)
    most = _MOST_BYTES // machine.nodes
    require(
        _LEAST_NODE_BYTES <= node_bytes <= most and node_bytes % page_bytes == 0,
        f"node_bytes: expected whole {page} pages of {page_bytes} bytes, {_LEAST_NODE_BYTES} to "
        f"{most} bytes, got {node_bytes}",
    )


def _usable(node_bytes: int) -> int:
    """Return how much of a node may be referred to; behind it lie the tables.

    Those of a fully used node take a 512th of it.
    """
    return node_bytes - node_bytes // 256


def _integers(name: str, values: ArrayLike, most: int, length: int | None = None) -> NDArray[Any]:
    """Return values as they are, refused unless integers 0 to `most` in one dimension."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as unlike:
        raise SpecError(f"{name}: expected an array of integers: {unlike}") from None
    require(array.size > 0, f"{name}: expected at least one reference")
    require(array.dtype.kind in "iu", f"{name}: expected integers 0 to {most}, got {array.dtype}")
    shape = array.shape if length is None else (length,)
    require(
        array.ndim == 1 and array.shape == shape,
        f"{name}: expected one dimension, of {length or 'any'} references, got {array.shape}",
    )
    low, high = int(array.min()), int(array.max())
    require(0 <= low <= high <= most, f"{name}: expected integers 0 to {most}, got {low} to {high}")
    return array


def _stream(
    machine: MachineSpec,
    kind: ArrayLike,
    address: ArrayLike,
    node_bytes: int,
    function: ArrayLike | None,
) -> tuple[Stream, NDArray[np.int64]]:
    """Return checked references as a stream, and the vpn of each of its pages: int64[pages]."""
    kinds = _integers("kind", kind, Kind.STORE)
    count = len(kinds)
    most = machine.nodes * node_bytes - 1
    addresses = _integers("address", address, most, count).astype(np.int64, copy=False)
    usable = _usable(node_bytes)
    last = max(int((addresses[here] % node_bytes).max()) for here in parts(count))
    require(
        last < usable, f"address: expected the first {usable} bytes of each node only, got {last}"
    )
    vpn, page, line = _pages_and_lines(addresses)
    once = np.broadcast_to(np.ones(1, np.int32), count)
    stream = Stream(kinds.astype(np.uint8, copy=False), page, line, once)
    if function is not None:
        of_code = _integers("function", function, _MOST_FUNCTIONS - 1, count)
        stream = stream._replace(function=of_code.astype(np.int32))
    return stream, vpn


def _pages_and_lines(
    addresses: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint8]]:
    """Return the vpns referred to, int64[pages], and each reference's place there and line."""
    page, line = np.empty(len(addresses), np.int32), np.empty(len(addresses), np.uint8)
    found: list[tuple[slice, NDArray[np.int64]]] = []
    for here in parts(len(addresses)):
        of_part, place = np.unique(addresses[here] >> PAGE_SHIFT, return_inverse=True)
        page[here], line[here] = place, (addresses[here] >> LINE_SHIFT) % LINES_PER_PAGE
        found.append((here, of_part))
    vpn = np.unique(np.concatenate([of_part for _, of_part in found]))
    for here, of_part in found:
        page[here] = np.searchsorted(vpn, of_part)[page[here]]
    return vpn, page, line


def _chased_pages(lines: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the pages that lines of a buffer are of, int64[p], and where in these.

    The buffer's lines become places among these pages, in place.
    """
    within = np.empty(len(lines), np.uint8)
    is_read = np.zeros(int(lines.max()) // LINES_PER_PAGE + 1, np.bool_)
    for here in parts(len(lines)):
        page, within[here] = np.divmod(lines[here], LINES_PER_PAGE)
        is_read[page] = True
        lines[here] = page
    place = np.cumsum(is_read, dtype=np.int32) - 1
    for here in parts(len(lines)):
        lines[here] = place[lines[here]]
    return np.flatnonzero(is_read), within


def _identity(vpn: NDArray[np.int64], leaf: int, levels: int, node_pages: int) -> Translations:
    """Map pages to themselves; a table page lies on the node of the first page it maps."""
    table = np.full((len(vpn), MAX_LEVELS), -1, np.int64)
    used = np.zeros(int(vpn.max()) // node_pages + 1, np.int64)
    for level in range(leaf, levels + 1):
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
    leaves, zero = (np.broadcast_to(np.array([each]), len(vpn)) for each in (leaf, 0))
    return Translations(vpn, vpn, leaves, zero, table[:, levels - 1], table, zero)


def _counted(
    machine: MachineSpec,
    stream: Stream,
    translations: Translations,
    cpu_node: int,
    node_bytes: int,
    passes: tuple[int, int],
) -> Counts:
    """Count a stream on a machine that starts empty; `passes` unmeasured first, then measured."""
    ends = np.arange(1, machine.nodes + 1, dtype=np.int64) * (node_bytes >> PAGE_SHIFT)
    system = new_system(machine, (cpu_node,), ends)
    functions = int(stream.function.max(initial=-1)) + 1
    unmeasured, measured = (new_counts(machine.nodes, _REGIONS, functions) for _ in range(2))
    for times, counts in zip(passes, (unmeasured, measured), strict=True):
        repeat(system, 0, stream, translations, times, counts)
    return measured


def _one_by_one(counts: Counts) -> Counts:
    """Return counts of which no access overlaps another, in place."""
    for served in (counts.served, counts.functions):
        served[..., Overlap.LEADING] += served[..., Overlap.OVERLAPPED]
        served[..., Overlap.OVERLAPPED] = 0
    return counts
