"""Patching: every replica, in the INT3 protocol (R22-R24)."""

import pytest

from numarep.memory.kinds import Kind
from numarep.replication.areas import new_area, node_frame
from numarep.replication.invariants import violations
from numarep.replication.kernel import Kernel, ReplicationError
from numarep.replication.patching import INT3, POKING_VPN, Phase, int3_phases, patch_live, poke
from numarep.replication.work import Sync, Work
from numarep.units import PAGE_SHIFT
from tests.kernels import SERIES, TEXT_VA, SmallKernel

COSTS = SERIES.instructions
OLD, NEW = b"\x0f\x1f\x44\x00\x00", b"\xe8\x01\x02\x03\x04"  # a nop becomes a call


def text_of(kernel: Kernel, node: int, va: int, size: int) -> tuple[int | None, ...]:
    pfn = node_frame(kernel, node, va >> PAGE_SHIFT)
    return kernel.contents.read(pfn, va % 4096, size)


def test_r22_live_patching_needs_a_booted_kernel() -> None:
    kernel = SmallKernel(nodes=2).unbooted()
    with pytest.raises(ReplicationError, match="see patch_boot"):
        poke(kernel, kernel.cpus[0], TEXT_VA, b"\x90")


@pytest.mark.parametrize("nodes", [1, 2, 3, 8])
def test_r23_each_further_replica_costs_a_lookup_a_round_trip_and_a_flush(nodes: int) -> None:
    kernel = SmallKernel(nodes=nodes, processes=(0,)).booted()
    work = poke(kernel, kernel.cpus[0], TEXT_VA + 70, b"\x90")
    further = nodes - 1
    assert work.total_instructions() == (481 + 404 * (further - 1) if further else 0)  # measured
    assert len(work.events(Sync.CR3_LOAD)) == 2 * further
    assert [e.argument for e in work.events(Sync.FLUSH_PAGE)] == [POKING_VPN] * further
    assert work.references(Kind.LOAD) == 3 * further  # PGD, PUD and PMD entry
    written = [run for run in work.accesses() if run.vpn == POKING_VPN]
    assert [run.node for run in written] == list(range(1, nodes))
    assert {run.line for run in written} <= {1}
    for node in range(nodes):
        assert text_of(kernel, node, TEXT_VA + 70, 1) == (0x90,)
    assert violations(kernel) == []


def test_r23_outside_the_window_there_is_one_iteration() -> None:
    kernel = SmallKernel(nodes=3).booted()
    area, _ = new_area(kernel, kernel.cpus[0], pages=1, window=False)
    assert poke(kernel, kernel.cpus[0], area.start << PAGE_SHIFT, b"\x01").steps == []


def test_r23_a_patch_across_pages_looks_both_up() -> None:
    kernel = SmallKernel(nodes=2).booted()
    work = poke(kernel, kernel.cpus[0], TEXT_VA + 4094, b"\x01\x02\x03")
    assert work.references(Kind.LOAD) == 2 * 3
    for node in (0, 1):
        assert text_of(kernel, node, TEXT_VA + 4096, 1) == (3,)
    with pytest.raises(ReplicationError, match="at most a page"):
        poke(kernel, kernel.cpus[0], TEXT_VA, bytes(5000))


@pytest.mark.parametrize(
    ("offset", "size", "stores"), [(0, 8, 1), (60, 5, 2), (0, 9, 2), (64, 64, 8), (32, 128, 18)]
)
def test_r23_a_longer_patch_stores_its_words_line_by_line(
    offset: int, size: int, stores: int
) -> None:
    kernel = SmallKernel(nodes=2).booted()
    work = poke(kernel, kernel.cpus[0], TEXT_VA + offset, bytes(size))
    written = [run for run in work.accesses() if run.vpn == POKING_VPN]
    assert sum(run.times for run in written) == stores
    assert {run.line for run in written} == {*range(offset // 64, (offset + size - 1) // 64 + 1)}


def test_r24_each_phase_completes_on_all_replicas_before_the_next() -> None:
    kernel = SmallKernel(nodes=3).booted()
    va = TEXT_VA + 100
    patch_live(kernel, kernel.cpus[0], [(va, OLD)])
    seen = []
    for phase, node, at in int3_phases(kernel, kernel.cpus[1], [(va, NEW)], Work()):
        seen.append((phase, node, at))
        for other in range(3):
            first, *tail = text_of(kernel, other, va, len(NEW))
            assert first in (OLD[0], INT3[0], NEW[0])
            if phase == Phase.TAIL:
                assert first == INT3[0]  # nobody runs into a tail half written
            if first == NEW[0]:
                assert phase == Phase.FIRST_BYTE
                assert tuple(tail) == tuple(NEW[1:])
    assert [phase for phase, _, _ in seen] == [p for p in Phase for _ in range(3)]
    assert [node for _, node, _ in seen] == [0, 1, 2] * 3
    assert violations(kernel) == []


def test_r9_within_a_patch_replicas_differ_and_that_shows() -> None:
    kernel = SmallKernel(nodes=2).booted()
    steps = int3_phases(kernel, kernel.cpus[0], [(TEXT_VA, NEW)], Work())
    next(steps)
    assert [line[:2] for line in violations(kernel)] == ["R9"]
    next(steps)
    assert violations(kernel) == []


@pytest.mark.parametrize(("patches", "size"), [(1, 5), (4, 5), (2, 1)])
def test_r24_a_patch_costs_n_times_its_phases(patches: int, size: int) -> None:
    kernel = SmallKernel(nodes=3).booted()
    sites = [(TEXT_VA + 64 * i, NEW[:size]) for i in range(patches)]
    work = patch_live(kernel, kernel.cpus[0], sites)
    pokes = patches * (3 if size > 1 else 2)
    assert work.total_instructions() == pokes * (COSTS.poke + COSTS.poke_further)
