"""Who does what in a run: each CPU's window, the kernel that it runs on, and what it translates to.

Roles are kept for the next runs of a sweep, which share their setting (see `sweep.plan`); nothing
changes them.
"""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from numarep.linux.frames import Frames
from numarep.linux.functions import functions_of
from numarep.linux.image import Section
from numarep.linux.layout import regions
from numarep.memory.kinds import Kind
from numarep.memory.system import Stream, Translations
from numarep.replication.account import Row, account, padding
from numarep.replication.boot import first_frame, kernel_root_of
from numarep.replication.boot_trace import first_fetch
from numarep.replication.events import page_table_frames
from numarep.replication.view import on_node
from numarep.simulate.replicas import Replicated, placed, replicate, used_frames
from numarep.simulate.setting import Setting
from numarep.simulate.window import Window, bases_of, load_window, module_pages
from numarep.spec import BootSpec
from numarep.units import PAGE_SHIFT, parts
from numarep.workload.trace import Flag, Pages, Trace


@dataclass(frozen=True)
class Functions:
    """The kernel functions of a run: the axis of `Counts.functions`."""

    names: tuple[str, ...]
    instructions: NDArray[np.int64]  # of each, in the measured window


NO_FUNCTIONS = Functions((), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Role:
    """What the CPU of one node does in a run; `master` is the node of the kernel's image."""

    setting: Setting
    node: int
    master: int
    window: Window
    replicated: Replicated | None

    @property
    def trace(self) -> Trace:
        """The window's trace, with what replication costs."""
        return self.window.trace

    @property
    def passes(self) -> tuple[int, int]:
        """Whole passes over the trace, and the iterations of the last, partial one."""
        return divmod(self.window.iterations, len(self.trace.iterations) - 1)

    @functools.cached_property
    def stream(self) -> Stream:
        """The trace's records, with their functions if these are counted."""
        records = self.trace.records
        stream = Stream(records.kind, records.page, records.line, records.count)
        return stream._replace(function=self._owned[0]) if self.window.owners else stream

    @functools.cached_property
    def functions(self) -> Functions:
        """The functions that the records belong to, none if they aren't counted."""
        if not self.window.owners:
            return NO_FUNCTIONS
        names, (whole, rest) = self._owned[1], self.passes
        stop = int(self.trace.iterations[rest])
        instructions = self._fetched(len(self.trace.records.kind)) * whole + self._fetched(stop)
        return Functions(names, instructions)

    def _fetched(self, stop: int) -> NDArray[np.int64]:
        """Return how many instructions of each function the records up to `stop` fetch."""
        function, names = self._owned
        records = self.trace.records
        instructions = np.zeros(len(names), np.int64)
        for here in parts(stop):
            fetch = np.flatnonzero(records.kind[here] == Kind.FETCH)
            np.add.at(
                instructions, function[here][fetch], records.count[here][fetch].astype(np.int64)
            )
        return instructions

    @functools.cached_property
    def _owned(self) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """The function of each record, and all their names."""
        window = self.window
        assert window.owners is not None
        parts = zip(window.meta.modules, module_pages(window.meta), strict=True)
        modules = [
            (module.name, Section(pages.start << PAGE_SHIFT, pages.stop << PAGE_SHIFT))
            for module, pages in parts
        ]
        return functions_of(self.trace, window.owners, modules)

    @functools.cached_property
    def memory(self) -> list[Row]:
        """All that replication holds at the window's end."""
        kernel, replication = self.setting.kernel, self.setting.replication
        if self.replicated:
            return account(self.replicated.kernel, kernel.max_numnodes)
        return padding(self.window.image, replication, self.master)

    @functools.cached_property
    def translations(self) -> Translations:
        """What the role's CPU translates the trace's pages to."""
        return self.translations_on(self.node)

    def translations_on(self, node: int) -> Translations:
        """Return what a CPU of `node` translates the trace's pages to."""
        pages, replicated = self.trace.pages, self.replicated
        table_frames, seen = np.unique(pages.table), pages
        if replicated:
            added = page_table_frames(replicated.kernel, replicated.processes)
            table_frames = np.append(table_frames, np.array([*added], np.int64))
            seen = on_node(replicated.kernel, pages, node, replicated.processes)
        region = regions(pages, self.window.image, bases_of(self.window.meta), table_frames)
        return _as_translations(seen, region)


@functools.lru_cache(maxsize=1)
def roles_of(setting: Setting) -> tuple[Role, ...]:
    """Return what each CPU of a run does, the measured one first."""
    roles_of.cache_clear()  # before there are others: they are most of what a run holds
    nodes = setting.cpu_nodes
    windows = [load_window(setting, setting.home[node]) for node in nodes]
    root = kernel_root_of(windows[0].tables, windows[0].image)
    used = set[int]().union(*(used_frames(setting, window) for window in windows))
    frames: Frames | None = None
    moves: dict[int, int] = {}
    roles = []
    for node, window in zip(nodes, windows, strict=True):
        if frames:  # no two CPUs' replicas or PGDs lie in the same frames
            used |= frames.in_use
        frames = Frames(window.ranges, used, setting.colours)
        master = frames.node_of(first_frame(windows[0].tables, root, windows[0].image.text))
        own = placed(setting, window, frames, moves)
        roles.append(_role(setting, node, master, own, frames))
    return tuple(roles)


def _role(setting: Setting, node: int, master: int, window: Window, frames: Frames) -> Role:
    """Boot the kernel of one CPU's window, and return what that CPU does; frames are taken."""
    if isinstance(setting.workload, BootSpec):
        root = kernel_root_of(window.tables, window.image)
        window = dataclasses.replace(window, trace=first_fetch(window.tables, window.image, root))
    built_in = setting.replication.built_in
    replicated = replicate(setting, node, window, frames) if built_in else None
    if replicated:
        window = dataclasses.replace(window, trace=replicated.trace)
    return Role(setting, node, master, window, replicated)


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
