"""Events of a trace become operations, and their work records (R16, R18, R20, R23, R38)."""

import dataclasses
import warnings

import numpy as np
import pytest

from numarep.capture.decode import WATCHED
from numarep.memory.kinds import Kind
from numarep.replication.clues import Clues
from numarep.replication.events import Replay
from numarep.replication.invariants import violations
from numarep.replication.view import on_node
from numarep.replication.watch import (
    MARKED_BEFORE,
    ReplicationWarning,
    unmarked,
    warn_of_missing,
    warn_of_unmarked,
    watched,
)
from numarep.units import MAX_LEVELS
from numarep.workload.dataset import capture_name, open_dataset
from numarep.workload.trace import Pages, Records, Trace, check
from tests.kernels import SERIES, TEXT_VA, SmallKernel
from tests.traces import kernel_trace

COSTS = SERIES.instructions
ALLOC, FREE, FILL = (3, "pgd_alloc"), (9, "pgd_free"), (6, "__pud_alloc")


def charged(nodes: int, *events: tuple[int, str]) -> tuple[SmallKernel, Trace, Trace]:
    small = SmallKernel(nodes=nodes, processes=(nodes - 1,))
    trace = kernel_trace(small, small.roots[1], events=events)
    kernel = small.booted()
    replay = Replay(kernel, trace, kernel.cpus[nodes - 1])
    after = replay.trace()
    assert violations(kernel) == []
    return small, trace, after


def added(before: Trace, after: Trace, kind: Kind) -> int:
    """References of one kind that replication added."""
    totals = [int(t.records.count[t.records.kind == kind].sum()) for t in (after, before)]
    return totals[0] - totals[1]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_r16_a_traced_fork_costs_what_the_model_says(nodes: int) -> None:
    _, before, after = charged(nodes, ALLOC)
    further = nodes - 1
    assert added(before, after, Kind.FETCH) == COSTS.fork * further
    assert added(before, after, Kind.LOAD) == (256 + 1) * further
    assert added(before, after, Kind.STORE) == (1024 + 256 + 1) * further


def test_r16_without_a_clue_the_oldest_process_exits() -> None:
    _, before, after = charged(3, FREE)
    assert added(before, after, Kind.FETCH) == COSTS.exit * 2


def test_r18_without_a_clue_the_youngest_process_fills_a_slot() -> None:
    _, before, after = charged(3, FILL)
    assert added(before, after, Kind.FETCH) == COSTS.slot_fill + COSTS.slot_fill_further
    assert added(before, after, Kind.STORE) == 2


def test_r16_events_and_iterations_still_mark_the_same_records() -> None:
    _, before, after = charged(2, ALLOC, FREE)
    check(after, "charged")
    for old, new in zip(before.event_record, after.event_record, strict=True):
        for column in ("kind", "page", "line", "count"):
            assert getattr(before.records, column)[old] == getattr(after.records, column)[new]
    for field in dataclasses.fields(before.records):
        old, new = getattr(before.records, field.name), getattr(after.records, field.name)
        assert old.dtype == new.dtype


def test_r16_costs_are_spliced_after_their_event_and_before_the_next_record() -> None:
    _, before, after = charged(2, ALLOC)
    n = len(after.records.kind) - len(before.records.kind)
    for column in ("kind", "page", "line", "count"):
        old, new = getattr(before.records, column), getattr(after.records, column)
        np.testing.assert_array_equal(new[:4], old[:4])
        np.testing.assert_array_equal(new[4 + n :], old[4:])


def test_r38_without_events_the_trace_is_the_very_same() -> None:
    _, before, after = charged(2)
    assert after is before


def poke_trace(small: SmallKernel) -> Trace:
    """Enter text_poke, then store to the second line of text's second page as a user page."""
    pages = small.pages(small.roots[1])
    text = int(np.flatnonzero(small.image.text.holds(pages.vpn))[0])
    poking = pages.pfn[text] + 1
    more = Pages(
        np.append(pages.vpn, 5),
        np.append(pages.pfn, poking),
        np.append(pages.leaf, 1).astype(np.uint8),
        np.append(pages.flags, 1).astype(np.uint8),
        np.concatenate([pages.table, np.full((1, MAX_LEVELS), 0x7777)]),
    )
    records = Records(
        np.array([Kind.FETCH, Kind.STORE], np.uint8),
        np.array([text, len(pages.vpn)], np.int32),
        np.array([0, 1], np.uint8),
        np.array([1, 1], np.int32),
    )
    return Trace(records, more, np.array([0, 0]), ("iteration", "text_poke"))


