"""Price counts: a dot product of what was counted with the machine's latencies.

Counting has decided which level served what, and what leads or overlaps (`memory.interval`);
pricing only multiplies. An access stalls for its level's latency less that of L1, because
`base_ipc` is that of code that hits L1; a walk's read stalls for the full latency, L1's too, since
each read needs the one before. Three times come from the same counts:

- `time_ns`: the base, and the stalls of everything that leads.
- `time_serial_ns`: nothing overlaps; stores and second-level TLB hits of data stall as well.
- `time_overlapped_ns`: only instruction fetches and their walks stall.

The base is the instructions at `base_ipc`, CR3 writes, INVLPG, interprocessor interrupts and STLB
hits of fetches.
`time_overlapped_ns <= time_ns <= time_serial_ns` always. Sums are exact before rounding
(`math.fsum`), so they have the same bytes in any order and on any host.

Assumed: a TLB flush costs as much as a CR3 write (both are serialising control register writes);
an ownership upgrade costs nothing (the store buffer hides it), nor does a writeback or a prefetch;
a walk costs its reads alone, neither the second-level TLB's miss before it nor the walker's start
(7-cpu.com measures 23 cycles a miss of an X5650's 2M entries, where a read that hits L1 takes 4).

>>> Price(1.0, 3.0, 1.0).time_serial_ns
3.0
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.memory.counts import FORWARDED, Access, Counts, Event, Overlap, Service
from numarep.spec import MachineSpec
from numarep.units import cycles_to_ns


class Added(NamedTuple):
    """What traffic adds to latencies, in ns: float64[node], by home or forwarding node."""

    dram_ns: NDArray[np.float64]
    remote_llc_ns: NDArray[np.float64]


class Price(NamedTuple):
    """What a run costs: as modelled, and its bounds."""

    time_ns: float
    time_serial_ns: float
    time_overlapped_ns: float


def _latency_ns(machine: MachineSpec, cpu_node: int, added: Added | None) -> NDArray[np.float64]:
    """Load-to-use latencies seen by a CPU of a node, float64[served_by, node]."""
    latency, ghz = machine.latency, machine.core.ghz
    table = np.empty((len(Service), machine.nodes))
    table[Service.L1] = cycles_to_ns(latency.l1_cycles, ghz=ghz)
    table[Service.L2] = cycles_to_ns(latency.l2_cycles, ghz=ghz)
    table[Service.LLC] = latency.llc_ns
    table[Service.PEER] = latency.peer_ns
    dirty_ns = latency.remote_dirty_ns or latency.remote_llc_ns
    table[Service.REMOTE_LLC] = latency.remote_llc_ns[cpu_node]
    table[Service.REMOTE_DIRTY] = dirty_ns[cpu_node]
    table[Service.REMOTE_DIRTY_AWAY] = (latency.remote_dirty_away_ns or dirty_ns)[cpu_node]
    table[Service.DRAM] = latency.dram_ns[cpu_node]
    if added is not None:
        table[list(FORWARDED)] += added.remote_llc_ns
        table[Service.DRAM] += added.dram_ns
    return table


def access_ns(
    machine: MachineSpec, cpu_node: int, added: Added | None = None
) -> NDArray[np.float64]:
    """Return what one access stalls a CPU of a node, float64[access, served_by, node], in ns."""
    walk_ns = _latency_ns(machine, cpu_node, added)
    each_ns = np.empty((len(Access), *walk_ns.shape))
    each_ns[: Access.FETCH_WALK] = walk_ns - walk_ns[Service.L1]
    each_ns[Access.FETCH_WALK :] = walk_ns
    return each_ns


def function_stalls(
    counts: Counts, machine: MachineSpec, cpu_node: int, added: Added | None = None
) -> NDArray[np.float64]:
    """Return the stall of every cell of `counts.functions`, in ns, were nothing to overlap.

    Summed over functions and the leading ones, it is what `time_ns` is more than the base, but for
    rounding.
    """
    each_ns = access_ns(machine, cpu_node, added)[..., np.newaxis]
    stall_ns: NDArray[np.float64] = np.multiply(counts.functions, each_ns, dtype=np.float64)
    return stall_ns


def stalls(
    counts: Counts, machine: MachineSpec, cpu_node: int, added: Added | None = None
) -> NDArray[np.float64]:
    """Return the stall of every cell of `counts.served`, in ns, were nothing to overlap.

    Parameters
    ----------
    counts : Counts
        Of one CPU's run.
    machine : MachineSpec
    cpu_node : int
        The CPU's node: the row of the latency matrices.
    added : Added, optional
        By other CPUs' traffic (see `loaded`); none on an idle machine.

    Returns
    -------
    float64[access, level, region, served_by, node, overlap]
    """
    each_ns = access_ns(machine, cpu_node, added)[:, np.newaxis, np.newaxis, :, :, np.newaxis]
    stall_ns: NDArray[np.float64] = np.multiply(counts.served, each_ns, dtype=np.float64)
    return stall_ns


def price(counts: Counts, machine: MachineSpec, cpu_node: int, added: Added | None = None) -> Price:
    """Return the time one CPU's counts take on a machine, and its bounds, in ns."""
    events, latency, ghz = counts.events, machine.latency, machine.core.ghz
    cr3_writes = int(events[Event.CR3_WRITES] + events[Event.TLB_FLUSHES])
    base_cycles = (
        int(events[Event.INSTRUCTIONS]) / machine.core.base_ipc,
        cr3_writes * latency.cr3_write_cycles,
        int(events[Event.INVLPGS]) * latency.invlpg_cycles,
        int(events[Event.IPIS]) * latency.ipi_cycles,
        int(events[Event.STLB_FETCH_HITS]) * latency.stlb_cycles,
    )
    data_stlb_ns = cycles_to_ns(int(events[Event.STLB_DATA_HITS]) * latency.stlb_cycles, ghz=ghz)
    base_ns = [cycles_to_ns(cycles, ghz=ghz) for cycles in base_cycles]
    stall_ns = stalls(counts, machine, cpu_node, added)
    leading_ns = stall_ns[..., Overlap.LEADING]
    fetch_ns = leading_ns[[Access.FETCH, Access.FETCH_WALK]]
    return Price(
        time_ns=_total(base_ns, leading_ns),
        time_serial_ns=_total([*base_ns, data_stlb_ns], stall_ns),
        time_overlapped_ns=_total(base_ns, fetch_ns),
    )


def _total(terms_ns: list[float], stall_ns: NDArray[np.float64]) -> float:
    return math.fsum([*terms_ns, *stall_ns[stall_ns != 0.0].tolist()])
