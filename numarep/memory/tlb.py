"""TLBs and paging-structure caches: page numbers looked up under a root.

A `Tlb` is a set-associative array in recency order (see `recency`) of one word an entry:
`page number << 18 | level << 15 | owner`. The level lets an STLB hold 4K and 2M pages side by
side; page numbers are those of the unsigned 57-bit va. The owner is the small number of a root
(see `system.roots`), or GLOBAL, which matches under any root. The row is `page number % sets`.

Source: SDM vol. 3A 4.10.2 (TLBs, global pages), 4.10.2.3 (a 1G page may be cached as smaller
splinters), 4.10.4.1 (what INVLPG and MOV to CR3 invalidate; INVLPG drops every entry of the page,
splinters and global entries too).
Left out: the frame is not part of an entry, so a stale entry still leads to the stream's frame.

>>> words, tlb = np.full(8, EMPTY), new_tlb(offset=0, sets=1, ways=2)
>>> page = key_of(7, 1)
>>> bool(lookup_or_fill(words, 0, 2, page | GLOBAL, 42))  # filled as global ...
False
>>> bool(lookup_or_fill(words, 0, 2, page | 43, 43))  # ... and found under another root
True
>>> drop_local(words, table_of(0, [tlb]), 0)
>>> [int(word) == page for word in words[:2]]
[True, False]
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.recency import ALL, EMPTY, matches, move, pitch_of
from numarep.memory.vector import at, choose, lowest
from numarep.memory.view import first_in, rows_in, table_of, ways_in
from numarep.units import PTE, PUD, TABLE_SHIFT

# Numba links constants used in doctests too.
__all__ = ["OWNERS", "Tlb", "Tlbs", "clear_all", "clear_pscs", "drop_local", "invalidate_page"]
__all__ += ["key_of", "lookup_or_fill", "new_tlb", "page_number", "switch_root", "table_of"]

GLOBAL = 0
OWNER_BITS = 15
OWNERS = 1 << OWNER_BITS
LEVEL_BITS = 3
LEVEL_MASK = (1 << LEVEL_BITS) - 1
VPN_MASK = (1 << 45) - 1  # of a 57-bit va


class Tlb(NamedTuple):
    """One TLB's or PSC's place in every CPU's block (see `view`)."""

    offset: int
    sets: int
    ways: int
    mask: int  # sets - 1 of a power of two, else -1
    pitch: int  # words from row to row


def new_tlb(offset: int, sets: int, ways: int) -> Tlb:
    """Return the place of a TLB or PSC; one without sets is not there."""
    mask = max(sets - 1, 0) if sets & (sets - 1) == 0 else -1
    return Tlb(offset, sets, ways, mask, pitch_of(ways))


class Tlbs(NamedTuple):
    """The TLBs of one CPU: first level by page size, second level (see `TlbsSpec`); its PSCs.

    Compiled code is given their `table_of`, called `tlbs`, and their places in that.
    """

    itlb_4k: Tlb
    itlb_2m: Tlb
    dtlb_4k: Tlb
    dtlb_2m: Tlb
    dtlb_1g: Tlb
    stlb: Tlb
    stlb_1g: Tlb
    psc_pmd: Tlb
    psc_pud: Tlb
    psc_pgd: Tlb


ITLB_4K, ITLB_2M, DTLB_4K = range(3)  # places in Tlbs; the larger sizes' follow
STLB, STLB_1G, PSC_PMD, END = 5, 6, 7, 10


@jit
def page_number(vpn: int, leaf: int) -> int:
    """Return the number, in pages of the leaf's size, of the page that holds a 4K page."""
    return (vpn & VPN_MASK) >> (TABLE_SHIFT * (leaf - 1))


@jit
def key_of(number: int, level: int) -> int:
    """Return a page's entry without its owner."""
    return (number << LEVEL_BITS | level) << OWNER_BITS


@jit
def lookup_or_fill(words: NDArray[np.int64], first: int, ways: int, entry: int, root: int) -> bool:
    """Make a page the most recently used of its row; tell whether it was there. In place.

    Found is the most recently used entry of the page of `entry` under `root` or GLOBAL; if there is
    none `entry` is filled. Written without branches, for nobody can foresee them.
    """
    key = entry & -OWNERS
    found = matches(words, first, ways, key | root, ALL) | matches(words, first, ways, key, ALL)
    way = lowest(found | 1 << (ways - 1))
    there = words[at(first + way)]
    move(words, first, ways, way, choose(found, there, entry))
    return bool(found != 0)


