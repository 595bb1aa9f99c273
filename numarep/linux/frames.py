"""Physical frames: which node owns one, and allocation of free ones on a given node.

Replica frames are placed congruent to what they copy, modulo every cache's number of sets, so
that a copy conflicts in the caches exactly as its original did: what replication gains or costs
is then never mixed up with the luck of another physical layout. (Assumed: real allocators give
no such promise; layout noise is a study of its own.)

>>> frames = Frames([(0, 1024), (1024, 2048)], used=[1], colours=4)
>>> frames.allocate(1, like=1, count=2)
1025
>>> frames.node_of(1025)
1
"""

import math
from collections.abc import Iterable, Sequence

from numarep.spec import MachineSpec
from numarep.units import LINES_PER_PAGE, PAGE_BYTES


class FrameError(ValueError):
    """Memory that can't be had: the kernel would fail to boot (R4)."""


def colours_of(machine: MachineSpec) -> int:
    """Count the page colours of a machine: frames that many apart fall into the same sets."""
    caches = (machine.l1i, machine.l1d, machine.l2, machine.llc)
    sets = math.lcm(*(cache.sets for cache in caches))
    return sets // math.gcd(sets, LINES_PER_PAGE)


class Frames:
    """Frames of all nodes: ranges [start_pfn, end_pfn) a node, some of them in use."""

    def __init__(
        self, ranges: Sequence[tuple[int, int]], used: Iterable[int], colours: int
    ) -> None:
        self.ranges = list(ranges)
        self._used = set(used)
        self._colours = colours

    @property
    def nodes(self) -> int:
        """Number of memory nodes."""
        return len(self.ranges)

    def node_of(self, pfn: int) -> int:
        """Return the node that owns a frame.

        Raises
        ------
        FrameError
            If no node does.
        """
        for node, (start, end) in enumerate(self.ranges):
            if start <= pfn < end:
                return node
        raise FrameError(f"frame {pfn:#x} lies on no memory node")

    def allocate(self, node: int, *, like: int, count: int = 1, align: int = 1) -> int:
        """Take `count` contiguous free frames on `node`, congruent to those that start at `like`.

        Returns
        -------
        int
            The first pfn.

        Raises
        ------
        FrameError
            Naming node and size, if there is no such run of free frames.
        """
        start, end = self.ranges[node]
        step = math.lcm(self._colours, align)
        first = start + (like - start) % step
        for pfn in range(first, end - count + 1, step):
            if self._used.isdisjoint(range(pfn, pfn + count)):
                self._used.update(range(pfn, pfn + count))
                return pfn
        raise FrameError(
            f"node {node}: can't allocate {count * PAGE_BYTES >> 10} KiB for a replica"
        )
