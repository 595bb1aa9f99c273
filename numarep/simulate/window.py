"""The window of a run: a captured trace and its kernel, laid out as the run's kernel and machine.

Reading a capture is kept apart from laying it out, because neighbouring runs of a sweep share it.
"""

import dataclasses
import functools
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from numarep.linux.functions import Owners, owners_of
from numarep.linux.image import Image, addresses_of, image_from_symbols
from numarep.linux.layout import aligned
from numarep.linux.relink import relink
from numarep.linux.tables import PageTables, tables_from_snapshot
from numarep.machine.topology import Ranges, memory_ranges
from numarep.memory.kinds import Kind
from numarep.replication import boot
from numarep.replication.boot import align_tables, kernel_root_of
from numarep.replication.kernel import ReplicationError
from numarep.replication.mitosis import user_tables_of
from numarep.replication.module_clues import LOAD
from numarep.replication.watch import unmarked, watched
from numarep.simulate.setting import Setting
from numarep.spec import DisturbanceSpec, RunSpec, SpecError
from numarep.units import PAGE_SHIFT
from numarep.workload.dataset import CaptureMeta, capture_name, open_dataset
from numarep.workload.trace import Trace, select


@dataclass(frozen=True)
class _Captured:
    """A window's kernel, as the dataset holds it."""

    workload: str
    meta: CaptureMeta
    image: Image
    symbols: pa.Table
    snapshot: pa.Table

    @property
    def windows(self) -> list[str]:
        """The capture's windows up to this one."""
        names = list(self.meta.workloads)
        return names[: names.index(self.workload) + 1]

    @functools.cached_property
    def tables(self) -> PageTables:
        """The page tables as the window begins."""
        return tables_from_snapshot(self.snapshot, self.meta.levels, self.windows)

    @functools.cached_property
    def tables_at_end(self) -> PageTables:
        """The page tables as the window leaves them."""
        return tables_from_snapshot(self.snapshot, self.meta.levels, self.windows, at_end=True)

    @functools.cached_property
    def watched(self) -> list[tuple[str, int]]:
        """The watched functions that the kernel has, each with its address."""
        return addresses_of(watched(self.meta.levels), self.symbols)

    @functools.cached_property
    def owners(self) -> Owners:
        """The functions that the lines of the text belong to."""
        return owners_of(self.image.text, self.symbols)


@dataclass(frozen=True)
class Window:
    """A window and its kernel, as one run has them; `tables` is the run's own to change."""

    trace: Trace
    owners: Owners | None  # of its text's lines, if counts by function are wanted
    iterations: int  # wanted
    meta: CaptureMeta
    image: Image
    tables: PageTables
    ranges: Ranges
    names: frozenset[str]  # of the watched functions that the kernel has
    unmarked: tuple[str, ...]  # those of them it may enter that its capture did not mark
    user_tables: frozenset[int]  # user page tables, at the window's begin or end, if copied
    at_end: PageTables | None  # as the window leaves them, where that is needed
    disturbance: DisturbanceSpec | None


def check_configuration(spec: RunSpec, cpu_node: int) -> None:
    """Refuse what the captured kernel's configuration refuses, without running it (R1).

    Raises
    ------
    SpecError
        Saying what to change.
    """
    kernel = spec.kernel
    capture = capture_name(pti=kernel.pti, cpu_node=cpu_node, seed=spec.seed)
    levels = open_dataset(kernel.dataset).meta(capture).levels
    try:
        boot.check_configuration(spec.replication, levels, kasan=kernel.kasan)
    except ReplicationError as error:
        raise SpecError(f"kernel.kasan: {error}") from None


def module_pages(meta: CaptureMeta) -> list[range]:
    """List the pages of each captured module."""
    starts = [(int(module.base, 16) - (1 << 64)) >> PAGE_SHIFT for module in meta.modules]
    sizes = [module.size >> PAGE_SHIFT for module in meta.modules]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


