"""Laws that hold whatever the machine and the stream, and the exactness of `repeat`."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from numarep.memory import checked, recency
from numarep.memory.counts import Access, Counts, Event, Service, new_counts
from numarep.memory.passes import Lane, repeat, repeat_together
from numarep.memory.system import Stream, flush, new_system, run
from numarep.price import price, stalls
from numarep.spec import MOST_WAYS, CoreSpec, PrefetchSpec, SpecError, TlbSpec
from tests.memory.cases import (
    as_stream,
    as_translations,
    cache,
    llc,
    random_case,
    random_records,
    run_core,
    small_machine,
)
from tests.twin import Page, Record

SEEDS = st.integers(0, 2**32)
RECORDS = st.integers(1, 300)


@settings(max_examples=100, deadline=None)
@given(SEEDS, RECORDS)
def test_every_access_is_served_and_translated_once(seed, records):
    case = random_case(seed, records)
    _, counts = run_core(case)
    served, events, _ = counts
    of = {e.name.lower(): int(events[e]) for e in Event}
    fetches = int(served[Access.FETCH, 0].sum())
    data = int(served[Access.LOAD : Access.STORE + 1, 0].sum())
    assert of["references"] == fetches + data
    assert of["itlb_hits"] + of["itlb_misses"] == fetches
    assert of["dtlb_hits"] + of["dtlb_misses"] == data
    assert of["itlb_misses"] == of["stlb_fetch_hits"] + of["fetch_walks"]
    assert of["dtlb_misses"] == of["stlb_data_hits"] + of["data_walks"]
    starts = sum(of[f"psc_{name}"] for name in ("pmd_hits", "pud_hits", "pgd_hits", "misses"))
    assert of["fetch_walks"] + of["data_walks"] == starts
    assert served[: Access.FETCH_WALK, 1:].sum() == 0
    assert served[Access.FETCH_WALK :, 0].sum() == 0
    instructions = sum(
        record.repeats for _, turn in case.turns for record in turn if record.kind == "fetch"
    )
    assert of["instructions"] == instructions
    # The first level of a walk that missed every PSC is its root: never fewer reads than that.
    assert served[Access.FETCH_WALK :, 4:].sum() >= of["psc_misses"]


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 60), st.integers(0, 40), st.booleans())
def test_repeat_equals_the_loop(seed, records, times, is_warm):
    case = random_case(seed, records if is_warm else 0)
    rng = random.Random(seed)
    stream = as_stream(random_records(rng, len(case.pages), records))
    translations = as_translations(case.pages)
    cpu = rng.randrange(len(case.cpu_nodes))
    (one, looped), (two, repeated) = run_core(case), run_core(case)
    for _ in range(times):
        run(one, cpu, stream, translations, 0, records, looped)
    simulated = repeat(two, cpu, stream, translations, times, repeated)
    event("shortened" if simulated < times else "simulated in full")
    assert simulated <= times
    assert (looped.served == repeated.served).all()
    assert (looped.events == repeated.events).all()
    assert (one.words == two.words).all()
    assert (one.window_left == two.window_left).all()


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(1, 60), st.integers(1, 50))
def test_one_cpus_counts_do_not_depend_on_the_quantum(seed, records, quantum):
    case = random_case(seed, 0)
    stream = as_stream(random_records(random.Random(seed), len(case.pages), records))
    lanes = [Lane(0, stream, as_translations(case.pages), case.counts()) for _ in range(2)]
    repeat_together(case.system(), lanes[:1], 3, quantum)
    repeat_together(case.system(), lanes[1:], 3, 10**9)
    assert all((a == b).all() for a, b in zip(lanes[0].counts, lanes[1].counts, strict=True))


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(1, 60), st.integers(1, 50), st.integers(1, 20))
def test_columns_of_smaller_types_or_one_value_count_alike(seed, records, quantum, part):
    case = random_case(seed, 0)
    stream = as_stream(random_records(random.Random(seed), len(case.pages), records))
    stream = stream._replace(repeats=np.broadcast_to(stream.repeats[:1], records))
    wide = Stream(*map(np.ascontiguousarray, stream))
    narrow = stream._replace(
        page=np.repeat(stream.page, 2)[::2], function=stream.function.astype(np.uint8)
    )
    translations = as_translations(case.pages)
    lanes = [Lane(0, each, translations, case.counts()) for each in (wide, narrow)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked, "_PART", part)
        for lane in lanes:
            repeat_together(case.system(), [lane], 3, quantum)
    assert all(map(np.array_equal, lanes[0].counts, lanes[1].counts))


def test_lanes_that_can_not_run_at_once_are_refused():
    case = random_case(3, 0)
    lane = Lane(0, as_stream([Record("load", 0, 0, 1)]), as_translations(case.pages), case.counts())
    with pytest.raises(ValueError, match="lanes: expected one for each CPU"):
        repeat_together(case.system(), [lane, lane], 1, 10)
    with pytest.raises(ValueError, match="quantum: expected a positive number"):
        repeat_together(case.system(), [lane], 1, 0)


def test_repeat_stops_simulating_a_steady_loop():
    case = random_case(3, 0)
    pages = as_translations(case.pages)
    stream = as_stream([Record("fetch", 0, 0, 5), Record("load", 0, 0, 1)])
    system, counts = case.system(), case.counts()
    assert repeat(system, 0, stream, pages, 10**9, counts) < 10
    assert counts.events[Event.INSTRUCTIONS] == 5 * 10**9


@settings(max_examples=50, deadline=None)
@given(SEEDS, RECORDS)
def test_flushed_system_equals_a_new_one(seed, records):
    case = random_case(seed, records)
    system, fresh = run_core(case)
    flush(system)
    new = case.system()
    assert (system.words == new.words).all()
    assert (system.window_left == new.window_left).all()
    _, again = run_core(case, system)
    assert (again.served == fresh.served).all()
    assert (again.events == fresh.events).all()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_more_ways_never_miss_more(seed, sets):
    """The stack property: one LRU cache, all else out of the way."""
    rng = random.Random(seed)
    pages = [Page(0, 3, 3, True, 0, {3: 1, 4: 0}, 0)]
    records = [Record("load", 0, rng.randrange(24), 1) for _ in range(200)]
    stream, translations = as_stream(records), as_translations(pages)
    misses = []
    for ways in range(1, 9):
        machine = replace(
            small_machine(rng, 1),
            l1d=cache(sets, ways),
            l2=cache(64, 4),
            llc=llc(64, 8),
            prefetch=NO_PREFETCH,
        )
        counts, system = new_counts(1, 1), new_system(machine, (0,), np.array([8]))
        run(system, 0, stream, translations, 0, len(records), counts)
        misses.append(int(counts.served[Access.LOAD, 0, 0, Service.L2 :].sum()))
    assert misses == sorted(misses, reverse=True)


@pytest.mark.parametrize(("leaf", "levels"), [(1, 4), (2, 4), (3, 4), (1, 5), (2, 5)])
def test_cold_walk_is_the_sum_of_its_steps(leaf, levels):
    """One cold load with its tables on node 1: each level's read and the access, all from DRAM."""
    rng = random.Random(leaf)
    machine = small_machine(rng, 2, CoreSpec(ghz=2.0, base_ipc=1.0, reorder_window=10))
    table = {level: 10 + level for level in range(leaf, levels + 1)}
    pages = as_translations([Page(5, 2, leaf, False, 10 + levels, table, 1)])
    counts, system = new_counts(2, 3), new_system(machine, (0,), np.array([10, 20]))
    run(system, 0, as_stream([Record("load", 0, 0, 1)]), pages, 0, 1, counts)
    for level in range(leaf, levels + 1):
        assert counts.served[Access.LOAD_WALK, level, 1, Service.DRAM, 1, 0] == 1
    assert counts.served[Access.LOAD, 0, 1, Service.DRAM, 0, 0] == 1
    assert counts.served.sum() == levels - leaf + 2
    dram, l1_ns = machine.latency.dram_ns[0], machine.latency.l1_cycles / 2.0
    expected = (levels - leaf + 1) * dram[1] + dram[0] - l1_ns
    assert price(counts, machine, 0).time_ns == pytest.approx(expected)


