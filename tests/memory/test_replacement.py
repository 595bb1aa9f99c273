"""Every replacement policy: as its twin, undone to the bit, indifferent to a second use."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numarep.jit import jit_entry
from numarep.memory import recency, replacement
from numarep.memory.counts import Event
from numarep.memory.recency import EMPTY, FLAG_BITS
from numarep.memory.replacement import Policy, counts_hits, words_of
from numarep.spec import CacheSpec, MachineSpec, SpecError, as_mapping, parse
from tests.benchmarks.core import machine_preset
from tests.memory.cases import (
    POLICIES,
    Case,
    cache,
    events_by_name,
    llc,
    random_pages,
    random_records,
    run_core,
    run_twin,
    served_by_name,
    small_machine,
)
from tests.twin import LruRow, RripRow, TreeRow

find = jit_entry(recency.find)
drop, enter, push, room, take_back, touch = map(
    jit_entry,
    (
        *(replacement.drop, replacement.enter, replacement.push),
        *(replacement.room, replacement.take_back, replacement.touch),
    ),
)

STEPS = st.lists(st.tuples(st.sampled_from("aaaad"), st.integers(0, 40)), max_size=120)
TWINS = {Policy.LRU: LruRow, Policy.TREE_PLRU: TreeRow, Policy.SRRIP: RripRow}
ROWS = st.one_of(
    st.tuples(st.sampled_from([Policy.LRU, Policy.SRRIP]), st.integers(1, recency.MOST_WAYS)),
    st.tuples(st.just(Policy.TREE_PLRU), st.sampled_from([1, 2, 4, 8, 16, 32])),
)


def access(words, ways, policy, tag):
    """Access a line and return what had to go."""
    way = find(words, 0, ways, tag)
    if way >= 0:
        now = touch(words, 0, ways, policy, way)
        assert words[now] >> FLAG_BITS == tag
        return EMPTY
    return push(words, 0, ways, policy, tag << FLAG_BITS)


def test_policies_are_those_of_the_spec():
    assert [policy.name.lower() for policy in Policy] == list(POLICIES)


@settings(deadline=None)
@given(ROWS, STEPS)
def test_rows_are_those_of_the_twin(row, steps):
    policy, ways = row
    words, twin = np.full(2 * words_of(ways, policy), EMPTY), TWINS[policy](ways)
    for step, tag in steps:
        if step == "d":
            way = find(words, 0, ways, tag)
            assert (way >= 0) == (twin.pop(tag, None) is not None)
            if way >= 0:
                drop(words, 0, ways, policy, way)
        elif twin.get(tag) is not None:
            assert access(words, ways, policy, tag) == EMPTY
            twin.use(tag)
        else:
            gone = twin.insert(tag, True)
            assert access(words, ways, policy, tag) == (gone[0] << FLAG_BITS if gone else EMPTY)
    assert (words[words_of(ways, policy) :] == EMPTY).all(), "the next row"


@settings(deadline=None)
@given(ROWS, STEPS, st.lists(st.integers(0, 40), max_size=20))
def test_any_accesses_are_taken_back_to_the_bit(row, steps, tags):
    policy, ways = row
    words = np.full(words_of(ways, policy), EMPTY)
    for step, tag in steps:
        way = find(words, 0, ways, tag)
        if step == "a":
            access(words, ways, policy, tag)
        elif way >= 0:
            drop(words, 0, ways, policy, way)
    log = []
    for tag in tags:
        before, way = words.copy(), find(words, 0, ways, tag)
        more = [int(word) for word in words[ways : ways + 2]] if counts_hits(policy) else [0, 0]
        is_hit = 1 if way >= 0 else 0
        way = way if is_hit else room(words, 0, ways, policy)
        log.append((before, way, int(words[way]), more))
        enter(words, 0, ways, policy, way, tag << FLAG_BITS, is_hit)
    for before, way, old, more in reversed(log):
        take_back(words, 0, ways, policy, way, old, *more)
        assert (words == before).all()


@settings(deadline=None)
@given(ROWS, STEPS, st.integers(0, 40))
def test_a_second_use_changes_nothing(row, steps, tag):
    """Which is what lets `ahead` and `front` skip it; in SRRIP it takes a hit first."""
    policy, ways = row
    words = np.full(words_of(ways, policy), EMPTY)
    for _, other in steps:
        access(words, ways, policy, other)
    access(words, ways, policy, tag)
    if counts_hits(policy):
        access(words, ways, policy, tag)
    else:
        assert words[0] >> FLAG_BITS == tag, "where `ahead` looks for it"
    before = words.copy()
    access(words, ways, policy, tag)
    assert (words == before).all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("prefetches", [False, True])
def test_l1_comes_back_right_from_running_ahead(policy, prefetches):
    """Every miss evicts lines that L1 holds from an LLC not much larger."""
    recalled = 0
    for seed in range(12):
        rng = random.Random(seed)
        machine = small_machine(rng, 1)
        machine = replace(
            machine,
            l1i=cache(1, 4, replacement=policy),
            l1d=cache(1, 8, replacement=policy),
            l2=cache(1, 8, replacement=policy),
            llc=llc(1, 8, replacement=policy),
            prefetch=replace(machine.prefetch, adjacent_line=prefetches),
        )
        pages = random_pages(rng, 1, 3)
        turns = [(0, random_records(rng, len(pages), 300))]
        case = Case(machine, (0,), np.array([24]), pages, turns)
        _, counts = run_core(case)
        twin = run_twin(case)
        assert served_by_name(counts) == dict(twin.served)
        assert events_by_name(counts) == {name: n for name, n in twin.events.items() if n}
        recalled += int(counts.events[Event.BACK_INVALIDATIONS])
    assert recalled > 500


@pytest.mark.parametrize("ways", [3, 12, 20])
def test_a_tree_of_any_other_number_of_ways_is_refused(ways):
    with pytest.raises(SpecError, match=f"ways: expected a power of two .* tree_plru, got {ways}"):
        CacheSpec(size_bytes=ways * 64, ways=ways, replacement="tree_plru")


def test_refusals_name_the_cache():
    machine = as_mapping(machine_preset("e5_2690_v3"))
    machine["llc"]["replacement"] = "tree_plru"
    with pytest.raises(SpecError, match=r"machine\.llc\.ways: expected a power of two"):
        parse(MachineSpec, machine, "machine")
    machine["llc"]["replacement"] = "clock"
    with pytest.raises(SpecError, match=r"machine\.llc\.replacement: expected 'lru', 'tree_plru'"):
        parse(MachineSpec, machine, "machine")
