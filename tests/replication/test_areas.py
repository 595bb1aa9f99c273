"""Areas, modules, BPF images and their protection (R7, R12, R25-R32, R39)."""

import pytest

from numarep.linux.frames import FrameError
from numarep.linux.layout import MODULES_END_VPN, MODULES_VPN
from numarep.linux.tables import WRITABLE, entry_index
from numarep.memory.kinds import Kind
from numarep.replication.adopt import adopt_module
from numarep.replication.areas import (
    free_area,
    new_area,
    node_frame,
    own_pte_pages,
    page_of,
    ptes_of,
    replicate_area,
)
from numarep.replication.dump import statistics
from numarep.replication.hotplug import hotplug, lacking
from numarep.replication.invariants import violations
from numarep.replication.kernel import Kernel, ReplicationError, has_replicas
from numarep.replication.modules import ModuleSize, load, load_bpf, unload
from numarep.replication.patching import poke
from numarep.replication.process import clear_slot, fill_slot, fork, go_lazy, switch_to
from numarep.replication.protection import set_memory
from numarep.replication.work import Sync, Work
from numarep.units import PAGE_SHIFT, PMD, PMD_BYTES, PTE
from numarep.workload.trace import Flag
from tests.kernels import MODULE_VA, SERIES, SmallKernel
from tests.replication.test_process import failing, state

COSTS = SERIES.instructions
SIZE = ModuleSize(text=3, rodata=2, ro_after_init=1, data=2)


def flags(kernel: Kernel, vpn: int) -> set[int | None]:
    """What each node's tables allow."""
    found = [kernel.tables.walk(kernel.pgd_numa(node), vpn) for node in kernel.replica_nodes]
    return {walk and walk.flags for walk in found}


def frames(kernel: Kernel, vpn: int) -> set[int]:
    return {node_frame(kernel, node, vpn) for node in kernel.replica_nodes}


@pytest.mark.parametrize("change", ["ro", "rw", "x", "nx", "rox", "global", "nonglobal"])
def test_r25_every_protection_change_goes_to_all_tables(change: str) -> None:
    kernel = SmallKernel(nodes=3).booted()
    area, _ = new_area(kernel, kernel.cpus[1], pages=2)
    section = kernel.image.replicated[0]
    for start, pages in ((area.start, 2), (section.start >> PAGE_SHIFT, section.pages)):
        work = set_memory(kernel, start, pages, change)
        assert len(flags(kernel, start)) == 1
        leaves = pages if pages == 2 else pages // 512
        assert work.references(Kind.STORE) == 2 * leaves  # two further tables
    assert violations(kernel) == []


def test_r25_not_present_everywhere_and_present_again() -> None:
    kernel = SmallKernel(nodes=2).booted()
    area, _ = new_area(kernel, kernel.cpus[0], pages=1)
    before = frames(kernel, area.start)
    set_memory(kernel, area.start, 1, "np")
    assert flags(kernel, area.start) == {None}
    with pytest.raises(ReplicationError, match="expected mapped pages"):
        set_memory(kernel, area.start, 1, "ro")
    set_memory(kernel, area.start, 1, "p")
    assert frames(kernel, area.start) == before


def test_r25_r28_pages_hidden_when_they_were_freed_do_not_come_back() -> None:
    kernel = SmallKernel(nodes=2).booted()
    first, _ = new_area(kernel, kernel.cpus[0], pages=1)
    set_memory(kernel, first.start, 1, "np")
    free_area(kernel, first)
    second, _ = new_area(kernel, kernel.cpus[0], pages=1)
    third, _ = new_area(kernel, kernel.cpus[0], pages=1)
    assert second.start == first.start
    set_memory(kernel, second.start, 1, "p")
    assert frames(kernel, second.start) == {second.frames[0]}
    assert frames(kernel, third.start) == {third.frames[0]}
    assert violations(kernel) == []


def test_r25_a_replica_with_other_permissions_is_a_violation() -> None:
    kernel = SmallKernel(nodes=2).booted()
    text = kernel.image.text.start >> PAGE_SHIFT
    pmd = kernel.tables.walk(kernel.pgd_numa(1), text).table[PMD - 1]
    entry = kernel.tables.entry(pmd, entry_index(text, PMD))
    kernel.tables.set_entry(PMD, pmd, entry_index(text, PMD), entry | WRITABLE)
    assert [line[:3] for line in violations(kernel)] == ["R25"]


