"""The modelled machine's mutable state, and the three things one can do with it.

`new_system` builds it from a `MachineSpec`, `run` feeds one CPU records of a stream (see `passes`
for many times over, and several CPUs at once), `flush` empties everything. The state is canonical:
two systems that will behave alike from now on hold equal arrays (LRU is the order within a row,
see `replacement`; the interval analysis remembers only what is left of its window), all of them
slices of one int64 buffer.

A call of `run` is one CPU's turn: at any moment one CPU runs.

>>> from numarep.memory.counts import Event, new_counts
>>> from numarep.spec import parse
>>> cache = {"size_bytes": 4096, "ways": 4, "replacement": "lru"}
>>> llc, tlb = {**cache, "shared_by": "node", "policy": "inclusive"}, {"entries": 4, "ways": 4}
>>> sizes = ("itlb_4k", "itlb_2m", "dtlb_4k", "dtlb_2m", "dtlb_1g", "stlb")
>>> cycles = {"l1_cycles": 4, "l2_cycles": 12, "stlb_cycles": 8, "llc_ns": 20, "peer_ns": 40}
>>> writes = {"cr3_write_cycles": 100, "invlpg_cycles": 100, "ipi_cycles": 5000}
>>> machine = parse(MachineSpec, {
...     "name": "toy", **dict.fromkeys(("l1i", "l1d", "l2"), cache), "llc": llc,
...     "tlbs": {**dict.fromkeys(sizes, tlb), "stlb_holds_2m": True},
...     "psc": dict.fromkeys(("pgd", "pud", "pmd"), tlb),
...     "core": {"ghz": 2.0, "base_ipc": 2.0, "reorder_window": 192}, "cores_per_node": 1,
...     "latency": {**cycles, **writes, "remote_llc_ns": [[20]], "dram_ns": [[100]]},
...     "prefetch": dict.fromkeys(("next_line_fetch", "adjacent_line", "stream"), False),
...     "pcid": False})
>>> system = new_system(machine, cpu_nodes=(0,), node_end_pfn=np.array([16]))
>>> page, line = np.zeros(3, np.int32), np.array([0, 1, 0], np.uint8)
>>> stream = Stream(np.full(3, 1, np.uint8), page, line, page + 1)  # three loads
>>> one = np.ones(1, np.int64)
>>> table = np.array([[2, 3, 4, 5, -1]])
>>> translations = Translations(one, 9 * one, one, 0 * one, 5 * one, table, 0 * one)
>>> counts = new_counts(nodes=1, regions=1)
>>> run(system, 0, stream, translations, 0, 3, counts)
>>> counts.served[1, 0, 0, :, 0, :].sum(axis=1).tolist()  # loads, by service
[1, 0, 0, 0, 0, 0, 0, 2]
>>> counts.events[[Event.DTLB_HITS, Event.DTLB_MISSES, Event.DATA_WALKS]].tolist()
[2, 1, 1]
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import compiled_for
from numarep.memory.batch import NODE_BITS, Stream, new_batch
from numarep.memory.checked import (
    Parts,
    axes,
    check_cpus,
    check_translations,
    checked_ends,
    parts_of,
)
from numarep.memory.coherence import drop_lines
from numarep.memory.counts import Counts, new_counts
from numarep.memory.kinds import Kind
from numarep.memory.loop import Translations, run_records
from numarep.memory.pages import pages_of
from numarep.memory.prefetch import ADJACENT, NEXT_LINE, STREAM
from numarep.memory.recency import EMPTY
from numarep.memory.replacement import Policy
from numarep.memory.streamer import STREAMS
from numarep.memory.tlb import OWNERS, Tlb, Tlbs, new_tlb
from numarep.memory.vector import new_words
from numarep.memory.view import ABSENT, Ahead, Cache, View, new_cache, placed, table_of
from numarep.spec import CacheSpec, MachineSpec

__all__ = [
    "Prepared",
    "Stream",
    "System",
    "Translations",
    "flush",
    "flush_lines",
    "new_system",
    "prepare",
    "run",
    "run_prepared",
]


class Layout(NamedTuple):
    """Where structures lie within the block of a CPU and of a domain, and how long these are."""

    private: tuple[Cache, ...]  # L1I, L1D, L2
    tlbs: Tlbs
    stlbs: tuple[Tlb, ...]  # of `tlbs`, what holds 4K, 2M and 1G pages
    streams: int  # of the stream prefetcher; where the block ends if there is none
    stride: int
    shared: tuple[Cache, ...]  # the LLC and, behind a victim LLC, its snoop filter
    shared_stride: int


@dataclass(frozen=True)
class System:
    """All state of the modelled CPUs and of their domains: LLCs, each with those that share it.

    cpu_node, cpu_domain : int64[cpus], node and domain of each CPU; domains are numbered in the
    order of their first CPUs.
    node_end_pfn : int64[nodes].
    words : int64[...], all mutable state but `window_left`; see `view`, `vector`.
    window_left : int64[cpus], see `interval`.
    roots : small numbers by which TLBs know the pfns of top tables, from 1 on.
    batch, ahead : scratch, see `batch` and `ahead`.
    """

    machine: MachineSpec
    cpu_node: NDArray[np.int64]
    cpu_domain: NDArray[np.int64]
    node_end_pfn: NDArray[np.int64]
    words: NDArray[np.int64]
    window_left: NDArray[np.int64]
    layout: Layout
    roots: dict[int, int]
    batch: NDArray[np.int64]
    ahead: NDArray[np.int64]

    @property
    def domains(self) -> int:
        """Number of domains."""
        return int(self.cpu_domain.max()) + 1


def _placed(
    caches: Iterable[CacheSpec], start: int, clusters: int = 1
) -> tuple[tuple[Cache, ...], int]:
    """Place caches one after the other; return them and where they end."""
    placed = []
    for cache in caches:
        policy = Policy[cache.replacement.upper()]
        placed.append(new_cache(start, cache.sets, cache.ways, policy, clusters))
        start += cache.sets * placed[-1].pitch
    return tuple(placed), start


def _layout(machine: MachineSpec) -> Layout:
    """Place every structure of a CPU, and of a domain, in its block."""
    private, end = _placed((machine.l1i, machine.l1d, machine.l2), 0)
    tlbs, none = list[Tlb](), new_tlb(end, 0, 0)
    spec, psc = machine.tlbs, machine.psc
    for tlb in (
        *(spec.itlb_4k, spec.itlb_2m, spec.dtlb_4k, spec.dtlb_2m, spec.dtlb_1g, spec.stlb),
        *(spec.stlb_1g, psc.pmd, psc.pud, psc.pgd),
    ):
        tlbs.append(new_tlb(end, tlb.sets, tlb.ways) if tlb else none)
        end += tlbs[-1].sets * tlbs[-1].pitch
    streams, end = end, end + STREAMS * machine.prefetch.stream
    snoop_filter = machine.llc.snoop_filter
    outer = (machine.llc,) if snoop_filter is None else (machine.llc, snoop_filter)
    shared, shared_end = _placed(outer, 0, machine.llc.clusters)
    where = Tlbs(*tlbs)
    stlbs = where.stlb, where.stlb if spec.stlb_holds_2m else none, where.stlb_1g
    return Layout(private, where, stlbs, streams, end, shared, shared_end)


def new_system(
    machine: MachineSpec, cpu_nodes: tuple[int, ...], node_end_pfn: NDArray[np.int64]
) -> System:
    """Build an empty system.

    Parameters
    ----------
    machine : MachineSpec
    cpu_nodes : tuple of int
        Node of each modelled CPU; any number of CPUs may be on one.
    node_end_pfn : int64[nodes]
        A pfn belongs to the first node whose entry is above it.

    Raises
    ------
    SpecError
        If the machine has no such node, or the node ends don't fit.
    """
    check_cpus(machine, cpu_nodes)
    llcs = [machine.llc_of_node[node] for node in cpu_nodes]
    used = list(dict.fromkeys(llcs))
    layout = _layout(machine)
    return System(
        machine=machine,
        cpu_node=np.array(cpu_nodes, np.int64),
        cpu_domain=np.array([used.index(llc) for llc in llcs], np.int64),
        node_end_pfn=checked_ends(machine, node_end_pfn),
        words=new_words(len(cpu_nodes) * layout.stride + len(used) * layout.shared_stride),
        window_left=np.zeros(len(cpu_nodes), np.int64),
        layout=layout,
        roots={},
        batch=new_batch(),
        ahead=np.zeros(Ahead.END, np.int64),
    )


def flush(system: System) -> None:
    """Empty every cache, TLB and PSC and close all windows, in place."""
    system.words.fill(EMPTY)
    system.window_left.fill(0)


def flush_lines(system: System, lines: NDArray[np.int64]) -> None:
    """Drop lines from every cache, as CLFLUSH does, and close all windows; in place."""
    drop_lines(_view(system, 0, new_counts(1, 1)), np.ascontiguousarray(lines, np.int64))
    system.window_left.fill(0)


def _pages(system: System, cpu: int, translations: Translations) -> NDArray[np.int64]:
    """Return what the stages need of each page; unknown roots are numbered, in place."""
    layout, roots = system.layout, system.roots
    distinct = np.unique(translations.root)
    for pfn in distinct.tolist():
        roots.setdefault(pfn, len(roots) + 1)
    if len(roots) >= OWNERS:
        raise ValueError(f"root: expected fewer than {OWNERS} different ones")
    of_distinct = np.array([roots[pfn] for pfn in distinct.tolist()], np.int64)
    small = of_distinct[np.searchsorted(distinct, translations.root)]
    vpn, pfn, leaf, is_global, _, table, region = translations
    places = layout.tlbs, layout.stlbs, cpu * layout.stride
    return pages_of(vpn, pfn, leaf, is_global, small, table, region, *places)


def _prefetchers(machine: MachineSpec) -> int:
    prefetch = machine.prefetch
    within_pair = NEXT_LINE * prefetch.next_line_fetch | ADJACENT * prefetch.adjacent_line
    return within_pair | STREAM * prefetch.stream


def _domain_of_node(system: System) -> NDArray[np.int64]:
    """Return the domain that shares each node's LLC, int64[nodes], or ABSENT without such CPUs."""
    llcs = np.array(system.machine.llc_of_node)
    domain = np.full(len(llcs), ABSENT, np.int64)
    for node, of_cpus in zip(system.cpu_node, system.cpu_domain, strict=True):
        domain[llcs == llcs[node]] = of_cpus
    return domain


