"""Node numbers: a machine's own, and those of the captures that a run is made of.

Captures know the kernel's node as 0, and the other CPU's as 1. Counting knows nothing of distances,
only which nodes share a socket, so any run is a captured one with other node numbers.
"""

import dataclasses

from numarep.replication.kernel import nearest_nodes
from numarep.spec import MachineSpec, RunSpec, SpecError


def captured_cpu_nodes(spec: RunSpec) -> tuple[int, ...]:
    """Return the node whose capture each CPU of a run takes, the measured one first.

    It is 0 on the kernel's own node, 1 on any other, 2 on a third at once. A CPU of a memoryless
    node runs the capture of the node whose memory it uses (R2).

    Raises
    ------
    SpecError
        If two CPUs would take the same capture.
    """
    labels, home = labels_of(spec), home_of(spec.machine)
    taken = tuple(labels.index(home[node]) for node in (spec.cpu_node, *spec.others.nodes))
    if len(set(taken)) < len(taken):
        raise SpecError("others.nodes: expected nodes that use different memory, and the CPU's")
    return taken


def home_of(machine: MachineSpec) -> tuple[int, ...]:
    """Return the node whose memory each node uses."""
    memory = [(0, int(node not in machine.memoryless)) for node in range(machine.nodes)]
    return nearest_nodes(memory, machine.distance)


def labels_of(spec: RunSpec) -> list[int]:
    """Return the machine's number of each node as captured: the kernel's is 0, the other CPU's 1.

    Counting knows nothing of distances, only which nodes are a socket's (see `renumbered`), so any
    run is a captured one with other node numbers.
    """
    labels = list(range(spec.machine.nodes))
    home = home_of(spec.machine)
    others = sorted(labels, key=lambda node: node in spec.machine.memoryless)  # without memory last
    busy = [home[node] for node in (spec.cpu_node, *spec.others.nodes)]
    first = list(dict.fromkeys((spec.replication.master_node, *busy, *others)))
    for place, node in enumerate(first[: max(2, len(set(busy)))]):
        at = labels.index(node)
        labels[place], labels[at] = labels[at], labels[place]
    return labels


def as_captured(spec: RunSpec, labels: list[int]) -> RunSpec:
    """Return a run in the captures' own node numbers, of which node i is `labels[i]`."""

    def captured(node: int | None) -> int | None:
        return None if node is None else labels.index(node)

    replication = dataclasses.replace(
        spec.replication, master_node=0, boot_node=captured(spec.replication.boot_node)
    )
    kernel = dataclasses.replace(spec.kernel, module_node=captured(spec.kernel.module_node))
    others = tuple(labels.index(node) for node in spec.others.nodes)
    return dataclasses.replace(
        spec,
        cpu_node=labels.index(spec.cpu_node),
        others=dataclasses.replace(spec.others, nodes=others),
        kernel=kernel,
        replication=replication,
        machine=renumbered(spec.machine, labels),
    )


def renumbered(machine: MachineSpec, labels: list[int]) -> MachineSpec:
    """Return a machine whose node i is node `labels[i]` of this one, as far as counting goes."""
    sockets = tuple(machine.socket_of_node[node] for node in labels)
    memoryless = tuple(labels.index(node) for node in machine.memoryless)
    home = [labels.index(home_of(machine)[node]) for node in labels]
    nodes = range(machine.nodes)
    slit = tuple(tuple(10 if i == j else 20 if home[i] == j else 30 for j in nodes) for i in nodes)
    return dataclasses.replace(machine, sockets=sockets, memoryless=memoryless, slit=slit)
