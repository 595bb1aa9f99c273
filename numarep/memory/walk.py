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

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.counts import Event
from numarep.memory.tlb import Tlb, clear, fill, lookup, page_number
from numarep.memory.view import View
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
__all__ = ["LINE_SHIFT", "Pscs", "Step", "clear_pscs", "entry_line", "walk"]


class Pscs(NamedTuple):
    """The paging-structure caches of one CPU, tagged by page number at that level and root."""

    pmd: Tlb
    pud: Tlb
    pgd: Tlb


class Step(IntEnum):
    """Columns of the steps of a chain: the walk's reads in order, then the access itself."""

    LEVEL = 0
    LINE = 1
    SERVICE = 2
    NODE = 3


@jit
def clear_pscs(words: NDArray[np.int64], base: int, pscs: Pscs) -> None:
    """Drop everything, in place."""
    for psc in pscs:
        clear(words, base, psc)


@jit
def entry_line(table: int, vpn: int, level: int) -> int:
    """Return the line of the entry a walk for `vpn` reads in a table page of a level."""
    index = (vpn >> (TABLE_SHIFT * (level - 1))) & (TABLE_ENTRIES - 1)
    return table * LINES_PER_PAGE + index // (LINE_BYTES // ENTRY_BYTES)


@jit
def _deepest_hit(view: View, pscs: Pscs, vpn: int, leaf: int, root: int) -> int:
    """Return the level of the deepest PSC hit, or one above the top; the event is counted."""
    for level in range(max(leaf + 1, PMD), P4D + 1):
        number = page_number(vpn, level)
        if lookup(view.words, view.cpu * view.stride, pscs[level - PMD], number, level, root):
            view.events[Event.PSC_PMD_HITS + level - PMD] += 1
            return level
    view.events[Event.PSC_MISSES] += 1
    return MAX_LEVELS + 1


@jit
def walk(
    view: View,
    pscs: Pscs,
    vpn: int,
    leaf: int,
    root: int,
    table: NDArray[np.int64],
    page: int,
    steps: NDArray[np.int64],
) -> int:
    """List the entries a walk reads; PSCs and events are modified in place.

    Parameters
    ----------
    table : int64[p, 5]
        Row `page` holds the pfn of the table page read at each level, -1 where none is.
    steps : int64[6, 4]
        Filled with the level and line of every entry read, in order.

    Returns
    -------
    int
        Number of entries read.
    """
    read = 0
    for level in range(_deepest_hit(view, pscs, vpn, leaf, root) - 1, leaf - 1, -1):
        if table[page, level - 1] < 0:
            continue
        steps[read, Step.LEVEL] = level
        steps[read, Step.LINE] = entry_line(table[page, level - 1], vpn, level)
        read += 1
        if leaf < level <= P4D:
            number = page_number(vpn, level)
            fill(view.words, view.cpu * view.stride, pscs[level - PMD], number, level, root)
    return read