def _for_view(caches: Sequence[Cache]) -> list[Cache]:
    """Return caches without a policy if all are LRU (see `view`)."""
    if any(cache.policy != Policy.LRU for cache in caches):
        return list(caches)
    return [cache._replace(policy=None) for cache in caches]


def _view(system: System, cpu: int, counts: Counts) -> View:
    """Return what an access by one CPU reads and modifies."""
    layout = system.layout
    l1i, l1d, l2, llc, *filters = _for_view((*layout.private, *layout.shared))
    return View(
        words=system.words,
        events=counts.events,
        cpu_place=system.cpu_domain << NODE_BITS | system.cpu_node,
        node_place=placed(
            system.node_end_pfn, system.machine.cluster_of_node, _domain_of_node(system)
        ),
        stride=layout.stride,
        shared=len(system.cpu_node) * layout.stride,
        shared_stride=layout.shared_stride,
        domains=system.domains,
        clusters=system.machine.llc.clusters,
        cpu=cpu,
        node=int(system.cpu_node[cpu]),
        domain=int(system.cpu_domain[cpu]),
        l1i=l1i,
        l1d=l1d,
        l2=l2,
        directory=filters[0] if filters else llc,
        victim=llc if filters else None,
        ahead=system.ahead,
        l1=table_of(cpu * layout.stride, (l1i, l1d, l1d)),
        prefetch=_prefetchers(system.machine) or None,
        streams=cpu * layout.stride + layout.streams,
    )