@pytest.mark.parametrize(
    ("dirty_ns", "away_ns"), [(None, None), (150.0, None), (150.0, 170.0), (None, 170.0)]
)
def test_price_of_a_hand_made_run(dirty_ns, away_ns):
    machine = small_machine(random.Random(1), 2, CoreSpec(ghz=2.0, base_ipc=2.0, reorder_window=1))
    tables = [ns and ((20.0, ns), (ns, 20.0)) for ns in (dirty_ns, away_ns)]
    latency = replace(machine.latency, remote_dirty_ns=tables[0], remote_dirty_away_ns=tables[1])
    machine = replace(machine, latency=latency)
    counts = new_counts(2, 1)
    counts.events[Event.INSTRUCTIONS] = 400
    counts.events[Event.CR3_WRITES] = 2
    counts.events[Event.TLB_FLUSHES] = 1
    counts.events[Event.INVLPGS] = 3
    counts.events[Event.IPIS] = 2
    counts.events[Event.STLB_FETCH_HITS] = 4
    counts.events[Event.STLB_DATA_HITS] = 5
    counts.served[Access.FETCH, 0, 0, Service.L1, 1, 0] = 400
    counts.served[Access.FETCH, 0, 0, Service.L2, 1, 0] = 10
    counts.served[Access.LOAD, 0, 0, Service.REMOTE_LLC, 0, 0] = 3
    counts.served[Access.LOAD, 0, 0, Service.REMOTE_DIRTY, 0, 0] = 5
    counts.served[Access.LOAD, 0, 0, Service.REMOTE_DIRTY_AWAY, 0, 0] = 7
    counts.served[Access.LOAD_WALK, 2, 0, Service.L1, 1, 1] = 7
    counts.served[Access.STORE, 0, 0, Service.DRAM, 0, 1] = 2
    base = 400 / 2 / 2 + 3 * 100 / 2 + 3 * 90 / 2 + 2 * 5000 / 2 + 4 * 7 / 2
    fetch = 10 * (12 - 4) / 2
    clean_ns = machine.latency.remote_llc_ns[1][0]
    dirty_ns = dirty_ns or clean_ns
    load = 3 * (clean_ns - 2) + 5 * (dirty_ns - 2) + 7 * ((away_ns or dirty_ns) - 2)
    rest = 7 * 2 + 2 * (machine.latency.dram_ns[1][0] - 2) + 5 * 7 / 2
    priced = price(counts, machine, 1)
    assert priced == pytest.approx((base + fetch + load, base + fetch + load + rest, base + fetch))