def test_r25_part_of_a_leaf_is_refused_and_nothing_changes() -> None:
    kernel = SmallKernel(nodes=2).booted()
    before = state(kernel)
    with pytest.raises(ReplicationError, match="0xffffffff81003000 lies within a replicated leaf"):
        set_memory(kernel, kernel.image.text.start >> PAGE_SHIFT, 3, "rw")
    assert state(kernel) == before


@pytest.mark.parametrize("clone_ptes", [False, True])
@pytest.mark.parametrize("levels", [4, 5])
def test_r25_part_of_a_shared_leaf_is_split_in_all_tables(levels: int, clone_ptes: bool) -> None:
    kernel = SmallKernel(nodes=3, levels=levels).booted(clone_ptes=clone_ptes)
    data = kernel.image.rodata.round_up(PMD_BYTES).end >> PAGE_SHIFT
    held = kernel.held["shared"]
    before = [frames(kernel, data + page) for page in (0, 4, 5, 511)]
    work = set_memory(kernel, data + 4, 1, "ro")
    assert kernel.held["shared"] == held + 1
    # Two further PMD entries; with PTE pages of their own, two further PTE entries beside.
    assert work.references(Kind.STORE) >= 2
    if not clone_ptes:
        assert work.references(Kind.STORE) == 2
    allowed = [flags(kernel, data + page) for page in (3, 4, 5)]
    assert allowed[0] == allowed[2] != allowed[1]
    assert all(len(each) == 1 for each in allowed)
    assert [frames(kernel, data + page) for page in (0, 4, 5, 511)] == before
    assert violations(kernel) == []
    assert set_memory(kernel, data + 9, 2, "nx").references(Kind.STORE) == (4 if clone_ptes else 0)


@pytest.mark.parametrize("ptes", ["shared", "loader", "target"])
def test_r26_an_area_in_the_window_is_mapped_to_the_same_pages_everywhere(ptes: str) -> None:
    kernel = SmallKernel(nodes=3).booted(area_ptes=ptes, modules=False)
    area, _ = new_area(kernel, kernel.cpus[1], pages=2)
    assert has_replicas(area.start)
    for vpn, pfn in zip(area.vpns, area.frames, strict=True):
        assert frames(kernel, vpn) == {pfn}
    shared = len({kernel.tables.walk(kernel.pgd_numa(n), area.start).table[0] for n in range(3)})
    assert shared == (1 if ptes == "shared" else 3)
    assert violations(kernel) == []


@pytest.mark.parametrize("levels", [4, 5])
def test_r26_r38_outside_the_window_one_mapping_in_shared_tables(levels: int) -> None:
    kernel = SmallKernel(nodes=3, levels=levels).booted()
    area, work = new_area(kernel, kernel.cpus[1], pages=2, window=False)
    assert not has_replicas(area.start)
    assert work.steps == []
    assert frames(kernel, area.start) == {area.frames[0]}
    assert violations(kernel) == []
    assert free_area(kernel, area).steps == []


def test_r27_replication_is_refused_where_the_kernel_refuses_it() -> None:
    kernel = SmallKernel(nodes=2).booted()
    outside, _ = new_area(kernel, kernel.cpus[0], pages=1, node=0, window=False)
    unbound, _ = new_area(kernel, kernel.cpus[0], pages=1)
    gone, _ = new_area(kernel, kernel.cpus[0], pages=1, node=0)
    free_area(kernel, gone)
    for area, reason in (
        (outside, "lies outside the window"),
        (unbound, "bound to one node"),
        (gone, "expected an existing area"),
    ):
        with pytest.raises(ReplicationError, match=reason):
            replicate_area(kernel, kernel.cpus[0], area)
    lacking = SmallKernel(nodes=3, memoryless=(2,)).booted()
    for node, reason in ((7, "does not exist"), (-1, "does not exist"), (2, "has no memory")):
        with pytest.raises(ReplicationError, match=rf"node {node} {reason} .*memory: 0, 1\)"):
            new_area(lacking, lacking.cpus[0], pages=1, node=node)


