"""Diagnostics like the kernel's own debugfs and sysfs files: tables of a range, statistics (R37).

>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=2).booted()
>>> print(as_text(dump(kernel, -512, -511)))
vpn              node  PGD     PUD     PMD     PTE     frame   flags
ffffffffffe00    0     0x8000  0x8002  0x8004  -       -       not mapped
ffffffffffe00    1     0x40802 0x40801 0x40800 -       -       not mapped
>>> vpn = kernel.image.text.start >> 12
>>> text = as_frame(dump(kernel, vpn, vpn + 2))
>>> text.select("va", "node", "frame", "flags").rows()  # doctest: +NORMALIZE_WHITESPACE
[('ffffffff81000000', 0, 4096, '-x--'), ('ffffffff81000000', 1, 262144, '-x--'),
 ('ffffffff81001000', 0, 4097, '-x--'), ('ffffffff81001000', 1, 262145, '-x--')]
>>> found = statistics_frame(kernel, max_numnodes=1024)
>>> found.filter(pl.col("name").str.ends_with("_bytes")).rows()
[('padding_bytes', 2080768), ('static_bytes', 8388608), ('tables_bytes', 20480)]
"""

from typing import NamedTuple

import polars as pl

from numarep.linux.tables import entry_index
from numarep.replication.account import account
from numarep.replication.kernel import Kernel
from numarep.units import PAGE_SHIFT, PTE
from numarep.workload.trace import Flag

_LEVELS = ("pgd", "p4d", "pud", "pmd", "pte")
_LETTERS = ((Flag.WRITABLE, "w"), (Flag.EXECUTABLE, "x"), (Flag.USER, "u"), (Flag.GLOBAL, "g"))


class Line(NamedTuple):
    """What one node's tables say of one page: tables read from the PGD down, frame and flags."""

    vpn: int
    node: int
    tables: tuple[int, ...]
    pfn: int | None  # None: not mapped
    flags: str


def dump(kernel: Kernel, first_vpn: int, end_vpn: int) -> list[Line]:
    """Walk every page of [first_vpn, end_vpn) in every memory node's tables (ptdump)."""
    lines = []
    for vpn in range(first_vpn, end_vpn):
        for node in kernel.replica_nodes:
            root = kernel.pgd_numa(node)
            tables = tuple(table for _, table in _read(kernel, root, vpn))
            found = kernel.tables.walk(root, vpn)
            pfn, flags = (None, "not mapped") if found is None else (found.pfn, _text(found.flags))
            lines.append(Line(vpn, node, tables, pfn, flags))
    return lines


def _read(kernel: Kernel, root: int, vpn: int) -> list[tuple[int, int]]:
    """List (level, table) that a walk reads, down to the leaf or hole."""
    found = kernel.tables.walk(root, vpn)
    bottom = PTE if found is None else found.leaf
    return [
        (level, table)
        for level, table in kernel.path(root, vpn, bottom)
        if table in kernel.tables.pages and entry_index(vpn, level) >= 0
    ]


def _text(flags: int) -> str:
    return "".join(letter if flags & flag else "-" for flag, letter in _LETTERS)


def as_text(lines: list[Line]) -> str:
    """Format a dump as a table."""
    levels = ["PGD", "PUD", "PMD", "PTE"]
    if any(len(line.tables) > len(levels) for line in lines):
        levels.insert(1, "P4D")
    head = ["vpn".ljust(16), "node ", *(name.ljust(7) for name in levels), "frame  ", "flags"]
    rows = [" ".join(head)]
    for line in lines:
        tables = [f"{table:#x}" for table in line.tables]
        cells = [*tables, *"-" * (len(levels) - len(tables))]
        frame = "-" if line.pfn is None else f"{line.pfn:#x}"
        va = f"{line.vpn & ((1 << 52) - 1):x}".ljust(16)
        rows.append(
            " ".join([va, str(line.node).ljust(5), *(c.ljust(7) for c in (*cells, frame))])
            + f" {line.flags}"
        )
    return "\n".join(rows)


def as_frame(lines: list[Line]) -> pl.DataFrame:
    """Return a dump as a frame.

    Returns
    -------
    DataFrame
        `va` in hexadecimal, `node`; `pgd`, `p4d`, `pud`, `pmd` and `pte`, the frame of the table
        read at each level; `frame`, that the page is mapped to; null where nothing is; `flags`.
    """
    rows = []
    for line in lines:
        levels = _LEVELS if len(line.tables) == len(_LEVELS) else _LEVELS[:1] + _LEVELS[2:]
        tables = dict(zip(levels, line.tables, strict=False))
        va = f"{(line.vpn << PAGE_SHIFT) & ((1 << 64) - 1):016x}"
        rows.append({"va": va, "node": line.node, "frame": line.pfn, "flags": line.flags} | tables)
    numbers = dict.fromkeys((*_LEVELS, "frame"), pl.Int64)
    schema = {"va": pl.String, "node": pl.Int64, **numbers, "flags": pl.String}
    return pl.DataFrame(rows, schema=schema)


def statistics_frame(kernel: Kernel, max_numnodes: int) -> pl.DataFrame:
    """Return `statistics` as a frame of `name` and `value`."""
    rows = statistics(kernel, max_numnodes)
    return pl.DataFrame(rows, schema={"name": pl.String, "value": pl.Int64}, orient="row")


def statistics(kernel: Kernel, max_numnodes: int) -> list[tuple[str, int]]:
    """List what the kernel would publish: nodes, processes, areas, and bytes by mechanism."""
    rows = [
        ("memory_nodes", len(kernel.replica_nodes)),
        ("processes", len(kernel.mms)),
        ("pgds", sum(len(set(mm.pgd.values())) for mm in kernel.mms)),
        ("areas", len(kernel.areas)),
        ("replicated_areas", sum(bool(area.replicas) for area in kernel.areas)),
        ("replicated_leaves", len(kernel.replicated)),
    ]
    sizes: dict[str, int] = {}
    for row in account(kernel, max_numnodes):
        sizes[row.mechanism] = sizes.get(row.mechanism, 0) + row.bytes
    return rows + [(f"{name}_bytes", size) for name, size in sorted(sizes.items())]
