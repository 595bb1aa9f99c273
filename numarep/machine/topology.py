"""Where a machine's memory lies: the physical range of each NUMA node.

>>> memory_ranges(((0, 8), (8, 16)), nodes=3)
((0, 8), (8, 16), (16, 24))
>>> memory_ranges(((0, 8), (8, 16)), nodes=4, memoryless=(2,))
((0, 8), (8, 16), (16, 16), (16, 24))
"""

from collections.abc import Collection

Ranges = tuple[tuple[int, int], ...]


def memory_ranges(captured: Ranges, nodes: int, memoryless: Collection[int] = ()) -> Ranges:
    """Return [start_pfn, end_pfn) of each of a machine's nodes.

    The captured nodes keep the ranges their traces' addresses mean; nodes beyond those follow,
    each as large as the last captured one, or empty if it has no memory.

    Raises
    ------
    ValueError
        If the machine has fewer nodes than the capture, or fewer with memory.
    """
    if any(node < len(captured) for node in memoryless):
        raise ValueError(f"expected memory on at least the capture's {len(captured)} nodes")
    if nodes < len(captured):
        raise ValueError(f"expected a machine with at least the capture's {len(captured)} nodes")
    start, end = captured[-1]
    size = end - start
    ranges = list(captured)
    for node in range(len(captured), nodes):
        start = ranges[-1][1]
        ranges.append((start, start if node in memoryless else start + size))
    return tuple(ranges)
