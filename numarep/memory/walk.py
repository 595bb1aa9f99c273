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

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.counts import Event
from numarep.memory.hierarchy import access
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
    PUD,
    TABLE_ENTRIES,
    TABLE_SHIFT,
)

# Numba links constants used in doctests too.
__all__ = ["LINE_SHIFT", "Pscs", "clear_pscs", "entry_line", "walk"]


class Pscs(NamedTuple):
    """The paging-structure caches of one CPU, tagged by page number at that level and root."""

    pgd: Tlb
    pud: Tlb
    pmd: Tlb


@jit
def clear_pscs(words: NDArray[np.int64], base: int, pscs: Pscs) -> None:
    """Drop everything, in place."""
    clear(words, base, pscs.pgd)
    clear(words, base, pscs.pud)
    clear(words, base, pscs.pmd)


@jit
def entry_line(table: int, vpn: int, level: int) -> int:
    """Return the line of the entry a walk for `vpn` reads in a table page of a level."""
    index = (vpn >> (TABLE_SHIFT * (level - 1))) & (TABLE_ENTRIES - 1)
    return table * LINES_PER_PAGE + index // (LINE_BYTES // ENTRY_BYTES)


@jit
def _first_level(view: View, pscs: Pscs, vpn: int, leaf: int, root: int) -> int:
    """Return the level a walk reads first: below the deepest PSC hit, which is counted."""
    words, events, base = view.words, view.events, view.cpu * view.stride
    if leaf < PMD and lookup(words, base, pscs.pmd, page_number(vpn, PMD), PMD, root):
        events[Event.PSC_PMD_HITS] += 1
        return PMD - 1
    if leaf < PUD and lookup(words, base, pscs.pud, page_number(vpn, PUD), PUD, root):
        events[Event.PSC_PUD_HITS] += 1
        return PUD - 1
    if lookup(words, base, pscs.pgd, page_number(vpn, P4D), 0, root):
        events[Event.PSC_PGD_HITS] += 1
        return P4D - 1
    events[Event.PSC_MISSES] += 1
    return MAX_LEVELS


@jit
def _fill_psc(view: View, pscs: Pscs, vpn: int, level: int, root: int) -> None:
    """Cache the non-leaf entry a walk read at a level, in place."""
    words, base = view.words, view.cpu * view.stride
    if level == PMD:
        fill(words, base, pscs.pmd, page_number(vpn, PMD), PMD, root)
    elif level == PUD:
        fill(words, base, pscs.pud, page_number(vpn, PUD), PUD, root)
    elif level == P4D:
        fill(words, base, pscs.pgd, page_number(vpn, P4D), 0, root)


@jit
def walk(
    view: View,
    pscs: Pscs,
    vpn: int,
    leaf: int,
    root: int,
    table: NDArray[np.int64],
    steps: NDArray[np.int64],
) -> int:
    """Walk to the leaf of a translation; caches, PSCs and events are modified in place.

    Parameters
    ----------
    table : int64[5]
        Pfn of the table page read at each level, -1 where none is.
    steps : int64[5, 3]
        Filled with level, service and node of every entry read, in order.

    Returns
    -------
    int
        Number of entries read.
    """
    read = 0
    for level in range(_first_level(view, pscs, vpn, leaf, root), leaf - 1, -1):
        if table[level - 1] < 0:
            continue
        line = entry_line(table[level - 1], vpn, level)
        service, node = access(view, view.l1d, line, False)
        steps[read, 0] = level
        steps[read, 1] = service
        steps[read, 2] = node
        read += 1
        if level > leaf:
            _fill_psc(view, pscs, vpn, level, root)
    return read
