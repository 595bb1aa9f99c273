"""The real model as tasks see it: simulate once, price every point, flatten the counts."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numarep.linux.layout import Region
from numarep.loaded import under_load
from numarep.memory.counts import Access, Counts, Event, Overlap, Service
from numarep.price import Added, function_stalls, price, stalls
from numarep.results import BASE, CORE, RunResult
from numarep.simulate import (
    MODEL_VERSION,
    Outcome,
    captured_cpu_nodes,
    check_configuration,
    sharing,
    simulate,
    state_key,
)
from numarep.spec import ChaseSpec, RunSpec
from numarep.units import cycles_to_ns
from numarep.workload.dataset import capture_name, open_dataset

__all__ = ["MODEL_VERSION", "check", "evaluate", "sharing", "state_key"]

_ACCESSES, _REGIONS, _SERVICES = (
    [each.name.lower() for each in axis] for axis in (Access, Region, Service)
)


def check(specs: Iterable[RunSpec]) -> None:
    """Read every trace that specs need, once.

    Raises
    ------
    TraceError
        If one is not there, damaged or of another version.
    SpecError
        If two CPUs of a run would take the same capture, or the captured kernel can't have
        replicas.
    """
    needed: set[tuple[str, str, str]] = set()
    for spec in specs:
        if isinstance(spec.workload, ChaseSpec):
            continue
        nodes = captured_cpu_nodes(spec)
        if spec.kernel.kasan:
            check_configuration(spec, nodes[0])
        needed |= {
            (
                spec.kernel.dataset,
                capture_name(pti=spec.kernel.pti, cpu_node=node, seed=spec.seed),
                spec.workload.trace,
            )
            for node in nodes
        }
    for dataset, capture, trace in sorted(needed):
        open_dataset(dataset).trace(capture, trace)


def evaluate(specs: Sequence[RunSpec]) -> Iterator[RunResult]:
    """Simulate the state that all specs share, then price each in turn."""
    outcome = simulate(specs[0])
    for spec in specs:
        yield _priced(outcome, spec)


def _priced(outcome: Outcome, spec: RunSpec) -> RunResult:
    counted, machine, node = outcome.counts, spec.machine, spec.cpu_node
    load = under_load(counted, machine, node, spec.load.cpus_per_node)
    priced = price(counted, machine, node, load.added)
    stall = stalls(counted, machine, node, load.added)
    return RunResult(
        master_node=outcome.master_node,
        time_ns=priced.time_ns,
        time_serial_ns=priced.time_serial_ns,
        time_overlapped_ns=priced.time_overlapped_ns,
        load_share=load.share,
        replica_bytes_per_node=outcome.replica_bytes_per_node,
        table_pages_per_node=outcome.table_pages_per_node,
        events={event.name.lower(): int(outcome.counts.events[event]) for event in Event},
        counts=count_rows(outcome.counts, stall),
        functions=function_rows(outcome, spec, load.added),
        memory=[{**row._asdict(), "bytes": row.bytes} for row in outcome.memory],
    )


def function_rows(outcome: Outcome, spec: RunSpec, added: Added | None) -> list[dict[str, Any]]:
    """Return the counts by function as rows of the results' `functions`."""
    counts, core = outcome.counts.functions, spec.machine.core
    names = outcome.functions.names
    stall = function_stalls(outcome.counts, spec.machine, spec.cpu_node, added)
    stall = stall[..., Overlap.LEADING]
    missed = [
        {
            "function": names[function],
            "access": _ACCESSES[access],
            "served_by": _SERVICES[service],
            "node": node,
            "leading": int(counts[function, access, service, node, Overlap.LEADING]),
            "overlapped": int(counts[function, access, service, node, Overlap.OVERLAPPED]),
            "stall_ns": float(stall[function, access, service, node]),
        }
        for function, access, service, node in np.argwhere(counts.any(-1)).tolist()
    ]
    base = [
        {
            "function": name,
            "access": BASE,
            "served_by": CORE,
            "node": spec.cpu_node,
            "leading": instructions,
            "overlapped": 0,
            "stall_ns": cycles_to_ns(instructions / core.base_ipc, ghz=core.ghz),
        }
        for name, instructions in zip(names, outcome.functions.instructions.tolist(), strict=True)
        if instructions
    ]
    return missed + base


def count_rows(counts: Counts, stall: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return the non-zero counts as rows of the results' `counts`.

    Parameters
    ----------
    counts : Counts
        What the core counted.
    stall : float64[access, level, region, served_by, node, overlap]
        Time lost to each count, in ns; the results keep the leading part, which time_ns holds.
    """
    return [
        {
            "access": _ACCESSES[access],
            "region": _REGIONS[region],
            "served_by": _SERVICES[service],
            "node": node,
            "level": level,
            "leading": int(served[Overlap.LEADING]),
            "overlapped": int(served[Overlap.OVERLAPPED]),
            "stall_ns": float(stall[access, level, region, service, node, Overlap.LEADING]),
        }
        for access, level, region, service, node in np.argwhere(counts.served.any(-1)).tolist()
        for served in (counts.served[access, level, region, service, node],)
    ]
