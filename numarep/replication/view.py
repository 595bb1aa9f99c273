"""A trace's translations as the CPUs of one node see them (R10, R12, R13, R20).

A translation is moved to a node by replacing the table pages that have a copy there and, where its
leaf entry lies in a copy or is replicated, by reading the frame from that entry. So what a node's
walk would read is what it gets; the rest, and every other row, stays as captured.

>>> tuple(displaced(np.array([4, 9]), {9: 2}).tolist())
(4, 2)
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from numarep.linux.tables import entry_index, entry_pfn
from numarep.replication.kernel import Kernel, Mm
from numarep.units import TABLE_SHIFT
from numarep.workload.trace import Pages


def displaced(values: NDArray[np.int64], mapping: Mapping[int, int]) -> NDArray[np.int64]:
    """Replace every value that is a key of `mapping`, int64 like `values`."""
    if not mapping:
        return values
    keys = np.array(sorted(mapping), dtype=np.int64)
    targets = np.array([mapping[key] for key in keys.tolist()], dtype=np.int64)
    at = np.clip(np.searchsorted(keys, values), 0, len(keys) - 1)
    return np.where(keys[at] == values, targets[at], values)


def on_node(kernel: Kernel, pages: Pages, node: int, processes: Mapping[int, Mm]) -> Pages:
    """Return the trace's translations as the CPUs of `node` see them.

    Parameters
    ----------
    processes : mapping
        Every process of the trace, gone ones too, by the pfn of its captured PGD.
    """
    home = kernel.home[node]
    shared = dict(kernel.own.get(home, {}))
    shared |= {t: copies[home] for t, copies in kernel.user_copies.items() if home in copies}
    for captured, mm in processes.items():
        pgd = mm.root(home)
        shared |= {captured: pgd, captured + 1: pgd + 1}
    pfn, table = pages.pfn.copy(), displaced(pages.table, shared)
    _follow_leaves(kernel, pages, table, pfn)
    for captured, mm in processes.items():
        if mm.private:  # hold what the node's tables hold (retarget)
            rows = pages.root == captured
            table[rows] = displaced(pages.table[rows], {**shared, **mm.private})
    return Pages(pages.vpn, pfn, pages.leaf, pages.flags, table)


def _follow_leaves(
    kernel: Kernel, pages: Pages, table: NDArray[np.int64], pfn: NDArray[np.int64]
) -> None:
    """Read the frame of every row whose leaf entry replication may have changed, in place."""
    column = np.maximum(pages.leaf.astype(np.int64) - 1, 0)[:, None]
    before = np.take_along_axis(pages.table, column, 1)[:, 0]
    after = np.take_along_axis(table, column, 1)[:, 0]
    replicated = np.isin(before, list({table for table, _ in kernel.replicated}))
    changed = (pages.leaf > 0) & ((before != after) | replicated)
    for row in np.flatnonzero(changed).tolist():
        leaf, vpn = int(pages.leaf[row]), int(pages.vpn[row])
        entry = kernel.tables.entry(int(after[row]), entry_index(vpn, leaf))
        inside = (1 << (TABLE_SHIFT * (leaf - 1))) - 1
        pfn[row] = (entry_pfn(entry) & ~inside) | (vpn & inside)
