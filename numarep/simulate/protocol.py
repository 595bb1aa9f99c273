"""The protocol of a run: which CPUs run what, before and while one of them is measured.

- hot: one unmeasured pass over the whole window, then the measured one;
- cold: caches, TLBs and paging-structure caches of all sockets flushed once, then the measured one;
- `home_llc: warm`: first of all (after the flush), a CPU of the master node runs one pass of the
  same window, so that node's LLC holds what the kernel touches;
- `others`: CPUs of other nodes run the same workload at the same time, in turns (see
  `memory.passes`), each its own capture: they share the kernel's text and data with the measured
  CPU, and nothing else.

A loop captured for k iterations is tiled to the wanted number: iteration i repeats captured
iteration i mod k with the same frames, as a kernel that recycles freed frames does after k.
"""

from collections.abc import Sequence

import numpy as np

from numarep.linux.layout import Region
from numarep.memory.counts import Counts, new_counts
from numarep.memory.passes import Lane, repeat, repeat_together
from numarep.memory.system import Stream, System, flush, new_system
from numarep.simulate.role import Role
from numarep.spec import RunSpec
from numarep.workload.trace import TraceError


def drive(spec: RunSpec, roles: Sequence[Role]) -> Counts:
    """Run the protocol and return the first role's counts of the measured window."""
    measured = roles[0]
    ranges, master = measured.window.ranges, measured.master
    busy = [role.node for role in roles]
    at_home = spec.home_llc == "warm" and master not in busy
    cpu_nodes = (*busy, master) if at_home else tuple(busy)
    ends = np.array([end for _, end in ranges], dtype=np.int64)
    system = new_system(spec.machine, cpu_nodes, ends)

    def counts_of(role: Role) -> Counts:
        return new_counts(len(ranges), len(Region), len(role.functions.names))

    def one_pass() -> Counts:
        lanes = [
            Lane(cpu, role.stream, role.translations, counts_of(role))
            for cpu, role in enumerate(roles)
        ]
        _tile(system, lanes, roles, spec.others.quantum)
        return lanes[0].counts

    if spec.cache_state == "cold":
        flush(system)
    if at_home:
        view = measured.translations_on(master)
        lane = Lane(len(roles), measured.stream, view, counts_of(measured))
        _tile(system, [lane], [measured], spec.others.quantum)
    if spec.cache_state == "hot":
        one_pass()
    return one_pass()


def _tile(system: System, lanes: Sequence[Lane], roles: Sequence[Role], quantum: int) -> None:
    """Run the wanted iterations of windows captured for fewer or more, all lanes at once."""
    whole, rest = roles[0].passes
    if any(role.passes[0] != whole for role in roles):
        raise TraceError("others: expected captures of as many iterations as the measured CPU's")
    partial = [
        lane._replace(stream=_first(lane.stream, role.passes[1]))
        for lane, role in zip(lanes, roles, strict=True)
    ]
    parts = [(lanes, whole), (partial, 1)] if rest else [(lanes, whole)]
    for part, times in parts:
        if len(part) == 1:
            repeat(system, *part[0][:3], times, part[0].counts)
        else:
            repeat_together(system, part, times, quantum)


def _first(stream: Stream, records: int) -> Stream:
    kind, page, line, repeats, function = stream
    return Stream(
        kind[:records], page[:records], line[:records], repeats[:records], function[:records]
    )