def test_r27_hidden_pages_and_policies_without_tables_for_them_are_refused() -> None:
    kernel = SmallKernel(nodes=2).booted()
    area, _ = new_area(kernel, kernel.cpus[0], pages=2, node=0)
    set_memory(kernel, area.start + 1, 1, "np")
    off = {"tables": False, "text": False, "rodata": False, "modules": False}
    retarget = {"pgds": "retarget", "modules": False, "area_ptes": "shared"}
    refused = [(kernel, area, "expected pages that are present")]
    for switches, reason in ((off, "with per-node tables"), (retarget, "areas stay shared")):
        other = SmallKernel(nodes=2).booted(**switches)
        own, _ = new_area(other, other.cpus[0], pages=2, node=0)
        refused.append((other, own, reason))
    for refusing, own, reason in refused:
        before = state(refusing)
        with pytest.raises(ReplicationError, match=reason):
            replicate_area(refusing, refusing.cpus[0], own)
        assert state(refusing) == before
        assert violations(refusing) == []


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_r27_every_other_node_gets_its_own_4k_pages_and_all_cpus_flush(bound: int) -> None:
    kernel = SmallKernel(nodes=3).booted()
    area, _ = new_area(kernel, kernel.cpus[0], pages=2, node=bound)
    cpu = kernel.cpus[0]
    work = replicate_area(kernel, cpu, area)
    for node in range(3):
        walk = kernel.tables.walk(kernel.pgd_numa(node), area.start)
        assert kernel.frames.node_of(walk.pfn) == node
        assert walk.leaf == PTE
    assert work.total_instructions() == COSTS.area_page * 2 * 2
    assert work.references(Kind.STORE) >= 2 * 2 * 512
    assert [event.cpu for event in work.events(Sync.IPI)] == [cpu.number]
    assert len(work.events(Sync.FLUSH_ALL)) == 3
    assert violations(kernel) == []
    with pytest.raises(ReplicationError, match="replicated already"):
        replicate_area(kernel, kernel.cpus[0], area)


def test_r27_the_copy_holds_what_the_master_held() -> None:
    kernel = SmallKernel(nodes=2).booted()
    area, _ = new_area(kernel, kernel.cpus[0], pages=1, node=0)
    poke(kernel, kernel.cpus[0], area.start << PAGE_SHIFT, b"\x0f")
    replicate_area(kernel, kernel.cpus[0], area)
    assert {kernel.contents.read(p, 0, 1) for p in frames(kernel, area.start)} == {(0x0F,)}
    poke(kernel, kernel.cpus[1], area.start << PAGE_SHIFT, b"\x90")
    assert violations(kernel) == []


def test_r28_free_walks_all_tables_and_frees_all_pages() -> None:
    kernel = SmallKernel(nodes=3).booted()
    area, _ = new_area(kernel, kernel.cpus[0], pages=2, node=0)
    replicate_area(kernel, kernel.cpus[0], area)
    assert page_of(kernel, area.start + 1) == area.frames[1]  # the master's, from any node
    ours = {*area.frames, *(pfn for copies in area.replicas.values() for pfn in copies)}
    assert len(ours) == 6
    free_area(kernel, area)
    assert ours.isdisjoint(kernel.frames.in_use)
    assert flags(kernel, area.start) == {None}
    for lookup in (lambda: page_of(kernel, area.start), lambda: node_frame(kernel, 1, area.start)):
        with pytest.raises(ReplicationError, match="is not mapped"):
            lookup()
    with pytest.raises(ReplicationError, match="freed"):
        free_area(kernel, area)
    assert violations(kernel) == []


@pytest.mark.parametrize("fail_at", range(2))
def test_r29_pte_pages_are_made_for_all_nodes_or_none(fail_at: int) -> None:
    small = SmallKernel(nodes=3)
    injected = failing(small)
    kernel = small.booted()
    area, _ = new_area(kernel, kernel.cpus[0], pages=1)
    table = dict(kernel.path(kernel.root, area.start, PTE))[PTE]
    for own in kernel.own.values():  # as if loaded before there were replicas
        kernel.free_table(own.pop(table), "area_ptes")
    before = state(kernel)
    injected.fail_at = fail_at
    with pytest.raises(FrameError):
        own_pte_pages(kernel, kernel.cpus[0], area.start, Work())
    assert state(kernel) == before


@pytest.mark.parametrize(("ptes", "wanted"), [("loader", {1}), ("target", {1, 2})])
def test_r29_new_pte_pages_come_from_the_loading_cpus_node(ptes: str, wanted: set[int]) -> None:
    kernel = SmallKernel(nodes=3).booted(area_ptes=ptes)
    new_area(kernel, kernel.cpus[1], pages=1, node=0)
    made = [copy for own in kernel.own.values() for copy in own.values()]
    leaves = [copy for copy in made if kernel.tables.level_of[copy] == PTE]
    assert len(leaves) == 2
    assert {kernel.frames.node_of(copy) for copy in leaves} == wanted


