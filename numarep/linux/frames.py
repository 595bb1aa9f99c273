"""Physical frames: which node owns one, and allocation of free ones on a given node.

Replica frames are placed congruent to what they copy, modulo every cache's number of sets, so
that a copy conflicts in the caches exactly as its original did: what replication gains or costs
is then never mixed up with the luck of another physical layout. With sub-NUMA clusters they are so
in the slices that their own node's memory has. (Assumed: real allocators give
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

import numpy as np

from numarep.spec import MachineSpec
from numarep.units import LINES_PER_PAGE, PAGE_BYTES

# A frame is in use, or kept for whoever had it, or both, or neither.
_FREE, _IN_USE, _KEPT = 0, 1, 2
_BYTE = tuple(bytes([state]) for state in range(4))


class FrameError(ValueError):
    """Memory that can't be had: the kernel would fail to boot (R4)."""


def colours_of(machine: MachineSpec) -> int:
    """Count the page colours of a machine: frames that many apart fall into the same sets."""
    sets = math.lcm(*(cache.sets for cache in machine.caches))
    return sets // math.gcd(sets, LINES_PER_PAGE)


class Frames:
    """Frames of all nodes: ranges [start_pfn, end_pfn) a node, some of them in use.

    Frames beyond all ranges are nobody's to take, so it doesn't matter whether they are in use.
    """

    def __init__(
        self, ranges: Sequence[tuple[int, int]], used: Iterable[int], colours: int
    ) -> None:
        self.ranges = list(ranges)
        owned = sorted((start, end, n) for n, (start, end) in enumerate(ranges) if start < end)
        self._starts = [start for start, _, _ in owned]
        self._owned = [(end, node) for _, end, node in owned]
        # A byte a frame: runs of thousands are found and taken in one go.
        self._state = bytearray(max((end for end, _ in self._owned), default=0))
        self._colours = colours
        self._recycled: dict[tuple[int, int, int], int] = {}
        self.taken = 0  # number of frames that are not free
        self.claim(used)

    @property
    def nodes(self) -> int:
        """Number of nodes, memoryless ones included."""
        return len(self.ranges)

    @property
    def memory_nodes(self) -> tuple[int, ...]:
        """Nodes that have memory (R2)."""
        return tuple(node for node, (start, end) in enumerate(self.ranges) if start < end)

    @property
    def in_use(self) -> frozenset[int]:
        """All frames that are not free, as they are now."""
        state = np.frombuffer(self._state, np.uint8)
        return frozenset(np.flatnonzero(state & _IN_USE).tolist())

    def is_free(self, pfn: int) -> bool:
        """Tell whether nobody has a frame."""
        return not (0 <= pfn < len(self._state) and self._state[pfn] & _IN_USE)

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
        kept = self._recycled.get((node, like, count), -1) if recycle else -1
        pfn = kept if kept >= 0 else self._find(node, like, count, align)
        if pfn < 0 or (kept >= 0 and not self._is_run_of(_KEPT, kept, count)):
            raise FrameError(
                f"node {node}: can't allocate {count * PAGE_BYTES >> 10} KiB for a replica"
            )
        if recycle:
            self._recycled[node, like, count] = pfn
        self._state[pfn : pfn + count] = _BYTE[_IN_USE | _KEPT if recycle else _IN_USE] * count
        self.taken += count
        return pfn

    def claim(self, frames: Iterable[int]) -> None:
        """Mark frames as in use, wherever they are; some may be already."""
        state, end = self._state, len(self._state)
        for pfn in frames:
            if 0 <= pfn < end and not state[pfn] & _IN_USE:
                state[pfn] |= _IN_USE
                self.taken += 1

    def free(self, pfn: int, count: int = 1) -> None:
        """Give frames back.

        Raises
        ------
        FrameError
            If one of them is free already.
        """
        frames = range(pfn, pfn + count)
        if any(self.is_free(each) for each in frames):
            raise FrameError(f"frames {pfn:#x} to {pfn + count - 1:#x}: freed, but not in use")
        for each in frames:
            self._state[each] &= ~_IN_USE
        self.taken -= count

    def _find(self, node: int, like: int, count: int, align: int) -> int:
        """Return the first suitable run of free frames, or -1."""
        start, end = self.ranges[node]
        step = self._colours if align == 1 else math.lcm(self._colours, align)
        for pfn in range(start + (like - start) % step, end - count + 1, step):
            if self._is_run_of(_FREE, pfn, count):
                return pfn
        return -1

    def _is_run_of(self, state: int, pfn: int, count: int) -> bool:
        return self._state.startswith(_BYTE[state] * count, pfn)