@settings(max_examples=50, deadline=None)
@given(SEEDS, RECORDS)
def test_bounds_enclose_the_time(seed, records):
    case = random_case(seed, records)
    _, counts = run_core(case)
    for node in range(case.machine.nodes):
        priced = price(counts, case.machine, node)
        assert 0 <= priced.time_overlapped_ns <= priced.time_ns <= priced.time_serial_ns
        stall_ns = stalls(counts, case.machine, node)
        assert stall_ns.shape == counts.served.shape
        assert (stall_ns >= 0).all()
        assert not stall_ns[counts.served == 0].any()


@settings(max_examples=50, deadline=None)
@given(SEEDS, RECORDS)
def test_functions_share_out_what_missed_l1_and_all_walks(seed, records):
    case = random_case(seed, records)
    _, counts = run_core(case)
    beyond = counts.served.sum(axis=(1, 2))
    beyond[: Access.FETCH_WALK, Service.L1] = 0
    assert (counts.functions.sum(axis=0) == beyond).all()


def test_counts_add_up_over_slices():
    case = random_case(11, 200)
    _, whole = run_core(case)
    parts = case.counts()
    system = case.system()
    for cpu, records in case.turns:
        for at in range(len(records)):
            stream = as_stream(records)
            run(system, cpu, stream, as_translations(case.pages), at, at + 1, parts)
    assert all((a == b).all() for a, b in zip(whole, Counts(*parts), strict=True))