def test_r30_a_module_replicates_text_and_rodata_only() -> None:
    kernel = SmallKernel(nodes=3).booted()
    module, work = load(kernel, kernel.cpus[2], SIZE)
    assert module.replicated
    for part, area in module.areas.items():
        own = {kernel.frames.node_of(pfn) for pfn in frames(kernel, area.start)}
        assert own == ({0, 1, 2} if part in ("text", "rodata") else {0})
    assert flags(kernel, module.areas["text"].start) == {Flag.EXECUTABLE}
    assert flags(kernel, module.areas["rodata"].start) == {0}
    assert flags(kernel, module.areas["data"].start) == {Flag.WRITABLE}
    assert work.total_instructions() == COSTS.area_page * 5 * 2
    base = kernel.contents.read(module.areas["text"].frames[0], 0, 4)  # relocated before
    assert base != (None,) * 4
    for pfn in frames(kernel, module.areas["text"].start):
        assert kernel.contents.read(pfn, 0, 4) == base
    assert violations(kernel) == []
    unload(kernel, module)
    assert kernel.areas == []
    assert violations(kernel) == []


def test_r7_module_data_and_ro_after_init_are_shared() -> None:
    kernel = SmallKernel(nodes=2).booted()
    module, _ = load(kernel, kernel.cpus[0], SIZE)
    for part in ("data", "ro_after_init"):
        assert len(frames(kernel, module.areas[part].start)) == 1


def test_r31_a_module_without_memory_for_copies_is_shared_and_leaks_nothing() -> None:
    outcomes = set()
    for fail_at in range(40):
        small = SmallKernel(nodes=3)
        injected = failing(small)
        kernel = small.booted()
        before = kernel.frames.taken - kernel.held["shared"] - kernel.held["area_ptes"]
        injected.fail_at = fail_at
        try:
            module, _ = load(kernel, kernel.cpus[0], SIZE)
        except FrameError:
            outcomes.add("refused")
            assert kernel.areas == []
        else:
            outcomes.add("replicated" if module.replicated else "shared")
            if not module.replicated:
                assert all(not area.replicas for area in module.areas.values())
                assert {len(frames(kernel, a.start)) for a in module.areas.values()} == {1}
            injected.fail_at = None
            unload(kernel, module)
        assert violations(kernel) == []
        spare = kernel.held["shared"] + kernel.held["area_ptes"]
        assert kernel.frames.taken - spare == before
        assert not kernel.replicated.keys() - _static(kernel)
    assert outcomes == {"refused", "shared", "replicated"}


@pytest.mark.parametrize("part", range(4))
def test_r31_a_module_without_addresses_is_refused_and_leaks_nothing(part: int) -> None:
    kernel = SmallKernel(nodes=3).booted()
    unload(kernel, load(kernel, kernel.cpus[1], SIZE)[0])  # PTE pages stay
    before = state(kernel)
    pages = [2] * 4
    pages[part] = MODULES_END_VPN - MODULES_VPN
    with pytest.raises(ReplicationError, match="no room for 258048 pages of kernel addresses"):
        load(kernel, kernel.cpus[1], ModuleSize(*pages))
    assert kernel.areas == []
    assert state(kernel) == before
    assert violations(kernel) == []


def test_r25_r26_what_is_no_area_and_no_change_is_refused_by_name() -> None:
    kernel = SmallKernel(nodes=2).booted()
    area, _ = new_area(kernel, kernel.cpus[0], pages=1)
    before = state(kernel)
    for pages in (0, -3):
        with pytest.raises(ReplicationError, match=f"an area of {pages} pages: expected at least"):
            new_area(kernel, kernel.cpus[0], pages=pages)
    with pytest.raises(ReplicationError, match="of -1 pages"):
        load(kernel, kernel.cpus[0], ModuleSize(1, 1, -1, 1))
    with pytest.raises(ReplicationError, match="'bogus': expected ro, rw, x, nx"):
        set_memory(kernel, area.start, 1, "bogus")
    assert state(kernel) == before


def _static(kernel: Kernel) -> set[tuple[int, int]]:
    """Replicated leaves of the image."""
    return {key for key in kernel.replicated if kernel.tables.level_of[key[0]] == PMD}


