"""The kernel of a run with its replicas, and the window with what they cost."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from numarep.linux.boot_node import move_tables, moved
from numarep.linux.frames import Frames
from numarep.linux.memory import map_node
from numarep.linux.module_node import move_modules, with_modules_moved
from numarep.replication.adopt import adopt_module
from numarep.replication.boot import booted, first_frame, kernel_root_of, new_kernel
from numarep.replication.boot_trace import boot_trace
from numarep.replication.events import Replay
from numarep.replication.kernel import Area, Cpu, Kernel, Mm
from numarep.replication.watch import warn_of_missing, warn_of_unmarked
from numarep.simulate.setting import Setting
from numarep.simulate.window import Window, bases_of, module_pages
from numarep.spec import BootSpec
from numarep.units import PAGE_SHIFT
from numarep.workload.trace import Trace


@dataclass(frozen=True)
class Replicated:
    """The kernel with its replicas, the window with their cost, and the window's processes."""

    kernel: Kernel
    trace: Trace
    processes: dict[int, Mm]


def placed(setting: Setting, window: Window, frames: Frames, moves: dict[int, int]) -> Window:
    """Return the window with what its kernel holds on the nodes that the run's has it on.

    `moves` says where the kernel's pages went, old pfn to new, for CPUs that came before; what is
    moved now is added.
    """
    boot_node, module_node = setting.replication.boot_node, setting.kernel.module_node
    if boot_node is not None:
        window = _booted_on(setting.home[boot_node], window, frames, moves)
    if module_node is not None:
        window = _modules_on(setting.home[module_node], window, frames, moves)
    return window


def _booted_on(node: int, window: Window, frames: Frames, moves: dict[int, int]) -> Window:
    """Return the window with the kernel's shared tables on the boot CPU's node."""
    root = kernel_root_of(window.tables, window.image)
    first, whole = first_frame(window.tables, root, window.image.text), window.image.whole
    start = first - ((window.image.text.start - whole.start) >> PAGE_SHIFT)
    image = range(start, start + whole.pages)
    new = move_tables(window.tables, root, frames, node, image=image, shared=moves)
    moves |= new
    direct_map = bases_of(window.meta)["direct_map"]
    return dataclasses.replace(
        window, trace=moved(window.trace, window.tables, root, new, direct_map)
    )


def _modules_on(node: int, window: Window, frames: Frames, moves: dict[int, int]) -> Window:
    """Return the window with its modules' base copies, and what maps them, on a node (R30)."""
    root = kernel_root_of(window.tables, window.image)
    ranges = module_pages(window.meta)
    new = move_modules(window.tables, root, frames, node, ranges, shared=moves)
    moves |= new
    direct_map = bases_of(window.meta)["direct_map"]
    return dataclasses.replace(
        window, trace=with_modules_moved(window.trace, window.tables, root, new, direct_map, ranges)
    )


def used_frames(setting: Setting, window: Window) -> set[int]:
    """List frames that are not free, mapping the memory of nodes the capture did not have."""
    pages, bases = window.trace.pages, bases_of(window.meta)
    root = kernel_root_of(window.tables, window.image)
    used = {*np.unique(pages.pfn).tolist(), *np.unique(pages.table).tolist()}
    for memory in window.ranges:
        used |= {*map_node(window.tables, root, memory, bases, global_pages=not setting.kernel.pti)}
    return used | set(window.tables.pages)


def replicate(setting: Setting, node: int, window: Window, frames: Frames) -> Replicated:
    """Boot the policy's kernel on the captured tables and replay the window's events on it."""
    if isinstance(setting.workload, BootSpec):
        kernel = _unbooted(setting, window, frames)
        return Replicated(kernel, boot_trace(kernel), {})
    replay, _ = at_start(setting, node, window, frames)
    warn_of_missing(window.names, window.meta.levels)
    warn_of_unmarked(window.unmarked)
    if setting.replication.costs == "waived":
        # Nothing is done in the window: processes it makes have the PGD that was captured.
        return Replicated(replay.kernel, window.trace, replay.processes)
    return Replicated(replay.kernel, replay.trace(), replay.processes)


def at_start(
    setting: Setting, node: int, window: Window, frames: Frames
) -> tuple[Replay, dict[str, list[Area]]]:
    """Boot the policy's kernel on the captured tables; take over its modules and processes.

    Returns
    -------
    The window's events, of which none has happened, and the areas of every module by its name.
    """
    kernel = booted(_unbooted(setting, window, frames))
    cpu = _cpu_of(kernel, node)
    names = [module.name for module in window.meta.modules]
    module_node = setting.kernel.module_node
    loader = cpu if module_node is None else _cpu_of(kernel, module_node)
    areas = [adopt_module(kernel, loader, vpns) for vpns in module_pages(window.meta)]
    replay = Replay(
        kernel,
        window.trace,
        cpu,
        window.user_tables,
        window.disturbance,
        modules=[own for own in areas if own],
        at_end=window.at_end,
    )
    return replay, dict(zip(names, areas, strict=True))


def _cpu_of(kernel: Kernel, node: int) -> Cpu:
    return next(cpu for cpu in kernel.cpus if cpu.node == node)


def _unbooted(setting: Setting, window: Window, frames: Frames) -> Kernel:
    return new_kernel(
        setting.replication,
        window.image,
        window.tables,
        frames,
        bases=bases_of(window.meta),
        pti=setting.kernel.pti,
        kasan=setting.kernel.kasan,
        distance=setting.distance,
        cpu_nodes=_boot_cpu_first(setting, frames.nodes),
    )


def _boot_cpu_first(setting: Setting, nodes: int) -> list[int]:
    """List the node of every CPU, one a node; the captured boot CPU was the only one."""
    boot = setting.replication.boot_node
    if boot is None or isinstance(setting.workload, BootSpec):  # which is measured on the boot CPU
        boot = setting.cpu_nodes[0]
    return [boot, *(node for node in range(nodes) if node != boot)]