@functools.lru_cache(maxsize=4)
def _captured(dataset: str, capture: str, workload: str) -> _Captured:
    """Read one window's kernel; kept, because neighbouring runs of a sweep share it."""
    opened = open_dataset(dataset)
    meta, symbols, snapshot = opened.meta(capture), opened.symbols(), opened.tables(capture)
    return _Captured(workload, meta, image_from_symbols(symbols), symbols, snapshot)


@functools.lru_cache(maxsize=2)
def _traced(dataset: str, capture: str, workload: str) -> tuple[Trace, tuple[str, ...]]:
    """Read one window of a kernel, and what it may enter unmarked (see `watch`).

    Kept for the same reason, but of two CPUs only: it is most of what a run holds.
    """
    captured = _captured(dataset, capture, workload)
    meta = captured.meta
    trace = _in_memory(open_dataset(dataset).trace(capture, workload), meta)
    return trace, tuple(unmarked(trace, captured.watched, meta.watched, meta.levels))


def windows_read(setting: Setting) -> tuple[Hashable, ...]:
    """Name the captured windows that the CPUs of a run take."""
    kernel, trace = setting.kernel, setting.workload.trace
    nodes = tuple(setting.home[node] for node in setting.cpu_nodes)
    return kernel.dataset, kernel.pti, nodes, setting.seed, trace


def load_window(setting: Setting, cpu_node: int) -> Window:
    """Lay a node's captured window out as the run's kernel and machine have it."""
    kernel, workload, nodes = setting.kernel, setting.workload, setting.nodes
    capture = capture_name(pti=kernel.pti, cpu_node=cpu_node, seed=setting.seed)
    captured = _captured(kernel.dataset, capture, workload.trace)
    meta, image = captured.meta, captured.image
    try:
        ranges = memory_ranges(_memory(meta, nodes), nodes, setting.memoryless)
    except ValueError as error:
        raise SpecError(f"machine: {error}") from None
    trace, entered = _traced(kernel.dataset, capture, workload.trace)
    tables, at_end = captured.tables.copy(), None
    if setting.replication.user_tables or LOAD in trace.event_name:
        at_end = captured.tables_at_end
    user_tables = frozenset[int]()
    if setting.replication.user_tables and at_end:
        user_tables = user_tables_of(tables) | user_tables_of(at_end)
    if kernel.layout != "captured":
        align_tables(tables, image, kernel_root_of(tables, image))
        trace = dataclasses.replace(trace, pages=aligned(trace.pages, image))
    owners = captured.owners if setting.by_function else None
    if kernel.layout == "permuted":
        links = relink(image, captured.symbols, kernel.layout_seed)
        trace, owners = links.apply(trace), owners and owners.relinked(links)
    return Window(
        trace,
        owners,
        workload.iterations,
        meta,
        image,
        tables,
        ranges,
        frozenset(name for name, _ in captured.watched),
        entered,
        user_tables,
        at_end,
        workload.disturbance,
    )


def _memory(meta: CaptureMeta, nodes: int) -> Ranges:
    """Return the captured nodes' memory; a machine of one node has it all."""
    memory = tuple((part.start_pfn, part.end_pfn) for part in meta.memory)
    return memory if nodes > 1 else ((memory[0][0], memory[-1][1]),)


def _in_memory(trace: Trace, meta: CaptureMeta) -> Trace:
    """Leave out accesses to device memory: uncached, and the same with and without replicas.

    That is what lies beyond the captured nodes, even where a machine of more has memory.
    """
    is_memory = np.zeros(len(trace.pages.pfn), dtype=np.bool_)
    for part in meta.memory:
        is_memory |= (trace.pages.pfn >= part.start_pfn) & (trace.pages.pfn < part.end_pfn)
    device = (trace.pages.leaf > 0) & ~is_memory
    if not device.any():
        return trace
    pages = dataclasses.replace(trace.pages, pfn=np.where(device, 0, trace.pages.pfn))
    keep = (trace.records.kind > Kind.STORE) | ~device[trace.records.page]
    return select(dataclasses.replace(trace, pages=pages), keep)


def bases_of(meta: CaptureMeta) -> dict[str, int]:
    """Start addresses of the kernel's address ranges, sign-extended."""
    return {name: int(text, 16) - (1 << 64) for name, text in meta.bases.items()}
