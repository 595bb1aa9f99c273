"""Laws of the caches' state: what includes what, who may hold what, where dirty data goes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numarep.memory.counts import Event
from numarep.memory.recency import EMPTY, FLAG_BITS, FLAGS
from numarep.memory.replacement import MORE_WORDS, Policy
from numarep.memory.system import System, run
from numarep.memory.view import DIRTY, FORWARD, NOT_ALONE, OWNER, OWNER_SHIFT, SHARED, Cache
from numarep.spec import PrefetchSpec
from numarep.units import LINES_PER_PAGE
from tests.memory.cases import Case, as_stream, as_translations, random_case, run_core

SEEDS = st.integers(0, 2**32)
RECORDS = st.integers(1, 300)


def row_in_share(system: System, domain: int, cache: Cache, line: int) -> int:
    """The row of a domain's cache where a line belongs: in the share of its home's cluster."""
    machine, nodes = system.machine, system.cpu_node[system.cpu_domain == domain]
    home = int(np.searchsorted(system.node_end_pfn, line // LINES_PER_PAGE, side="right"))
    llcs, share = machine.llc_of_node, cache.sets // machine.llc.clusters
    if machine.llc.clusters == 1 or llcs[home] != llcs[nodes[0]]:
        return line % cache.sets
    return llcs[:home].count(llcs[home]) * share + line % share


def flags_in(
    system: System, block: int, structure: Cache, domain: int | None = None
) -> dict[int, int]:
    """Lines of one cache and their flags; checks its rows on the way."""
    first = block + structure.offset
    rows = system.words[first : first + structure.sets * structure.pitch]
    held: dict[int, int] = {}
    for row, words in enumerate(rows.reshape(structure.sets, structure.pitch)):
        ways, beyond = words[: structure.ways], words[structure.ways :]
        full = [int(word) for word in ways if word != EMPTY]
        if structure.policy == Policy.LRU:
            assert (ways[len(full) :] == EMPTY).all(), "a gap"
        if structure.policy == Policy.SRRIP:
            unused = sum(1 << way for way, word in enumerate(ways) if word == EMPTY)
            unused |= -1 << structure.ways
            assert all(int(bits) & unused == unused for bits in beyond[:MORE_WORDS])
            beyond = beyond[MORE_WORDS:]
        assert (beyond == EMPTY).all()
        for word in full:
            assert word >> FLAG_BITS not in held
            line = int(word >> FLAG_BITS)
            if domain is None:
                assert line % structure.sets == row
            else:
                assert row_in_share(system, domain, structure, line) == row
            held[line] = word & FLAGS
    return held


@dataclass
class Held:
    """Flags of the lines of one domain: its LLC, its filter if any, and L1I, L1D, L2 by CPU."""

    llc: dict[int, int]
    filter: dict[int, int] | None
    cpus: dict[int, tuple[dict[int, int], dict[int, int], dict[int, int]]]

    @property
    def rights(self) -> dict[int, int]:
        """Flags of the entry that carries the domain's right to each line."""
        return self.llc if self.filter is None else self.llc | self.filter

    @property
    def dirty(self) -> set[int]:
        parts = [self.llc, *(part for cpu in self.cpus.values() for part in cpu)]
        return {line for part in parts for line, flags in part.items() if flags & DIRTY}


def domains(system: System) -> Iterator[Held]:
    layout = system.layout
    shared = len(system.cpu_node) * layout.stride
    for domain in range(system.domains):
        outer = [
            flags_in(system, shared + domain * layout.shared_stride, cache, domain)
            for cache in layout.shared
        ]
        cpus = {
            int(cpu): tuple(
                flags_in(system, int(cpu) * layout.stride, cache) for cache in layout.private
            )
            for cpu in np.flatnonzero(system.cpu_domain == domain)
        }
        yield Held(outer[0], outer[1] if len(outer) > 1 else None, cpus)


@settings(max_examples=150, deadline=None)
@given(SEEDS, RECORDS)
def test_outer_caches_include_inner_ones(seed, records):
    system, _ = run_core(random_case(seed, records))
    for held in domains(system):
        tracked = held.llc if held.filter is None else held.filter
        in_l2 = set()
        for l1i, l1d, l2 in held.cpus.values():
            assert not any(l1i.values()), "L1I knows no flags"
            assert {*l1i, *l1d, *l2} <= set(tracked)
            assert not any(flags & ~DIRTY for flags in (*l1d.values(), *l2.values()))
            in_l2 |= set(l2)
            if held.filter is not None:
                assert {*l1i, *l1d} <= set(l2)
        if held.filter is not None:
            assert set(held.filter) == in_l2


@settings(max_examples=150, deadline=None)
@given(SEEDS, RECORDS)
def test_one_domain_answers_for_a_line_and_one_core_changes_it(seed, records):
    system, _ = run_core(random_case(seed, records))
    every = list(domains(system))
    for line in {line for held in every for line in held.rights}:
        rights = [held.rights[line] for held in every if line in held.rights]
        assert len(rights) == 1 or all(right & NOT_ALONE for right in rights)
        assert sum(not right & SHARED for right in rights) <= 1
        assert all(right & NOT_ALONE in (0, SHARED, FORWARD) for right in rights)
    for held in every:
        for line, right in held.rights.items():
            owner = ((right & OWNER) >> OWNER_SHIFT) - 1
            having = {cpu for cpu, parts in held.cpus.items() if any(line in p for p in parts)}
            changed = {
                cpu
                for cpu, parts in held.cpus.items()
                if any(part.get(line, 0) & DIRTY for part in parts)
            }
            assert changed <= {owner}
            if owner >= 0:
                assert not right & NOT_ALONE
                assert having <= {owner}
            if held.filter is not None:
                assert owner < 0 or line not in held.llc
        assert not any(held.rights[line] & NOT_ALONE for line in held.dirty)


def without_prefetch(case: Case) -> Case:
    """A prefetch may write back, in the same record, what a store has just dirtied."""
    quiet = PrefetchSpec(next_line_fetch=False, adjacent_line=False, stream=False)
    return replace(case, machine=replace(case.machine, prefetch=quiet))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 120))
def test_dirty_data_is_written_back_once(seed, records):
    """Lines dirty anywhere change by the one that a store dirties, less those written back.

    Of a line that was dirty before the store, the store's own walk may have been written it back.
    """
    case = without_prefetch(random_case(seed, records))
    system, counts, translations = case.system(), case.counts(), as_translations(case.pages)
    before: set[int] = set()
    written = 0
    for cpu, turn in case.turns:
        stream = as_stream(turn)
        for at, record in enumerate(turn):
            run(system, cpu, stream, translations, at, at + 1, counts)
            after = {line for held in domains(system) for line in held.dirty}
            now = int(counts.events[Event.WRITEBACKS])
            stored = set()
            if record.kind == "store":
                stored = {case.pages[record.page].pfn * 64 + record.line}
            assert after <= before | stored
            assert stored <= after
            again = now - written - (len(before | stored) - len(after))
            assert again in ((0, 1) if stored & before else (0,))
            before, written = after, now


@pytest.mark.parametrize("policy", ["inclusive", "victim"])
def test_random_cases_share_llcs(policy):
    """Of both kinds, with several CPUs and with several domains."""
    shapes = set()
    for seed in range(200):
        case = random_case(seed, 0)
        if case.machine.llc.policy == policy:
            system = case.system()
            shapes.add((len(system.cpu_node) > system.domains, system.domains))
    assert shapes >= {(False, 1), (True, 1), (False, 2), (True, 2), (True, 3)}
