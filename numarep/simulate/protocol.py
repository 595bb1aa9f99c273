"""The protocol of a run: which CPUs run what, before and while one of them is measured.

- hot: one unmeasured pass over the whole window, then the measured one;
- cold: caches, TLBs and paging-structure caches of all sockets flushed once, then the measured one;
- `home_llc: warm`: first of all (after the flush), a CPU of the master node runs one pass of the
  same window, so that node's LLC holds what the kernel touches;
- `others`: CPUs of other nodes run the same workload at the same time, in turns (see
  `memory.passes`), each its own capture: they share the kernel's text and data with the measured
  CPU, and nothing else.

A loop captured for k iterations is tiled to the wanted number: iteration i repeats captured
iteration i mod k with the same frames, as a kernel that recycles freed frames does after k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from numarep.linux.functions import functions_of
from numarep.linux.image import Section
from numarep.linux.layout import Region, regions
from numarep.memory.counts import Counts, new_counts
from numarep.memory.kinds import Kind
from numarep.memory.passes import Lane, repeat, repeat_together
from numarep.memory.system import Stream, System, Translations, flush, new_system
from numarep.replication.events import page_table_frames
from numarep.replication.view import on_node
from numarep.simulate.replicas import Replicated
from numarep.simulate.window import Window, bases_of, module_pages
from numarep.spec import RunSpec
from numarep.units import PAGE_SHIFT
from numarep.workload.trace import Flag, Pages, Trace, TraceError


@dataclass(frozen=True)
class Functions:
    """The kernel functions of a run: the axis of `Counts.functions`."""

    names: tuple[str, ...]
    instructions: NDArray[np.int64]  # of each, in the measured window


NO_FUNCTIONS = Functions((), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Role:
    """What the CPU of one node does in a run."""

    node: int
    window: Window
    replicated: Replicated | None
    stream: Stream
    functions: Functions

    @property
    def trace(self) -> Trace:
        """The window's trace, with what replication costs."""
        return self.replicated.trace if self.replicated else self.window.trace

    @property
    def passes(self) -> tuple[int, int]:
        """Whole passes over the trace, and the records of the last, partial one."""
        iterations = self.trace.iterations
        whole, rest = divmod(self.window.iterations, len(iterations) - 1)
        return whole, int(iterations[rest])


def role_of(node: int, window: Window, replicated: Replicated | None) -> Role:
    """Return what a CPU of a node does with a window."""
    trace = replicated.trace if replicated else window.trace
    records = trace.records
    stream = Stream(records.kind, records.page, records.line, records.count)
    role = Role(node, window, replicated, stream, NO_FUNCTIONS)
    return _with_functions(role) if window.owners else role


def _with_functions(role: Role) -> Role:
    """Return a role that says which functions its records belong to."""
    window, trace = role.window, role.trace
    assert window.owners is not None
    parts = zip(window.meta.modules, module_pages(window.meta), strict=True)
    modules = [
        (module.name, Section(pages.start << PAGE_SHIFT, pages.stop << PAGE_SHIFT))
        for module, pages in parts
    ]
    function, names = functions_of(trace, window.owners, modules)
    whole, rest = role.passes
    records = trace.records
    fetched = np.where(records.kind == Kind.FETCH, records.count, 0).astype(np.int64)
    instructions = np.zeros(len(names), np.int64)
    np.add.at(instructions, function, fetched)
    instructions *= whole
    np.add.at(instructions, function[:rest], fetched[:rest])
    stream = role.stream._replace(function=function)
    return Role(role.node, window, role.replicated, stream, Functions(names, instructions))


def drive(spec: RunSpec, roles: Sequence[Role], master: int) -> Counts:
    """Run the protocol and return the first role's counts of the measured window."""
    measured = roles[0]
    ranges = measured.window.ranges
    busy = [role.node for role in roles]
    at_home = spec.home_llc == "warm" and master not in busy
    cpu_nodes = (*busy, master) if at_home else tuple(busy)
    ends = np.array([end for _, end in ranges], dtype=np.int64)
    system = new_system(spec.machine, cpu_nodes, ends)
    views = [_translations(role, role.node) for role in roles]

    def counts_of(role: Role) -> Counts:
        return new_counts(len(ranges), len(Region), len(role.functions.names))

    def one_pass() -> Counts:
        lanes = [
            Lane(cpu, role.stream, view, counts_of(role))
            for cpu, (role, view) in enumerate(zip(roles, views, strict=True))
        ]
        _tile(system, lanes, roles, spec.others.quantum)
        return lanes[0].counts

    if spec.cache_state == "cold":
        flush(system)
    if at_home:
        view = _translations(measured, master)
        lane = Lane(len(roles), measured.stream, view, counts_of(measured))
        _tile(system, [lane], [measured], spec.others.quantum)
    if spec.cache_state == "hot":
        one_pass()
    return one_pass()


def _translations(role: Role, node: int) -> Translations:
    """Return what a CPU of `node` translates the trace's pages to."""
    pages, replicated = role.trace.pages, role.replicated
    table_frames, seen = np.unique(pages.table), pages
    if replicated:
        added = page_table_frames(replicated.kernel, replicated.processes)
        table_frames = np.union1d(table_frames, np.array(sorted(added), np.int64))
        seen = on_node(replicated.kernel, pages, node, replicated.processes)
    return _as_translations(seen, _regions(role.window, pages, table_frames))


def _regions(window: Window, pages: Pages, table_frames: NDArray[np.int64]) -> NDArray[np.int64]:
    return regions(pages, window.image, bases_of(window.meta), table_frames)


def _as_translations(pages: Pages, region: NDArray[np.int64]) -> Translations:
    return Translations(
        pages.vpn,
        pages.pfn,
        pages.leaf.astype(np.int64),
        (pages.flags & Flag.GLOBAL != 0).astype(np.int64),
        pages.root,
        pages.table,
        region,
    )


def _tile(system: System, lanes: Sequence[Lane], roles: Sequence[Role], quantum: int) -> None:
    """Run the wanted iterations of windows captured for fewer or more, all lanes at once."""
    whole, rest = roles[0].passes
    if any(role.passes[0] != whole for role in roles):
        raise TraceError("others: expected captures of as many iterations as the measured CPU's")
    partial = [
        lane._replace(stream=_first(lane.stream, role.passes[1]))
        for lane, role in zip(lanes, roles, strict=True)
    ]
    for part, times in ((lanes, whole), (partial, 1 if rest else 0)):
        if len(part) == 1:
            repeat(system, *part[0][:3], times, part[0].counts)
        else:
            repeat_together(system, part, times, quantum)


def _first(stream: Stream, records: int) -> Stream:
    kind, page, line, repeats, function = stream
    return Stream(
        kind[:records], page[:records], line[:records], repeats[:records], function[:records]
    )
