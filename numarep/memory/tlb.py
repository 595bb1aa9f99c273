"""TLBs and paging-structure caches: page numbers looked up under a root.

A `Tlb` is a set-associative array in recency order (see `recency`) of tags and, in parallel, the
roots they belong to. A tag is `page number << 2 | leaf level`, so that the STLB can hold 4K and 2M
pages side by side; page numbers are those of the unsigned 57-bit va. The row is
`page number % sets`. Entries of global pages carry GLOBAL instead of a root and match under any.

Source: SDM vol. 3A 4.10.2 (TLBs, global pages), 4.10.2.3 (a 1G page may be cached as smaller
splinters), 4.10.4.1 (what INVLPG and MOV to CR3 invalidate; INVLPG drops every entry of the page,
splinters and global entries too).
Left out: the frame is not part of an entry, so a stale entry still leads to the stream's frame;
PCIDs: every CR3 write flushes what is not global.

>>> tlb = Tlb(np.full((1, 2), EMPTY), np.full((1, 2), EMPTY))
>>> fill(tlb, 7, 1, GLOBAL), lookup(tlb, 7, 1, 42), lookup(tlb, 7, 2, 42)
(None, True, False)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.recency import EMPTY
from numarep.units import PMD, PTE, PUD, TABLE_SHIFT

GLOBAL = -2
LEAF_BITS = 2
VPN_MASK = (1 << 45) - 1  # of a 57-bit va


class Tlb(NamedTuple):
    """One TLB or PSC.

    tag : int64[sets, ways]; page number << 2 | leaf, EMPTY if none.
    root : int64[sets, ways]; pfn of the top table, GLOBAL, or EMPTY with the tag.
    """

    tag: NDArray[np.int64]
    root: NDArray[np.int64]


@jit
def page_number(vpn: int, leaf: int) -> int:
    """Return the number, in pages of the leaf's size, of the page that holds a 4K page."""
    return (vpn & VPN_MASK) >> (TABLE_SHIFT * (leaf - 1))


@jit
def lookup(tlb: Tlb, number: int, leaf: int, root: int) -> bool:
    """Tell whether a page is cached under `root`; a hit moves to the front, in place."""
    row = number % tlb.tag.shape[0]
    tag = number << LEAF_BITS | leaf
    for way in range(tlb.tag.shape[1]):
        if tlb.tag[row, way] == tag:
            owner = tlb.root[row, way]
            if owner in (root, GLOBAL):
                _insert(tlb, row, way, tag, owner)
                return True
    return False


@jit
def fill(tlb: Tlb, number: int, leaf: int, root: int) -> None:
    """Cache a page as most recently used under `root` (or GLOBAL), in place."""
    row = number % tlb.tag.shape[0]
    _insert(tlb, row, tlb.tag.shape[1] - 1, number << LEAF_BITS | leaf, root)


@jit
def _insert(tlb: Tlb, row: int, way: int, tag: int, root: int) -> None:
    """Overwrite the entry at `way` and move it to the front."""
    for later in range(way, 0, -1):
        tlb.tag[row, later] = tlb.tag[row, later - 1]
        tlb.root[row, later] = tlb.root[row, later - 1]
    tlb.tag[row, 0] = tag
    tlb.root[row, 0] = root


@jit
def _keep(tlb: Tlb, row: int, kept: int, way: int) -> int:
    """Slide the entry at `way` to place `kept` of a row being compacted; return the next."""
    tlb.tag[row, kept] = tlb.tag[row, way]
    tlb.root[row, kept] = tlb.root[row, way]
    return kept + 1


@jit
def _blank(tlb: Tlb, row: int, kept: int) -> None:
    """Empty a row from place `kept` on."""
    for way in range(kept, tlb.tag.shape[1]):
        tlb.tag[row, way] = EMPTY
        tlb.root[row, way] = EMPTY


@jit
def drop_page(tlb: Tlb, vpn: int, leaf: int) -> None:
    """Drop every entry, under any root, of the page of the leaf's size around `vpn`; in place."""
    number = page_number(vpn, leaf)
    row = number % tlb.tag.shape[0]
    tag = number << LEAF_BITS | leaf
    kept = 0
    for way in range(tlb.tag.shape[1]):
        if tlb.tag[row, way] != tag:
            kept = _keep(tlb, row, kept, way)
    _blank(tlb, row, kept)