class Prepared(NamedTuple):
    """What one CPU runs, checked, frozen and laid out for compiled code.

    view : what its accesses modify, with the `events` of the counts it is prepared for.
    tlbs : `table_of` its TLBs. parts : of its stream. pages : see `pages_of`.
    hits : int64[3 * regions], scratch, 0 between runs.
    served, functions : of these counts, flat.
    entry : `run_records`, compiled for all these.
    """

    view: View
    tlbs: NDArray[np.int64]
    parts: Parts
    pages: NDArray[np.int64]
    hits: NDArray[np.int64]
    served: NDArray[np.int64]
    functions: NDArray[np.int64]
    entry: Callable[..., None] = run_records

    def counted_in(self, counts: Counts) -> "Prepared":
        """Return the same for other counts of these axes: once for all turns that count there."""
        return self._replace(
            view=self.view._replace(events=counts.events),
            served=counts.served.reshape(-1),
            functions=counts.functions.reshape(-1),
        )


def prepare(
    system: System, cpu: int, stream: Stream, translations: Translations, counts: Counts
) -> Prepared:
    """Check and freeze what one CPU is to run and where to count it.

    Raises
    ------
    ValueError
        If there is no such CPU, a frame lies beyond the last node, or nodes, regions or functions
        don't fit the counts.
    """
    if not 0 <= cpu < len(system.cpu_node):
        raise ValueError(f"cpu: expected 0 to {len(system.cpu_node) - 1}, got {cpu}")
    check_translations(system.machine, system.node_end_pfn, translations, counts)
    prepared = Prepared(
        view=_view(system, cpu, counts),
        tlbs=table_of(cpu * system.layout.stride, system.layout.tlbs),
        parts=parts_of(stream, counts),
        pages=_pages(system, cpu, translations),
        hits=np.zeros((Kind.STORE + 1) * axes(counts)[1], np.int64),
        served=counts.served.reshape(-1),
        functions=counts.functions.reshape(-1),
    )
    first, _ = prepared.parts.holding(0)
    entry = compiled_for(run_records, *_arguments(system, prepared, first, 0, 0))
    return prepared._replace(entry=entry)


