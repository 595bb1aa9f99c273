"""TLBs and paging-structure caches: page numbers looked up under a root.

A `Tlb` is a set-associative array in recency order (see `recency`) of tags and, in parallel, the
roots they belong to. A tag is `page number << 3 | level`, so that the STLB can hold 4K and 2M
pages side by side; page numbers are those of the unsigned 57-bit va. The row is
`page number % sets`. Entries of global pages carry GLOBAL instead of a root and match under any.

Source: SDM vol. 3A 4.10.2 (TLBs, global pages), 4.10.2.3 (a 1G page may be cached as smaller
splinters), 4.10.4.1 (what INVLPG and MOV to CR3 invalidate; INVLPG drops every entry of the page,
splinters and global entries too).
Left out: the frame is not part of an entry, so a stale entry still leads to the stream's frame;
PCIDs: every CR3 write flushes what is not global.

>>> words = np.full(4, EMPTY)
>>> tlb = Tlb(offset=0, sets=1, ways=2, roots=2)
>>> fill(words, 0, tlb, 7, 1, GLOBAL), lookup(words, 0, tlb, 7, 1, 42)
(None, True)
>>> lookup(words, 0, tlb, 7, 2, 42)
False
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.recency import EMPTY
from numarep.units import PMD, PTE, PUD, TABLE_SHIFT

GLOBAL = -2
LEVEL_BITS = 3
LEVEL_MASK = (1 << LEVEL_BITS) - 1
VPN_MASK = (1 << 45) - 1  # of a 57-bit va


class Tlb(NamedTuple):
    """One TLB's or PSC's place in every CPU's block (see `view`).

    A tag (page number << 3 | level, or EMPTY) has its root (pfn of the top table, GLOBAL, or EMPTY
    with the tag) `roots` words further on.
    """

    offset: int
    sets: int
    ways: int
    roots: int


@jit
def page_number(vpn: int, leaf: int) -> int:
    """Return the number, in pages of the leaf's size, of the page that holds a 4K page."""
    return (vpn & VPN_MASK) >> (TABLE_SHIFT * (leaf - 1))


@jit
def lookup(
    words: NDArray[np.int64], base: int, tlb: Tlb, number: int, leaf: int, root: int
) -> bool:
    """Tell whether a page is cached under `root`; a hit moves to the front, in place.

    `base` is the first word of the CPU's block, here and below.
    """
    first = base + tlb.offset + number % tlb.sets * tlb.ways
    tag = number << LEVEL_BITS | leaf
    for word in range(first, first + tlb.ways):
        if words[word] == tag:
            owner = words[word + tlb.roots]
            if owner in (root, GLOBAL):
                _insert(words, first, word, tlb.roots, tag, owner)
                return True
    return False


@jit
def fill(words: NDArray[np.int64], base: int, tlb: Tlb, number: int, leaf: int, root: int) -> None:
    """Cache a page as most recently used under `root` (or GLOBAL), in place."""
    first = base + tlb.offset + number % tlb.sets * tlb.ways
    _insert(words, first, first + tlb.ways - 1, tlb.roots, number << LEVEL_BITS | leaf, root)


@jit
def _insert(
    words: NDArray[np.int64], first: int, word: int, roots: int, tag: int, root: int
) -> None:
    """Overwrite the entry at `word` and move it to the front of its row."""
    for later in range(word, first, -1):
        words[later] = words[later - 1]
        words[later + roots] = words[later + roots - 1]
    words[first] = tag
    words[first + roots] = root


@jit
def _keep(words: NDArray[np.int64], tlb: Tlb, kept: int, word: int) -> int:
    """Slide the entry at `word` to `kept` in a row being compacted; return the next place."""
    words[kept] = words[word]
    words[kept + tlb.roots] = words[word + tlb.roots]
    return kept + 1


@jit
def _blank(words: NDArray[np.int64], tlb: Tlb, kept: int, end: int) -> None:
    """Empty the rest of a row."""
    for word in range(kept, end):
        words[word] = EMPTY
        words[word + tlb.roots] = EMPTY


