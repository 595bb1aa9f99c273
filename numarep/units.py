"""Sizes, shifts and unit conversions of x86-64: the constants every layer shares.

>>> cycles_to_ns(26.0, ghz=2.6)
10.0
"""

from collections.abc import Iterator

LINE_SHIFT = 6
LINE_BYTES = 1 << LINE_SHIFT
PAGE_SHIFT = 12
PAGE_BYTES = 1 << PAGE_SHIFT
PMD_SHIFT = 21
PMD_BYTES = 1 << PMD_SHIFT
PUD_SHIFT = 30
LINES_PER_PAGE = PAGE_BYTES // LINE_BYTES
PAGES_PER_PMD = PMD_BYTES // PAGE_BYTES

# Page-table levels, counted from the leaf: a walk reads PGD (4 or 5) down to PTE (1).
PTE, PMD, PUD, P4D, PGD5 = 1, 2, 3, 4, 5
MAX_LEVELS = 5
TABLE_SHIFT = 9
TABLE_ENTRIES = 1 << TABLE_SHIFT
ENTRY_BYTES = 8

_PART = 1 << 18


def parts(count: int) -> Iterator[slice]:
    """Yield slices of so many records: what is made of one by the way is small beside them all.

    >>> list(parts(3))
    [slice(0, 3, None)]
    """
    for start in range(0, count, _PART):
        yield slice(start, min(start + _PART, count))


def shown(va: int) -> str:
    """Return an address as the kernel prints it; kernel addresses are negative here.

    >>> shown(-(1 << 31))
    '0xffffffff80000000'
    """
    return f"{va & ((1 << 64) - 1):#x}"


def cycles_to_ns(cycles: float, *, ghz: float) -> float:
    """Convert core cycles to nanoseconds at a clock of `ghz`."""
    return cycles / ghz