@jit
def drop_splinters(tlb: Tlb, vpn: int) -> None:
    """Drop every 2M splinter of the 1G page around `vpn`, under any root; in place."""
    number = page_number(vpn, PUD)
    for row in range(tlb.tag.shape[0]):
        kept = 0
        for way in range(tlb.tag.shape[1]):
            tag = tlb.tag[row, way]
            is_splinter = tag & PUD == PUD and tag >> (LEAF_BITS + TABLE_SHIFT) == number
            if tag == EMPTY or not is_splinter:
                kept = _keep(tlb, row, kept, way)
        _blank(tlb, row, kept)


@jit
def drop_local(tlb: Tlb) -> None:
    """Drop everything but global entries, in place."""
    for row in range(tlb.tag.shape[0]):
        kept = 0
        for way in range(tlb.tag.shape[1]):
            if tlb.tag[row, way] == EMPTY:
                break
            if tlb.root[row, way] == GLOBAL:
                kept = _keep(tlb, row, kept, way)
        _blank(tlb, row, kept)


@jit
def clear(tlb: Tlb) -> None:
    """Drop everything, in place."""
    tlb.tag[:] = EMPTY
    tlb.root[:] = EMPTY


class Tlbs(NamedTuple):
    """The TLBs of one CPU: first level by page size, second level shared by 4K and 2M."""

    itlb_4k: Tlb
    itlb_2m: Tlb
    dtlb_4k: Tlb
    dtlb_2m: Tlb
    dtlb_1g: Tlb
    stlb: Tlb


@jit
def lookup_fetch(tlbs: Tlbs, vpn: int, leaf: int, root: int) -> bool:
    """Look up the ITLB; 1G pages are cached there as 2M splinters, marked as such."""
    if leaf == PTE:
        return lookup(tlbs.itlb_4k, page_number(vpn, PTE), PTE, root)
    return lookup(tlbs.itlb_2m, page_number(vpn, PMD), leaf, root)


@jit
def fill_fetch(tlbs: Tlbs, vpn: int, leaf: int, root: int) -> None:
    """Fill the ITLB, in place."""
    if leaf == PTE:
        fill(tlbs.itlb_4k, page_number(vpn, PTE), PTE, root)
    else:
        fill(tlbs.itlb_2m, page_number(vpn, PMD), leaf, root)


@jit
def lookup_data(tlbs: Tlbs, vpn: int, leaf: int, root: int) -> bool:
    """Look up the DTLB of the page's size."""
    number = page_number(vpn, leaf)
    if leaf == PTE:
        return lookup(tlbs.dtlb_4k, number, leaf, root)
    if leaf == PMD:
        return lookup(tlbs.dtlb_2m, number, leaf, root)
    return lookup(tlbs.dtlb_1g, number, leaf, root)


@jit
def fill_data(tlbs: Tlbs, vpn: int, leaf: int, root: int) -> None:
    """Fill the DTLB of the page's size, in place."""
    number = page_number(vpn, leaf)
    if leaf == PTE:
        fill(tlbs.dtlb_4k, number, leaf, root)
    elif leaf == PMD:
        fill(tlbs.dtlb_2m, number, leaf, root)
    else:
        fill(tlbs.dtlb_1g, number, leaf, root)


@jit
def invalidate_page(tlbs: Tlbs, vpn: int) -> None:
    """INVLPG: drop the page around `vpn` at every size, global or not, in place."""
    drop_page(tlbs.itlb_4k, vpn, PTE)
    drop_page(tlbs.itlb_2m, vpn, PMD)
    drop_splinters(tlbs.itlb_2m, vpn)
    drop_page(tlbs.dtlb_4k, vpn, PTE)
    drop_page(tlbs.dtlb_2m, vpn, PMD)
    drop_page(tlbs.dtlb_1g, vpn, PUD)
    drop_page(tlbs.stlb, vpn, PTE)
    drop_page(tlbs.stlb, vpn, PMD)


@jit
def switch_root(tlbs: Tlbs) -> None:
    """MOV to CR3 without PCID: drop everything but global entries, in place."""
    drop_local(tlbs.itlb_4k)
    drop_local(tlbs.itlb_2m)
    drop_local(tlbs.dtlb_4k)
    drop_local(tlbs.dtlb_2m)
    drop_local(tlbs.dtlb_1g)
    drop_local(tlbs.stlb)


@jit
def clear_all(tlbs: Tlbs) -> None:
    """Drop everything, in place."""
    clear(tlbs.itlb_4k)
    clear(tlbs.itlb_2m)
    clear(tlbs.dtlb_4k)
    clear(tlbs.dtlb_2m)
    clear(tlbs.dtlb_1g)
    clear(tlbs.stlb)
