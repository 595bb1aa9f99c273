"""Processes: PGDs at birth and death, user slots, context switches (R15-R21), and failures."""

import itertools

import pytest

from numarep.linux.frames import FrameError, Frames
from numarep.linux.tables import NO_EXECUTE, entry_pfn
from numarep.memory.kinds import Kind
from numarep.replication.invariants import violations
from numarep.replication.kernel import Kernel, ReplicationError
from numarep.replication.process import (
    clear_slot,
    execute,
    fill_slot,
    fork,
    go_lazy,
    leave,
    switch_to,
)
from numarep.replication.work import Sync
from tests.kernels import SERIES, SmallKernel

COSTS = SERIES.instructions


class FailingFrames(Frames):
    """Frames whose n-th allocation from now on fails; None never."""

    fail_at: int | None = None

    def allocate(
        self, node: int, *, like: int, count: int = 1, align: int = 1, recycle: bool = False
    ) -> int:
        if self.fail_at is not None:
            self.fail_at -= 1
            if self.fail_at < 0:
                raise FrameError(f"node {node}: injected")
        return super().allocate(node, like=like, count=count, align=align, recycle=recycle)


def failing(small: SmallKernel) -> FailingFrames:
    small.frames = frames = FailingFrames(small.ranges, small.frames.in_use, colours=3)
    return frames


def state(kernel: Kernel) -> object:
    """Everything an operation that fails must leave as it was."""
    tables = {pfn: dict(page) for pfn, page in kernel.tables.pages.items()}
    held = {what: count for what, count in kernel.held.items() if count}
    mms = [(dict(mm.pgd), mm.window, dict(mm.private)) for mm in kernel.mms]
    cpus = [(cpu.mm, cpu.lazy, cpu.cr3) for cpu in kernel.cpus]
    return kernel.frames.in_use, tables, held, mms, cpus