def test_r23_a_traced_poke_is_repeated_through_the_poking_mm() -> None:
    small = SmallKernel(nodes=3, processes=(0,))
    trace = poke_trace(small)
    kernel = small.booted()
    after = Replay(kernel, trace, kernel.cpus[0]).trace()
    assert added(trace, after, Kind.FETCH) == COSTS.poke + COSTS.poke_further
    kinds = after.records.kind.tolist()
    assert kinds.count(Kind.CR3) == 4
    assert kinds.count(Kind.INVLPG) == 2
    roots = after.pages.root[after.records.page[after.records.kind == Kind.CR3]].tolist()
    assert roots[0] == roots[2] == kernel.poking.root(0)
    assert roots[1] == roots[3] == small.roots[1]
    assert kernel.contents.read(small.pfn_of(TEXT_VA >> 12) + 1, 64, 1) == (0x90,)
    assert violations(kernel) == []


@pytest.mark.parametrize("name", ["text_poke_copy", "text_poke_set", "text_poke_kgdb"])
def test_r23_a_copy_of_text_is_repeated_for_every_page_and_line(name: str) -> None:
    small = SmallKernel(nodes=2, processes=(0,))
    trace = poke_trace(small)
    lines = np.array([3, 4, 5, 1], np.uint8)  # three lines of one page, then one of the next
    page = np.array([*[len(trace.pages.vpn) - 1] * 3, len(trace.pages.vpn)], np.int32)
    old = (getattr(trace.pages, field.name) for field in dataclasses.fields(Pages))
    pages = Pages(*(np.concatenate([column, column[-1:]]) for column in old))
    pages.pfn[-1] += 1  # both are pages of text
    records = Records(
        np.append(trace.records.kind[:1], [Kind.STORE] * 4).astype(np.uint8),
        np.append(trace.records.page[:1], page).astype(np.int32),
        np.append(trace.records.line[:1], lines).astype(np.uint8),
        np.ones(5, np.int32),
    )
    trace = Trace(records, pages, np.array([0, 0]), ("iteration", name))
    kernel = small.booted()
    after = Replay(kernel, trace, kernel.cpus[0]).trace()
    assert added(trace, after, Kind.FETCH) == 2 * COSTS.poke
    assert added(trace, after, Kind.STORE) == 2 * 2 + (3 + 1) * 8  # PTEs, and the lines' words
    assert violations(kernel) == []


def test_r23_a_poke_of_a_modules_text_is_found_and_one_of_nothing_known_is_guessed() -> None:
    small = SmallKernel(nodes=2, processes=(0,))
    trace = poke_trace(small)
    kernel = small.booted()
    trace.pages.pfn[-1] = 0x900  # the module's page
    after = Replay(kernel, trace, kernel.cpus[0]).trace()
    assert added(trace, after, Kind.FETCH) == COSTS.poke
    assert kernel.contents.read(0x900, 64, 1) == (0x90,)
    small = SmallKernel(nodes=2, processes=(0,))
    trace = poke_trace(small)
    kernel = small.booted()
    trace.pages.pfn[-1] = 0x901
    with pytest.warns(ReplicationWarning, match=r"text_poke is entered .* the first text"):
        after = Replay(kernel, trace, kernel.cpus[0]).trace()
    assert added(trace, after, Kind.FETCH) == COSTS.poke


