"""Small traces for tests: one on a `SmallKernel`, and arbitrary ones."""

import numpy as np

from numarep.memory.kinds import Kind
from numarep.workload.trace import ITERATION, Pages, Records, Trace
from tests.kernels import SmallKernel


def kernel_trace(kernel: SmallKernel, root: int, *, events: tuple[tuple[int, str], ...]) -> Trace:
    """Fetch, load and store every page of the kernel once, in two iterations, with events."""
    pages = kernel.pages(root)
    executable = [int(np.flatnonzero(kernel.image.text.holds(pages.vpn))[0])]
    rows = [row for row in range(len(pages.vpn)) for _ in range(3)]
    kinds = [Kind.FETCH, Kind.LOAD, Kind.STORE] * len(pages.vpn)
    rows = [
        executable[0] if kind == Kind.FETCH else row for row, kind in zip(rows, kinds, strict=True)
    ]
    half = len(rows) // 6 * 3
    marks = sorted([(0, ITERATION), (half, ITERATION), *events])
    return Trace(
        Records(
            np.array(kinds, np.uint8),
            np.array(rows, np.int32),
            np.arange(len(rows), dtype=np.uint8) % 64,
            np.full(len(rows), 2, np.int32),
        ),
        pages,
        np.array([record for record, _ in marks], np.int64),
        tuple(name for _, name in marks),
    )


def tiny_trace() -> Trace:
    """Three records on one translation."""
    return Trace(
        Records(
            np.array([0, 1, 2], np.uint8),
            np.zeros(3, np.int32),
            np.array([0, 1, 63], np.uint8),
            np.array([5, 1, 1], np.int32),
        ),
        Pages(
            np.array([-5], np.int64),
            np.array([7], np.int64),
            np.array([2], np.uint8),
            np.array([3], np.uint8),
            np.array([[-1, 1, 2, 3, -1]], np.int64),
        ),
        np.array([0], np.int64),
        (ITERATION,),
    )
