"""One run: from its description to counts.

`window` loads the captured window and lays it out as the kernel of the run would have it,
`replicas` charges what replication adds, `protocol` drives the latency core; `numbering` knows how
a machine's node numbers and the captures' go together.

Baseline and replicated runs of one window differ in nothing but the replicas and their cost.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import numpy as np

from numarep.linux.frames import Frames, colours_of
from numarep.memory.counts import Counts
from numarep.replication.account import Row, account, padding
from numarep.replication.boot import first_frame, kernel_root_of
from numarep.replication.boot_trace import first_fetch
from numarep.simulate.numbering import captured_cpu_nodes, home_of, labels_of, renumbered
from numarep.simulate.protocol import NO_FUNCTIONS, Functions, Role, drive, role_of
from numarep.simulate.replicas import booted_on, replicate, used_frames
from numarep.simulate.window import Window, check_configuration, load_window
from numarep.spec import BootSpec, ChaseSpec, RunSpec, WorkloadSpec, as_mapping
from numarep.streams import NODE_BYTES, chase, count_stream

__all__ = [
    "MODEL_VERSION",
    "Functions",
    "Outcome",
    "captured_cpu_nodes",
    "check_configuration",
    "simulate",
    "state_key",
]

# Raise when counts or times of the same spec change: results of different models never mix.
MODEL_VERSION = 3
# What only pricing reads of a machine (see price.py); points that differ in nothing else, and in
# the run's `load`, share one simulation.
_PRICED = {"latency": None, "core": ("ghz", "base_ipc")}


@dataclass(frozen=True)
class Outcome:
    """What one simulated state gives, before pricing."""

    counts: Counts
    master_node: int
    replica_bytes_per_node: tuple[int, ...]  # text and rodata copies
    table_pages_per_node: tuple[int, ...]  # copies of the kernel's own tables
    memory: tuple[Row, ...] = ()  # all that replication holds at the window's end
    functions: Functions = NO_FUNCTIONS


def state_key(spec: RunSpec) -> str:
    """Hash what counting depends on; specs that differ only in what pricing reads share it."""
    mapping = as_mapping(spec)
    del mapping["load"]
    machine = mapping["machine"]
    machine["slit"] = home_of(spec.machine)  # all that counting knows of distances
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
        If the dataset is damaged or lacks a capture or window of the run.
    SpecError
        If the machine can't hold the captured kernel.
    """
    if isinstance(spec.workload, ChaseSpec):
        return _chase(spec, spec.workload)
    labels = labels_of(spec)
    boot = spec.replication.boot_node
    replication = dataclasses.replace(
        spec.replication,
        master_node=0,
        boot_node=None if boot is None else labels.index(boot),
    )
    others = tuple(labels.index(node) for node in spec.others.nodes)
    as_captured = dataclasses.replace(
        spec,
        cpu_node=labels.index(spec.cpu_node),
        others=dataclasses.replace(spec.others, nodes=others),
        replication=replication,
        machine=renumbered(spec.machine, labels),
    )
    return _relabelled(_simulate(as_captured, spec.workload), labels)


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


def _simulate(spec: RunSpec, workload: WorkloadSpec | BootSpec) -> Outcome:
    """Count a run in the captures' own node numbers."""
    home = home_of(spec.machine)
    nodes = (spec.cpu_node, *spec.others.nodes)
    windows = [load_window(spec, workload, home[node]) for node in nodes]
    root = kernel_root_of(windows[0].tables, windows[0].image)
    used = set[int]().union(*(used_frames(spec, window) for window in windows))
    roles = []
    for node, window in zip(nodes, windows, strict=True):
        frames = Frames(window.ranges, used, colours_of(spec.machine))
        roles.append(_role(spec, workload, node, window, frames))
        used = set(frames.in_use)  # no two CPUs' replicas or PGDs lie in the same frames
    master = frames.node_of(first_frame(windows[0].tables, root, windows[0].image.text))
    counts = drive(spec, roles, master)
    return _outcome(spec, roles[0], counts, master)


def _role(
    spec: RunSpec, workload: WorkloadSpec | BootSpec, node: int, window: Window, frames: Frames
) -> Role:
    """Boot the kernel of one CPU's window, and return what that CPU does; frames are taken."""
    if spec.replication.boot_node is not None:
        boot_node = home_of(spec.machine)[spec.replication.boot_node]
        window = booted_on(boot_node, window, frames)
    if isinstance(workload, BootSpec):
        root = kernel_root_of(window.tables, window.image)
        window = dataclasses.replace(window, trace=first_fetch(window.tables, window.image, root))
    built_in = spec.replication.built_in
    return role_of(node, window, replicate(spec, node, window, frames) if built_in else None)


def _outcome(spec: RunSpec, role: Role, counts: Counts, master: int) -> Outcome:
    """Return the measured CPU's counts, and what its kernel's replication holds."""
    if role.replicated:
        memory = account(role.replicated.kernel, spec.kernel.max_numnodes)
    else:
        memory = padding(role.window.image, spec.replication, master)
    static, tables = (
        {row.node: row for row in memory if row.mechanism == mechanism}
        for mechanism in ("static", "tables")
    )
    nodes = range(spec.machine.nodes)
    return Outcome(
        counts,
        master,
        tuple(static[node].bytes if node in static else 0 for node in nodes),
        tuple(tables[node].pages if node in tables else 0 for node in nodes),
        tuple(memory),
        role.functions,
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