@pytest.mark.parametrize("pti", [True, False])
def test_r16_r18_clues_in_the_bundled_trace_are_complete_and_consistent(pti: bool) -> None:
    dataset = open_dataset("debian-6.1")
    capture = capture_name(pti=pti, cpu_node=1, seed=1)
    meta, trace = dataset.meta(capture), dataset.trace(capture, "fork_1024")
    bases = {name: int(text, 16) - (1 << 64) for name, text in meta.bases.items()}
    clues = Clues(trace, bases, SmallKernel().image)
    alive = set((np.unique(trace.pages.root) & ~1).tolist())
    born, hidden = [], 0
    for event, name in zip(trace.event_record.tolist(), trace.event_name, strict=True):
        if name == "pgd_alloc":
            born.append(clues.new_pgd(event))
            assert born[-1] is not None
            alive.add(born[-1])
        elif name == "pgd_free":
            pgd = clues.freed_pgd(event, alive)
            assert pgd in alive
            alive.remove(pgd)
        elif name == "__pud_alloc":
            found = clues.filled_slot(event, alive)
            if found is None:
                hidden += 1  # the tick came in between
                continue
            pgd, line, table = found
            assert pgd == born[-1]  # fork fills the child's slots
            assert line in (0, 31)
            assert table is not None
        elif name == "___pud_free_tlb":
            assert clues.cleared_slot(event, alive) is not None
    assert len(born) == 32
    assert hidden <= trace.event_name.count("asm_sysvec_apic_timer_interrupt")


def test_r16_the_pgd_a_childs_walks_read_is_the_one_its_birth_made() -> None:
    small = SmallKernel(nodes=2, processes=(0,))
    trace = kernel_trace(small, small.roots[1], events=())
    kernel = small.booted()
    replay = Replay(kernel, trace, kernel.cpus[0])
    replay.trace()
    (mm,) = replay.processes.values()
    moved = on_node(kernel, trace.pages, 1, replay.processes)
    assert set(moved.root.tolist()) == {mm.pgd[1]}
    assert set(on_node(kernel, trace.pages, 0, replay.processes).root.tolist()) == {mm.pgd[0]}


def test_r38_a_kernel_without_a_watched_symbol_gives_a_warning() -> None:
    with pytest.warns(ReplicationWarning, match="no symbol ___pud_free_tlb"):
        warn_of_missing(set(watched(4)) - {"___pud_free_tlb"}, levels=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_missing(set(watched(5)), levels=5)
        later = {"set_memory_rox", "text_poke_copy", "text_poke_set"}  # than Linux 5.10
        warn_of_missing(set(watched(4)) - later, levels=4)


def test_r38_captures_mark_all_that_is_watched_and_say_so() -> None:
    assert set(watched(4)) | set(watched(5)) <= set(WATCHED)
    assert set(WATCHED) >= MARKED_BEFORE


def test_r38_only_a_window_that_may_enter_what_is_not_marked_gives_a_warning() -> None:
    small = SmallKernel(nodes=2, processes=(0,))
    trace = poke_trace(small)  # fetches line 0 of text's first page that `pages` lists
    va = int(trace.pages.vpn[trace.records.page[0]]) << 12
    at = {"set_memory_rox": va + 48, "set_memory_np": va + 64, "pgd_alloc": va, "other": va}
    assert unmarked(trace, at.items(), None, 4) == ["set_memory_rox"]
    assert unmarked(trace, at.items(), WATCHED, 4) == []
    assert unmarked(trace, at.items(), (), 4) == ["pgd_alloc", "set_memory_rox"]
    assert unmarked(trace, {"___p4d_free_tlb": va}.items(), None, 4) == []
    assert unmarked(trace, {"___p4d_free_tlb": va}.items(), None, 5) == ["___p4d_free_tlb"]
    with pytest.warns(ReplicationWarning, match="may enter set_memory_rox, which its capture"):
        warn_of_unmarked(["set_memory_rox"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unmarked([])


def test_r38_no_bundled_window_enters_what_its_capture_did_not_mark() -> None:
    dataset = open_dataset("debian-6.1")
    columns = dataset.symbols().select(["name", "address"]).to_pydict()
    symbols = list(zip(*columns.values(), strict=True))
    for capture in (capture_name(pti=pti, cpu_node=1, seed=1) for pti in (False, True)):
        meta = dataset.meta(capture)
        for window in meta.workloads:
            trace = dataset.trace(capture, window)
            assert unmarked(trace, symbols, meta.watched, meta.levels) == []
