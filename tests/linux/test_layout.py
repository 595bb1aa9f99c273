"""Regions of the address space, and the alignment of R6."""

import dataclasses

import numpy as np
import pytest

from numarep.linux.image import image_from_symbols
from numarep.linux.layout import Region, aligned, regions
from numarep.linux.tables import PageTables, large_entry, tables_from_snapshot
from numarep.replication.boot import align_tables
from numarep.units import PAGE_SHIFT, PMD, PTE
from numarep.workload.trace import Pages, TraceError
from tests.kernels import BASES, MODULE_VA, SmallKernel


def split_leaf(kernel: SmallKernel, vpn: int) -> PageTables:
    """Map the 2 MiB leaf around `vpn` in 4 KiB pages, as a stock kernel does at the tail."""
    found = kernel.tables.walk(kernel.swapper, vpn)
    first = vpn & ~511
    page_table = 0x7000
    for index in range(512):
        entry = ((found.pfn & ~511) + index) << PAGE_SHIFT | 1
        kernel.tables.set_entry(PTE, page_table, index, entry)
    pmd_index = (first >> 9) & 511
    kernel.tables.set_entry(PMD, found.table[PMD - 1], pmd_index, page_table << PAGE_SHIFT | 1)
    return kernel.tables


def test_regions_name_what_an_address_belongs_to() -> None:
    kernel = SmallKernel()
    pages = kernel.pages(kernel.roots[1])
    tables = np.unique(pages.table)
    region = regions(pages, kernel.image, BASES, tables)
    by_vpn = dict(zip(pages.vpn.tolist(), region.tolist(), strict=True))
    assert by_vpn[0x400] == Region.USER
    assert by_vpn[kernel.image.text.start >> PAGE_SHIFT] == Region.TEXT
    assert by_vpn[MODULE_VA >> PAGE_SHIFT] == Region.MODULE_TEXT
    assert by_vpn[BASES["vmemmap"] >> PAGE_SHIFT] == Region.VMEMMAP
    assert by_vpn[(BASES["direct_map"] >> PAGE_SHIFT) + 77] == Region.DIRECT_MAP
    with_table = np.append(tables, 77)
    again = regions(pages, kernel.image, BASES, with_table)
    assert Region.PAGE_TABLES in again.tolist()


def test_r6_alignment_grows_leaves_and_moves_nothing() -> None:
    kernel = SmallKernel()
    tail = (kernel.image.text.end - 1) >> PAGE_SHIFT
    split_leaf(kernel, tail)
    kernel.vpns = lambda: [tail, tail - 3]
    before = kernel.pages(kernel.swapper)
    assert before.leaf.tolist() == [PTE, PTE]
    after = aligned(before, kernel.image)
    assert after.leaf.tolist() == [PMD, PMD]
    assert (after.table[:, 0] == -1).all()
    np.testing.assert_array_equal(after.pfn, before.pfn)
    align_tables(kernel.tables, kernel.image, kernel.swapper)
    walked = kernel.pages(kernel.swapper)
    for field in dataclasses.fields(Pages):
        np.testing.assert_array_equal(getattr(after, field.name), getattr(walked, field.name))


def test_r6_a_scattered_image_is_refused() -> None:
    kernel = SmallKernel()
    pages = kernel.pages(kernel.swapper)
    text = np.flatnonzero(kernel.image.text.holds(pages.vpn))
    pages.pfn[text[0]] += 512
    with pytest.raises(TraceError, match="contiguous"):
        aligned(pages, kernel.image)


def test_image_needs_its_section_bounds() -> None:
    symbols = SmallKernel().symbols()
    assert image_from_symbols(symbols) == SmallKernel().image
    with pytest.raises(TraceError, match="_text missing"):
        image_from_symbols(symbols.slice(1))


def test_tables_survive_the_snapshot() -> None:
    kernel = SmallKernel(levels=5)
    again = tables_from_snapshot(kernel.snapshot("fork_1"), 5)
    assert again.pages == kernel.tables.pages
    assert again.roots() == kernel.tables.roots()


@pytest.mark.parametrize("flags", range(16))
def test_large_entries_carry_their_permissions(flags: int) -> None:
    tables = PageTables(4)
    for level, pfn in ((4, 6), (3, 7)):
        tables.set_entry(level, pfn, 0, (pfn + 1) << PAGE_SHIFT | 0x107)
    tables.set_entry(2, 8, 0, large_entry(1024, flags))
    assert tables.walk(6, 3).flags == flags