@pytest.mark.parametrize(
    ("cpu_nodes", "ends", "message"),
    [
        ((), [10, 20], "cpu_nodes: expected nodes 0 to 1"),
        ((0, 2), [10, 20], "cpu_nodes: expected nodes 0 to 1"),
        ((0, 1) * 128, [10, 20], "at most 255 CPUs, got 256"),
        ((0,), [10], "node_end_pfn: expected 2 rising ends"),
        ((0,), [20, 10], "node_end_pfn: expected 2 rising ends"),
    ],
)
def test_impossible_systems_are_refused(cpu_nodes, ends, message):
    with pytest.raises(SpecError, match=message):
        new_system(small_machine(random.Random(0), 2), cpu_nodes, np.array(ends))


def test_input_compiled_code_could_not_index_by_is_refused():
    machine = small_machine(random.Random(0), 2)
    system = new_system(machine, (0,), np.array([10, 20]))
    stream = as_stream([Record("load", 0, 0, 1)])
    page = Page(5, 2, 1, False, 4, {1: 1, 2: 2, 3: 3, 4: 4}, 1)

    def attempt(page, counts, cpu=0, stop=1, stream=stream):
        run(system, cpu, stream, as_translations([page]), 0, stop, counts)

    good = new_counts(2, 2)
    with pytest.raises(ValueError, match="frame 20 is beyond"):
        attempt(page._replace(pfn=20), good)
    with pytest.raises(ValueError, match="pfn: expected a frame"):
        attempt(page._replace(pfn=-1), good)
    with pytest.raises(ValueError, match="leaf: expected 0 to 3"):
        attempt(page._replace(leaf=4), good)
    with pytest.raises(ValueError, match="region: expected 0 to 1"):
        attempt(page._replace(region=2), good)
    with pytest.raises(ValueError, match="counts: expected 2 nodes"):
        attempt(page, new_counts(1, 2))
    with pytest.raises(ValueError, match="function: expected one from 0 to 2 for every record"):
        attempt(page, new_counts(2, 2, functions=3), stream=stream._replace(function=[3]))
    with pytest.raises(ValueError, match="cpu: expected 0 to 0"):
        attempt(page, good, cpu=1)
    with pytest.raises(ValueError, match="records"):
        attempt(page, good, stop=2)


def test_more_ways_than_the_core_compares_are_refused():
    assert MOST_WAYS == recency.MOST_WAYS
    with pytest.raises(SpecError, match="ways: expected at most 32, got 33"):
        cache(1, 33)
    with pytest.raises(SpecError, match="ways: expected at most 32, got 64"):
        TlbSpec(entries=64, ways=64)


def test_prefetched_lines_are_found_in_l2():
    """Line 1 by the pair, 2 and 3 by the next line and its pair; 63's next is another frame."""
    rng = random.Random(0)
    quiet = replace(small_machine(rng, 1), l1i=cache(64, 8), l2=cache(64, 8), llc=llc(64, 16))
    page = as_translations([Page(0, 3, 3, True, 0, {3: 1, 4: 0}, 0)])
    stream = as_stream([Record("fetch", 0, line, 1) for line in (0, 1, 2, 62, 63)])
    expected = {(False, False): [5, 0], (True, False): [2, 3], (False, True): [3, 2]}
    for (next_line, adjacent), by_dram_and_l2 in expected.items():
        spec = PrefetchSpec(next_line_fetch=next_line, adjacent_line=adjacent, stream=False)
        system = new_system(replace(quiet, prefetch=spec), (0,), np.array([8]))
        counts = new_counts(1, 1)
        run(system, 0, stream, page, 0, 5, counts)
        served = counts.served[Access.FETCH, 0, 0, :, 0, 0]
        assert [served[Service.DRAM], served[Service.L2]] == by_dram_and_l2


