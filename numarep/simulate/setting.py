"""What the kernel of a run depends on, and nothing else of the run.

Runs that differ only in how they are measured - caches hot or cold, TLBs, latencies, the order of
turns - have the same kernel and the same window. Of a machine a kernel sees its nodes, their
memory, their distances, and which frames share cache sets.
"""

from dataclasses import dataclass

from numarep.linux.frames import colours_of
from numarep.simulate.numbering import home_of
from numarep.spec import BootSpec, KernelSpec, ReplicationSpec, RunSpec, WorkloadSpec


@dataclass(frozen=True)
class Setting:
    """A kernel, its window and who runs it, in the captures' own node numbers."""

    kernel: KernelSpec
    workload: WorkloadSpec | BootSpec
    seed: int
    replication: ReplicationSpec
    by_function: bool
    cpu_nodes: tuple[int, ...]  # of the measured CPU first
    nodes: int
    memoryless: tuple[int, ...]
    distance: tuple[tuple[float, ...], ...]
    home: tuple[int, ...]  # node whose memory each node uses
    colours: int  # of pages; see `frames`


def setting_of(spec: RunSpec, workload: WorkloadSpec | BootSpec) -> Setting:
    """Return what the kernel of a run depends on."""
    machine = spec.machine
    return Setting(
        spec.kernel,
        workload,
        spec.seed,
        spec.replication,
        spec.by_function,
        (spec.cpu_node, *spec.others.nodes),
        machine.nodes,
        machine.memoryless,
        machine.distance,
        home_of(machine),
        colours_of(machine),
    )