def _arguments(
    system: System, prepared: Prepared, part: Stream, start: int, stop: int
) -> tuple[object, ...]:
    """Return what `run_records` is to be called with; all parts have the same types."""
    return (
        prepared.view,
        prepared.tlbs,
        system.window_left,
        system.machine.core.reorder_window,
        system.machine.pcid,
        part,
        prepared.pages,
        start,
        stop,
        system.batch,
        prepared.hits,
        prepared.served,
        prepared.functions,
    )


def run_prepared(system: System, prepared: Prepared, start: int, stop: int) -> None:
    """Process records [start, stop) of what was prepared, as `run` does."""
    while start < stop:
        part, first = prepared.parts.holding(start)
        end = min(stop, first + len(part.kind))
        prepared.entry(*_arguments(system, prepared, part, start - first, end - first))
        start = end


def run(
    system: System,
    cpu: int,
    stream: Stream,
    translations: Translations,
    start: int,
    stop: int,
    counts: Counts,
) -> None:
    """Process records [start, stop) of a stream on one CPU.

    The stream must be checked (kinds, page rows, lines: `workload.trace.check` does) since
    compiled code doesn't check bounds. System and counts are modified in place.

    Raises
    ------
    ValueError
        If a frame lies beyond the last node, or nodes or regions don't fit the counts.
    """
    if not 0 <= start <= stop <= len(stream.kind):
        raise ValueError(f"records: [{start}, {stop}) is not within {len(stream.kind)}")
    prepared = prepare(system, cpu, stream, translations, counts)
    run_prepared(system, prepared, start, stop)
