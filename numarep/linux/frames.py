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

import bisect
import math
from collections.abc import Iterable, Sequence

from numarep.spec import MachineSpec
from numarep.units import LINES_PER_PAGE, PAGE_BYTES


class FrameError(ValueError):
    """Memory that can't be had: the kernel would fail to boot (R4)."""


def colours_of(machine: MachineSpec) -> int:
    """Count the page colours of a machine: frames that many apart fall into the same sets."""
    sets = math.lcm(*(cache.sets for cache in machine.caches))
    return sets // math.gcd(sets, LINES_PER_PAGE)


class Frames:
    """Frames of all nodes: ranges [start_pfn, end_pfn) a node, some of them in use."""

    def __init__(
        self, ranges: Sequence[tuple[int, int]], used: Iterable[int], colours: int
    ) -> None:
        self.ranges = list(ranges)
        owned = sorted((start, end, n) for n, (start, end) in enumerate(ranges) if start < end)
        self._starts = [start for start, _, _ in owned]
        self._owned = [(end, node) for _, end, node in owned]
        self._used = set(used)
        self._colours = colours
        self._recycled: dict[tuple[int, int, int], int] = {}
        self._kept: set[int] = set()  # for whom they were recycled before

    @property
    def nodes(self) -> int:
        """Number of nodes, memoryless ones included."""
        return len(self.ranges)

    @property
    def memory_nodes(self) -> tuple[int, ...]:
        """Nodes that have memory (R2)."""
        return tuple(node for node, (start, end) in enumerate(self.ranges) if start < end)

    @property
    def taken(self) -> int:
        """Number of frames that are not free."""
        return len(self._used)

    @property
    def in_use(self) -> frozenset[int]:
        """All frames that are not free, as they are now."""
        return frozenset(self._used)

    def node_of(self, pfn: int) -> int:
        """Return the node that owns a frame.

        Raises
        ------
        FrameError
            If no node does.
        """
        place = bisect.bisect_right(self._starts, pfn) - 1
        if place >= 0 and pfn < self._owned[place][0]:
            return self._owned[place][1]
        raise FrameError(f"frame {pfn:#x} lies on no memory node")

    def allocate(
        self, node: int, *, like: int, count: int = 1, align: int = 1, recycle: bool = False
    ) -> int:
        """Take `count` contiguous free frames on `node`, congruent to those that start at `like`.

        With `recycle` the same request gives the same frames again once they are free, and nobody
        else gets them: as the original is a recycled frame, so is its copy.

        Returns
        -------
        int
            The first pfn.

        Raises
        ------
        FrameError
            Naming node and size, if there is no such run of free frames.
        """
        key = (node, like, count)
        kept = self._recycled.get(key) if recycle else None
        pfn = self._find(node, like, count, align) if kept is None else kept
        frames = range(pfn, pfn + count)
        if pfn < 0 or (kept is not None and not self._used.isdisjoint(frames)):
            raise FrameError(
                f"node {node}: can't allocate {count * PAGE_BYTES >> 10} KiB for a replica"
            )
        self._used.update(frames)
        if recycle:
            self._recycled[key] = pfn
            self._kept.update(frames)
        return pfn

    def claim(self, frames: Iterable[int]) -> None:
        """Mark frames as in use, wherever they are; some may be already."""
        self._used.update(frames)

    def free(self, pfn: int, count: int = 1) -> None:
        """Give frames back.

        Raises
        ------
        FrameError
            If one of them is free already.
        """
        frames = range(pfn, pfn + count)
        if not self._used.issuperset(frames):
            raise FrameError(f"frames {pfn:#x} to {pfn + count - 1:#x}: freed, but not in use")
        self._used.difference_update(frames)

    def _find(self, node: int, like: int, count: int, align: int) -> int:
        """Return the first suitable run of free frames, or -1."""
        start, end = self.ranges[node]
        step = math.lcm(self._colours, align)
        for pfn in range(start + (like - start) % step, end - count + 1, step):
            frames = range(pfn, pfn + count)
            if _free(frames, self._used) and _free(frames, self._kept):
                return pfn
        return -1


def _free(frames: range, taken: set[int]) -> bool:
    """Tell whether none of the frames is taken, by going through the fewer of both."""
    if len(taken) < len(frames):
        return not any(pfn in frames for pfn in taken)
    return taken.isdisjoint(frames)
