"""The memory account against closed formulas and boot logs (R11, R16), and diagnostics (R37)."""

import itertools
from collections import Counter

import polars as pl
import pytest

from numarep.linux.image import Image, Section
from numarep.linux.layout import WINDOW_VPN
from numarep.replication.account import (
    account,
    account_by_owner,
    module_bytes,
    padding_bytes,
    process_bytes,
    static_bytes,
    static_bytes_of,
    table_pages,
)
from numarep.replication.areas import new_area
from numarep.replication.dump import as_frame, as_text, dump, statistics, statistics_frame
from numarep.replication.kernel import PGD_PAGES
from numarep.replication.modules import ModuleSize, load
from numarep.replication.process import fill_slot, fork, switch_to
from numarep.units import PAGE_SHIFT, PMD_BYTES
from tests.kernels import SERIES, SmallKernel, policy


def held(kernel: object, mechanism: str) -> dict[int, int]:
    return {row.node: row.bytes for row in account(kernel, 1024) if row.mechanism == mechanism}


@pytest.mark.parametrize(("text_kib", "rodata_kib", "mib"), [(20480, 15196, 36), (14340, 4560, 22)])
def test_r6_static_memory_equals_real_boot_logs(text_kib: int, rodata_kib: int, mib: int) -> None:
    text = Section(0, text_kib << 10)
    start = text.round_up(PMD_BYTES).end
    rodata = Section(start, start + (rodata_kib << 10))
    image = Image(Section(0, rodata.end), text, rodata)
    assert static_bytes(image, SERIES) == static_bytes_of(text.bytes, rodata.bytes) == mib << 20
    assert padding_bytes(image) == (mib << 20) - text.bytes - rodata.bytes


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
@pytest.mark.parametrize("levels", [4, 5])
def test_r11_the_kernel_holds_what_the_formulas_say(nodes: int, levels: int) -> None:
    kernel = SmallKernel(nodes=nodes, levels=levels, processes=(0,)).booted()
    further = range(1, nodes)
    one = static_bytes(kernel.image, SERIES)
    assert held(kernel, "static") == dict.fromkeys(further, one)
    assert held(kernel, "tables") == dict.fromkeys(further, table_pages(levels) * 4096)


def test_r6_each_mechanism_alone() -> None:
    sizes = {}
    for name in ("text", "rodata", "neither"):
        switches = {"text": name == "text", "rodata": name == "rodata"}
        sizes[name] = held(SmallKernel(nodes=2).booted(**switches), "static").get(1, 0)
    both = held(SmallKernel(nodes=2).booted(), "static")[1]
    assert sizes["text"] + sizes["rodata"] == both
    assert sizes["neither"] == 0


@pytest.mark.parametrize("nodes", [1, 2, 8])
@pytest.mark.parametrize(("max_numnodes", "pointers"), [(8, 64), (64, 512), (1024, 8192)])
def test_r16_a_process_costs_its_pgds_and_a_pointer_a_possible_node(
    nodes: int, max_numnodes: int, pointers: int
) -> None:
    kernel = SmallKernel(nodes=nodes, processes=(0,)).booted()
    for _ in range(3):
        fork(kernel, kernel.cpus[0])
    rows = [r for r in account(kernel, max_numnodes) if r.mechanism in ("processes", "pointers")]
    assert sum(row.bytes for row in rows) == 3 * process_bytes(nodes, max_numnodes)
    assert [r.bytes for r in rows if r.mechanism == "pointers"] == [3 * pointers]
    assert process_bytes(1, max_numnodes) == pointers  # paid with one node, too


def test_r1_r15_pointers_and_padding_are_paid_when_off_and_nothing_is_when_absent() -> None:
    paid = {}
    for name in ("none", "switched_off", "aligned_only"):
        kernel = SmallKernel(nodes=2, processes=(0,)).booted(**vars(policy(name)))
        fork(kernel, kernel.cpus[1])
        paid[name] = [(row.mechanism, row.node, row.bytes) for row in account(kernel, 64)]
    padded = ("padding", 0, padding_bytes(kernel.image))
    assert paid == {
        "none": [],
        "switched_off": [padded, ("pointers", 1, 512)],
        "aligned_only": [padded],
    }


@pytest.mark.parametrize("name", ["series", "lazy", "mitosis", "everything", "retarget"])
def test_r28_the_account_is_every_frame_taken_beside_the_unreplicated_kernels(name: str) -> None:
    kernel = SmallKernel(nodes=3, processes=(0,)).booted(**vars(policy(name)))
    mm, _ = fork(kernel, kernel.cpus[2])
    fill_slot(kernel, kernel.cpus[2], mm, 3)
    switch_to(kernel, kernel.cpus[1], mm)
    load(kernel, kernel.cpus[0], ModuleSize(2, 1, 0, 1))
    in_memory = (
        "static",
        "tables",
        "area_tables",
        "modules",
        "processes",
        "private",
        "user_tables",
    )
    ours = sum(row.pages for row in account(kernel, 1024) if row.mechanism in in_memory)
    others = ("areas", "poking", "user", "shared")
    own_pgd = PGD_PAGES  # that any kernel has
    assert ours == kernel.held.total() - sum(kernel.held[what] for what in others) - own_pgd


@pytest.mark.parametrize("nodes", [2, 4])
def test_r30_a_module_costs_its_text_and_rodata_and_pte_pages(nodes: int) -> None:
    kernel = SmallKernel(nodes=nodes).booted()
    load(kernel, kernel.cpus[0], ModuleSize(text=5, rodata=3, ro_after_init=1, data=9))
    pages = sum(held(kernel, "modules").values()) + sum(held(kernel, "area_tables").values())
    assert pages == module_bytes(nodes, 5, 3, own_ptes=True)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("window", [False, True])
