"""One run: from its description to counts.

`setting` is what the kernel of the run depends on. `window` loads the captured window and lays it
out as that kernel would have it, `replicas` charges what replication adds, `role` is both for one
CPU, `protocol` drives the latency core; `numbering` knows how a machine's node numbers and the
captures' go together; `start` is the kernel before anything is run, to look at.

Baseline and replicated runs of one window differ in nothing but the replicas and their cost.
"""

import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from numarep.memory.counts import Counts
from numarep.replication.account import Row
from numarep.simulate.numbering import as_captured, captured_cpu_nodes, home_of, labels_of
from numarep.simulate.protocol import drive
from numarep.simulate.role import NO_FUNCTIONS, Functions, Role, roles_of
from numarep.simulate.setting import setting_of
from numarep.simulate.window import check_configuration, windows_read
from numarep.spec import BootSpec, ChaseSpec, RunSpec, WorkloadSpec, as_mapping
from numarep.streams import count_chase

__all__ = [
    "MODEL_VERSION",
    "Functions",
    "Outcome",
    "captured_cpu_nodes",
    "check_configuration",
    "sharing",
    "simulate",
    "state_key",
]

# Raise when counts or times of the same spec change: results of different models never mix.
MODEL_VERSION = 6
# What only pricing reads of a machine (see price.py, loaded.py); points that differ in nothing
# else, and in the run's `load`, share one simulation.
_PRICED = {"latency": None, "core": ("ghz", "base_ipc"), "cores_per_node": None}


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
    return _relabelled(_simulate(as_captured(spec, labels), spec.workload), labels)


def sharing(spec: RunSpec) -> tuple[Hashable, Hashable]:
    """Return the window that a run reads, and the kernel it boots; a process keeps both a while."""
    if isinstance(spec.workload, ChaseSpec):
        return spec.workload, None
    setting = setting_of(as_captured(spec, labels_of(spec)), spec.workload)
    return windows_read(setting), setting


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
    roles = roles_of(setting_of(spec, workload))
    return _outcome(roles[0], drive(spec, roles))


def _outcome(role: Role, counts: Counts) -> Outcome:
    """Return the measured CPU's counts, and what its kernel's replication holds."""
    static, tables = (
        {row.node: row for row in role.memory if row.mechanism == mechanism}
        for mechanism in ("static", "tables")
    )
    nodes = range(role.setting.nodes)
    return Outcome(
        counts,
        role.master,
        tuple(static[node].bytes if node in static else 0 for node in nodes),
        tuple(tables[node].pages if node in tables else 0 for node in nodes),
        tuple(role.memory),
        role.functions,
    )


def _chase(spec: RunSpec, workload: ChaseSpec) -> Outcome:
    """Count a pointer chase; replication has nothing to replicate there."""
    home = int(workload.home_node)
    counts = count_chase(
        spec.machine,
        workload.footprint_bytes,
        home_node=home,
        seed=spec.seed,
        order=workload.order,
        page=workload.page,
        cpu_node=spec.cpu_node,
        unmeasured_passes=int(spec.cache_state == "hot"),
    )
    none = (0,) * spec.machine.nodes
    return Outcome(counts, home, none, none)