@jit
def _row(words: NDArray[np.int64], first: int, ways: int, kept: int) -> None:
    """Empty what follows the first `kept` entries of a row, in place."""
    for word in range(first + kept, first + ways):
        words[word] = EMPTY


@jit_apart
def drop_page(
    words: NDArray[np.int64], tlbs: NDArray[np.int64], which: int, vpn: int, leaf: int
) -> None:
    """Drop every entry, under any root, of the page of the leaf's size around `vpn`; in place."""
    number = page_number(vpn, leaf)
    first, ways = first_in(tlbs, which, number), ways_in(tlbs, which)
    key = key_of(number, leaf) >> OWNER_BITS
    kept = 0
    for word in range(first, first + ways):
        if words[word] >> OWNER_BITS != key:
            words[first + kept] = words[word]
            kept += 1
    _row(words, first, ways, kept)


@jit_apart
def drop_splinters(words: NDArray[np.int64], tlbs: NDArray[np.int64], which: int, vpn: int) -> None:
    """Drop every 2M splinter of the 1G page around `vpn`, under any root; in place."""
    number, ways = page_number(vpn, PUD), ways_in(tlbs, which)
    for row in range(rows_in(tlbs, which)):
        first = first_in(tlbs, which, row)
        kept = 0
        for word in range(first, first + ways):
            page = words[word] >> OWNER_BITS
            if page & LEVEL_MASK != PUD or page >> (LEVEL_BITS + TABLE_SHIFT) != number:
                words[first + kept] = words[word]
                kept += 1
        _row(words, first, ways, kept)


@jit_apart
def drop_local(words: NDArray[np.int64], tlbs: NDArray[np.int64], which: int) -> None:
    """Drop everything but global entries, in place."""
    ways = ways_in(tlbs, which)
    for row in range(rows_in(tlbs, which)):
        first = first_in(tlbs, which, row)
        kept = 0
        for word in range(first, first + ways):
            if words[word] == EMPTY:
                break
            if words[word] & (OWNERS - 1) == GLOBAL:
                words[first + kept] = words[word]
                kept += 1
        _row(words, first, ways, kept)


@jit_apart
def _clear(words: NDArray[np.int64], tlbs: NDArray[np.int64], which: int) -> None:
    """Drop everything, in place."""
    for row in range(rows_in(tlbs, which)):
        _row(words, first_in(tlbs, which, row), ways_in(tlbs, which), 0)


@jit_apart
def clear_pscs(words: NDArray[np.int64], tlbs: NDArray[np.int64]) -> None:
    """Drop everything from the PSCs, in place."""
    for which in range(PSC_PMD, END):
        _clear(words, tlbs, which)


@jit_apart
def invalidate_page(words: NDArray[np.int64], tlbs: NDArray[np.int64], vpn: int) -> None:
    """INVLPG: drop the page around `vpn` at every size, global or not, and all PSCs; in place."""
    for leaf in range(PTE, PUD + 1):
        drop_page(words, tlbs, DTLB_4K + leaf - 1, vpn, leaf)
        if leaf < PUD:
            drop_page(words, tlbs, ITLB_4K + leaf - 1, vpn, leaf)
        drop_page(words, tlbs, STLB if leaf < PUD else STLB_1G, vpn, leaf)
    drop_splinters(words, tlbs, ITLB_2M, vpn)
    clear_pscs(words, tlbs)


@jit_apart
def switch_root(words: NDArray[np.int64], tlbs: NDArray[np.int64]) -> None:
    """MOV to CR3 without PCID: drop all PSCs, and all TLB entries but global ones; in place."""
    for which in range(PSC_PMD):
        drop_local(words, tlbs, which)
    clear_pscs(words, tlbs)


@jit_apart
def clear_all(words: NDArray[np.int64], tlbs: NDArray[np.int64]) -> None:
    """Drop everything, in place."""
    for which in range(END):
        _clear(words, tlbs, which)
