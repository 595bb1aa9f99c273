"""Runs of a stream, 32 records at a time and one by one, against grouping them by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numarep.jit import jit_entry
from numarep.memory import runs
from numarep.memory.batch import BATCH, Batch, Stream, key_of, new_batch
from numarep.memory.counts import Service
from numarep.memory.kinds import Kind
from numarep.streams import count_stream, toy_machine
from numarep.units import LINE_BYTES

merge_compiled = jit_entry(runs.merge)
PAGES = 3


def random_stream(rng: np.random.Generator, distinct: int, has_functions: bool) -> Stream:
    """About 1000 records of which few repeat or serialise, each once or several times in a row."""
    times = rng.integers(1, 9, distinct)
    kind = np.where(rng.random(distinct) < 0.002, Kind.CR3, rng.integers(0, 3, distinct))
    n = int(times.sum())
    repeats = np.where(rng.random(n) < 0.003, 5, rng.random(n) < 0.9)
    repeats[(np.repeat(kind, times) != Kind.FETCH) & (repeats == 0)] = 1
    return Stream(
        np.repeat(kind, times).astype(np.int8),
        np.repeat(rng.integers(0, PAGES, distinct), times).astype(np.int32),
        np.repeat(rng.integers(0, 2, distinct), times).astype(np.int8),
        repeats.astype(np.int32),
        rng.integers(0, 9, n if has_functions else 0).astype(np.int32),
    )


def naive(always: int, stream: Stream, start: int, stop: int):
    """Runs as [key, instructions before, accesses before, function]; the next record; sums."""
    made, passed, accesses, last = [], 0, 0, None
    for record in range(start, stop):
        kind, page, line, repeats = (int(column[record]) for column in stream[:4])
        key = key_of(page, line, kind)
        is_new = always or key != last
        if kind > Kind.STORE or (is_new and len(made) == BATCH):
            return made, record, passed, accesses
        if is_new:
            function = int(stream.function[record]) if len(stream.function) else None
            made.append([key, passed, accesses, function])
        last = key
        passed += repeats if kind == Kind.FETCH else 0
        accesses += max(repeats, 1)
    return made, stop, passed, accesses


@pytest.mark.parametrize("merge", [runs.merge, merge_compiled], ids=["plain", "compiled"])
@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 800),
    st.integers(0, 40),
    st.sampled_from([0, 0, 0, 1]),
    st.booleans(),
)
def test_runs_are_those_grouped_by_hand(merge, seed, distinct, start, always, has_functions):
    stream = random_stream(np.random.default_rng(seed), distinct, has_functions)
    stop = len(stream.kind)
    start = min(start, stop)
    batch = new_batch()
    record, size = merge(always, np.zeros(PAGES << 4, np.int64), batch, stream, start, stop)
    made, expected, passed, accesses = naive(always, stream, start, stop)
    assert (record, size) == (expected, len(made))
    parts = [Batch.KEY, Batch.PASSED, Batch.ACCESSES, Batch.FUNCTION]
    for column, part in enumerate(parts if has_functions else parts[:3]):
        assert batch[part : part + size].tolist() == [run[column] for run in made]
    assert batch[Batch.PASSED + size] == passed
    assert batch[Batch.ACCESSES + size] == accesses


def test_a_prefetch_may_evict_the_line_that_caused_it():
    """So with prefetchers the next access just like it is no part of its run (see `may_skip`)."""
    toy = toy_machine()
    one_line = replace(toy.llc, size_bytes=LINE_BYTES, ways=1)
    prefetch = replace(toy.prefetch, next_line_fetch=True)
    small = {name: replace(toy.l2, size_bytes=LINE_BYTES, ways=1) for name in ("l1i", "l1d", "l2")}
    machine = replace(toy, llc=one_line, prefetch=prefetch, **small)
    counts = count_stream(machine, np.full(3, Kind.FETCH), np.full(3, 4096))
    assert counts.served[Kind.FETCH, 0, :, Service.DRAM].sum() == 3
