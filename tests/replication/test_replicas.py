"""The static replicas, behaviour by behaviour; ids as in the series' description."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numarep.linux.frames import FrameError, Frames
from numarep.linux.image import Image, Section
from numarep.linux.tables import PageTables
from numarep.replication.replicas import PGD_PAGES, Replicas, new_replicas, static_bytes
from numarep.spec import ProcessCostSpec, ReplicationSpec
from numarep.units import PAGE_SHIFT, PMD, PMD_BYTES
from tests.kernels import SmallKernel

NO_COST = ProcessCostSpec(
    fork_instructions=0, exit_instructions=0, pud_instructions=0, pud_further_instructions=0
)
SERIES = ReplicationSpec(
    name="series", tables=True, text=True, rodata=True, costs="charged", process_cost=NO_COST
)

kernels = st.builds(
    SmallKernel,
    nodes=st.integers(1, 4),
    levels=st.sampled_from((4, 5)),
    text_bytes=st.integers(1, 3 * PMD_BYTES),
    rodata_bytes=st.integers(1, 2 * PMD_BYTES),
    processes=st.sampled_from(((0,), (0, 0))),
)


def replicate(kernel: SmallKernel, spec: ReplicationSpec = SERIES) -> Replicas:
    return new_replicas(spec, kernel.image, kernel.tables, kernel.roots, kernel.frames)


def walks(kernel: SmallKernel, replicas: Replicas, node: int, root: int) -> dict[int, object]:
    own_root = replicas.root(node, root)
    return {vpn: replicas.tables.walk(own_root, vpn) for vpn in kernel.vpns()}


@given(kernels)
def test_what_a_node_translates_is_what_its_real_tables_say(kernel: SmallKernel) -> None:
    captured = {root: kernel.pages(root) for root in kernel.roots}
    replicas = replicate(kernel)
    for node in range(kernel.nodes):
        for root, pages in captured.items():
            moved = replicas.on_node(pages, node)
            walked = walks(kernel, replicas, node, root)
            for row, vpn in enumerate(pages.vpn.tolist()):
                found = walked[vpn]
                assert found.pfn == moved.pfn[row]
                assert found.table == tuple(moved.table[row].tolist())
                assert (found.leaf, found.flags) == (moved.leaf[row], moved.flags[row])  # R9


@given(kernels)
def test_r3_the_masters_replica_is_the_original(kernel: SmallKernel) -> None:
    captured = kernel.pages(kernel.swapper)
    replicas = replicate(kernel)
    assert replicas.master_node == 0
    assert replicas.nodes[0].bytes == 0
    assert replicas.nodes[0].table_pages == 0
    moved = replicas.on_node(captured, 0)
    for before, after in zip(
        dataclasses.astuple(captured), dataclasses.astuple(moved), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_r4_a_node_without_room_is_named_with_the_size() -> None:
    kernel = SmallKernel()
    start, end = kernel.ranges[1]
    kernel.frames = Frames(kernel.ranges, range(start + 1024, end), colours=3)
    with pytest.raises(FrameError, match=r"node 1: can't allocate 6144 KiB"):
        replicate(kernel)


@given(kernels)
def test_r6_r8_only_whole_blocks_of_text_and_rodata_have_own_frames(kernel: SmallKernel) -> None:
    before = {vpn: kernel.tables.walk(kernel.swapper, vpn) for vpn in kernel.vpns()}
    replicas = replicate(kernel)
    copied = set()
    for section in kernel.image.replicated:
        copied |= set(range(section.start >> PAGE_SHIFT, section.end >> PAGE_SHIFT))
    for node in range(1, kernel.nodes):
        for vpn, found in walks(kernel, replicas, node, kernel.swapper).items():
            if vpn in copied:
                assert kernel.frames.node_of(found.pfn) == node
            elif before[vpn] is not None:
                assert found.pfn == before[vpn].pfn


@given(kernels)
def test_r8_copies_never_share_a_frame(kernel: SmallKernel) -> None:
    replicas = replicate(kernel)
    seen: set[int] = set()
    for node in range(kernel.nodes):
        for section in kernel.image.replicated:
            for vpn in range(section.start >> PAGE_SHIFT, section.end >> PAGE_SHIFT, 512):
                pfn = replicas.tables.walk(replicas.root(node, kernel.swapper), vpn).pfn
                block = set(range(pfn, pfn + 512))
                assert seen.isdisjoint(block)
                seen |= block


@pytest.mark.parametrize(("levels", "tables"), [(4, 1 + 2), (5, 1 + 1 + 2)])
def test_r10_r11_each_node_has_its_own_window_tables(levels: int, tables: int) -> None:
    kernel = SmallKernel(nodes=3, levels=levels, processes=(2,))
    window = kernel.pages(kernel.swapper)
    replicas = replicate(kernel)
    for node in (1, 2):
        assert replicas.nodes[node].table_pages == PGD_PAGES + tables
        moved = replicas.on_node(window, node)
        text = kernel.image.text.holds(window.vpn)
        for level in range(PMD, levels + 1):
            for pfn in moved.table[text, level - 1].tolist():
                assert kernel.frames.node_of(pfn) == node


def test_r10_every_process_has_a_pgd_on_every_node() -> None:
    kernel = SmallKernel(nodes=3, processes=(0, 1, 2))
    replicas = replicate(kernel)
    for node in range(3):
        roots = {replicas.root(node, root) for root in kernel.roots}
        assert len(roots) == len(kernel.roots)
        assert {kernel.frames.node_of(root) for root in roots} == {node}


@given(kernels)
def test_r12_a_copied_pmd_page_differs_in_text_and_rodata_only(kernel: SmallKernel) -> None:
    replicas = replicate(kernel)
    tables: PageTables = replicas.tables
    blocks = {
        (vpn >> 9) & 511
        for section in kernel.image.replicated
        for vpn in range(section.start >> PAGE_SHIFT, section.end >> PAGE_SHIFT, 512)
    }
    for node in range(1, kernel.nodes):
        for source, copy in replicas.nodes[node].table.items():
            if tables.level_of.get(source) == PMD:
                ours, theirs = tables.pages[copy], tables.pages[source]
                assert {i for i in theirs if ours[i] != theirs[i]} <= blocks


def test_r13_other_kernel_addresses_share_the_lower_tables() -> None:
    kernel = SmallKernel(nodes=2, processes=())
    pages = kernel.pages(kernel.swapper)
    direct = pages.vpn < -(1 << 40) >> PAGE_SHIFT
    moved = replicate(kernel).on_node(pages, 1)
    assert direct.any()
    np.testing.assert_array_equal(moved.table[direct, :3], pages.table[direct, :3])
    assert (moved.table[direct, 3] != pages.table[direct, 3]).all()


def test_r19_user_halves_are_equal_on_every_node() -> None:
    kernel = SmallKernel(nodes=3)
    replicas = replicate(kernel)
    for root in kernel.roots:
        halves = [
            {i: e for i, e in replicas.tables.pages[replicas.root(node, root)].items() if i < 256}
            for node in range(3)
        ]
        assert halves[0] == halves[1] == halves[2]


def test_copies_fall_into_the_same_cache_sets_as_their_originals() -> None:
    kernel = SmallKernel(nodes=2)
    replicas = replicate(kernel)
    pages = kernel.pages(kernel.swapper)
    moved = replicas.on_node(pages, 1)
    assert ((moved.pfn - pages.pfn) % 3 == 0).all()
    assert ((moved.table - pages.table)[pages.table >= 0] % 3 == 0).all()


def test_tables_alone_leave_every_frame_in_place() -> None:
    kernel = SmallKernel(nodes=2)
    pages = kernel.pages(kernel.swapper)
    only_tables = dataclasses.replace(SERIES, text=False, rodata=False)
    moved = replicate(kernel, only_tables).on_node(pages, 1)
    np.testing.assert_array_equal(moved.pfn, pages.pfn)
    assert (moved.table != pages.table).any()


@pytest.mark.parametrize(("text_kib", "rodata_kib", "mib"), [(20480, 15196, 36), (14340, 4560, 22)])
def test_static_memory_equals_real_boot_logs(text_kib: int, rodata_kib: int, mib: int) -> None:
    text = Section(0, text_kib << 10)
    start = text.round_up(PMD_BYTES).end
    rodata = Section(start, start + (rodata_kib << 10))
    image = Image(Section(0, rodata.end), text, rodata)
    assert static_bytes(image, SERIES) == mib << 20
