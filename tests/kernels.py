"""A small kernel with real page tables, for tests: `SmallKernel` lays one out on any topology."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from numarep.linux.frames import Frames
from numarep.linux.image import Image, Section
from numarep.linux.tables import LARGE, PRESENT, WRITABLE, PageTables, entry_index
from numarep.replication.boot import booted, new_kernel
from numarep.replication.kernel import Kernel
from numarep.replication.watch import watched
from numarep.spec import ReplicationSpec, parse
from numarep.units import MAX_LEVELS, PAGE_SHIFT, PAGES_PER_PMD, PMD, PMD_BYTES, PTE
from numarep.workload.dataset import SYMBOLS, TABLES
from numarep.workload.trace import Pages

TEXT_VA = -(1 << 31) + (16 << 20)
DIRECT_MAP_VA = -(1 << 47) + (0x888 << 28)
VMEMMAP_VA = -(1 << 44)
BASES = {
    "direct_map": DIRECT_MAP_VA,
    "vmalloc": DIRECT_MAP_VA + (1 << 44),
    "vmemmap": VMEMMAP_VA,
    "cpu_entry_area": -(2 << 39),
}
# Source: Documentation/arch/x86/x86_64/mm.rst, 5-level page tables.
BASES_5_LEVEL = {
    "direct_map": -(0xEF << 48),
    "vmalloc": -(0x60 << 48),
    "vmemmap": -(0x2C << 48),
    "cpu_entry_area": -(2 << 39),
}
MODULE_VA = -(1 << 30)
NODE_FRAMES = 1 << 18


def policy(name: str) -> ReplicationSpec:
    def load(name: str) -> dict[str, Any]:
        path = Path(__file__).parents[1] / "conf" / "replication" / f"{name}.yaml"
        loaded: dict[str, Any] = yaml.safe_load(path.read_text())
        bases = loaded.pop("defaults", [])
        return {key: value for base in bases for key, value in load(base).items()} | loaded

    return parse(ReplicationSpec, load(name))


SERIES = policy("series")


@dataclass
class SmallKernel:
    """Text, rodata, data, a module page, direct map and vmemmap of a machine of `nodes` nodes."""

    nodes: int = 2
    levels: int = 4
    text_bytes: int = 2 * PMD_BYTES + 5 * 4096
    rodata_bytes: int = PMD_BYTES - 4096
    processes: tuple[int, ...] = (1,)  # node of each process's PGD
    memoryless: tuple[int, ...] = ()
    master: int = 0  # node of the image
    boot: int = 0  # node of the kernel's own tables
    pti: bool = False
    offset: int = 0  # KASLR: how far the image lies above TEXT_VA

    def __post_init__(self) -> None:
        self.bases = BASES if self.levels == 4 else BASES_5_LEVEL
        start = TEXT_VA + self.offset
        text = Section(start, start + self.text_bytes)
        rodata_start = text.round_up(PMD_BYTES).end
        rodata = Section(rodata_start, rodata_start + self.rodata_bytes)
        data_end = rodata.round_up(PMD_BYTES).end + 2 * PMD_BYTES
        self.image = Image(Section(start, data_end), text, rodata)
        self.ranges = [
            (n * NODE_FRAMES, (n + (n not in self.memoryless)) * NODE_FRAMES)
            for n in range(self.nodes)
        ]
        self.tables = PageTables(self.levels)
        self._next_table = [start + 0x8000 for start, _ in self.ranges]
        self.swapper = self._new_table(self.boot, pair=True)
        self._map_kernel()
        self.roots = [self.swapper, *(self._fork(node) for node in self.processes)]
        used = {self.pfn_of(vpn) for vpn in self.image_vpns()}
        self.frames = Frames(self.ranges, used | set(self.tables.pages), colours=3)

    def _new_table(self, node: int, *, pair: bool = False) -> int:
        pfn = self._next_table[node]
        self._next_table[node] += 2 if pair else 1
        return pfn + pfn % 2 if pair else pfn

    def pfn_of(self, vpn: int) -> int:
        return self.ranges[self.master][0] + 0x1000 + vpn - (self.image.text.start >> PAGE_SHIFT)

    def image_vpns(self) -> range:
        return range(self.image.whole.start >> PAGE_SHIFT, self.image.whole.end >> PAGE_SHIFT)

    def _map(self, root: int, vpn: int, pfn: int, leaf: int, bits: int) -> None:
        table = root
        for level in range(self.levels, leaf, -1):
            index = entry_index(vpn, level)
            entry = self.tables.pages.get(table, {}).get(index)
            if entry is None:
                entry = (self._new_table(self.boot) << PAGE_SHIFT) | PRESENT | WRITABLE
                self.tables.set_entry(level, table, index, entry)
            table = entry >> PAGE_SHIFT
        large = LARGE if leaf > PTE else 0
        entry = (pfn << PAGE_SHIFT) | PRESENT | large | bits
        self.tables.set_entry(leaf, table, entry_index(vpn, leaf), entry)

    def _map_kernel(self) -> None:
        for vpn in self.image_vpns()[::PAGES_PER_PMD]:
            writable = vpn << PAGE_SHIFT >= self.image.rodata.round_up(PMD_BYTES).end
            self._map(self.swapper, vpn, self.pfn_of(vpn), PMD, WRITABLE if writable else 0)
        self._map(self.swapper, MODULE_VA >> PAGE_SHIFT, 0x900, PTE, 0)
        direct_map = self.bases["direct_map"] >> PAGE_SHIFT
        for start, end in self.ranges:
            for pfn in range(start, end, PAGES_PER_PMD):
                self._map(self.swapper, direct_map + pfn, pfn, PMD, WRITABLE)
            memmap = (self.bases["vmemmap"] + (start << 6)) >> PAGE_SHIFT
            for page in range(0, (end - start) * 64 >> PAGE_SHIFT, PAGES_PER_PMD):
                self._map(self.swapper, memmap + page, start + 0x20000 + page, PMD, WRITABLE)

    def _fork(self, node: int) -> int:
        """Make a process: the kernel half is shared, one user page is mapped."""
        root = self._new_table(node, pair=True)
        for index, entry in self.tables.pages[self.swapper].items():
            self.tables.set_entry(self.levels, root, index, entry)
        self._map(root, 0x400, self.ranges[node][0] + 0x700, PTE, WRITABLE)
        return root

    def booted(self, **switches: Any) -> Kernel:
        """The series' kernel, or another policy's, after its boot, on this kernel's tables."""
        return booted(self.unbooted(**switches))

    def unbooted(self, **switches: Any) -> Kernel:
        known = {
            name: switches.pop(name)
            for name in ("kasan", "distance", "cpu_nodes")
            if name in switches
        }
        return new_kernel(
            dataclasses.replace(SERIES, **switches),
            self.image,
            self.tables,
            self.frames,
            bases=self.bases,
            pti=self.pti,
            **known,
        )

    def vpns(self) -> list[int]:
        """Pages of every kind: image, module, direct map, vmemmap, user."""
        image = self.image_vpns()
        direct_map = self.bases["direct_map"] >> PAGE_SHIFT
        return [
            *range(image.start, image.stop, 100),
            MODULE_VA >> PAGE_SHIFT,
            direct_map + 77,
            direct_map + self.pfn_of(image.start) + 1,  # an alias of text
            self.bases["vmemmap"] >> PAGE_SHIFT,
            0x400,
        ]

    def pages(self, root: int) -> Pages:
        """Rows of a trace: every page of `vpns` that `root` maps."""
        found = [(vpn, self.tables.walk(root, vpn)) for vpn in self.vpns()]
        rows = [(vpn, t) for vpn, t in found if t is not None]
        return Pages(
            np.array([vpn for vpn, _ in rows], np.int64),
            np.array([t.pfn for _, t in rows], np.int64),
            np.array([t.leaf for _, t in rows], np.uint8),
            np.array([t.flags for _, t in rows], np.uint8),
            np.array([t.table for _, t in rows], np.int64).reshape(-1, MAX_LEVELS),
        )

    def symbols(self) -> pa.Table:
        at = {
            "_text": self.image.whole.start,
            "_stext": self.image.text.start,
            "_etext": self.image.text.end,
            "__start_rodata": self.image.rodata.start,
            "__end_rodata": self.image.rodata.end,
            "_end": self.image.whole.end,
        }
        at |= dict.fromkeys(watched(self.levels), self.image.text.start)
        return pa.table([list(at.values()), ["T"] * len(at), list(at)], schema=SYMBOLS)

    def snapshot(self, workload: str) -> pa.Table:
        rows = [
            (workload, "begin", self.tables.level_of[pfn], pfn, index, entry)
            for pfn, page in self.tables.pages.items()
            for index, entry in page.items()
        ]
        return pa.table([list(column) for column in zip(*rows, strict=True)], schema=TABLES)
