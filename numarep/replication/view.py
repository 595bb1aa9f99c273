"""A trace's translations as the CPUs of one node see them (R10, R12, R13, R20).

A translation is moved to a node by replacing the table pages that have a copy there and, where its
leaf entry is replicated, its frame. That is what a walk of the node's real tables gives (tested);
the rest, and every other row, stays as captured.

>>> tuple(displaced(np.array([4, 9]), {9: 2}).tolist())
(4, 2)
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from numarep.replication.kernel import Kernel, Mm
from numarep.units import TABLE_ENTRIES, TABLE_SHIFT
from numarep.workload.trace import Flag, Pages


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
    _follow_leaves(kernel, pages, home, pfn)
    for captured, mm in processes.items():
        if mm.private:  # hold what the node's tables hold (retarget)
            rows = pages.root == captured
            table[rows] = displaced(pages.table[rows], {**shared, **mm.private})
    return Pages(pages.vpn, pfn, pages.leaf, pages.flags, table)


def _follow_leaves(kernel: Kernel, pages: Pages, home: int, pfn: NDArray[np.int64]) -> None:
    """Exchange the frame of every row whose leaf entry is replicated, in place."""
    column = np.maximum(pages.leaf.astype(np.int64) - 1, 0)[:, None]
    leaf_table = np.take_along_axis(pages.table, column, 1)[:, 0]
    tables = list({table for table, *_ in (*kernel.replicated, *kernel.released)})
    # What is written there is written before it is replicated (R22): to the master's page.
    read_only = (pages.leaf > 0) & (pages.flags & Flag.WRITABLE == 0)
    rows = np.flatnonzero(read_only & np.isin(leaf_table, tables))
    columns = (rows, pages.leaf[rows], pages.vpn[rows], leaf_table[rows], pages.pfn[rows])
    replicated, released = kernel.replicated, kernel.released
    for row, leaf, vpn, table, captured in zip(*(c.tolist() for c in columns), strict=True):
        shift = TABLE_SHIFT * (leaf - 1)
        key = table, (vpn >> shift) & (TABLE_ENTRIES - 1)
        offset = vpn & ((1 << shift) - 1)
        frames = replicated.get(key)
        if not frames or captured - offset not in frames.values():  # mapped there before or after
            frames = released.get((*key, captured))
        if frames:
            pfn[row] = frames[home] | offset