def chase_of(lines: list[int], spec: PrefetchSpec, frames: int = 1) -> Counts:
    """Load lines of frames of one 2M page on a machine with room for all of them."""
    machine = small_machine(random.Random(0), 1)
    machine = replace(machine, l1d=cache(64, 8), l2=cache(512, 8), llc=llc(512, 16), prefetch=spec)
    table = {2: frames, 3: frames + 1, 4: frames + 2}
    pages = [Page(frame, frame, 2, False, frames + 2, table, 0) for frame in range(frames)]
    records = [Record("load", *divmod(line, 64), 1) for line in lines]
    system, counts = new_system(machine, (0,), np.array([frames + 3])), new_counts(1, 1)
    run(system, 0, as_stream(records), as_translations(pages), 0, len(records), counts)
    return counts


NO_PREFETCH = PrefetchSpec(next_line_fetch=False, adjacent_line=False, stream=False)
STREAM = replace(NO_PREFETCH, stream=True)


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("frames", [1, 7])
def test_a_walk_reads_but_three_lines_of_a_page_itself(frames, way):
    """All lines are brought once and none beyond: a stream's first three by the walk."""
    lines = list(range(64 * frames))[::way]
    plain, streamed = chase_of(lines, NO_PREFETCH, frames), chase_of(lines, STREAM, frames)
    loads = streamed.served[Access.LOAD, 0, 0, :, 0].sum(axis=-1)
    assert plain.served[Access.LOAD, 0, 0, Service.DRAM].sum() == len(lines)
    assert loads[Service.DRAM] == 3 * frames
    assert loads[Service.L2] == streamed.events[Event.PREFETCHES] == 61 * frames


def test_a_stream_runs_two_lines_a_request_and_at_most_twenty_ahead():
    def ahead(requests: int) -> int:
        return int(chase_of(list(range(requests)), STREAM).events[Event.PREFETCHES])

    assert [ahead(n) for n in (2, 3, 4, 5)] == [0, 2, 4, 6]
    assert [ahead(n) for n in (20, 21, 22, 23)] == [36, 38, 39, 40]
    assert ahead(44) == ahead(64) == 61


@pytest.mark.parametrize(("frames", "prefetches"), [(32, 64), (33, 0)])
def test_as_many_streams_are_kept_as_there_are_trackers(frames, prefetches):
    """Third requests of frames taken in turn; a chase over many frames gives rise to nothing."""
    lines = [64 * frame + 2 * step for step in range(3) for frame in range(frames)]
    assert chase_of(lines, STREAM, frames).events[Event.PREFETCHES] == prefetches


@pytest.mark.parametrize("lines", [[5, 9, 3, 8, 2], [5, 6, 5, 6, 5], [5, 6, 69, 70], [5, 5, 5]])
def test_what_never_goes_two_steps_one_way_is_no_stream(lines):
    assert chase_of(lines, STREAM, frames=2).events[Event.PREFETCHES] == 0


@pytest.mark.parametrize("pcid", [False, True])
def test_a_cr3_write_keeps_other_roots_only_with_pcid(pcid):
    machine = replace(small_machine(random.Random(0), 1), pcid=pcid)
    pages = [Page(5, 2, 1, False, 4, {1: 1, 2: 2, 3: 3, 4: 4}, 0)]
    records = [Record("load", 0, 0, 1), Record("cr3", 0, 0, 1), Record("load", 0, 0, 1)]
    system, counts = new_system(machine, (0,), np.array([8])), new_counts(1, 1)
    run(system, 0, as_stream(records), as_translations(pages), 0, 3, counts)
    assert counts.events[Event.DATA_WALKS] == (1 if pcid else 2)
    assert counts.events[Event.CR3_WRITES] == 1
