"""The core and its plain twin count the same, count for count.

`NUMAREP_TWIN_CASES=20000 python -m pytest tests/memory/test_twin.py` compares that many machines.
"""

import itertools
import os
import random
from collections import Counter

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numarep.memory.counts import Counts, Event
from numarep.memory.passes import Lane, repeat_together
from numarep.memory.system import flush_lines
from tests.benchmarks.core import machine_preset
from tests.memory.cases import (
    as_stream,
    as_translations,
    events_by_name,
    functions_by_name,
    random_case,
    random_records,
    run_core,
    run_twin,
    served_by_name,
    small_machine,
)
from tests.memory.real import on_slices
from tests.twin import Twin

SEEDS = st.integers(0, 2**32)

# Compiled, the twin is all that takes time; as plain Python the core takes as long again and more.
CASES = int(os.environ.get("NUMAREP_TWIN_CASES", "500" if numba.config.DISABLE_JIT else "2000"))


@settings(max_examples=CASES, deadline=None)
@given(seed=SEEDS, records=st.integers(1, 400))
def test_equals_twin_count_for_count(seed, records):
    case = random_case(seed, records)
    _, counts = run_core(case)
    twin = run_twin(case)
    assert served_by_name(counts) == dict(twin.served)
    assert functions_by_name(counts) == dict(twin.functions)
    assert events_by_name(counts) == {name: n for name, n in twin.events.items() if n}


def test_random_cases_reach_every_event_and_service():
    events, cells = Counter(), Counter()
    for seed in range(100):
        _, counts = run_core(random_case(seed, 300))
        events.update(events_by_name(counts))
        for access, level, _, service, _, overlap in served_by_name(counts):
            cells[access, level, service, overlap] += 1
    assert set(events) == {event.name.lower() for event in Event}
    for service in (
        "l1",
        "l2",
        "llc",
        "peer",
        "remote_llc",
        "remote_dirty",
        "remote_dirty_away",
        "dram",
    ):
        for access in ("fetch", "load", "store"):
            assert any(key[0] == access and key[2] == service for key in cells), (access, service)
            walks = [key for key in cells if key[0] == f"{access}_walk" and key[2] == service]
            assert walks, (access, service)
    assert {key[1] for key in cells} == {0, 1, 2, 3, 4, 5}
    for access, service in (("load", "dram"), ("load_walk", "llc"), ("store_walk", "dram")):
        found = {key[3] for key in cells if key[0] == access and key[2] == service}
        assert found == {"leading", "overlapped"}


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.integers(1, 200))
def test_flushed_lines_are_gone_and_all_else_is_as_it_was(seed, records):
    case, rng = random_case(seed, records), random.Random(seed)
    system, before = run_core(case)
    twin = run_twin(case)
    lines = [page.pfn * 64 + line for page in case.pages for line in range(64)]
    lines = rng.sample(lines, rng.randint(0, len(lines)))
    flush_lines(system, np.array(lines))
    twin.flush_lines(lines)
    _, after = run_core(case, system)
    for cpu, turn in case.turns:
        twin.run(cpu, turn, case.pages)
    both = Counts(*(one + other for one, other in zip(before, after, strict=True)))
    assert served_by_name(both) == dict(twin.served)
    assert events_by_name(both) == {name: n for name, n in twin.events.items() if n}


def naive_turns(records, quantum):
    """Cut a stream wherever a further multiple of the quantum has been fetched."""
    turns, fetched = [[]], 0
    for record in records:
        before = fetched // quantum
        fetched += record.repeats if record.kind == "fetch" else 0
        turns[-1].append(record)
        if fetched // quantum > before:
            turns.append([])
    return turns if turns[-1] else turns[:-1]


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 3))
def test_cpus_at_once_equal_the_twin_taking_turns(seed, quantum, times):
    case, rng = random_case(seed, 0), random.Random(seed)
    cpus = range(len(case.cpu_nodes))
    streams = [random_records(rng, len(case.pages), rng.randint(1, 60)) for _ in cpus]
    system, pages = case.system(), as_translations(case.pages)
    lanes = [Lane(cpu, as_stream(streams[cpu]), pages, case.counts()) for cpu in cpus]
    repeat_together(system, lanes, times, quantum)

    twin = Twin(case.machine, case.cpu_nodes, case.ends)
    turns = [naive_turns(records, quantum) for records in streams]
    for _ in range(times):
        for turn in itertools.zip_longest(*turns, fillvalue=()):
            for cpu, records in enumerate(turn):
                twin.run(cpu, records, case.pages)
    total = Counts(*(sum(parts) for parts in zip(*(lane.counts for lane in lanes), strict=True)))
    assert served_by_name(total) == dict(twin.served)
    assert events_by_name(total) == {name: n for name, n in twin.events.items() if n}


@pytest.mark.parametrize("machine", ["e5_2690_v3", "small"])
@pytest.mark.parametrize(
    ("capture", "workload"),
    [("pti-off_node0_seed1", "fork_1024"), ("pti-on_node1_seed2", "mmap_munmap")],
)
def test_equals_twin_on_slices_of_real_traces(machine, capture, workload):
    """Two sockets take turns on the same slice, so that they share what they run."""
    spec = machine_preset(machine) if machine != "small" else small_machine(random.Random(5), 2)
    counts, twin = on_slices(spec, capture, workload)
    assert np.count_nonzero(counts.served) > 30
    assert served_by_name(counts) == dict(twin.served)
    assert events_by_name(counts) == {name: n for name, n in twin.events.items() if n}
