"""The memory account against closed formulas and boot logs (R11, R16), and diagnostics (R37)."""

import pytest

from numarep.linux.image import Image, Section
from numarep.replication.account import (
    account,
    module_bytes,
    padding_bytes,
    process_bytes,
    static_bytes,
    static_bytes_of,
    table_pages,
)
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


def test_r37_the_dump_shows_each_nodes_tables_and_frames() -> None:
    kernel = SmallKernel(nodes=2).booted()
    vpn = kernel.image.text.start >> PAGE_SHIFT
    lines = dump(kernel, vpn, vpn + 2)
    assert [(line.vpn, line.node) for line in lines] == [
        (vpn, 0),
        (vpn, 1),
        (vpn + 1, 0),
        (vpn + 1, 1),
    ]
    for line in lines:
        walk = kernel.tables.walk(kernel.pgd_numa(line.node), line.vpn)
        assert line.pfn == walk.pfn
        assert line.tables == tuple(reversed([table for table in walk.table if table >= 0]))
        assert line.flags == "-x--"
    rows = as_frame(lines).to_dicts()
    assert [(row["node"], row["frame"]) for row in rows] == [(r.node, r.pfn) for r in lines]
    assert [row["pmd"] for row in rows] == [line.tables[-1] for line in lines]
    assert {row["p4d"] for row in rows} == {row["pte"] for row in rows} == {None}
    text = as_text(lines).splitlines()
    assert len(text) == 5
    assert f"{lines[1].pfn:#x}" in text[2]


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
