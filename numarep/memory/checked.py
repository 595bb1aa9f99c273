"""What compiled code is given: checked once, then frozen.

Compiled code checks no bounds, so what it indexes by is refused here if it doesn't fit. Frozen
arrays are contiguous and read-only: one type of array, so one compiled version. Streams, of which
there may be hundreds of megabytes, are frozen in parts unless that copies nothing.

>>> frozen(np.arange(3), np.int64).flags.writeable
False
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numarep.memory.batch import Stream
from numarep.memory.counts import Counts
from numarep.memory.loop import Translations
from numarep.memory.view import MOST_CPUS
from numarep.spec import MachineSpec, SpecError
from numarep.units import MAX_LEVELS, PUD

_PART = 1 << 16  # records: what is copied of them stays in a host's L2
_TYPES = (np.uint8, np.int32, np.uint8, np.int32, np.int32)  # of a stream's columns


def check_cpus(machine: MachineSpec, cpu_nodes: tuple[int, ...]) -> None:
    """Refuse CPUs on nodes the machine doesn't have.

    Raises
    ------
    SpecError
        If there is no CPU or too many, or the machine has no such node.
    """
    if not cpu_nodes or not all(0 <= node < machine.nodes for node in cpu_nodes):
        raise SpecError(f"cpu_nodes: expected nodes 0 to {machine.nodes - 1}, got {cpu_nodes}")
    if len(cpu_nodes) > MOST_CPUS:
        raise SpecError(f"cpu_nodes: expected at most {MOST_CPUS} CPUs, got {len(cpu_nodes)}")


def checked_ends(machine: MachineSpec, node_end_pfn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the nodes' ends, contiguous.

    Raises
    ------
    SpecError
        If they aren't one rising end for each node.
    """
    ends = np.ascontiguousarray(node_end_pfn, np.int64)
    if ends.shape != (machine.nodes,) or (np.diff(ends) < 0).any():
        raise SpecError(f"node_end_pfn: expected {machine.nodes} rising ends, got {ends.tolist()}")
    return ends


def frozen(array: NDArray[Any], dtype: type) -> NDArray[Any]:
    """Return a contiguous read-only view."""
    view: NDArray[Any] = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


def axes(counts: Counts) -> tuple[int, int, int]:
    """Return the numbers of nodes, regions and functions counted."""
    return counts.served.shape[4], counts.served.shape[2], counts.functions.shape[0]


@dataclass
class Parts:
    """A stream in parts, each frozen when it is wanted; the last one is kept, for turns within it.

    It is one part if all its columns are as compiled code wants them.
    """

    stream: Stream
    size: int  # records of a part
    first: int = -1  # record of the last part wanted
    last: Stream | None = None

    def holding(self, record: int) -> tuple[Stream, int]:
        """Return the part that holds a record, and its first record.

        Kinds and lines are int8 there, as compiled code knows no unsigned numbers.
        """
        first = record - record % self.size
        if self.last is None or first != self.first:
            part = (column[first : first + self.size] for column in self.stream)
            kind, page, line, *others = map(frozen, part, _TYPES)
            self.last = Stream(kind.view(np.int8), page, line.view(np.int8), *others)
            self.first = first
        return self.last, self.first


def parts_of(stream: Stream, counts: Counts) -> Parts:
    """Return a stream in parts for compiled code.

    Raises
    ------
    ValueError
        If counts are by function and not every record has one of those.
    """
    functions = axes(counts)[2]
    if functions:
        function = np.asarray(stream.function)
        low, high = int(function.min(initial=0)), int(function.max(initial=0))
        if len(function) != len(stream.kind) or not 0 <= low <= high < functions:
            raise ValueError(f"function: expected one from 0 to {functions - 1} for every record")
    else:
        stream = stream._replace(function=np.empty(0, np.int32))
    columns: tuple[NDArray[Any], ...] = stream
    is_frozen = (
        column.dtype == dtype and column.flags.c_contiguous
        for column, dtype in zip(columns, _TYPES, strict=True)
    )
    return Parts(stream, max(1, len(stream.kind)) if all(is_frozen) else _PART)


def check_translations(
    machine: MachineSpec,
    node_end_pfn: NDArray[np.int64],
    translations: Translations,
    counts: Counts,
) -> None:
    """Refuse translations that can't be; they are no more than read.

    Raises
    ------
    ValueError
        If a frame lies beyond the last node, or nodes or regions don't fit the counts.
    """
    made, pages = translations, len(translations.vpn)
    if made.table.shape != (pages, MAX_LEVELS):
        raise ValueError(f"table: expected shape ({pages}, {MAX_LEVELS}), got {made.table.shape}")
    if ((made.leaf < 0) | (made.leaf > PUD)).any():
        raise ValueError(f"leaf: expected 0 to {PUD}")
    if (made.pfn[made.leaf > 0] < 0).any():
        raise ValueError("pfn: expected a frame for every translation")
    end = int(node_end_pfn[-1])
    last = max(int(made.pfn.max(initial=0)), int(made.table.max(initial=0)))
    if last >= end:
        raise ValueError(f"translations: frame {last} is beyond the last node's end ({end})")
    nodes, regions, _ = axes(counts)
    if nodes != machine.nodes:
        raise ValueError(f"counts: expected {machine.nodes} nodes, got {nodes}")
    if pages and not 0 <= int(made.region.min()) <= int(made.region.max()) < regions:
        raise ValueError(f"region: expected 0 to {regions - 1}")
