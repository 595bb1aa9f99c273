"""How much slower memory answers while other CPUs do the same: a fixed point, after counting.

With `load.cpus_per_node` = n, n further CPUs on every node do what the counted one does, as seen
from there: what it read from its own node's memory they read from theirs, and what it read from
another node they read from that node, too. Each line is 64 bytes. So every node's memory and every
link between two sockets carries known lines in the time of one run, and traffic is lines over time.
Traffic makes reads slower, by the machine's published curve (`latency.loaded`), and slower reads
make the run longer and so the traffic less: the time T is where the two agree,

    T = time of the counts, at the latencies under the traffic that they cause in T.

The right side only falls as T grows, so there is exactly one such T, and halving the interval
between the idle time and the right side's value there finds it to the last bit. More CPUs never
make it shorter, none leave every price as it is, to the bit.

Beyond the last published bandwidth latencies go on rising as between the last two points, as in a
queue that doesn't empty; `Load.share` of 1 or more says so (column `load_share` of the results).

Assumed: a link's latencies rise as a memory's do at the same share of its most, since no link's
curve is published. Left out: the counted CPU's own traffic, which idle latencies are measured
with; writebacks and prefetches, counted without their home; contention for the LLC.

>>> curve = LoadedSpec(memory_gb_per_s=(0, 50, 60), added_ns=(0, 10, 90), link_gb_per_s=30)
>>> [float(added_ns(curve, gb_per_s)) for gb_per_s in (25, 55, 70)]
[5.0, 50.0, 170.0]
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.memory.counts import FORWARDED, Counts, Overlap, Service
from numarep.price import Added, price
from numarep.spec import LoadedSpec, MachineSpec
from numarep.units import LINE_BYTES


class Load(NamedTuple):
    """What other CPUs' traffic does to one CPU.

    added : Added
        To its latencies, by home or forwarding node.
    share : float
        Highest share of any memory's or link's most bandwidth that is in use; None without load.
    """

    added: Added | None
    share: float | None


class _Traffic(NamedTuple):
    """Lines that all other CPUs move while the counted one runs once, float64[node].

    memory: from each node's memory; link: over the link by which each node answers the counted CPU.
    """

    memory: NDArray[np.float64]
    link: NDArray[np.float64]


NO_LOAD = Load(None, None)


def under_load(counts: Counts, machine: MachineSpec, cpu_node: int, cpus_per_node: int) -> Load:
    """Return what so many further CPUs a node, doing the same, add to one CPU's latencies."""
    curve, idle_ns = machine.latency.loaded, price(counts, machine, cpu_node).time_ns
    if cpus_per_node == 0 or curve is None or idle_ns == 0:
        return NO_LOAD
    lines = _traffic(counts, machine, cpu_node, cpus_per_node)
    served = counts.served.sum(axis=(0, 1, 2), dtype=np.float64)[..., Overlap.LEADING]
    dram, forwarded = served[Service.DRAM], served[list(FORWARDED)].sum(axis=0)

    def added_in(time_ns: float) -> Added:
        memory_ns = added_ns(curve, lines.memory * LINE_BYTES / time_ns)
        link_ns = added_ns(curve, lines.link * LINE_BYTES / time_ns * _link_scale(curve))
        return Added(dram_ns=memory_ns + link_ns, remote_llc_ns=link_ns)

    def time_at(time_ns: float) -> float:
        more = added_in(time_ns)
        return idle_ns + float(dram @ more.dram_ns + forwarded @ more.remote_llc_ns)

    time_ns = _falling_fixed_point(time_at, idle_ns)
    most = curve.memory_gb_per_s[-1]
    in_use = np.concatenate((lines.memory, lines.link * _link_scale(curve)))
    return Load(added_in(time_ns), float(in_use.max() * LINE_BYTES / time_ns / most))


def added_ns(curve: LoadedSpec, gb_per_s: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return what traffic adds to a read from a memory: the curve, and its last slope beyond."""
    traffic, more = np.array(curve.memory_gb_per_s), np.array(curve.added_ns)
    slope = (more[-1] - more[-2]) / (traffic[-1] - traffic[-2])
    beyond = np.maximum(np.asarray(gb_per_s) - traffic[-1], 0.0)
    added: NDArray[np.float64] = np.interp(gb_per_s, traffic, more) + slope * beyond
    return added


def _link_scale(curve: LoadedSpec) -> float:
    """Return by what a link's traffic is multiplied to read it off the memory's curve."""
    return curve.memory_gb_per_s[-1] / curve.link_gb_per_s


def _traffic(counts: Counts, machine: MachineSpec, cpu_node: int, cpus_per_node: int) -> _Traffic:
    served = counts.served.sum(axis=(0, 1, 2, 5), dtype=np.float64)
    dram, forwarded = served[Service.DRAM].copy(), served[list(FORWARDED)].sum(axis=0)
    own = dram[cpu_node]
    # What is read from another node is read from there on every node; only elsewhere over a link.
    dram[cpu_node] = forwarded[cpu_node] = 0.0
    sockets = np.array(machine.socket_of_node)
    elsewhere = sockets[:, np.newaxis] != sockets
    by_pair = np.where(elsewhere, dram + forwarded, 0.0)  # [reader, home]
    between = np.zeros(machine.nodes)
    for node in range(machine.nodes):
        if elsewhere[cpu_node, node]:
            one, other = sockets == sockets[cpu_node], sockets == sockets[node]
            between[node] = by_pair[np.ix_(one, other)].sum()
    return _Traffic(
        cpus_per_node * (own + machine.nodes * dram),
        cpus_per_node * between,
    )


def _falling_fixed_point(function: Callable[[float], float], low: float) -> float:
    """Return x = function(x) >= low, to the last bit, of a function that never rises."""
    high = function(low)
    while low < (middle := low + (high - low) / 2) < high:
        if function(middle) > middle:
            low = middle
        else:
            high = middle
    return high
