"""What operations add, exactly: no flush, interrupt, store or instruction is left out (R16-R36)."""

import dataclasses

import numpy as np
import pytest

from numarep.linux.layout import MODULES_VPN
from numarep.linux.tables import GLOBAL, LARGE, PRESENT, WRITABLE, entry_index
from numarep.memory.kinds import Kind
from numarep.replication.adopt import Part, load_captured
from numarep.replication.areas import free_area, new_area, replicate_area
from numarep.replication.boot import replicate, reserve, start
from numarep.replication.events import Replay
from numarep.replication.invariants import violations
from numarep.replication.kernel import KERNEL_HALF, Kernel
from numarep.replication.modules import ModuleSize, load, load_bpf, unload
from numarep.replication.patching import patch_live
from numarep.replication.process import efi_mm, fill_slot, fork, leave, switch_to
from numarep.replication.protection import set_memory
from numarep.replication.splice import Splice
from numarep.replication.work import Sync, Work
from numarep.units import PAGE_SHIFT, PMD, PMD_BYTES, PTE, PUD
from numarep.workload.trace import ITERATION, Flag, Pages, Records, Trace
from tests.kernels import SERIES, TEXT_VA, SmallKernel
from tests.replication.test_process import failing
from tests.traces import kernel_trace

# Each its own prime, so that no two can stand for one another.
PRIMES = (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157)
COSTS = dataclasses.replace(
    SERIES.instructions,
    **dict(zip((f.name for f in dataclasses.fields(SERIES.instructions)), PRIMES, strict=True)),
)


def counted(work: Work) -> dict[str, int]:
    """Everything an operation adds, but for zeros."""
    found = {
        "instructions": work.total_instructions(),
        "loads": work.references(Kind.LOAD),
        "stores": work.references(Kind.STORE),
        **{sync.name: len(work.events(sync)) for sync in Sync},
    }
    return {name: count for name, count in found.items() if count}


def booted(nodes: int = 3, **switches: object) -> Kernel:
    return SmallKernel(nodes=nodes, processes=(0,)).booted(instructions=COSTS, **switches)


@pytest.mark.parametrize("ptes", ["shared", "loader", "target"])
def test_r26_r29_mapping_an_area_writes_its_entries_and_the_first_time_its_tables(
    ptes: str,
) -> None:
    kernel, pages, further = booted(area_ptes=ptes, modules=False), 3, 2
    first, again = (new_area(kernel, kernel.cpus[0], pages)[1] for _ in range(2))
    copies = 0 if ptes == "shared" else further
    entries = {"instructions": pages * copies * COSTS.entry, "stores": pages * copies}
    assert counted(again) == {name: count for name, count in entries.items() if count}
    # The PMD entry everywhere; where PTE pages are a node's own, a zeroed page and the PMD again.
    tables = further + copies * (1 + 512 + 1)
    assert counted(first) == {
        **counted(again),
        **({"loads": copies} if copies else {}),
        "stores": tables + pages * copies,
    }


def test_r27_r28_replicating_and_freeing_an_area_cost_what_each_page_costs() -> None:
    kernel, pages, further = booted(), 3, 2
    area, _ = new_area(kernel, kernel.cpus[1], pages, node=0)
    each = pages * further
    assert counted(replicate_area(kernel, kernel.cpus[1], area)) == {
        "instructions": each * COSTS.area_page,
        "loads": each * (512 + 1),
        "stores": each * (512 + 1 + 2),  # copied, its struct page, unmapped and mapped
        "IPI": 1,
        "FLUSH_ALL": 3,
    }
    assert counted(set_memory(kernel, area.start, pages, "ro")) == {
        "instructions": each * COSTS.entry,
        "stores": each,
    }
    assert counted(free_area(kernel, area)) == {
        "instructions": each * COSTS.entry,
        "loads": each,
        "stores": 2 * each,
    }


@pytest.mark.parametrize("bpf", [False, True])
def test_r28_r32_a_bpf_image_and_a_module_cost_what_their_parts_cost(bpf: bool) -> None:
    kernel, cpu, pages, further = booted(bpf=bpf), 1, 2, 2
    unload(kernel, load(kernel, kernel.cpus[cpu], ModuleSize(9, 0, 0, 0))[0])  # PTE pages stay
    each = pages * further
    copied = {"loads": each * 513, "IPI": 1, "FLUSH_ALL": 3} if bpf else {}
    assert counted(load_bpf(kernel, kernel.cpus[cpu], pages)[1]) == {
        "instructions": 2 * each * COSTS.entry + bpf * each * COSTS.area_page,
        "stores": 2 * each + bpf * each * (512 + 1 + 2),
        **copied,
    }
    module, _ = load(kernel, kernel.cpus[cpu], ModuleSize(2, 1, 1, 1))
    assert counted(unload(kernel, module)) == {
        "instructions": 5 * further * COSTS.entry,
        "loads": 3 * further,
        "stores": (5 + 3) * further,
    }


