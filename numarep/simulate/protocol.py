"""The protocol of a run: which CPUs run what, before and while one of them is measured.

- hot: one unmeasured pass over the whole window, then the measured one;
- cold: caches, TLBs and paging-structure caches of all sockets flushed once, then the measured one;
- cold_each: the same, iteration by iteration, each one flushed for and measured;
- cold_text: one unmeasured pass, then the lines of the kernel's and modules' text flushed from all
  caches, wherever a copy of them lies, then the measured pass;
- `home_llc: warm`: first of all (after the flush), a CPU of the master node runs one pass of the
  same window, or iteration, so that node's LLC holds what the kernel touches;
- `others`: CPUs of other nodes run the same workload at the same time, in turns (see
  `memory.passes`), each its own capture: they share the kernel's text and data with the measured
  CPU, and nothing else.

A loop captured for k iterations is tiled to the wanted number: iteration i repeats captured
iteration i mod k with the same frames, as a kernel that recycles freed frames does after k. Those
that are flushed for count the same every time, so each captured one is simulated once.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from numarep.linux.layout import Region
from numarep.memory.checked import axes
from numarep.memory.counts import Counts, new_counts
from numarep.memory.loop import Translations
from numarep.memory.passes import Lane, repeat, repeat_together
from numarep.memory.system import Stream, System, flush, flush_lines, new_system
from numarep.simulate.role import Role
from numarep.spec import RunSpec
from numarep.units import LINES_PER_PAGE
from numarep.workload.trace import TraceError

_TEXT = (Region.TEXT, Region.MODULE_TEXT)


def drive(spec: RunSpec, roles: Sequence[Role]) -> Counts:
    """Run the protocol and return the first role's counts of the measured window."""
    measured = roles[0]
    ranges, master = measured.window.ranges, measured.master
    busy = [role.node for role in roles]
    at_home = spec.home_llc == "warm" and master not in busy
    cpu_nodes = (*busy, master) if at_home else tuple(busy)
    ends = np.array([end for _, end in ranges], dtype=np.int64)
    system, quantum = new_system(spec.machine, cpu_nodes, ends), spec.others.quantum
    if any(role.passes != measured.passes for role in roles):
        raise TraceError("others: expected captures of as many iterations as the measured CPU's")

    def lane_of(cpu: int, role: Role, translations: Translations) -> Lane:
        counts = new_counts(len(ranges), len(Region), len(role.functions.names))
        return Lane(cpu, role.stream, translations, counts)

    def lanes() -> list[Lane]:
        return [lane_of(cpu, role, role.translations) for cpu, role in enumerate(roles)]

    home = []
    if at_home:
        home = [lane_of(len(roles), measured, measured.translations_on(master))]
    if spec.cache_state == "cold_each":
        return _each_cold(system, home, lanes(), roles, quantum)
    if spec.cache_state == "cold_text":
        warm = lanes()
        _tile(system, warm, roles, quantum)
        flush_lines(system, _text_lines([*home, *warm]))
    if spec.cache_state == "cold":
        flush(system)
    _tile(system, home, roles, quantum)
    if spec.cache_state == "hot":
        _tile(system, lanes(), roles, quantum)
    found = lanes()
    _tile(system, found, roles, quantum)
    return found[0].counts


def _text_lines(lanes: Sequence[Lane]) -> NDArray[np.int64]:
    """Return the lines of all text of the kernel that lanes translate to."""
    frames = np.unique(
        np.concatenate(
            [lane.translations.pfn[np.isin(lane.translations.region, _TEXT)] for lane in lanes]
        )
    )
    lines: NDArray[np.int64] = np.add.outer(frames * LINES_PER_PAGE, np.arange(LINES_PER_PAGE))
    return lines.reshape(-1)


def _each_cold(
    system: System, home: list[Lane], lanes: list[Lane], roles: Sequence[Role], quantum: int
) -> Counts:
    """Return the first lane's counts of the wanted iterations, each flushed for."""
    total = new_counts(*axes(lanes[0].counts))
    whole, rest = roles[0].passes
    for each in range(len(roles[0].trace.iterations) - 1 if whole else rest):
        flush(system)
        _run(system, _parts(home, roles, each, each + 1), 1, quantum)
        for array in lanes[0].counts:
            array.fill(0)
        _run(system, _parts(lanes, roles, each, each + 1), 1, quantum)
        for sums, counted in zip(total, lanes[0].counts, strict=True):
            sums[:] += counted * (whole + (each < rest))
    return total


def _tile(system: System, lanes: Sequence[Lane], roles: Sequence[Role], quantum: int) -> None:
    """Run the wanted iterations of windows captured for fewer or more, all lanes at once."""
    whole, rest = roles[0].passes
    _run(system, lanes, whole, quantum)
    if rest:
        _run(system, _parts(lanes, roles, 0, rest), 1, quantum)


def _run(system: System, lanes: Sequence[Lane], times: int, quantum: int) -> None:
    if len(lanes) == 1:
        repeat(system, *lanes[0][:3], times, lanes[0].counts)
    elif lanes:
        repeat_together(system, lanes, times, quantum)


def _parts(lanes: Sequence[Lane], roles: Sequence[Role], first: int, stop: int) -> list[Lane]:
    """Return lanes of some captured iterations alone; the home's are those of the first role."""
    parts = []
    for lane, role in zip(lanes, roles, strict=False):
        kept = slice(*role.trace.iterations[[first, stop]].tolist())
        kind, page, line, repeats, function = lane.stream
        stream = Stream(kind[kept], page[kept], line[kept], repeats[kept], function[kept])
        parts.append(lane._replace(stream=stream))
    return parts
