"""One run: from its description to counts.

Loads the captured window, maps it as the kernel of the run would (layout, replicas, the CPU's
node), charges what replication adds, and drives the latency core through the protocol:

- hot: one unmeasured pass over the whole window, then the measured one;
- cold: caches, TLBs and paging-structure caches of all sockets flushed once, then the measured one;
- `home_llc: warm`: first of all (after the flush), a CPU of the master node runs one pass of the
  same window, so that node's LLC holds what the kernel touches.

A loop captured for k iterations is tiled to the wanted number: iteration i repeats captured
iteration i mod k with the same frames, as a kernel that recycles freed frames does after k.

Baseline and replicated runs of one window differ in nothing but the replicas and their cost.
"""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from numarep.linux.boot_node import move_tables, moved
from numarep.linux.frames import Frames, colours_of
from numarep.linux.functions import Owners, functions_of, owners_of
from numarep.linux.image import Image, Section, image_from_symbols
from numarep.linux.layout import Region, aligned, regions
from numarep.linux.memory import map_node
from numarep.linux.relink import relink
from numarep.linux.tables import PageTables, tables_from_snapshot
from numarep.machine.topology import memory_ranges
from numarep.memory.counts import Counts, new_counts
from numarep.memory.kinds import Kind
from numarep.memory.passes import repeat
from numarep.memory.system import Stream, System, Translations, flush, new_system, run
from numarep.replication.account import Row, account, padding
from numarep.replication.adopt import adopt_module
from numarep.replication.boot import (
    align_tables,
    booted,
    first_frame,
    kernel_root_of,
    new_kernel,
)
from numarep.replication.boot_trace import boot_trace, first_fetch
from numarep.replication.events import Replay, page_table_frames, warn_of_missing
from numarep.replication.kernel import Kernel, Mm, nearest_nodes
from numarep.replication.mitosis import user_tables_of
from numarep.replication.module_clues import LOAD
from numarep.replication.view import on_node
from numarep.spec import (
    BootSpec,
    ChaseSpec,
    DisturbanceSpec,
    MachineSpec,
    RunSpec,
    SpecError,
    WorkloadSpec,
    as_mapping,
)
from numarep.streams import NODE_BYTES, chase, count_stream
from numarep.units import PAGE_SHIFT
from numarep.workload.dataset import CaptureMeta, capture_name, open_dataset
from numarep.workload.trace import Flag, Pages, Trace, select

# Raise when counts or times of the same spec change: results of different models never mix.
MODEL_VERSION = 3
# What only pricing reads of a machine (see price.py); points that differ in nothing else, and in
# the run's `load`, share one simulation.
_PRICED = {"latency": None, "core": ("ghz", "base_ipc")}


@dataclass(frozen=True)
class Functions:
    """The kernel functions of a run: the axis of `Counts.functions`."""

    names: tuple[str, ...]
    instructions: NDArray[np.int64]  # of each, in the measured window


@dataclass(frozen=True)
class Outcome:
    """What one simulated state gives, before pricing."""

    counts: Counts
    master_node: int
    replica_bytes_per_node: tuple[int, ...]  # text and rodata copies
    table_pages_per_node: tuple[int, ...]  # copies of the kernel's own tables
    memory: tuple[Row, ...] = ()  # all that replication holds at the window's end
    functions: Functions = Functions((), np.zeros(0, np.int64))


@dataclass(frozen=True)
class _Captured:
    """A window and its kernel, as the dataset holds them."""

    trace: Trace
    meta: CaptureMeta
    image: Image
    symbols: pa.Table
    names: frozenset[str]  # of the symbols
    snapshot: pa.Table

    @functools.cached_property
    def owners(self) -> Owners:
        """The functions that the lines of the text belong to."""
        return owners_of(self.image.text, self.symbols)


@dataclass(frozen=True)
class _Window:
    """A window and its kernel, as one run has them; `tables` is the run's own to change."""

    trace: Trace
    owners: Owners | None  # of its text's lines, if counts by function are wanted
    iterations: int  # wanted
    meta: CaptureMeta
    image: Image
    tables: PageTables
    ranges: tuple[tuple[int, int], ...]
    names: frozenset[str]  # of the kernel's symbols
    user_tables: frozenset[int]  # user page tables, at the window's begin or end
    at_end: PageTables | None  # as the window leaves them, where that is needed
    disturbance: DisturbanceSpec | None


