"""Diagnostics like the kernel's own debugfs and sysfs files: tables of a range, statistics (R37).

Like the kernel's ptdump a dump has a line a stretch: neighbouring pages that one node's tables map
alike, through the same table pages, to neighbouring frames. `numarep.sweep.dump` is the command.

>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=2).booted()
>>> text = kernel.image.replicated[0].start >> PAGE_SHIFT
>>> print(as_text(dump(kernel, text - 512, text + 514)))
from             to               node pgd      pud      pmd      pte      leaf frame    flags
ffffffff80e00000 ffffffff81000000 0    0x8000   0x8002   0x8003   -        -    -        not mapped
ffffffff80e00000 ffffffff81000000 1    0x40802  0x40801  0x40805  -        -    -        not mapped
ffffffff81000000 ffffffff81202000 0    0x8000   0x8002   0x8003   -        2M   0x1000   -x--
ffffffff81000000 ffffffff81202000 1    0x40802  0x40801  0x40805  -        2M   0x40000  -x--
>>> as_frame(dump(kernel, text, text + 514, nodes=[1])).select("from", "node", "frame").rows()
[('ffffffff81000000', 1, 262144)]
>>> found = statistics_frame(kernel, max_numnodes=1024)
>>> found.filter(pl.col("name").str.contains("^[a-z]+_bytes")).rows()
[('padding_bytes', 2080768), ('static_bytes', 8388608), ('tables_bytes', 20480)]
>>> found.row(-1)
('kernel.tables.node1_bytes', 20480)
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from numarep.linux.tables import LARGE, entry_index
from numarep.replication.account import account_by_owner
from numarep.replication.hotplug import lacking
from numarep.replication.kernel import Area, Kernel
from numarep.units import MAX_LEVELS, P4D, PAGE_SHIFT, PMD, PTE, PUD, TABLE_SHIFT
from numarep.workload.trace import Flag

_LEVELS = ("pgd", "p4d", "pud", "pmd", "pte")
_LEAVES = {PTE: "4K", PMD: "2M", PUD: "1G"}
_LETTERS = ((Flag.WRITABLE, "w"), (Flag.EXECUTABLE, "x"), (Flag.USER, "u"), (Flag.GLOBAL, "g"))
_WIDTHS = {"from": 16, "to": 16, "node": 4, **dict.fromkeys(_LEVELS, 8), "leaf": 4, "frame": 8}


class Line(NamedTuple):
    """What one node's tables say of the pages [vpn, end)."""

    vpn: int
    end: int
    node: int
    tables: tuple[int | None, ...]  # read at each level, as in `_LEVELS`; None: none there
    leaf: int | None  # level of the entries; None: not mapped
    pfn: int | None  # of the first page
    flags: str

    def joined(self, after: "Line") -> "Line | None":
        """Return both lines as one, or None where the next does not go on as this one does."""
        alike = self[2:5] == after[2:5] and self.flags == after.flags
        goes_on = self.pfn is None or after.pfn == self.pfn + self.end - self.vpn
        return self._replace(end=after.end) if alike and goes_on else None


def dump(kernel: Kernel, first_vpn: int, end_vpn: int, nodes: Iterable[int] = ()) -> list[Line]:
    """Walk the pages [first_vpn, end_vpn) in memory nodes' tables, all by default (ptdump).

    Returns
    -------
    list of Line
        By address, and by node where stretches of several begin alike.
    """
    chosen = [*nodes] or kernel.replica_nodes
    lines = [line for node in chosen for line in _stretches(kernel, node, first_vpn, end_vpn)]
    return sorted(lines, key=lambda line: (line.vpn, line.node))


def _stretches(kernel: Kernel, node: int, vpn: int, end: int) -> Iterator[Line]:
    """Yield a node's lines, neighbouring ones that go on alike joined."""
    last: Line | None = None
    while vpn < end:
        line = _line(kernel, node, vpn, end)
        vpn = line.end
        both = last.joined(line) if last else line
        if both is None:
            assert last is not None
            yield last
        last = both or line
    if last:
        yield last


def _line(kernel: Kernel, node: int, vpn: int, end: int) -> Line:
    """Read the entry, or the hole, that a page's walk ends at."""
    root, read = kernel.pgd_numa(node), dict[int, int]()
    for level, table in kernel.path(root, vpn, PTE):
        read[level] = table
        if _is_leaf(kernel, table, vpn, level):
            break
    pages = 1 << (TABLE_SHIFT * (level - 1))
    stop = min(end, vpn - vpn % pages + pages)
    top = kernel.tables.levels
    p4d = read.get(P4D) if top == MAX_LEVELS else None
    tables = (read[top], p4d, *(read.get(below) for below in (PUD, PMD, PTE)))
    found = kernel.tables.walk(root, vpn)
    if found is None:
        return Line(vpn, stop, node, tables, None, None, "not mapped")
    return Line(vpn, stop, node, tables, found.leaf, found.pfn, _text(found.flags))


