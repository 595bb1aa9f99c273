"""The kernel's virtual address layout: which region an address lies in, and R6's alignment.

>>> Region.MODULE_TEXT.name.lower()
'module_text'
"""

import dataclasses
from collections.abc import Mapping
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from numarep.linux.image import Image
from numarep.units import PAGE_SHIFT, PAGES_PER_PMD, PMD, PTE
from numarep.workload.trace import Flag, Pages, TraceError

# The replicated window: the top 2 GiB (kernel image, modules, fixmap), R5.
WINDOW_VPN = -(1 << 31) >> PAGE_SHIFT
# Modules lie above a 1 GiB image mapping. Source: KERNEL_IMAGE_SIZE with RANDOMIZE_BASE, and
# MODULES_END, in arch/x86/include/asm/{page_64_types,pgtable_64_types}.h.
MODULES_VPN = (-(1 << 30)) >> PAGE_SHIFT
MODULES_END_VPN = -0x1000000 >> PAGE_SHIFT


class Region(IntEnum):
    """What an address belongs to."""

    USER = 0
    TEXT = 1
    RODATA = 2
    DATA = 3
    MODULE_TEXT = 4
    MODULE_RODATA = 5
    MODULE_DATA = 6
    VMALLOC = 7
    DIRECT_MAP = 8
    PAGE_TABLES = 9  # frames that serve as page tables, reached through the direct map
    VMEMMAP = 10
    OTHER = 11


def regions(
    pages: Pages, image: Image, bases: Mapping[str, int], table_frames: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Classify translations, int64 like `pages.vpn`, values of `Region`.

    Parameters
    ----------
    pages : Pages
    image : Image
    bases : mapping
        Start addresses of `direct_map`, `vmalloc`, `vmemmap` and `cpu_entry_area`.
    table_frames : int64[n]
        Pfns of frames that serve as page tables.
    """
    vpn = pages.vpn
    text, rodata = image.replicated
    base = {name: address >> PAGE_SHIFT for name, address in bases.items()}
    executable = (pages.flags & Flag.EXECUTABLE) != 0
    writable = (pages.flags & Flag.WRITABLE) != 0
    module = (vpn >= MODULES_VPN) & (vpn < MODULES_END_VPN)
    direct = (vpn >= base["direct_map"]) & (vpn < base["vmalloc"])
    choices = (
        (vpn >= 0, Region.USER),
        (text.holds(vpn), Region.TEXT),
        (rodata.holds(vpn), Region.RODATA),
        (image.whole.holds(vpn), Region.DATA),
        (module & executable, Region.MODULE_TEXT),
        (module & ~writable, Region.MODULE_RODATA),
        (module, Region.MODULE_DATA),
        (direct & np.isin(pages.pfn, table_frames), Region.PAGE_TABLES),
        (direct, Region.DIRECT_MAP),
        ((vpn >= base["vmemmap"]) & (vpn < base["cpu_entry_area"]), Region.VMEMMAP),
        ((vpn >= base["vmalloc"]) & (vpn < base["vmemmap"]), Region.VMALLOC),
    )
    masks, values = zip(*choices, strict=True)
    region: NDArray[np.int64] = np.select(masks, [np.int64(v) for v in values], Region.OTHER)
    return region


def aligned(pages: Pages, image: Image) -> Pages:
    """Map text and rodata in whole 2 MiB leaves, as the series' linker script does (R6).

    The stock kernel maps the partly filled last 2 MiB of text and rodata in 4 KiB pages; no
    address moves, only the leaf grows, so walks there read one level less.

    Raises
    ------
    TraceError
        If the frames of such a page do not lie where a 2 MiB leaf would put them.
    """
    inside = np.zeros(len(pages.vpn), dtype=np.bool_)
    for section in image.replicated:
        inside |= section.holds(pages.vpn)
    inside &= pages.leaf > 0
    image_offset = np.unique((pages.pfn - pages.vpn)[inside])
    if len(image_offset) > 1 or (image_offset % PAGES_PER_PMD).any():
        raise TraceError("text and rodata: expected one contiguous, 2 MiB aligned physical image")
    small = inside & (pages.leaf == PTE)
    table = pages.table.copy()
    table[small, PTE - 1] = -1
    leaf = np.where(small, PMD, pages.leaf).astype(np.uint8)
    return dataclasses.replace(pages, leaf=leaf, table=table)
