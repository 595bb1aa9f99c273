"""What replication adds at fork and exit (R16) and when a user PUD slot is filled (R18)."""

import dataclasses

import numpy as np
import pytest

from numarep.memory.kinds import Kind
from numarep.replication.cost import ProcessCost
from numarep.spec import ProcessCostSpec
from numarep.workload.trace import Trace, check
from tests.kernels import BASES, SmallKernel
from tests.replication.test_replicas import replicate
from tests.traces import kernel_trace

SPEC = ProcessCostSpec(
    fork_instructions=600,
    exit_instructions=200,
    pud_instructions=125,
    pud_further_instructions=48,
)
ALLOC, FREE, FILL = (3, "pgd_alloc"), (9, "pgd_free"), (6, "__pud_alloc")


def charged(nodes: int, *events: tuple[int, str]) -> tuple[SmallKernel, Trace, Trace]:
    kernel = SmallKernel(nodes=nodes, processes=(nodes - 1,))
    trace = kernel_trace(kernel, kernel.roots[1], events=events)
    cost = ProcessCost(
        SPEC,
        replicate(kernel),
        kernel.frames,
        kernel.swapper,
        BASES["direct_map"],
        BASES["vmemmap"],
    )
    return kernel, trace, cost.charge(trace, cpu_node=nodes - 1)


def added(before: Trace, after: Trace, kind: Kind) -> int:
    """References of one kind that replication added."""
    totals = [int(t.records.count[t.records.kind == kind].sum()) for t in (after, before)]
    return totals[0] - totals[1]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_r16_fork_zeroes_and_half_copies_a_page_pair_per_further_node(nodes: int) -> None:
    _, before, after = charged(nodes, ALLOC)
    further = nodes - 1
    assert added(before, after, Kind.FETCH) == 600 * further
    assert added(before, after, Kind.LOAD) == (256 + 1) * further  # half a PGD, struct page
    assert added(before, after, Kind.STORE) == (1024 + 256 + 1) * further


@pytest.mark.parametrize("nodes", [2, 3])
def test_r16_exit_gives_the_pairs_back(nodes: int) -> None:
    _, before, after = charged(nodes, ALLOC, FREE, (15, "pgd_alloc"))
    assert added(before, after, Kind.FETCH) == (600 + 200 + 600) * (nodes - 1)
    # The second fork takes the pairs that the exit freed: no new pages.
    _, _, one_fork = charged(nodes, ALLOC)
    assert len(after.pages.vpn) == len(one_fork.pages.vpn)


def test_r18_a_filled_user_slot_is_written_to_every_further_node() -> None:
    _, before, after = charged(3, FILL)
    assert added(before, after, Kind.FETCH) == 125 + 48
    assert added(before, after, Kind.STORE) == 2


def test_the_stores_go_to_the_other_nodes_and_the_copy_reads_their_own_init_pgd() -> None:
    kernel, before, after = charged(3, ALLOC)
    new = after.pages.pfn[len(before.pages.pfn) :]
    assert {kernel.frames.node_of(pfn) for pfn in new.tolist()} == {0, 1}


def test_events_and_iterations_still_mark_the_same_records() -> None:
    _, before, after = charged(2, ALLOC, FREE)
    check(after, "charged")
    for old, new in zip(before.event_record, after.event_record, strict=True):
        for column in ("kind", "page", "line", "count"):
            assert getattr(before.records, column)[old] == getattr(after.records, column)[new]
    np.testing.assert_array_equal(np.diff(after.iterations) > 0, True)


def test_without_events_the_trace_is_the_very_same() -> None:
    _, before, after = charged(2)
    assert after is before


def test_costs_are_spliced_after_their_event_and_before_the_next_record() -> None:
    _, before, after = charged(2, ALLOC)
    n = len(after.records.kind) - len(before.records.kind)
    for column in ("kind", "page", "line", "count"):
        old, new = getattr(before.records, column), getattr(after.records, column)
        np.testing.assert_array_equal(new[:4], old[:4])
        np.testing.assert_array_equal(new[4 + n :], old[4:])


def test_an_exit_of_an_older_process_needs_no_fork_in_the_window() -> None:
    _, before, after = charged(2, FREE)
    assert added(before, after, Kind.FETCH) == 200


def test_spliced_traces_keep_their_dtypes() -> None:
    _, before, after = charged(2, ALLOC)
    for field in dataclasses.fields(before.records):
        old, new = getattr(before.records, field.name), getattr(after.records, field.name)
        assert old.dtype == new.dtype
