"""Modules and BPF images: loaded once, replicated before they are sealed, or shared (R30-R32).

`load` allocates the base copy on the master node, relocates it, replicates text and rodata if the
policy says so, and sets protections; where a node lacks memory for its copies the module stays
shared (R31). Data and ro_after_init data are never replicated (R7).

>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=3).booted(modules=True)
>>> size = ModuleSize(text=2, rodata=1, ro_after_init=1, data=1)
>>> module, work = load(kernel, kernel.cpus[0], size)
>>> module.replicated, {name: len(area.replicas) for name, area in module.areas.items()}
(True, {'text': 2, 'rodata': 2, 'ro_after_init': 0, 'data': 0})
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from numarep.linux.frames import FrameError
from numarep.replication.areas import free_area, new_area, replicate_area, share_again
from numarep.replication.kernel import Area, Cpu, Kernel, ReplicationError
from numarep.replication.protection import Change, set_memory
from numarep.replication.work import Work

REPLICATED = ("text", "rodata")
# What load_module leaves each part as, once init has run.
_PROTECTION: dict[str, Change] = {"text": "rox", "rodata": "ro", "ro_after_init": "ro"}
_RELOCATION = b"\x01\x02\x03\x04"  # Assumed: any bytes the linker did not write


class ModuleSize(NamedTuple):
    """Pages of each part of a module."""

    text: int
    rodata: int
    ro_after_init: int
    data: int


@dataclass(eq=False)
class Module:
    """A live module: its areas by part, and whether text and rodata have replicas."""

    areas: dict[str, Area]
    replicated: bool


def load(kernel: Kernel, cpu: Cpu, size: ModuleSize) -> tuple[Module, Work]:
    """Load a module (load_module; R30).

    Raises
    ------
    FrameError
        If the base copy finds no memory; then nothing has changed.
    ReplicationError
        If it finds no addresses, or a part's size is negative; then nothing has changed either.
    """
    work = Work()
    areas: dict[str, Area] = {}
    try:
        for part, pages in size._asdict().items():
            if pages:
                areas[part], more = new_area(kernel, cpu, pages, node=kernel.master)
                work.extend(more)
    except (FrameError, ReplicationError):
        for area in areas.values():
            free_area(kernel, area)
        raise
    for part in REPLICATED:
        if part in areas:  # relocation: one plain write, before there are replicas (R22)
            kernel.contents.write(areas[part].frames[0], 0, _RELOCATION)
    wanted = [areas[part] for part in REPLICATED if part in areas]
    done = kernel.spec.modules and replicate_all(kernel, cpu, wanted, work)
    for part, area in areas.items():
        if part in _PROTECTION:
            work.extend(set_memory(kernel, area.start, len(area.frames), _PROTECTION[part]))
    return Module(areas, done), work


def replicate_all(kernel: Kernel, cpu: Cpu, areas: Sequence[Area], work: Work) -> bool:
    """Replicate all of some areas, or none (R31); tell which."""
    done: list[Area] = []
    try:
        for area in areas:
            work.extend(replicate_area(kernel, cpu, area))
            done.append(area)
    except FrameError:
        for area in done:
            work.extend(share_again(kernel, cpu, area))
        return False
    return True


def unload(kernel: Kernel, module: Module) -> Work:
    """Unload a module: unmapped and freed everywhere (free_module; R28)."""
    work = Work()
    for area in module.areas.values():
        work.extend(free_area(kernel, area))
    return work


def load_bpf(kernel: Kernel, cpu: Cpu, pages: int) -> tuple[Area, Work]:
    """Map a BPF image everywhere, shared unless the policy replicates it, and seal it (R32).

    Raises
    ------
    FrameError
        If there is no memory; then nothing has changed.
    ReplicationError
        If there are no addresses, or no pages are asked for; then nothing has changed either.
    """
    area, work = new_area(kernel, cpu, pages, node=kernel.master)
    if kernel.spec.bpf:
        with contextlib.suppress(FrameError):  # without room it is shared, as by default
            work.extend(replicate_area(kernel, cpu, area))
    work.extend(set_memory(kernel, area.start, pages, "rox"))
    return area, work