def test_r37_a_dump_says_of_every_page_what_its_nodes_walk_says(levels: int, window: bool) -> None:
    kernel = SmallKernel(nodes=2, levels=levels).booted()
    module, _ = load(kernel, kernel.cpus[1], ModuleSize(3, 2, 0, 1))
    start, end = kernel.image.text.start >> PAGE_SHIFT, module.areas["data"].vpns.stop + 3
    lines = dump(kernel, WINDOW_VPN if window else start, 0 if window else end)
    for node in (0, 1):
        stretches = [line for line in lines if line.node == node]
        assert [line.end for line in stretches[:-1]] == [line.vpn for line in stretches[1:]]
        for line in stretches:
            for vpn in {line.vpn, (line.vpn + line.end) // 2, line.end - 1}:
                walk = kernel.tables.walk(kernel.pgd_numa(node), vpn)
                if walk is None:
                    assert (line.pfn, line.leaf) == (None, None)
                    continue
                assert walk.pfn - line.pfn == vpn - line.vpn
                assert walk.leaf == line.leaf
                read = [table for table in reversed(walk.table) if table >= 0]
                assert read == [table for table in line.tables if table is not None]
        # As few as can be: no stretch goes on where the last one ends.
        assert not any(a.joined(b) for a, b in itertools.pairwise(stretches))


def test_r37_text_and_frame_of_a_dump_say_the_same() -> None:
    kernel = SmallKernel(nodes=8).booted()
    first = kernel.image.replicated[0]
    lines = dump(kernel, first.start >> PAGE_SHIFT, first.end >> PAGE_SHIFT)
    rows = as_frame(lines).to_dicts()
    assert [row["node"] for row in rows] == [*range(8)]  # a line a node for 6 MiB
    assert [row["frame"] for row in rows] == [line.pfn for line in lines]
    head, *text = [line.split() for line in as_text(lines).splitlines()]
    for cells, row in zip(text, rows, strict=True):
        shown = dict(zip(head, cells, strict=True))
        assert (shown["from"], shown["to"], shown["flags"]) == (row["from"], row["to"], "-x--")
        for name in ("pgd", "pud", "pmd", "frame"):
            assert int(shown[name], 16) == row[name]
        assert (shown["pte"], row["pte"], row["p4d"]) == ("-", None, None)
    assert {row["node"] for row in as_frame(dump(kernel, -2, 0, nodes=[5])).to_dicts()} == {5}
    assert as_frame(dump(kernel, -2, 0))["to"][0] == f"{1 << 64:x}"


@pytest.mark.parametrize("max_numnodes", [8, 64, 1024])
@pytest.mark.parametrize("name", ["series", "lazy", "mitosis", "retarget"])
def test_r16_r30_memory_by_owner_is_the_formulas_and_adds_up(name: str, max_numnodes: int) -> None:
    kernel = SmallKernel(nodes=3, processes=(0,)).booted(**vars(policy(name)))
    cpu = kernel.cpus[0]
    mms = [fork(kernel, cpu)[0] for _ in range(2)]
    fill_slot(kernel, cpu, mms[1], 3)
    sizes = {"one": ModuleSize(2, 1, 1, 1), "two": ModuleSize(5, 0, 0, 3)}
    areas = {n: [*load(kernel, cpu, size)[0].areas.values()] for n, size in sizes.items()}
    new_area(kernel, cpu, pages=1, node=0)
    owned = account_by_owner(kernel, max_numnodes, areas)
    total: Counter[tuple[str, int]] = Counter()
    for row in owned:
        total[row.mechanism, row.node] += row.bytes
    assert total == {(r.mechanism, r.node): r.bytes for r in account(kernel, max_numnodes)}

    def of(owner: str, *mechanisms: str) -> int:
        mine = [row for row in owned if row.owner == owner]
        return sum(row.bytes for row in mine if row.mechanism in mechanisms or not mechanisms)

    for module, size in sizes.items():
        own = module_bytes(3, size.text, size.rodata, own_ptes=False)
        assert of(f"module {module}") == (own if name != "retarget" else 0)
    eager = name in ("series", "mitosis")
    for number in range(2):
        wanted = process_bytes(3 if eager else 1, max_numnodes)
        assert of(f"process {number}", "processes", "pointers") == wanted
    assert of("process 1", "user_tables") == (2 * 4096 if name == "mitosis" else 0)
    assert of("process 0", "private") == (3 * 4096 if name == "retarget" else 0)
    owners = {row.owner for row in owned}
    modules = {f"module {module}" for module in sizes} if name != "retarget" else set()
    assert owners == {"kernel", "process 0", "process 1"} | modules
    found = statistics_frame(kernel, max_numnodes, areas, labels=[5, 6, 7])
    of_kernel = found.filter(pl.col("name") == "kernel.padding.node5_bytes")
    assert of_kernel["value"].to_list() == [padding_bytes(kernel.image)]


def test_r37_statistics_count_what_is_there() -> None:
    kernel = SmallKernel(nodes=3).booted()
    fork(kernel, kernel.cpus[0])
    load(kernel, kernel.cpus[0], ModuleSize(1, 1, 0, 1))
    found = dict(statistics_frame(kernel, 1024).rows())
    assert found == dict(statistics(kernel, 1024))
    assert found["memory_nodes"] == 3
    assert found["pgds"] == 3
    assert found["replicated_areas"] == 2
    assert found["static_bytes"] == 2 * static_bytes(kernel.image, SERIES)
    assert found["modules_bytes"] == 2 * 2 * 4096
    assert found["processes_bytes"] == 2 * 8192