def test_r31_a_module_that_is_shared_again_pays_for_both_ways_and_flushes_twice() -> None:
    small = SmallKernel(nodes=3)
    frames = failing(small)
    kernel = small.booted(instructions=COSTS)
    cpu, size, further = kernel.cpus[0], ModuleSize(text=2, rodata=1, ro_after_init=0, data=0), 2
    unload(kernel, load(kernel, cpu, size)[0])
    frames.fail_at = 3 + 2 * further + 1  # the last page of rodata's copies
    module, work = load(kernel, cpu, size)
    assert not module.replicated
    tried = 2 * further
    assert counted(work) == {
        "instructions": tried * COSTS.area_page + (3 + 3 + 2) * further * COSTS.entry,
        "loads": tried * (512 + 1 + 1),
        "stores": (3 + 3 + 2) * further + tried * (512 + 1 + 2 + 1),
        "IPI": 2,
        "FLUSH_ALL": 2 * 3,
    }
    assert violations(kernel) == []


@pytest.mark.parametrize("active", [True, False])
def test_r20_a_switch_costs_the_instructions_that_find_the_pgd(active: bool) -> None:
    off = {"tables": False, "text": False, "rodata": False, "modules": False}
    kernel = booted(**({} if active else off))
    mm, _ = fork(kernel, kernel.cpus[0])
    wanted = {"instructions": COSTS.switch} if active else {}
    for cpu in kernel.cpus:
        assert counted(switch_to(kernel, cpu, mm)) == wanted
    assert counted(switch_to(kernel, kernel.cpus[0], kernel.init_mm)) == wanted


@pytest.mark.parametrize("pti", [False, True])
def test_r16_r20_a_lazy_pgd_is_paid_where_it_is_made_and_where_it_is_given_back(pti: bool) -> None:
    kernel = SmallKernel(nodes=3, pti=pti).booted(instructions=COSTS, pgds="lazy_shrink")
    mm, born = fork(kernel, kernel.cpus[0])
    assert counted(born) == {}
    fill_slot(kernel, kernel.cpus[0], mm, 3)
    made = switch_to(kernel, kernel.cpus[1], mm)
    halves = 2 * (1 + pti)  # kernel and user half of each page
    assert counted(made) == {
        "instructions": COSTS.switch + COSTS.fork,
        "loads": halves * 256 + 1,
        "stores": 1024 + halves * 256 + 1,
    }
    assert counted(switch_to(kernel, kernel.cpus[1], kernel.init_mm)) == {
        "instructions": COSTS.switch + COSTS.exit,
        "loads": 1,
        "stores": 1,
    }


def test_r20_retargets_private_tables_are_paid_at_birth_at_a_move_and_at_death() -> None:
    kernel = booted(pgds="retarget", modules=False, area_ptes="shared")
    mm, born = fork(kernel, kernel.cpus[1])
    tables, leaves = 3, len(kernel.replicated)
    assert counted(born) == {
        "instructions": COSTS.fork * tables // 2,
        "loads": tables * (512 + 1),
        "stores": tables * (512 + 1),
    }
    assert counted(switch_to(kernel, kernel.cpus[2], mm)) == {
        "instructions": COSTS.switch + leaves * COSTS.entry,
        "stores": leaves,
        "FLUSH_PAGE": leaves,
    }
    switch_to(kernel, kernel.cpus[2], kernel.init_mm)
    assert counted(leave(kernel, mm)) == {
        "instructions": COSTS.exit * tables // 2,
        "loads": tables,
        "stores": tables,
    }


def test_r17_mitosis_copies_of_a_slots_table_are_paid_when_made_and_when_freed() -> None:
    kernel, further = booted(user_tables=True), 2
    mm, _ = fork(kernel, kernel.cpus[0])
    assert counted(fill_slot(kernel, kernel.cpus[0], mm, 3)) == {
        "instructions": COSTS.slot_fill + COSTS.slot_fill_further,
        "loads": further,
        "stores": further * (1 + 512 + 1),  # the slot, a zeroed page and its struct page
    }
    assert counted(leave(kernel, mm)) == {
        "instructions": COSTS.slot_clear + COSTS.slot_clear_further + further * COSTS.exit,
        "loads": further * 2,
        "stores": further * 3,  # the slot, the table's struct page, the PGD's
    }