def test_r15_an_mm_has_a_pgd_per_node() -> None:
    kernel = SmallKernel(nodes=3).booted()
    mm, _ = fork(kernel, kernel.cpus[1])
    assert [kernel.frames.node_of(mm.root(node)) for node in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("nodes", [1, 2, 3, 8])
@pytest.mark.parametrize("pti", [False, True])
def test_r16_fork_zeroes_and_half_copies_a_page_pair_per_further_node(
    nodes: int, pti: bool
) -> None:
    kernel = SmallKernel(nodes=nodes, pti=pti, processes=(0,)).booted()
    mm, work = fork(kernel, kernel.cpus[nodes - 1])
    further, halves = nodes - 1, 1 + pti
    assert work.total_instructions() == COSTS.fork * further
    assert work.references(Kind.LOAD) == (256 * halves + 1) * further
    assert work.references(Kind.STORE) == (1024 + 256 * halves + 1) * further
    assert work.references(Kind.STORE, node=nodes - 1) == 0
    for node in range(further):
        assert work.references(Kind.LOAD, node=node) == 256 * halves + 1  # from its own init PGD
    assert violations(kernel) == []
    assert leave(kernel, mm).total_instructions() == COSTS.exit * further


def test_r16_memoryless_nodes_alias_and_exit_frees_all() -> None:
    kernel = SmallKernel(nodes=4, memoryless=(2,)).booted()
    before = kernel.frames.in_use
    mm, _ = fork(kernel, kernel.cpus[2])
    assert sorted(mm.pgd) == [0, 1, 3]
    assert mm.root(kernel.home[2]) == mm.pgd[1]
    work = leave(kernel, mm)
    assert kernel.frames.in_use == before
    assert work.references(Kind.STORE) == 2  # struct pages of the two further pairs


@pytest.mark.parametrize(
    ("pgds", "user_tables", "allocations"),
    [
        ("eager", False, 4),
        ("eager", True, 4),
        ("lazy", False, 1),
        ("lazy_shrink", False, 1),
        ("single_node", False, 1),
        ("retarget", False, 4),
    ],
)
def test_r16_a_fork_that_finds_no_memory_changes_nothing(
    pgds: str, user_tables: bool, allocations: int
) -> None:
    """Whichever of its allocations fails: all are tried, until none does."""
    shared = {"modules": False, "area_ptes": "shared"} if pgds == "retarget" else {}
    small = SmallKernel(nodes=4)
    frames = failing(small)
    kernel = small.booted(pgds=pgds, user_tables=user_tables, **shared)
    before = state(kernel)
    for fail_at in range(allocations):
        frames.fail_at = fail_at
        with pytest.raises(FrameError, match="injected"):
            fork(kernel, kernel.cpus[1])
        assert state(kernel) == before
        assert violations(kernel) == []
    frames.fail_at = allocations
    fork(kernel, kernel.cpus[1])
    assert frames.fail_at == 0  # so each of its allocations has failed once
    assert violations(kernel) == []


def test_r16_exec_replaces_the_address_space() -> None:
    kernel = SmallKernel(nodes=2).booted()
    mm, _ = fork(kernel, kernel.cpus[1])
    switch_to(kernel, kernel.cpus[1], mm)
    new, work = execute(kernel, kernel.cpus[1])
    assert kernel.mms == [new]
    assert kernel.cpus[1].cr3 == new.pgd[1]
    assert work.total_instructions() == COSTS.fork + COSTS.exit
    assert violations(kernel) == []
    with pytest.raises(ReplicationError, match="runs no process"):
        execute(kernel, kernel.cpus[0])


def test_r16_r20_a_process_that_has_left_is_refused() -> None:
    kernel = SmallKernel(nodes=2).booted()
    mm, _ = fork(kernel, kernel.cpus[0])
    leave(kernel, mm)
    before = state(kernel)
    for operation in (
        lambda: leave(kernel, mm),
        lambda: switch_to(kernel, kernel.cpus[0], mm),
        lambda: fill_slot(kernel, kernel.cpus[0], mm, 3),
        lambda: clear_slot(kernel, mm, 3),
    ):
        with pytest.raises(ReplicationError, match="living process, not one that has left"):
            operation()
    assert state(kernel) == before


@pytest.mark.parametrize("levels", [4, 5])
def test_r17_below_the_pgd_user_tables_are_single(levels: int) -> None:
    kernel = SmallKernel(nodes=3, levels=levels).booted()
    mm, _ = fork(kernel, kernel.cpus[2])
    before = len(kernel.tables.pages)
    fill_slot(kernel, kernel.cpus[1], mm, 7)
    assert len(kernel.tables.pages) == before + 1
    (table,) = kernel.user_tables
    assert kernel.frames.node_of(table) == 1  # first touch
    assert kernel.tables.level_of[table] == levels - 1


@pytest.mark.parametrize("nodes", [1, 2, 3, 8])
@pytest.mark.parametrize("pti", [False, True])
def test_r18_a_user_slot_is_written_to_and_cleared_in_every_pgd(nodes: int, pti: bool) -> None:
    kernel = SmallKernel(nodes=nodes, pti=pti, processes=(0,)).booted()
    mm, _ = fork(kernel, kernel.cpus[0])
    filled = fill_slot(kernel, kernel.cpus[0], mm, 9)
    entries = {kernel.tables.entry(pgd, 9) for pgd in mm.pgd.values()}
    assert len(entries) == 1
    assert bool(entries.pop() & NO_EXECUTE) is pti
    assert all((9 in kernel.tables.pages[pgd + 1]) is pti for pgd in mm.pgd.values())
    assert violations(kernel) == []
    cleared = clear_slot(kernel, mm, 9)
    assert not any(kernel.tables.entry(pgd, 9) for pgd in mm.pgd.values())
    further = nodes - 1
    for work in (filled, cleared):
        assert work.references(Kind.STORE) == further * (1 + pti)
        assert {run.line for run in work.accesses()} <= {9 // 8}
    both = filled.total_instructions() + cleared.total_instructions()
    assert both == (125 + 48 * (further - 1) if further else 0)  # as measured


def test_r18_only_user_slots_are_filled_once_and_cleared_once() -> None:
    kernel = SmallKernel(nodes=2).booted()
    mm, _ = fork(kernel, kernel.cpus[0])
    with pytest.raises(ReplicationError, match="expected a user slot"):
        fill_slot(kernel, kernel.cpus[0], mm, 300)
    with pytest.raises(ReplicationError, match="not a filled user slot"):
        clear_slot(kernel, mm, 3)
    fill_slot(kernel, kernel.cpus[0], mm, 3)
    with pytest.raises(ReplicationError, match="filled already"):
        fill_slot(kernel, kernel.cpus[0], mm, 3)


def test_r18_a_slot_that_finds_no_table_page_changes_nothing() -> None:
    small = SmallKernel(nodes=2)
    frames = failing(small)
    kernel = small.booted()
    mm, _ = fork(kernel, kernel.cpus[0])
    before = state(kernel)
    frames.fail_at = 0
    with pytest.raises(FrameError):
        fill_slot(kernel, kernel.cpus[0], mm, 3)
    assert state(kernel) == before


def test_r19_unequal_halves_are_violations() -> None:
    kernel = SmallKernel(nodes=2).booted()
    mm, _ = fork(kernel, kernel.cpus[0])
    kernel.tables.set_entry(4, mm.pgd[1], 5, 0x1003)
    assert violations(kernel) == ["R19: process 0: user halves differ"]
    kernel.tables.set_entry(4, mm.pgd[1], 5, 0)
    kernel.tables.set_entry(4, mm.pgd[1], 511, 0x1003)
    assert violations(kernel) == ["R19: process 0: kernel half is not that of node 1"]


def test_r20_a_switch_loads_the_own_nodes_pgd() -> None:
    kernel = SmallKernel(nodes=3).booted()
    mm, _ = fork(kernel, kernel.cpus[0])
    for cpu in kernel.cpus:
        switch_to(kernel, cpu, mm)
        assert cpu.cr3 == mm.pgd[cpu.node]
    assert kernel.poking is not None
    switch_to(kernel, kernel.cpus[2], kernel.poking)  # the exception: one PGD
    assert kernel.frames.node_of(kernel.cpus[2].cr3) == 0
    kernel.cpus[1].cr3 = mm.pgd[0]
    assert violations(kernel) == ["R20: CPU 1 is not on node 1's PGD"]


def test_r21_threads_migrate_without_copies_and_lazy_cpus_stay_node_correct() -> None:
    kernel = SmallKernel(nodes=3).booted()
    mm, _ = fork(kernel, kernel.cpus[0])
    tables = {pfn: dict(page) for pfn, page in kernel.tables.pages.items()}
    for cpu in kernel.cpus:  # one mm on all nodes at once
        assert switch_to(kernel, cpu, mm).references(Kind.STORE) == 0
    assert {pfn: dict(page) for pfn, page in kernel.tables.pages.items()} == tables
    for cpu in kernel.cpus:
        go_lazy(cpu)
        assert cpu.cr3 == mm.pgd[cpu.node]
    leave(kernel, mm)
    assert [cpu.cr3 for cpu in kernel.cpus] == [kernel.pgd_numa(node) for node in range(3)]
    assert violations(kernel) == []


def test_r21_a_running_process_does_not_exit() -> None:
    kernel = SmallKernel(nodes=2).booted()
    mm, _ = fork(kernel, kernel.cpus[0])
    switch_to(kernel, kernel.cpus[1], mm)
    with pytest.raises(ReplicationError, match="still runs"):
        leave(kernel, mm)


def test_r16_lazy_makes_a_pgd_where_a_process_first_runs() -> None:
    kernel = SmallKernel(nodes=3).booted(pgds="lazy")
    mm, born = fork(kernel, kernel.cpus[0])
    fill_slot(kernel, kernel.cpus[0], mm, 4)
    assert born.steps == []
    first = switch_to(kernel, kernel.cpus[2], mm)
    assert sorted(mm.pgd) == [0, 2]
    assert first.references(Kind.STORE) == 1024 + 256 + 256 + 1  # both halves are copied
    assert switch_to(kernel, kernel.cpus[2], mm).references(Kind.STORE) == 0
    assert kernel.tables.entry(mm.pgd[2], 4)
    assert violations(kernel) == []


def test_r16_lazy_shrink_frees_what_no_cpu_runs_on() -> None:
    kernel = SmallKernel(nodes=3).booted(pgds="lazy_shrink")
    mm, _ = fork(kernel, kernel.cpus[0])
    for number in (1, 2):
        switch_to(kernel, kernel.cpus[number], mm)
    assert sorted(mm.pgd) == [0, 1, 2]
    other, _ = fork(kernel, kernel.cpus[1])
    work = switch_to(kernel, kernel.cpus[1], other)
    assert sorted(mm.pgd) == [0, 2]
    assert work.total_instructions() >= COSTS.exit
    assert violations(kernel) == []


def test_r20_a_lazy_pgd_without_memory_changes_nothing() -> None:
    small = SmallKernel(nodes=2)
    frames = failing(small)
    kernel = small.booted(pgds="lazy")
    mm, _ = fork(kernel, kernel.cpus[0])
    before = state(kernel)
    frames.fail_at = 0
    with pytest.raises(FrameError):
        switch_to(kernel, kernel.cpus[1], mm)
    assert state(kernel) == before


def test_r19_single_node_processes_use_the_masters_tables_while_on_several_nodes() -> None:
    kernel = SmallKernel(nodes=3).booted(pgds="single_node")
    mm, born = fork(kernel, kernel.cpus[1])
    assert born.steps == []
    switch_to(kernel, kernel.cpus[1], mm)
    assert mm.window == 1
    switch_to(kernel, kernel.cpus[2], mm)
    assert mm.window == kernel.master
    assert violations(kernel) == []
    switch_to(kernel, kernel.cpus[1], kernel.init_mm)
    moved = switch_to(kernel, kernel.cpus[2], mm)
    assert mm.window == 2
    assert moved.references(Kind.STORE) == 1
    assert violations(kernel) == []


def test_r20_retarget_rewrites_and_flushes_the_leaves_and_refuses_two_nodes() -> None:
    kernel = SmallKernel(nodes=3).booted(pgds="retarget", modules=False, area_ptes="shared")
    mm, born = fork(kernel, kernel.cpus[1])
    assert born.references(Kind.STORE) == 3 * 512 + 3  # a PUD and two PMD pages, struct pages
    assert violations(kernel) == []
    assert switch_to(kernel, kernel.cpus[1], mm).steps == []
    with pytest.raises(ReplicationError, match="several nodes"):
        switch_to(kernel, kernel.cpus[2], mm)
    switch_to(kernel, kernel.cpus[1], kernel.init_mm)
    moved = switch_to(kernel, kernel.cpus[2], mm)
    leaves = len(kernel.replicated)
    assert moved.references(Kind.STORE) == leaves
    flushed = {event.argument for event in moved.events(Sync.FLUSH_PAGE)}
    blocks = [range(s.start >> 12, s.end >> 12, 512) for s in kernel.image.replicated]
    assert flushed == set(itertools.chain(*blocks))
    text = kernel.tables.walk(mm.root(2), kernel.image.text.start >> 12)
    assert kernel.frames.node_of(text.pfn) == 2
    assert violations(kernel) == []
    switch_to(kernel, kernel.cpus[2], kernel.init_mm)
    leave(kernel, mm)
    assert violations(kernel) == []


@pytest.mark.parametrize("pti", [False, True])
def test_r17_mitosis_gives_every_node_its_own_user_table(pti: bool) -> None:
    small = SmallKernel(nodes=3, pti=pti)
    frames = failing(small)
    kernel = small.booted(user_tables=True)
    mm, _ = fork(kernel, kernel.cpus[1])
    work = fill_slot(kernel, kernel.cpus[1], mm, 4)
    tops = {node: kernel.tables.entry(pgd, 4) for node, pgd in mm.pgd.items()}
    assert [kernel.frames.node_of(entry_pfn(tops[node])) for node in range(3)] == [0, 1, 2]
    assert work.references(Kind.STORE) == 2 * (512 + 1) + 2 * (1 + pti)
    assert violations(kernel) == []
    before = state(kernel)
    for fail_at in range(3):
        frames.fail_at = fail_at
        with pytest.raises(FrameError):
            fill_slot(kernel, kernel.cpus[1], mm, 5)
        frames.fail_at = None
        assert state(kernel) == before
        assert violations(kernel) == []
    leave(kernel, mm)
    assert violations(kernel) == []


def test_r17_mitosis_frees_all_copies_of_a_table_that_lies_on_another_node_than_the_pgd() -> None:
    kernel = SmallKernel(nodes=3).booted(user_tables=True)
    mm, _ = fork(kernel, kernel.cpus[0])
    taken = kernel.frames.taken
    for _ in range(2):  # the second time in recycled frames
        fill_slot(kernel, kernel.cpus[1], mm, 3)
        assert kernel.frames.taken == taken + 3
        clear_slot(kernel, mm, 3)
        assert kernel.frames.taken == taken
    assert violations(kernel) == []


def test_r16_lazy_shrink_keeps_what_a_cpu_of_the_node_runs_on_and_the_first_pgd() -> None:
    kernel = SmallKernel(nodes=2).booted(pgds="lazy_shrink", cpu_nodes=[0, 1, 1])
    mm, _ = fork(kernel, kernel.cpus[0])
    for cpu in kernel.cpus:
        switch_to(kernel, cpu, mm)
    held = []
    for cpu in reversed(kernel.cpus):
        switch_to(kernel, cpu, kernel.init_mm)
        held.append(sorted(mm.pgd))
    assert held == [[0, 1], [0], [0]]
    assert violations(kernel) == []