@dataclass(frozen=True)
class _Replicated:
    """The kernel with its replicas, the window with their cost, and the window's processes."""

    kernel: Kernel
    trace: Trace
    processes: dict[int, Mm]


def state_key(spec: RunSpec) -> str:
    """Hash what counting depends on; specs that differ only in what pricing reads share it."""
    mapping = as_mapping(spec)
    del mapping["load"]
    machine = mapping["machine"]
    machine["slit"] = _home(spec.machine)  # all that counting knows of distances
    for part, fields in _PRICED.items():
        if fields is None:
            machine[part] = machine[part] and {"nodes": spec.machine.nodes}
        else:
            machine[part] = {k: v for k, v in machine[part].items() if k not in fields}
    canonical = json.dumps(mapping, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def simulate(spec: RunSpec) -> Outcome:
    """Count everything one run does; see the module's text for the protocol.

    Raises
    ------
    TraceError
        If the dataset is damaged or lacks the run's capture or window.
    SpecError
        If the machine can't hold the captured kernel.
    """
    if isinstance(spec.workload, ChaseSpec):
        return _chase(spec, spec.workload)
    labels = _labels(spec)
    captured = captured_cpu_node(spec)
    boot = spec.replication.boot_node
    replication = dataclasses.replace(
        spec.replication,
        master_node=0,
        boot_node=None if boot is None else labels.index(boot),
    )
    as_captured = dataclasses.replace(
        spec,
        cpu_node=labels.index(spec.cpu_node),
        replication=replication,
        machine=_renumbered(spec.machine, labels),
    )
    found = _simulate(as_captured, spec.workload, captured)
    return _relabelled(found, labels)


def captured_cpu_node(spec: RunSpec) -> int:
    """Return the node whose capture a run takes: 0 on the kernel's own node, 1 on any other.

    A CPU of a memoryless node runs the capture of the node whose memory it uses (R2).
    """
    return _labels(spec).index(_home(spec.machine)[spec.cpu_node])


def _home(machine: MachineSpec) -> tuple[int, ...]:
    """Return the node whose memory each node uses."""
    memory = [(0, int(node not in machine.memoryless)) for node in range(machine.nodes)]
    return nearest_nodes(memory, machine.distance)


def _labels(spec: RunSpec) -> list[int]:
    """Return the machine's number of each node as captured: the kernel's is 0, the other CPU's 1.

    Counting knows nothing of distances, only which nodes are a socket's (see `_renumbered`), so any
    run is a captured one with other node numbers.
    """
    labels = list(range(spec.machine.nodes))
    home = _home(spec.machine)
    others = sorted(labels, key=lambda node: node in spec.machine.memoryless)  # without memory last
    first = (spec.replication.master_node, home[spec.cpu_node], *others)
    for place, node in enumerate(list(dict.fromkeys(first))[:2]):
        at = labels.index(node)
        labels[place], labels[at] = labels[at], labels[place]
    return labels


def _renumbered(machine: MachineSpec, labels: list[int]) -> MachineSpec:
    """Return a machine whose node i is node `labels[i]` of this one, as far as counting goes."""
    sockets = tuple(machine.socket_of_node[node] for node in labels)
    memoryless = tuple(labels.index(node) for node in machine.memoryless)
    home = [labels.index(_home(machine)[node]) for node in labels]
    nodes = range(machine.nodes)
    slit = tuple(tuple(10 if home[i] == j else 20 for j in nodes) for i in nodes)
    return dataclasses.replace(machine, sockets=sockets, memoryless=memoryless, slit=slit)


def _relabelled(outcome: Outcome, labels: list[int]) -> Outcome:
    """Return an outcome with every node renumbered."""
    inverse = [labels.index(node) for node in range(len(labels))]
    counts = outcome.counts._replace(
        served=np.ascontiguousarray(np.take(outcome.counts.served, inverse, axis=4)),
        functions=np.ascontiguousarray(np.take(outcome.counts.functions, inverse, axis=3)),
    )
    return Outcome(
        counts,
        labels[outcome.master_node],
        tuple(outcome.replica_bytes_per_node[node] for node in inverse),
        tuple(outcome.table_pages_per_node[node] for node in inverse),
        tuple(row._replace(node=labels[row.node]) for row in outcome.memory),
        outcome.functions,
    )


def _simulate(spec: RunSpec, workload: WorkloadSpec | BootSpec, captured: int) -> Outcome:
    """Count a run in the capture's own node numbers; `captured` is the node of its CPU there."""
    window = _load(spec, workload, captured)
    root = kernel_root_of(window.tables, window.image)
    frames = Frames(window.ranges, _used_frames(spec, window, root), colours_of(spec.machine))
    master = frames.node_of(first_frame(window.tables, root, window.image.text))
    if spec.replication.boot_node is not None:
        boot_node = _home(spec.machine)[spec.replication.boot_node]
        window = _booted_on(boot_node, window, root, frames)
    if isinstance(workload, BootSpec):
        window = dataclasses.replace(window, trace=first_fetch(window.tables, window.image, root))
    replicated = _replicate(spec, window, frames) if spec.replication.built_in else None
    trace = replicated.trace if replicated else window.trace
    stream, functions = _stream(window, trace)
    counts = _drive(spec, window, replicated, master, stream, len(functions.names))
    if replicated:
        memory = account(replicated.kernel, spec.kernel.max_numnodes)
    else:
        memory = padding(window.image, spec.replication, master)
    static, tables = (
        {row.node: row for row in memory if row.mechanism == mechanism}
        for mechanism in ("static", "tables")
    )
    return Outcome(
        counts,
        master,
        tuple(static[node].bytes if node in static else 0 for node in range(frames.nodes)),
        tuple(tables[node].pages if node in tables else 0 for node in range(frames.nodes)),
        tuple(memory),
        functions,
    )


def _chase(spec: RunSpec, workload: ChaseSpec) -> Outcome:
    """Count a pointer chase; replication has nothing to replicate there."""
    kind, address = chase(workload.footprint_bytes, workload.home_node * NODE_BYTES, seed=spec.seed)
    counts = count_stream(
        spec.machine,
        kind,
        address,
        page=workload.page,
        cpu_node=spec.cpu_node,
        unmeasured_passes=int(spec.cache_state == "hot"),
        dependent=True,
    )
    none = (0,) * spec.machine.nodes
    return Outcome(counts, workload.home_node, none, none)


def _booted_on(node: int, window: _Window, root: int, frames: Frames) -> _Window:
    """Return the window with the kernel's shared tables on the boot CPU's node."""
    first, whole = first_frame(window.tables, root, window.image.text), window.image.whole
    start = first - ((window.image.text.start - whole.start) >> PAGE_SHIFT)
    image = range(start, start + whole.pages)
    new = move_tables(window.tables, root, frames, node, image=image)
    direct_map = _bases(window.meta)["direct_map"]
    return dataclasses.replace(
        window, trace=moved(window.trace, window.tables, root, new, direct_map)
    )


def _used_frames(spec: RunSpec, window: _Window, root: int) -> set[int]:
    """List frames that are not free, mapping the memory of nodes the capture did not have."""
    pages, bases = window.trace.pages, _bases(window.meta)
    used = {*np.unique(pages.pfn).tolist(), *np.unique(pages.table).tolist()}
    for memory in window.ranges:
        used |= {*map_node(window.tables, root, memory, bases, global_pages=not spec.kernel.pti)}
    return used | set(window.tables.pages)


def _replicate(spec: RunSpec, window: _Window, frames: Frames) -> _Replicated:
    """Boot the policy's kernel on the captured tables and replay the window's events on it."""
    kernel = new_kernel(
        spec.replication,
        window.image,
        window.tables,
        frames,
        bases=_bases(window.meta),
        pti=spec.kernel.pti,
        distance=spec.machine.distance,
        cpu_nodes=_boot_cpu_first(spec, frames.nodes),
    )
    if isinstance(spec.workload, BootSpec):
        return _Replicated(kernel, boot_trace(kernel), {})
    booted(kernel)
    cpu = next(cpu for cpu in kernel.cpus if cpu.node == spec.cpu_node)
    modules = [adopt_module(kernel, cpu, vpns) for vpns in _module_pages(window.meta)]
    warn_of_missing(window.names, window.meta.levels)
    replay = Replay(
        kernel,
        window.trace,
        cpu,
        window.user_tables,
        window.disturbance,
        modules=[areas for areas in modules if areas],
        at_end=window.at_end,
    )
    trace = replay.trace()
    if spec.replication.costs == "waived":
        trace = window.trace
    return _Replicated(kernel, trace, replay.processes)


def _boot_cpu_first(spec: RunSpec, nodes: int) -> list[int]:
    """List the node of every CPU, one a node; the captured boot CPU was the only one."""
    boot = spec.replication.boot_node
    if boot is None or isinstance(spec.workload, BootSpec):  # which is measured on the boot CPU
        boot = spec.cpu_node
    return [boot, *(node for node in range(nodes) if node != boot)]


def _module_pages(meta: CaptureMeta) -> list[range]:
    """List the pages of each captured module."""
    starts = [(int(module.base, 16) - (1 << 64)) >> PAGE_SHIFT for module in meta.modules]
    sizes = [module.size >> PAGE_SHIFT for module in meta.modules]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


@functools.lru_cache(maxsize=4)
def _captured(dataset: str, pti: bool, cpu_node: int, seed: int, workload: str) -> _Captured:
    """Read one window; kept, because neighbouring runs of a sweep share it."""
    opened = open_dataset(dataset)
    name = capture_name(pti=pti, cpu_node=cpu_node, seed=seed)
    meta = opened.meta(name)
    symbols = opened.symbols()
    names = frozenset(symbols.column("name").to_pylist())
    image = image_from_symbols(symbols)
    trace, tables = opened.trace(name, workload), opened.tables(name)
    return _Captured(trace, meta, image, symbols, names, tables)


def _load(spec: RunSpec, workload: WorkloadSpec | BootSpec, cpu_node: int) -> _Window:
    """Lay the captured window out as the run's kernel and machine have it."""
    kernel = spec.kernel
    captured = _captured(kernel.dataset, kernel.pti, cpu_node, spec.seed, workload.trace)
    meta, image = captured.meta, captured.image
    try:
        nodes, memoryless = spec.machine.nodes, spec.machine.memoryless
        ranges = memory_ranges(_memory(meta, nodes), nodes, memoryless)
    except ValueError as error:
        raise SpecError(f"machine: {error}") from None
    windows = _windows_until(workload.trace, meta)
    tables = tables_from_snapshot(captured.snapshot, meta.levels, windows)
    at_end = None
    if spec.replication.user_tables or LOAD in captured.trace.event_name:
        at_end = tables_from_snapshot(captured.snapshot, meta.levels, windows, at_end=True)
    user_tables = user_tables_of(tables) | (user_tables_of(at_end) if at_end else frozenset())
    trace = _in_memory(captured.trace, ranges)
    if kernel.layout != "captured":
        align_tables(tables, image, kernel_root_of(tables, image))
        trace = dataclasses.replace(trace, pages=aligned(trace.pages, image))
    owners = captured.owners if spec.by_function else None
    if kernel.layout == "permuted":
        links = relink(image, captured.symbols, kernel.layout_seed)
        trace, owners = links.apply(trace), owners and owners.relinked(links)
    return _Window(
        trace,
        owners,
        workload.iterations,
        meta,
        image,
        tables,
        ranges,
        captured.names,
        user_tables,
        at_end,
        workload.disturbance,
    )


def _memory(meta: CaptureMeta, nodes: int) -> tuple[tuple[int, int], ...]:
    """Return the captured nodes' memory; a machine of one node has it all."""
    memory = tuple((part.start_pfn, part.end_pfn) for part in meta.memory)
    return memory if nodes > 1 else ((memory[0][0], memory[-1][1]),)


def _windows_until(window: str, meta: CaptureMeta) -> list[str]:
    """List the windows of a capture up to one."""
    names = list(meta.workloads)
    return names[: names.index(window) + 1]


def _in_memory(trace: Trace, ranges: tuple[tuple[int, int], ...]) -> Trace:
    """Leave out accesses to device memory: uncached, and the same with and without replicas."""
    is_memory = np.zeros(len(trace.pages.pfn), dtype=np.bool_)
    for start, end in ranges:
        is_memory |= (trace.pages.pfn >= start) & (trace.pages.pfn < end)
    device = (trace.pages.leaf > 0) & ~is_memory
    if not device.any():
        return trace
    pages = dataclasses.replace(trace.pages, pfn=np.where(device, 0, trace.pages.pfn))
    keep = (trace.records.kind > Kind.STORE) | ~device[trace.records.page]
    return select(dataclasses.replace(trace, pages=pages), keep)


def _bases(meta: CaptureMeta) -> dict[str, int]:
    """Start addresses of the kernel's address ranges, sign-extended."""
    return {name: int(text, 16) - (1 << 64) for name, text in meta.bases.items()}


def _translations(
    window: _Window, pages: Pages, replicated: _Replicated | None, node: int
) -> Translations:
    """Return what the CPUs of `node` translate the trace's pages to."""
    table_frames, seen = np.unique(pages.table), pages
    if replicated:
        added = page_table_frames(replicated.kernel, replicated.processes)
        table_frames = np.union1d(table_frames, np.array(sorted(added), np.int64))
        seen = on_node(replicated.kernel, pages, node, replicated.processes)
    region = regions(pages, window.image, _bases(window.meta), table_frames)
    return Translations(
        seen.vpn,
        seen.pfn,
        seen.leaf.astype(np.int64),
        (seen.flags & Flag.GLOBAL != 0).astype(np.int64),
        seen.root,
        seen.table,
        region,
    )


def _stream(window: _Window, trace: Trace) -> tuple[Stream, Functions]:
    """Return the trace as the core takes it, and the functions its records belong to."""
    records = trace.records
    stream = Stream(records.kind, records.page, records.line, records.count)
    if window.owners is None:
        return stream, Functions((), np.zeros(0, np.int64))
    parts = zip(window.meta.modules, _module_pages(window.meta), strict=True)
    modules = [
        (module.name, Section(pages.start << PAGE_SHIFT, pages.stop << PAGE_SHIFT))
        for module, pages in parts
    ]
    function, names = functions_of(trace, window.owners, modules)
    whole, rest = divmod(window.iterations, len(trace.iterations) - 1)
    fetched = np.where(records.kind == Kind.FETCH, records.count, 0).astype(np.int64)
    instructions = np.zeros(len(names), np.int64)
    np.add.at(instructions, function, fetched)
    instructions *= whole
    end = int(trace.iterations[rest])
    np.add.at(instructions, function[:end], fetched[:end])
    return stream._replace(function=function), Functions(names, instructions)


def _drive(
    spec: RunSpec,
    window: _Window,
    replicated: _Replicated | None,
    master: int,
    stream: Stream,
    functions: int,
) -> Counts:
    """Run the protocol and return the counts of the measured window."""
    nodes = len(window.ranges)
    ends = np.array([end for _, end in window.ranges], dtype=np.int64)
    trace = replicated.trace if replicated else window.trace
    at_home = spec.home_llc == "warm" and spec.cpu_node != master
    cpu_nodes = (spec.cpu_node, master) if at_home else (spec.cpu_node,)
    system = new_system(spec.machine, cpu_nodes, ends)
    views = [_translations(window, trace.pages, replicated, node) for node in cpu_nodes]

    def one_pass(cpu: int) -> Counts:
        counts = new_counts(nodes, len(Region), functions)
        _tile(system, cpu, stream, views[cpu], trace.iterations, window.iterations, counts)
        return counts

    if spec.cache_state == "cold":
        flush(system)
    if at_home:
        one_pass(1)
    if spec.cache_state == "hot":
        one_pass(0)
    return one_pass(0)


def _tile(
    system: System,
    cpu: int,
    stream: Stream,
    translations: Translations,
    iterations: NDArray[np.int64],
    wanted: int,
    counts: Counts,
) -> None:
    """Run `wanted` iterations of a window captured for fewer or more."""
    whole, rest = divmod(wanted, len(iterations) - 1)
    repeat(system, cpu, stream, translations, whole, counts)
    run(system, cpu, stream, translations, 0, int(iterations[rest]), counts)
