"""What the stages need of each page of a stream, laid out once for compiled code.

>>> tlbs = Tlbs(*[new_tlb(128 * n, 16, 4) for n in range(10)])
>>> stlbs = tlbs.stlb, tlbs.stlb, tlbs.stlb_1g
>>> none = np.array([0])
>>> table = np.array([[2, 3, 4, 5, -1]])
>>> rows = np.array([513]), np.array([7]), none + 1, none, none + 3, table, none
>>> page = pages_of(*rows, tlbs, stlbs, 0)
>>> int(page[Of.LINE]), int(page[Of.FETCH]) >> WAYS_BITS  # row 1 of the first TLB
(448, 8)
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.tlb import (
    DTLB_4K,
    GLOBAL,
    ITLB_4K,
    LEVEL_BITS,
    OWNER_BITS,
    VPN_MASK,
    Tlb,
    Tlbs,
    new_tlb,
)
from numarep.memory.vector import new_words
from numarep.units import LINES_PER_PAGE, MAX_LEVELS, PMD, PUD, TABLE_SHIFT

WAYS_BITS = 8
PAGE_BITS = 4  # of the columns of a page
NONE = -1
_PART = 1 << 14  # pages laid out at once: what is made of them by the way is small

__all__ = ["NONE", "PAGE_BITS", "WAYS_BITS", "Of", "new_tlb", "pages_of", "ways_of"]


class Of(IntEnum):
    """Columns of what the stages need of each page, two host cache lines a page.

    FETCH, DATA and STLB say where the page's row of that TLB of the CPU lies and how long it is,
    `first << 8 | ways`; the STLB's is NONE where none holds such pages. Walks alone read from VPN
    on.
    """

    LINE = 0  # of the frame's first byte
    FETCH_ENTRY = 1  # of the ITLB
    DATA_ENTRY = 2  # of the DTLB and STLB
    ROOT = 3  # as small number
    FETCH = 4
    DATA = 5
    STLB = 6
    REGION = 7
    VPN = 8
    LEAF = 9
    TABLE = 10  # pfn of the table read at level 1, the other levels' follow


def pages_of(
    vpn: NDArray[np.int64],
    pfn: NDArray[np.int64],
    leaf: NDArray[np.int64],
    is_global: NDArray[np.int64],
    root: NDArray[np.int64],
    table: NDArray[np.int64],
    region: NDArray[np.int64],
    tlbs: Tlbs,
    stlbs: Sequence[Tlb],
    base: int,
) -> NDArray[np.int64]:
    """Return what the stages need of each page, int64[p * 16]; `root` in small numbers.

    `stlbs` hold 4K, 2M and 1G pages; `base` is the first word of the CPU's block. The ITLB holds 1G
    pages as 2M splinters: the number of a 2M page, the level of a 1G leaf.
    """
    pages = new_words(len(vpn) << PAGE_BITS).reshape(-1, 1 << PAGE_BITS)
    columns = vpn, pfn, leaf, is_global, root, table, region
    for start in range(0, len(vpn), _PART):
        here = slice(start, start + _PART)
        _lay_out(pages[here], [column[here] for column in columns], tlbs, stlbs, base)
    return pages.reshape(-1)


def _lay_out(
    pages: NDArray[np.int64],
    columns: Sequence[NDArray[np.int64]],
    tlbs: Tlbs,
    stlbs: Sequence[Tlb],
    base: int,
) -> None:
    """Fill in some pages, int64[p, 16], in place; `columns` are theirs of `pages_of`."""
    vpn, pfn, leaf, is_global, root, table, region = (
        np.asarray(each, np.int64) for each in columns
    )
    pages[:, Of.LINE] = pfn * LINES_PER_PAGE
    pages[:, Of.ROOT] = root
    owner = np.where(is_global != 0, GLOBAL, root)
    pages[:, Of.REGION] = region
    pages[:, Of.VPN], pages[:, Of.LEAF] = vpn, leaf
    pages[:, Of.TABLE : Of.TABLE + MAX_LEVELS] = table
    for size in (1, PMD, PUD):
        rows = np.flatnonzero(leaf == size)
        fetch_size = min(size, PMD)
        places = [
            (Of.FETCH, fetch_size, tlbs[ITLB_4K + fetch_size - 1]),
            (Of.DATA, size, tlbs[DTLB_4K + size - 1]),
            (Of.STLB, size, stlbs[size - 1]),
        ]
        for column, page_size, tlb in places if stlbs[size - 1].sets else places[:2]:
            number = (vpn[rows] & VPN_MASK) >> (TABLE_SHIFT * (page_size - 1))
            first = base + tlb.offset + number % tlb.sets * tlb.pitch
            pages[rows, column] = first << WAYS_BITS | tlb.ways
            entry = Of.FETCH_ENTRY if column == Of.FETCH else Of.DATA_ENTRY
            pages[rows, entry] = (number << LEVEL_BITS | size) << OWNER_BITS | owner[rows]


@jit
def ways_of(place: int) -> int:
    """Return the ways of the row at a place."""
    return place & ((1 << WAYS_BITS) - 1)
