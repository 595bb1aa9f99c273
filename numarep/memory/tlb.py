"""TLBs and paging-structure caches: page numbers looked up under a root.

A `Tlb` is a set-associative array in recency order (see `recency`) of one word an entry:
`page number << 18 | level << 15 | owner`. The level lets the STLB hold 4K and 2M pages side by
side; page numbers are those of the unsigned 57-bit va. The owner is the small number of a root
(see `system.roots`), or GLOBAL, which matches under any root. The row is `page number % sets`.

Source: SDM vol. 3A 4.10.2 (TLBs, global pages), 4.10.2.3 (a 1G page may be cached as smaller
splinters), 4.10.4.1 (what INVLPG and MOV to CR3 invalidate; INVLPG drops every entry of the page,
splinters and global entries too).
Left out: the frame is not part of an entry, so a stale entry still leads to the stream's frame.

>>> words, tlb = np.full(8, EMPTY), new_tlb(offset=0, sets=1, ways=2)
>>> page = key_of(7, 1)
>>> bool(lookup_or_fill(words, 0, 2, page, 42, GLOBAL))  # filled as global ...
False
>>> bool(lookup_or_fill(words, 0, 2, page, 43, 43))  # ... and found under another root
True
>>> drop_local(words, 0, tlb)
>>> [int(word) == page for word in words[:2]]
[True, False]
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.recency import ALL, EMPTY, matches, move, pitch_of
from numarep.memory.vector import at, lowest
from numarep.units import PTE, PUD, TABLE_SHIFT

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
    """Return the place of a TLB or PSC."""
    mask = sets - 1 if sets & (sets - 1) == 0 else -1
    return Tlb(offset, sets, ways, mask, pitch_of(ways))


class Tlbs(NamedTuple):
    """The TLBs of one CPU: first level by page size, second level shared by 4K and 2M."""

    itlb_4k: Tlb
    itlb_2m: Tlb
    dtlb_4k: Tlb
    dtlb_2m: Tlb
    dtlb_1g: Tlb
    stlb: Tlb


ITLB_4K, ITLB_2M, DTLB_4K = range(3)  # places in Tlbs; the larger sizes' follow


@jit
def page_number(vpn: int, leaf: int) -> int:
    """Return the number, in pages of the leaf's size, of the page that holds a 4K page."""
    return (vpn & VPN_MASK) >> (TABLE_SHIFT * (leaf - 1))


@jit
def key_of(number: int, level: int) -> int:
    """Return a page's entry without its owner."""
    return (number << LEVEL_BITS | level) << OWNER_BITS


@jit
def first_of(tlb: Tlb, number: int) -> int:
    """Return the first word, within a CPU's block, of the row a page belongs in."""
    row = number & tlb.mask if tlb.mask >= 0 else number % tlb.sets
    return tlb.offset + row * tlb.pitch


@jit
def lookup_or_fill(
    words: NDArray[np.int64], first: int, ways: int, key: int, root: int, owner: int
) -> bool:
    """Make a page the most recently used of its row; tell whether it was there. In place.

    Found is the most recently used entry of the page under `root` or GLOBAL; a new entry gets
    `owner`. Written without branches, for nobody can foresee them.
    """
    found = matches(words, first, ways, key | root, ALL) | matches(words, first, ways, key, ALL)
    way = lowest(found | 1 << (ways - 1))
    entry = words[at(first + way)]
    move(words, first, ways, way, entry if found != 0 else key | owner)
    return bool(found != 0)


@jit
def _row(words: NDArray[np.int64], first: int, ways: int, kept: int) -> None:
    """Empty what follows the first `kept` entries of a row, in place."""
    for word in range(first + kept, first + ways):
        words[word] = EMPTY


@jit_apart
def drop_page(words: NDArray[np.int64], base: int, tlb: Tlb, vpn: int, leaf: int) -> None:
    """Drop every entry, under any root, of the page of the leaf's size around `vpn`; in place.

    `base` is the first word of the CPU's block, here and below.
    """
    number = page_number(vpn, leaf)
    first = base + first_of(tlb, number)
    key = key_of(number, leaf) >> OWNER_BITS
    kept = 0
    for word in range(first, first + tlb.ways):
        if words[word] >> OWNER_BITS != key:
            words[first + kept] = words[word]
            kept += 1
    _row(words, first, tlb.ways, kept)


@jit_apart
def drop_splinters(words: NDArray[np.int64], base: int, tlb: Tlb, vpn: int) -> None:
    """Drop every 2M splinter of the 1G page around `vpn`, under any root; in place."""
    number = page_number(vpn, PUD)
    start = base + tlb.offset
    for first in range(start, start + tlb.sets * tlb.pitch, tlb.pitch):
        kept = 0
        for word in range(first, first + tlb.ways):
            page = words[word] >> OWNER_BITS
            if page & LEVEL_MASK != PUD or page >> (LEVEL_BITS + TABLE_SHIFT) != number:
                words[first + kept] = words[word]
                kept += 1
        _row(words, first, tlb.ways, kept)


@jit_apart
def drop_local(words: NDArray[np.int64], base: int, tlb: Tlb) -> None:
    """Drop everything but global entries, in place."""
    start = base + tlb.offset
    for first in range(start, start + tlb.sets * tlb.pitch, tlb.pitch):
        kept = 0
        for word in range(first, first + tlb.ways):
            if words[word] == EMPTY:
                break
            if words[word] & (OWNERS - 1) == GLOBAL:
                words[first + kept] = words[word]
                kept += 1
        _row(words, first, tlb.ways, kept)


@jit_apart
def clear(words: NDArray[np.int64], base: int, tlb: Tlb) -> None:
    """Drop everything, in place."""
    _row(words, base + tlb.offset, tlb.sets * tlb.pitch, 0)


@jit_apart
def invalidate_page(words: NDArray[np.int64], base: int, tlbs: Tlbs, vpn: int) -> None:
    """INVLPG: drop the page around `vpn` at every size, global or not, in place."""
    for leaf in range(PTE, PUD + 1):
        drop_page(words, base, tlbs[DTLB_4K + leaf - 1], vpn, leaf)
        if leaf < PUD:
            drop_page(words, base, tlbs[ITLB_4K + leaf - 1], vpn, leaf)
            drop_page(words, base, tlbs.stlb, vpn, leaf)
    drop_splinters(words, base, tlbs.itlb_2m, vpn)


@jit_apart
def switch_root(words: NDArray[np.int64], base: int, tlbs: Tlbs) -> None:
    """MOV to CR3 without PCID: drop everything but global entries, in place."""
    for tlb in tlbs:
        drop_local(words, base, tlb)


@jit_apart
def clear_all(words: NDArray[np.int64], base: int, tlbs: Tlbs) -> None:
    """Drop everything, in place."""
    for tlb in tlbs:
        clear(words, base, tlb)