def _is_leaf(kernel: Kernel, table: int, vpn: int, level: int) -> bool:
    return level == PTE or bool(kernel.tables.entry(table, entry_index(vpn, level)) & LARGE)


def _text(flags: int) -> str:
    return "".join(letter if flags & flag else "-" for flag, letter in _LETTERS)


def _hex(vpn: int) -> str:
    return f"{(vpn << PAGE_SHIFT) % (1 << 64) if vpn else 1 << 64:016x}"


def as_text(lines: list[Line]) -> str:
    """Format a dump as a table, with the columns of `as_frame`; without one that is empty."""
    frame = as_frame(lines)
    columns = [c for c in frame.columns if c != "p4d" or frame[c].count()]
    rows = [columns, *([_cell(row[c], c) for c in columns] for row in frame.to_dicts())]
    padded = (
        [cell.ljust(_WIDTHS.get(c, 0)) for cell, c in zip(r, columns, strict=True)] for r in rows
    )
    return "\n".join(" ".join(row).rstrip() for row in padded)


def _cell(value: object, column: str) -> str:
    if value is None:
        return "-"
    return f"{value:#x}" if column in (*_LEVELS, "frame") else str(value)


def as_frame(lines: list[Line]) -> pl.DataFrame:
    """Return a dump as a frame.

    Returns
    -------
    DataFrame
        `from` and `to`, addresses in hexadecimal; `node`; `pgd`, `p4d`, `pud`, `pmd` and `pte`,
        the frame of the table read at each level; `leaf`, the size of a page; `frame`, that the
        first page is mapped to; null where nothing is; `flags`.
    """
    numbers = dict.fromkeys(_LEVELS, pl.Int64)
    schema = {"from": pl.String, "to": pl.String, "node": pl.Int64, **numbers}
    schema |= {"leaf": pl.String, "frame": pl.Int64, "flags": pl.String}
    rows = [
        (_hex(vpn), _hex(end), node, *tables, leaf and _LEAVES[leaf], pfn, flags)
        for vpn, end, node, tables, leaf, pfn, flags in lines
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


def statistics_frame(
    kernel: Kernel,
    max_numnodes: int,
    modules: Mapping[str, Sequence[Area]] | None = None,
    labels: Sequence[int] | None = None,
) -> pl.DataFrame:
    """Return `statistics` as a frame of `name` and `value`."""
    rows = statistics(kernel, max_numnodes, modules, labels)
    return pl.DataFrame(rows, schema={"name": pl.String, "value": pl.Int64}, orient="row")


def statistics(
    kernel: Kernel,
    max_numnodes: int,
    modules: Mapping[str, Sequence[Area]] | None = None,
    labels: Sequence[int] | None = None,
) -> list[tuple[str, int]]:
    """List what the kernel would publish: nodes, processes, areas, and bytes by mechanism.

    `lacking_pgd_slots` are those that some node lacks since memory was added (R39), node by node.
    After them `OWNER.MECHANISM.nodeN_bytes`, of `account_by_owner`: the kernel's own, and every
    module's and process's.

    Parameters
    ----------
    modules : mapping, optional
        Areas of each module by its name.
    labels : sequence of int, optional
        Number to show for each node; its own by default.
    """
    shown = labels or range(kernel.frames.nodes)
    rows = [
        ("memory_nodes", len(kernel.replica_nodes)),
        ("processes", len(kernel.mms)),
        ("pgds", sum(len(set(mm.pgd.values())) for mm in kernel.mms)),
        ("areas", len(kernel.areas)),
        ("replicated_areas", sum(bool(area.replicas) for area in kernel.areas)),
        ("replicated_leaves", len(kernel.replicated)),
        ("lacking_pgd_slots", sum(len(nodes) for nodes in lacking(kernel).values())),
    ]
    sizes: Counter[str] = Counter()
    owned = account_by_owner(kernel, max_numnodes, modules)
    for row in owned:
        sizes[row.mechanism] += row.bytes
    rows += [(f"{name}_bytes", size) for name, size in sorted(sizes.items())]
    return rows + [(f"{o.owner}.{o.mechanism}.node{shown[o.node]}_bytes", o.bytes) for o in owned]