@jit
def drop_page(words: NDArray[np.int64], base: int, tlb: Tlb, vpn: int, leaf: int) -> None:
    """Drop every entry, under any root, of the page of the leaf's size around `vpn`; in place."""
    number = page_number(vpn, leaf)
    first = base + tlb.offset + number % tlb.sets * tlb.ways
    kept = first
    for word in range(first, first + tlb.ways):
        if words[word] != number << LEVEL_BITS | leaf:
            kept = _keep(words, tlb, kept, word)
    _blank(words, tlb, kept, first + tlb.ways)


@jit
def drop_splinters(words: NDArray[np.int64], base: int, tlb: Tlb, vpn: int) -> None:
    """Drop every 2M splinter of the 1G page around `vpn`, under any root; in place."""
    number = page_number(vpn, PUD)
    for row in range(tlb.sets):
        first = base + tlb.offset + row * tlb.ways
        kept = first
        for word in range(first, first + tlb.ways):
            is_splinter = words[word] & LEVEL_MASK == PUD
            if not is_splinter or words[word] >> (LEVEL_BITS + TABLE_SHIFT) != number:
                kept = _keep(words, tlb, kept, word)
        _blank(words, tlb, kept, first + tlb.ways)


@jit
def drop_local(words: NDArray[np.int64], base: int, tlb: Tlb) -> None:
    """Drop everything but global entries, in place."""
    for row in range(tlb.sets):
        first = base + tlb.offset + row * tlb.ways
        kept = first
        for word in range(first, first + tlb.ways):
            if words[word] == EMPTY:
                break
            if words[word + tlb.roots] == GLOBAL:
                kept = _keep(words, tlb, kept, word)
        _blank(words, tlb, kept, first + tlb.ways)


@jit
def clear(words: NDArray[np.int64], base: int, tlb: Tlb) -> None:
    """Drop everything, in place."""
    for word in range(base + tlb.offset, base + tlb.offset + tlb.sets * tlb.ways):
        words[word] = EMPTY
        words[word + tlb.roots] = EMPTY


class Found(IntEnum):
    """Where a translation was found."""

    NOWHERE = 0
    NEAR = 1  # in the first-level TLB of its side and size
    STLB = 2


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
def first_level(is_fetch: bool, leaf: int) -> int:
    """Return which first-level TLB caches a leaf; the ITLB holds 1G pages as 2M splinters."""
    if is_fetch:
        return min(ITLB_4K + leaf - 1, ITLB_2M)
    return DTLB_4K + leaf - 1


@jit
def find_page(
    words: NDArray[np.int64],
    base: int,
    tlbs: Tlbs,
    is_fetch: bool,
    vpn: int,
    leaf: int,
    root: int,
    owner: int,
) -> int:
    """Look a page up at both levels and fill those that miss, in place.

    Returns
    -------
    int
        A `Found`.
    """
    near = tlbs[first_level(is_fetch, leaf)]
    # A splinter has the number of a 2M page and the tag of a 1G leaf, which INVLPG looks for.
    number = page_number(vpn, min(leaf, PMD) if is_fetch else leaf)
    if lookup(words, base, near, number, leaf, root):
        return Found.NEAR.value
    fill(words, base, near, number, leaf, owner)
    if leaf == PUD:
        return Found.NOWHERE.value
    if lookup(words, base, tlbs.stlb, number, leaf, root):
        return Found.STLB.value
    fill(words, base, tlbs.stlb, number, leaf, owner)
    return Found.NOWHERE.value


@jit
def invalidate_page(words: NDArray[np.int64], base: int, tlbs: Tlbs, vpn: int) -> None:
    """INVLPG: drop the page around `vpn` at every size, global or not, in place."""
    for leaf in range(PTE, PUD + 1):
        drop_page(words, base, tlbs[DTLB_4K + leaf - 1], vpn, leaf)
        if leaf < PUD:
            drop_page(words, base, tlbs[ITLB_4K + leaf - 1], vpn, leaf)
            drop_page(words, base, tlbs.stlb, vpn, leaf)
    drop_splinters(words, base, tlbs.itlb_2m, vpn)


@jit
def switch_root(words: NDArray[np.int64], base: int, tlbs: Tlbs) -> None:
    """MOV to CR3 without PCID: drop everything but global entries, in place."""
    for tlb in tlbs:
        drop_local(words, base, tlb)


@jit
def clear_all(words: NDArray[np.int64], base: int, tlbs: Tlbs) -> None:
    """Drop everything, in place."""
    for tlb in tlbs:
        clear(words, base, tlb)