@pytest.mark.parametrize("bpf", [False, True])
def test_r32_bpf_images_are_mapped_everywhere_and_shared_by_default(bpf: bool) -> None:
    kernel = SmallKernel(nodes=2).booted(bpf=bpf)
    image, _ = load_bpf(kernel, kernel.cpus[1], pages=2)
    assert has_replicas(image.start)
    assert len(frames(kernel, image.start)) == 1 + bpf
    assert flags(kernel, image.start) == {Flag.EXECUTABLE}
    assert violations(kernel) == []


def test_r12_r29_a_captured_module_is_taken_over() -> None:
    small = SmallKernel(nodes=2)
    kernel = small.booted()
    vpn = MODULE_VA >> PAGE_SHIFT
    (area,) = adopt_module(kernel, kernel.cpus[1], range(vpn, vpn + 8))
    assert area.frames == [0x900]
    assert {kernel.frames.node_of(pfn) for pfn in frames(kernel, vpn)} == {0, 1}
    own = kernel.own[1][ptes_of(kernel, range(vpn, vpn + 1))[0][0]]
    assert kernel.frames.node_of(own) == 1  # the loading CPU's node
    assert violations(kernel) == []
    free_area(kernel, area)
    assert violations(kernel) == []


@pytest.mark.parametrize("levels", [4, 5])
def test_r39_hotplug_at_pgd_level_shows_as_a_violation(levels: int) -> None:
    kernel = SmallKernel(nodes=3, levels=levels).booted()
    mm, _ = fork(kernel, kernel.cpus[1])
    before = state(kernel)
    for slot, reason in ((255, "expected a kernel slot, 256 to 511"), (511, "filled already")):
        with pytest.raises(ReplicationError, match=reason):
            hotplug(kernel, kernel.cpus[0], slot)
    assert state(kernel) == before
    assert hotplug(kernel, kernel.cpus[0], 300).steps == []
    assert lacking(kernel) == {300: (1, 2)}
    assert violations(kernel) == [
        f"R39: node {node}: kernel PGD slot 300 is not the master's" for node in (1, 2)
    ]
    assert dict(statistics(kernel, 8))["lacking_pgd_slots"] == 2
    filled = {node: bool(kernel.tables.entry(pgd, 300)) for node, pgd in mm.pgd.items()}
    assert filled == {0: True, 1: False, 2: False}
    late, _ = fork(kernel, kernel.cpus[0])  # its PGDs are made from their nodes'
    assert [300 in kernel.tables.pages[late.pgd[node]] for node in range(3)] == [True, False, False]
    alone = SmallKernel(nodes=1, processes=(0,)).booted()
    hotplug(alone, alone.cpus[0], 300)
    assert violations(alone) == []
    assert lacking(alone) == {}


def test_r38_what_synchronises_tables() -> None:
    """The complete list: nothing else writes to a further node's tables."""
    kernel = SmallKernel(nodes=2, processes=()).booted()
    cpu = kernel.cpus[0]
    mm, _ = fork(kernel, cpu)

    def changed(*works: object) -> bool:
        del works
        now = {t: dict(kernel.tables.pages[t]) for t in watched if t in kernel.tables.pages}
        different = now != before
        before.clear()
        before.update(now)
        return different

    watched = [*kernel.own[1].values(), mm.pgd[1]]
    before = {t: dict(kernel.tables.pages[t]) for t in watched}

    assert changed(fill_slot(kernel, cpu, mm, 3))
    assert changed(clear_slot(kernel, mm, 3))
    assert not changed(switch_to(kernel, cpu, mm))
    assert not changed(go_lazy(cpu))
    other, _ = fork(kernel, cpu)
    assert not changed()
    assert not changed(fill_slot(kernel, cpu, other, 3))
    outside, _ = new_area(kernel, cpu, pages=1, window=False)
    assert not changed()
    assert not changed(set_memory(kernel, outside.start, 1, "ro"))
    assert not changed(poke(kernel, cpu, outside.start << PAGE_SHIFT, b"\x01"))
    text = kernel.image.replicated[0]
    assert not changed(poke(kernel, cpu, text.start, b"\x90"))  # bytes, through the poking mm
    assert changed(set_memory(kernel, text.start >> PAGE_SHIFT, text.pages, "rw"))
    module, _ = load(kernel, cpu, SIZE)
    assert changed()
    watched += [t for t in kernel.own[1].values() if t not in watched]
    changed()
    assert changed(unload(kernel, module))