def test_r23_r24_each_write_of_a_patch_is_a_round_trip_a_replica() -> None:
    kernel, further, writes = booted(), 2, 3
    each = further * writes
    assert counted(patch_live(kernel, kernel.cpus[1], [(TEXT_VA + 8, b"\xe8\1\2\3\4")])) == {
        "instructions": writes * (COSTS.poke + COSTS.poke_further),
        "loads": each * 3,
        "stores": each * 3,  # mapped, written, unmapped
        "CR3_LOAD": each * 2,
        "FLUSH_PAGE": each,
    }


def test_r25_a_split_leaf_is_paid_in_every_copied_table() -> None:
    kernel = booted()
    data = kernel.image.rodata.round_up(PMD_BYTES).end >> PAGE_SHIFT
    assert counted(set_memory(kernel, data + 4, 1, "ro")) == {
        "instructions": 2 * COSTS.entry,
        "stores": 2,
    }


def test_r25_a_page_of_a_1g_leaf_is_split_out_of_it_and_no_other_changes() -> None:
    kernel = booted()
    first = (kernel.bases["vmalloc"] >> PAGE_SHIFT) + (1 << 18)  # shared tables: not in the window
    pud = dict(kernel.path(kernel.root, first, PUD))[PUD]
    leaf = 3 << 30 | LARGE | PRESENT | WRITABLE
    kernel.tables.set_entry(PUD, pud, entry_index(first, PUD), leaf)
    assert counted(set_memory(kernel, first + 700, 2, "ro")) == {}
    for page in (0, 511, 512, 699, 700, 701, 702, 1023, 1024, (1 << 18) - 1):
        walk = kernel.tables.walk(kernel.root, first + page)
        assert walk.pfn == (3 << 18) + page
        assert walk.flags & Flag.WRITABLE == (0 if page in (700, 701) else Flag.WRITABLE)
        assert walk.leaf == (PTE if 512 <= page < 1024 else PMD)
    assert violations(kernel) == []


def test_r26_r30_the_tables_of_a_captured_module_are_written_in_every_copied_table() -> None:
    kernel = booted(modules=False, area_ptes="shared")
    part = Part(MODULES_VPN + 4 * 512, [0x5000, 0x5001], "text", (0x5100, -1, -1, -1, -1))
    _, work = load_captured(kernel, kernel.cpus[0], [part])
    assert counted(work) == {"stores": 2}  # the PMD entry; below it the PTE page is shared
    assert kernel.tables.walk(kernel.pgd_numa(2), part.start).table[0] == 0x5100
    assert violations(kernel) == []


def direct_trace(small: SmallKernel, stores: list[tuple[int, int, int]], *events: str) -> Trace:
    """Enter functions one after another, each storing to (frame, line, times) right after."""
    pages, root = small.pages(small.roots[1]), small.roots[1]
    text = int(np.flatnonzero(small.image.text.holds(pages.vpn))[0])
    base = small.bases["direct_map"] >> PAGE_SHIFT
    frames = sorted({pfn for pfn, _, _ in stores})
    walks = [small.tables.walk(root, base + pfn) for pfn in frames]
    row = {pfn: len(pages.vpn) + place for place, pfn in enumerate(frames)}
    one = [(Kind.FETCH, text, 0, 1), *((Kind.STORE, row[p], line, n) for p, line, n in stores)]
    kind, page, line, count = zip(*(one * max(len(events), 1)), strict=True)
    marks = [(place * len(one), name) for place, name in enumerate(events)]
    return Trace(
        Records(
            np.array(kind, np.uint8),
            np.array(page, np.int32),
            np.array(line, np.uint8),
            np.array(count, np.int32),
        ),
        Pages(
            np.append(pages.vpn, [base + pfn for pfn in frames]),
            np.append(pages.pfn, frames),
            np.append(pages.leaf, [walk.leaf for walk in walks]).astype(np.uint8),
            np.append(pages.flags, [Flag.WRITABLE for _ in frames]).astype(np.uint8),
            np.concatenate([pages.table, [walk.table for walk in walks]]),
        ),
        np.array([0, *(record for record, _ in marks)], np.int64),
        (ITERATION, *(name for _, name in marks)),
    )


def added(before: Trace, after: Trace, kind: Kind) -> int:
    totals = [int(t.records.count[t.records.kind == kind].sum()) for t in (after, before)]
    return totals[0] - totals[1]


