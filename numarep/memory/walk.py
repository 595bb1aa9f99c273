"""Page-table walks: where they start, which entries they read, what they fill.

A walk reads one entry at each level from the top table (level 5 or 4) down to the leaf. The
paging-structure caches (PSCs) hold non-leaf PMD, PUD and PGD entries by the va bits above them
(va >> 21, >> 30, >> 39) and the root; a walk starts below the deepest hit. Every entry read is a
load of its line through L1D, L2, LLC and on. Every non-leaf entry read at levels 2 to 4 fills its
PSC. Hits of shallower PSCs than the one used are neither looked for nor touched.

Source: SDM vol. 3A 4.5 (paging structures), 4.10.3 (PSCs). Assumed: no PSC for level 5 (the
machine description has three); one page walker.
Left out: accessed and dirty bits are not written; PSC entries do not hold the table's frame, so a
stale one leads to the stream's tables.

>>> hex(entry_line(0x1234, vpn=511, level=1) << LINE_SHIFT)  # the last line of the table page
'0x1234fc0'
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.batch import Batch, operation
from numarep.memory.counts import Event
from numarep.memory.kinds import Kind
from numarep.memory.recency import ALL, matches, push, touch
from numarep.memory.tlb import PSC_PMD, key_of, page_number
from numarep.memory.vector import at, lowest
from numarep.memory.view import View, first_in, ways_in
from numarep.units import (
    ENTRY_BYTES,
    LINE_BYTES,
    LINE_SHIFT,
    LINES_PER_PAGE,
    MAX_LEVELS,
    P4D,
    PMD,
    TABLE_ENTRIES,
    TABLE_SHIFT,
)

# Numba links constants used in doctests too.
__all__ = ["LINE_SHIFT", "entry_line", "walk"]


@jit
def entry_line(table: int, vpn: int, level: int) -> int:
    """Return the line of the entry a walk for `vpn` reads in a table page of a level."""
    index = (vpn >> (TABLE_SHIFT * (level - 1))) & (TABLE_ENTRIES - 1)
    return table * LINES_PER_PAGE + index // (LINE_BYTES // ENTRY_BYTES)


@jit
def _deepest_hit(view: View, tlbs: NDArray[np.int64], vpn: int, leaf: int, root: int) -> int:
    """Return the level of the deepest PSC hit, or one above the top; the event is counted."""
    for level in range(max(leaf + 1, PMD), P4D + 1):
        which, number = PSC_PMD + level - PMD, page_number(vpn, level)
        first, ways = first_in(tlbs, which, number), ways_in(tlbs, which)
        found = matches(view.words, first, ways, key_of(number, level) | root, ALL)
        if found != 0:
            touch(view.words, first, ways, lowest(found))
            view.events[Event.PSC_PMD_HITS + level - PMD] += 1
            return level
    view.events[Event.PSC_MISSES] += 1
    return MAX_LEVELS + 1


@jit
def walk(
    view: View,
    tlbs: NDArray[np.int64],
    vpn: int,
    leaf: int,
    root: int,
    pages: NDArray[np.int64],
    tables: int,
    batch: NDArray[np.int64],
    run: int,
    op: int,
) -> int:
    """List the reads of a run's walk; PSCs and events are modified in place.

    Parameters
    ----------
    tlbs : int64[10 * 8]
        The `table_of` the CPU's `Tlbs`.
    root : int
        Its small number (see `system.roots`).
    pages : int64[tables + 5]
        From `tables` on, the pfn of the table page read at each level, -1 where none is.
    batch : int64[Batch.END]
        OP and LEVEL are filled from `op` on for every entry read, in order.

    Returns
    -------
    int
        Number of entries read.
    """
    read = 0
    for level in range(_deepest_hit(view, tlbs, vpn, leaf, root) - 1, leaf - 1, -1):
        pfn = pages[at(tables + level - 1)]
        if pfn < 0:
            continue
        line = entry_line(pfn, vpn, level)
        batch[at(Batch.OP + op + read)] = operation(line, run, Kind.LOAD)
        batch[at(Batch.LEVEL + op + read)] = level
        read += 1
        if leaf < level <= P4D:
            which, number = PSC_PMD + level - PMD, page_number(vpn, level)
            first = first_in(tlbs, which, number)
            push(view.words, first, ways_in(tlbs, which), key_of(number, level) | root)
    return read
