"""Where a machine's memory lies: the physical range of each NUMA node.

Leaves out what the first version has no use for: sub-NUMA clusters and memoryless nodes.

>>> memory_ranges(((0, 8), (8, 16)), nodes=3)
((0, 8), (8, 16), (16, 24))
"""

Ranges = tuple[tuple[int, int], ...]


def memory_ranges(captured: Ranges, nodes: int) -> Ranges:
    """Return [start_pfn, end_pfn) of each of a machine's nodes.

    The captured nodes keep the ranges their traces' addresses mean; nodes beyond those follow,
    each as large as the last captured one.

    Raises
    ------
    ValueError
        If the machine has fewer nodes than the capture.
    """
    if nodes < len(captured):
        raise ValueError(f"expected a machine with at least the capture's {len(captured)} nodes")
    start, end = captured[-1]
    size = end - start
    extra = ((end + i * size, end + (i + 1) * size) for i in range(nodes - len(captured)))
    return (*captured, *extra)