@pytest.mark.parametrize("lines", [1, 3, 70])
def test_r38_a_bursts_instructions_and_accesses_are_spliced_line_by_line(lines: int) -> None:
    small = SmallKernel(nodes=2, processes=(0,))
    before, kernel = direct_trace(small, [(0x9000, 0, 1)]), small.booted()
    splice, work = Splice(before, kernel), Work()
    kernel.copy(work, 0x9100, 0x9200, lines=lines, instructions=5)
    splice.add(0, kernel.cpus[0], work)
    after = splice.spliced()
    assert added(before, after, Kind.FETCH) == 5 * lines == work.total_instructions()
    assert added(before, after, Kind.LOAD) == added(before, after, Kind.STORE) == 8 * lines


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_r17_mitosis_pays_for_every_mirrored_store(nodes: int) -> None:
    small = SmallKernel(nodes=nodes, processes=(0,))
    table = small.tables.walk(small.roots[1], 0x400).table[0]
    before = direct_trace(small, [(table, 5, 3), (table, 6, 1)])
    kernel = small.booted(instructions=COSTS, user_tables=True)
    after = Replay(kernel, before, kernel.cpus[0]).trace()
    mirrored = (3 + 1) * (nodes - 1)
    assert added(before, after, Kind.STORE) == mirrored
    assert added(before, after, Kind.FETCH) == mirrored * COSTS.entry
    stored = after.records.kind == Kind.STORE
    pfns = set(after.pages.pfn[after.records.page[stored]].tolist())
    assert pfns == {table, *kernel.user_copies.get(table, {}).values()}


@pytest.mark.parametrize("line", [0, 7, 31])
def test_r18_a_traced_slot_is_filled_and_cleared_in_the_line_that_is_stored_to(line: int) -> None:
    small = SmallKernel(nodes=2, processes=(0,))
    pgd, table = small.roots[1], 0x9000
    filled = [*((table, part, 8) for part in range(64)), (pgd, line, 1)]
    before = direct_trace(small, filled, "__pud_alloc", "___pud_free_tlb")
    after = Replay(kernel := small.booted(instructions=COSTS), before, kernel.cpus[0]).trace()
    assert added(before, after, Kind.FETCH) == COSTS.slot_fill + COSTS.slot_clear
    old, kind = len(before.pages.vpn), after.records.kind == Kind.STORE
    stored = kind & (after.records.page >= old)
    (mm,) = kernel.mms
    assert set(after.pages.pfn[after.records.page[stored]].tolist()) == {mm.pgd[1]}
    assert after.records.line[stored].tolist() == [line, line]
    assert violations(kernel) == []


def test_r16_a_pgd_that_is_born_again_was_given_back_before() -> None:
    small = SmallKernel(nodes=3, processes=(0,))
    pgd = 0x9000
    zeroed = [(pgd + page, line, 8) for page in (0, 1) for line in range(64)]
    before = direct_trace(small, zeroed, "pgd_alloc", "pgd_alloc")
    kernel = small.booted(instructions=COSTS)
    replay = Replay(kernel, before, kernel.cpus[0])
    lived = list(kernel.mms)
    after = replay.trace()
    assert [mm.pgd[mm.original] for mm in kernel.mms if mm not in lived] == [pgd]
    assert added(before, after, Kind.FETCH) == 2 * 2 * COSTS.fork  # its end was on another CPU
    assert violations(kernel) == []


def test_r1_switched_off_the_codes_own_path_is_paid_at_every_watched_event() -> None:
    small = SmallKernel(nodes=2, processes=(0,))
    before = kernel_trace(small, small.roots[1], events=((3, "pgd_alloc"), (6, "do_exit")))
    off = {"tables": False, "text": False, "rodata": False, "modules": False}
    kernel = small.booted(instructions=COSTS, **off)
    after = Replay(kernel, before, kernel.cpus[0]).trace()
    assert added(before, after, Kind.FETCH) == COSTS.switched_off


def test_r14_a_d_reserving_touches_nothing_and_a_started_cpu_loads_its_nodes_pgd() -> None:
    kernel = SmallKernel(nodes=3, memoryless=(2,)).unbooted()
    assert counted(reserve(kernel)) == {}
    replicate(kernel)
    loads = [start(kernel, cpu).events(Sync.CR3_LOAD) for cpu in kernel.cpus]
    own = kernel.pgd_numa(1)
    assert [[(e.cpu, e.argument) for e in load] for load in loads] == [[], [(1, own)], [(2, own)]]


def test_r36_the_firmwares_pgd_holds_the_masters_kernel_half() -> None:
    kernel = booted()
    entry = kernel.tables.entry(kernel.root, 511)
    kernel.tables.set_entry(4, kernel.root, 511, entry | GLOBAL)
    efi, _ = efi_mm(kernel, kernel.cpus[0])
    half = {i: e for i, e in kernel.tables.pages[kernel.root].items() if i >= KERNEL_HALF}
    assert kernel.tables.pages[efi.root(2)] == half
