"""What the boot builds: per-node tables and copies (R1-R14, R33-R36)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numarep.linux.frames import FrameError, Frames
from numarep.linux.tables import entry_index, entry_pfn
from numarep.replication.areas import node_frame
from numarep.replication.boot import (
    blocks,
    booted,
    first_frame,
    publish,
    replicate,
    reserve,
    seal,
    start,
)
from numarep.replication.invariants import violations
from numarep.replication.kernel import (
    KERNEL_HALF,
    PGD_PAGES,
    Kernel,
    ReplicationError,
    Stage,
    has_replicas,
)
from numarep.replication.patching import patch_boot
from numarep.replication.process import efi_mm, fork, switch_to
from numarep.replication.view import on_node
from numarep.units import PAGE_SHIFT, PAGES_PER_PMD, PMD, PMD_BYTES, PTE
from tests.kernels import BASES, MODULE_VA, NODE_FRAMES, TEXT_VA, SmallKernel, policy

topologies = st.builds(
    SmallKernel,
    nodes=st.integers(1, 4),
    levels=st.sampled_from((4, 5)),
    text_bytes=st.integers(1, 3 * PMD_BYTES),
    rodata_bytes=st.integers(1, 2 * PMD_BYTES),
    offset=st.integers(0, 40).map(lambda n: n * PMD_BYTES),
    pti=st.booleans(),
    processes=st.just((0,)),
)


def text_vpns(kernel: Kernel) -> list[int]:
    return [vpn for section in kernel.image.replicated for vpn in blocks(section)]


def test_r1_off_every_node_aliases_one_pgd() -> None:
    kernel = SmallKernel(nodes=3).unbooted(**vars(policy("none")))
    booted(kernel)
    assert {kernel.pgd_numa(node) for node in range(3)} == {kernel.root}
    assert {cpu.cr3 for cpu in kernel.cpus} == {kernel.root}
    assert kernel.own == {}
    mm, work = fork(kernel, kernel.cpus[2])
    assert mm.root(0) == mm.root(2)
    assert work.steps == []


def test_r1_r35_kasan_is_refused_with_5_levels_only() -> None:
    with pytest.raises(ReplicationError, match=r"!\(KASAN && X86_5LEVEL\)"):
        SmallKernel(levels=5).unbooted(kasan=True)
    SmallKernel(levels=4).booted(kasan=True)
    SmallKernel(levels=5).unbooted(kasan=True, **vars(policy("none")))


def test_r35_kasan_shadow_is_shared() -> None:
    small = SmallKernel(nodes=2)
    shadow = -0x140000000000 >> PAGE_SHIFT  # KASAN_SHADOW_START, 4 levels
    small._map(small.swapper, shadow, 0x333, PTE, 0)
    kernel = small.booted(kasan=True)
    walks = [kernel.tables.walk(kernel.pgd_numa(node), shadow) for node in (0, 1)]
    assert walks[0].pfn == walks[1].pfn == 0x333
    assert walks[0].table[:3] == walks[1].table[:3]


def test_r2_memoryless_nodes_use_the_nearest_memory_node() -> None:
    distance = [[10, 20, 30, 40], [20, 10, 40, 15], [30, 40, 10, 20], [40, 15, 20, 10]]
    kernel = SmallKernel(nodes=4, memoryless=(1, 3)).booted(distance=distance)
    assert kernel.home == (0, 0, 2, 2)
    assert kernel.replica_nodes == (0, 2)
    assert [cpu.cr3 for cpu in kernel.cpus] == [kernel.pgd_numa(node) for node in (0, 0, 2, 2)]
    mm, _ = fork(kernel, kernel.cpus[3])
    assert sorted(mm.pgd) == [0, 2]
    switch_to(kernel, kernel.cpus[3], mm)
    assert kernel.cpus[3].cr3 == mm.pgd[2]
    assert violations(kernel) == []


@given(topologies)
def test_r3_the_masters_replica_is_the_original(small: SmallKernel) -> None:
    before = {t: dict(entries) for t, entries in small.tables.pages.items()}
    text = first_frame(small.tables, small.swapper, small.image.text)
    kernel = small.booted()
    assert kernel.master == 0
    assert 0 not in kernel.own
    assert node_frame(kernel, 0, small.image.text.start >> PAGE_SHIFT) == text
    for level, table in kernel.window_tables():
        assert level < small.levels
        assert kernel.tables.pages[table] == before[table]


def test_r4_a_node_without_room_is_named_with_the_size_and_nothing_is_taken() -> None:
    small = SmallKernel(nodes=3)
    first, end = small.ranges[2]
    small.frames = Frames(small.ranges, range(first + 1024, end), colours=3)
    before = small.frames.in_use
    kernel = small.unbooted()
    with pytest.raises(FrameError, match=r"node 2: can't allocate 6144 KiB"):
        reserve(kernel)
    assert small.frames.in_use == before
    assert kernel.stage == Stage.EARLY


@pytest.mark.parametrize(
    ("va", "inside"),
    [
        (-(1 << 31), True),
        (-(1 << 31) - 1, False),
        (-1, True),
        (0, False),
        (BASES["vmalloc"], False),
    ],
)
def test_r5_the_window_is_the_top_2_gib(va: int, inside: bool) -> None:
    assert has_replicas(va >> PAGE_SHIFT) is inside


@given(topologies)
def test_r6_r8_only_whole_blocks_of_text_and_rodata_have_own_frames(small: SmallKernel) -> None:
    before = {vpn: small.tables.walk(small.swapper, vpn) for vpn in small.vpns()}
    kernel = small.booted()
    copied = {vpn + i for vpn in text_vpns(kernel) for i in range(PAGES_PER_PMD)}
    for node in kernel.own:
        for vpn, found in before.items():
            now = kernel.tables.walk(kernel.pgd_numa(node), vpn)
            if vpn in copied:
                assert kernel.frames.node_of(now.pfn) == node
                assert now.leaf == PMD
            else:
                assert (now and now.pfn) == (found and found.pfn)
    assert violations(kernel) == []


def test_r6_rodata_in_small_leaves_is_refused() -> None:
    small = SmallKernel(nodes=2)
    vpn = small.image.rodata.start >> PAGE_SHIFT
    found = small.tables.walk(small.swapper, vpn)
    small.tables.set_entry(PMD, found.table[1], entry_index(vpn, PMD), 0x9001)
    small.tables.set_entry(PTE, 0x9, 0, (found.pfn << PAGE_SHIFT) | 1)
    with pytest.raises(ReplicationError, match="expected a 2 MiB leaf"):
        small.booted()


def test_r7_what_is_written_while_init_runs_is_in_the_rodata_copy() -> None:
    kernel = SmallKernel(nodes=2).unbooted()
    reserve(kernel)
    replicate(kernel)
    va = kernel.image.rodata.start + 16  # ro_after_init of the kernel itself lies in rodata
    patch_boot(kernel, va, b"\x07")
    seal(kernel)
    frames = [node_frame(kernel, node, va >> PAGE_SHIFT) for node in (0, 1)]
    assert frames[0] != frames[1]
    assert [kernel.contents.read(pfn, 16, 1) for pfn in frames] == [(7,), (7,)]


def test_r7_data_vmemmap_direct_map_and_user_memory_stay_shared() -> None:
    small = SmallKernel(nodes=2)
    kernel = small.booted()
    data = (small.image.whole.end >> PAGE_SHIFT) - 1
    for vpn in (data, BASES["vmemmap"] >> PAGE_SHIFT, (BASES["direct_map"] >> PAGE_SHIFT) + 7):
        assert node_frame(kernel, 0, vpn) == node_frame(kernel, 1, vpn)


def test_r8_r9_a_diverging_replica_is_a_violation() -> None:
    kernel = SmallKernel(nodes=2).booted()
    kernel.contents.write(node_frame(kernel, 1, TEXT_VA >> PAGE_SHIFT), 3, b"\x90")
    assert [line[:2] for line in violations(kernel)] == ["R9"]
    kernel = SmallKernel(nodes=2).booted()
    data = (kernel.image.whole.end >> PAGE_SHIFT) - PAGES_PER_PMD
    pmd = kernel.tables.walk(kernel.pgd_numa(1), data).table[PMD - 1]
    entry = kernel.tables.entry(pmd, entry_index(data, PMD))
    kernel.tables.set_entry(PMD, pmd, entry_index(data, PMD), entry + PMD_BYTES)
    assert [line[:2] for line in violations(kernel)] == ["R8"]


@pytest.mark.parametrize(("levels", "below"), [(4, 1 + 2), (5, 1 + 1 + 2)])
def test_r10_r11_each_node_has_its_own_window_tables(levels: int, below: int) -> None:
    kernel = SmallKernel(nodes=3, levels=levels).booted()
    for node in (1, 2):
        assert len(kernel.own[node]) == PGD_PAGES + below
        assert {kernel.frames.node_of(copy) for copy in kernel.own[node].values()} == {node}
        walk = kernel.tables.walk(kernel.pgd_numa(node), TEXT_VA >> PAGE_SHIFT)
        assert {kernel.frames.node_of(t) for t in walk.table if t >= 0} == {node}


@given(topologies)
def test_r12_a_copied_pmd_page_differs_in_text_and_rodata_only(small: SmallKernel) -> None:
    kernel = small.booted()
    wanted = {entry_index(vpn, PMD) for vpn in text_vpns(kernel)}
    for own in kernel.own.values():
        for original, copy in own.items():
            if kernel.tables.level_of[copy] == PMD:
                theirs, ours = kernel.tables.pages[original], kernel.tables.pages[copy]
                assert {i for i in theirs if ours[i] != theirs[i]} <= wanted


@pytest.mark.parametrize("clone", [False, True])
def test_r12_pte_pages_are_shared_or_cloned(clone: bool) -> None:
    kernel = SmallKernel(nodes=2).booted(clone_ptes=clone)
    walks = [kernel.tables.walk(kernel.pgd_numa(node), MODULE_VA >> PAGE_SHIFT) for node in (0, 1)]
    assert (walks[0].table[0] == walks[1].table[0]) is not clone
    assert walks[0].pfn == walks[1].pfn
    assert kernel.frames.node_of(walks[1].table[0]) == (1 if clone else 0)


def test_r13_a_walk_elsewhere_reads_the_own_pgd_and_then_shared_tables() -> None:
    kernel = SmallKernel(nodes=2).booted()
    for vpn in ((BASES["direct_map"] >> PAGE_SHIFT) + 77, BASES["vmemmap"] >> PAGE_SHIFT):
        walks = [kernel.tables.walk(kernel.pgd_numa(node), vpn) for node in (0, 1)]
        assert walks[0].table[:3] == walks[1].table[:3]
        assert walks[0].table[3] != walks[1].table[3]
        assert kernel.frames.node_of(walks[1].table[3]) == 1


def test_r14_the_steps_run_in_order_only() -> None:
    steps = (reserve, replicate, seal, publish)
    kernel = SmallKernel(nodes=2).unbooted()
    for number, step in enumerate(steps):
        for wrong in steps[:number] + steps[number + 1 :]:
            with pytest.raises(ReplicationError, match="boot: expected"):
                wrong(kernel)
        step(kernel)
    assert kernel.stage == Stage.PUBLISHED


def test_r14_b_d_text_first_then_every_cpu_on_its_own_pgd_and_e_rodata_last() -> None:
    kernel = SmallKernel(nodes=2).unbooted()
    text, rodata = (s.start >> PAGE_SHIFT for s in (kernel.image.text, kernel.image.rodata))
    reserve(kernel)
    assert node_frame(kernel, 1, text) == node_frame(kernel, 0, text)
    replicate(kernel)
    assert node_frame(kernel, 1, text) != node_frame(kernel, 0, text)
    assert node_frame(kernel, 1, rodata) == node_frame(kernel, 0, rodata)
    assert kernel.cpus[1].mm is None
    start(kernel, kernel.cpus[1])
    assert kernel.cpus[1].cr3 == kernel.pgd_numa(1) != kernel.root
    seal(kernel)
    assert node_frame(kernel, 1, rodata) != node_frame(kernel, 0, rodata)


def test_r14_c_r22_boot_patching_writes_every_copy_there_is() -> None:
    kernel = SmallKernel(nodes=3).unbooted()
    reserve(kernel)
    patch_boot(kernel, TEXT_VA + 1, b"\x01")  # before the copies: they copy it
    replicate(kernel)
    patch_boot(kernel, TEXT_VA + 4095, b"\x02\x03")  # across two pages, into all copies
    for node in range(3):
        pfn = node_frame(kernel, node, TEXT_VA >> PAGE_SHIFT)
        assert kernel.contents.read(pfn, 1, 1) == (1,)
        assert kernel.contents.read(pfn, 4095, 1) == (2,)
        assert kernel.contents.read(pfn + 1, 0, 1) == (3,)


def test_r14_f_the_linear_map_no_longer_reaches_the_replicas() -> None:
    kernel = SmallKernel(nodes=2).unbooted()
    for step in (reserve, replicate, seal):
        step(kernel)
    pfn = node_frame(kernel, 1, TEXT_VA >> PAGE_SHIFT)
    alias = (BASES["direct_map"] >> PAGE_SHIFT) + pfn
    assert kernel.tables.walk(kernel.root, alias).pfn == pfn
    publish(kernel)
    assert kernel.tables.walk(kernel.root, alias) is None
    neighbour = alias - pfn + kernel.pgd_numa(1)
    assert kernel.tables.walk(kernel.root, neighbour) is not None


@given(topologies)
def test_r33_the_window_stays_where_it_is_wherever_the_image_lies(small: SmallKernel) -> None:
    kernel = small.booted()
    assert violations(kernel) == []
    assert all(has_replicas(vpn) for vpn in text_vpns(kernel))
    assert len(kernel.replicated) == (len(text_vpns(kernel)) if kernel.own else 0)


def test_r34_entry_text_under_the_user_cr3_is_one_copy_on_all_nodes() -> None:
    small = SmallKernel(nodes=2, pti=True)
    tables = small.tables
    entry_pud, text = 0x7000, small.image.text.start >> PAGE_SHIFT
    tables.add_table(3, entry_pud, {510: 0x7001003})
    tables.add_table(2, 0x7001, {entry_index(text, 2): small.pfn_of(text) << PAGE_SHIFT | 0x81})
    tables.add_table(4, small.swapper + 1, {511: entry_pud << PAGE_SHIFT | 3})
    kernel = small.booted()
    mm, _ = fork(kernel, kernel.cpus[1])
    frames = {kernel.tables.walk(mm.pgd[node] + 1, text).pfn for node in (0, 1)}
    assert frames == {small.pfn_of(text)}
    assert kernel.tables.walk(mm.pgd[1], text).pfn not in frames
    assert violations(kernel) == []


def test_r36_efi_has_one_pgd_for_all_nodes() -> None:
    kernel = SmallKernel(nodes=3).booted()
    taken = kernel.frames.taken
    efi, work = efi_mm(kernel, kernel.cpus[0])
    assert work.steps == []
    assert kernel.frames.taken == taken + PGD_PAGES  # with replicas as without
    for cpu in kernel.cpus:
        switch_to(kernel, cpu, efi)
    assert len({cpu.cr3 for cpu in kernel.cpus}) == 1
    assert violations(kernel) == []


@given(topologies)
def test_r10_what_a_node_translates_is_what_its_real_tables_say(small: SmallKernel) -> None:
    captured = small.pages(small.swapper)
    kernel = small.booted()
    for node in range(small.nodes):
        moved = on_node(kernel, captured, node, {})
        for row, vpn in enumerate(captured.vpn.tolist()):
            found = kernel.tables.walk(kernel.pgd_numa(node), vpn)
            if found is None:
                continue  # an alias that the boot dropped
            assert found.pfn == moved.pfn[row]
            assert found.table == tuple(moved.table[row].tolist())
            assert (found.leaf, found.flags) == (moved.leaf[row], moved.flags[row])


def test_r6_copies_fall_into_the_same_cache_sets_as_their_originals() -> None:
    kernel = SmallKernel(nodes=2).booted()
    for own in kernel.own.values():
        assert all((copy - original) % 3 == 0 for original, copy in own.items())
    for frames in kernel.replicated.values():
        assert (frames[1] - frames[0]) % 3 == 0


def test_r10_tables_alone_leave_every_frame_in_place() -> None:
    kernel = SmallKernel(nodes=2).booted(text=False, rodata=False)
    assert kernel.replicated == {}
    for vpn in text_vpns(kernel):
        assert node_frame(kernel, 1, vpn) == node_frame(kernel, 0, vpn)
    assert kernel.pgd_numa(1) != kernel.root
    top = kernel.tables.entry(kernel.pgd_numa(1), entry_index(-1, 4))
    assert kernel.frames.node_of(entry_pfn(top)) == 1
    assert KERNEL_HALF == 256


@pytest.mark.parametrize("master", [0, 1, 2])
@pytest.mark.parametrize("boot", [0, 1, 2])
def test_r3_r13_any_node_may_hold_the_image_and_any_may_boot(master: int, boot: int) -> None:
    small = SmallKernel(nodes=3, master=master, boot=boot)
    order = [boot, *(node for node in range(3) if node != boot)]
    kernel = small.booted(cpu_nodes=order)
    assert kernel.master == master
    assert set(kernel.own) == {0, 1, 2} - {master}
    text = TEXT_VA >> PAGE_SHIFT
    assert [kernel.frames.node_of(node_frame(kernel, node, text)) for node in range(3)] == [0, 1, 2]
    shared = kernel.tables.walk(kernel.pgd_numa(2), BASES["vmemmap"] >> PAGE_SHIFT)
    assert kernel.frames.node_of(shared.table[2]) == boot  # the boot node's tables
    assert kernel.frames.node_of(kernel.poking.pgd[boot]) == boot
    fork(kernel, kernel.cpus[1])
    assert violations(kernel) == []


@pytest.mark.parametrize("leaf", ["1G", "4K"])
def test_r14_f_aliases_in_other_leaves_are_dropped_too(leaf: str) -> None:
    small = SmallKernel(nodes=2)
    direct_map = BASES["direct_map"] >> PAGE_SHIFT
    kernel = small.unbooted()
    for step in (reserve, replicate, seal):
        step(kernel)
    first, pages = kernel.reserved[1][0]
    walk = kernel.tables.walk(kernel.root, direct_map + first)
    index = entry_index(direct_map + first, PMD)
    if leaf == "1G":  # the direct map of node 1 in one leaf
        start = small.ranges[1][0]
        at = entry_index(direct_map + start, 3)
        kernel.tables.set_entry(3, walk.table[2], at, start << PAGE_SHIFT | 0x83)
    else:
        kernel.tables.add_table(PTE, 9, {i: (first + i) << PAGE_SHIFT | 3 for i in range(512)})
        kernel.tables.set_entry(PMD, walk.table[1], index, 9 << PAGE_SHIFT | 3)
    publish(kernel)
    for pfn in (first, first + pages - 1):
        assert kernel.tables.walk(kernel.root, direct_map + pfn) is None
    kept = next(p for p in range(first, first + NODE_FRAMES // 2, 512) if p not in _taken(kernel))
    assert kernel.tables.walk(kernel.root, direct_map + kept).pfn == kept
    assert violations(kernel) == []


def _taken(kernel: Kernel) -> set[int]:
    return {pfn + i for pfn, pages in kernel.reserved[1] for i in range(pages)}
