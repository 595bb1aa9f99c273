"""Who serves a line that other cores have, told step by step: rules, not counts of a whole run."""

import random
from dataclasses import replace

import numpy as np
import pytest

from numarep.memory.counts import Access, Event, Service, new_counts
from numarep.memory.system import System, new_system, run
from numarep.spec import LlcSpec, MachineSpec, PrefetchSpec
from tests.memory.cases import as_stream, as_translations, cache, llc, small_machine
from tests.twin import Page, Record

# One 1G page, so that a walk reads two lines only, whose frames are none of the data's.
PAGE = as_translations([Page(0, 3, 3, True, 0, {3: 1, 4: 0}, 0)])
QUIET = PrefetchSpec(next_line_fetch=False, adjacent_line=False, stream=False)


def machine(last: LlcSpec, sockets: tuple[int, ...]) -> MachineSpec:
    made = small_machine(random.Random(0), len(sockets))
    roomy = {"l1i": cache(8, 2), "l1d": cache(8, 2), "l2": cache(8, 4)}
    return replace(made, **roomy, llc=last, sockets=sockets, prefetch=QUIET)


def of_kind(policy: str, **more) -> LlcSpec:
    snoop_filter = cache(64, 8) if policy == "victim" else None
    return llc(64, 8, policy=policy, snoop_filter=snoop_filter, **more)


def served(system: System, cpu: int, kind: str, line: int) -> tuple[str, int]:
    """Who serves one access, and where; walks set aside."""
    counts = new_counts(system.machine.nodes, 1)
    run(system, cpu, as_stream([Record(kind, 0, line, 1)]), PAGE, 0, 1, counts)
    access = Access[kind.upper()]
    ((service, node),) = np.argwhere(counts.served[access, 0, 0].sum(axis=-1)).tolist()
    return Service(service).name.lower(), node


def event(system: System, cpu: int, kind: str, line: int, which: Event) -> int:
    """How often an event occurs in one access."""
    counts = new_counts(system.machine.nodes, 1)
    run(system, cpu, as_stream([Record(kind, 0, line, 1)]), PAGE, 0, 1, counts)
    return int(counts.events[which])


@pytest.mark.parametrize("policy", ["inclusive", "victim"])
@pytest.mark.parametrize("first", ["load", "store", "fetch"])
def test_the_owner_is_asked_once(policy, first):
    system = new_system(machine(of_kind(policy), (0, 1)), (1, 1, 1, 0), np.array([4, 8]))
    assert served(system, 0, first, 5) == ("dram", 0)
    assert served(system, 1, "load", 5) == ("peer", 1)
    # A clean line that only L2s hold comes from one of them; what was dirty is in the LLC now.
    has_copy = policy == "inclusive" or first == "store"
    assert served(system, 2, "load", 5) == ("llc" if has_copy else "peer", 1)
    assert served(system, 0, first, 5)[0] == "l1"
    # Of a store, the LLC's copy is dirty, in memory of the reader.
    assert served(system, 3, "load", 5) == (
        "remote_dirty_away" if first == "store" else "remote_llc",
        1,
    )


@pytest.mark.parametrize("policy", ["inclusive", "victim"])
@pytest.mark.parametrize("again", ["load", "store"])
@pytest.mark.parametrize(
    ("ends", "shared_by", "expected"),
    [
        ([4, 8, 12], "node", "remote_dirty_away"),  # frame 3 is the reader's memory
        ([3, 8, 12], "node", "remote_dirty"),  # the writer's
        ([2, 3, 12], "node", "remote_dirty_away"),  # a third node's, of another LLC
        ([2, 3, 12], "socket", "remote_dirty"),  # or of the writer's
    ],
)
def test_changed_lines_of_another_llc_depend_on_their_home(
    policy, again, ends, shared_by, expected
):
    made = machine(of_kind(policy, shared_by=shared_by), (0, 1, 1))
    system = new_system(made, (0, 1, 1), np.array(ends))
    served(system, 1, "store", 5)
    assert served(system, 0, again, 5) == (expected, 1)


@pytest.mark.parametrize("policy", ["inclusive", "victim"])
def test_a_store_drops_all_other_copies(policy):
    system = new_system(machine(of_kind(policy), (0, 1)), (1, 1, 1, 0), np.array([4, 8]))
    for cpu in range(4):
        served(system, cpu, "load", 5)
    counts = new_counts(2, 1)
    run(system, 1, as_stream([Record("store", 0, 5, 1)]), PAGE, 0, 1, counts)
    events = counts.events
    assert events[Event.UPGRADES] == events[Event.REMOTE_INVALIDATIONS] == 1
    assert events[Event.PEER_INVALIDATIONS] == 4  # L1D and L2 of two cores
    assert served(system, 0, "load", 5) == ("peer", 1)
    # Read by another domain, dirty data is written back, once.
    assert event(system, 3, "load", 5, Event.WRITEBACKS) == 1
    assert event(system, 3, "store", 5, Event.WRITEBACKS) == 0


@pytest.mark.parametrize("policy", ["inclusive", "victim"])
def test_cluster_on_die_and_sub_numa_clustering(policy):
    """Two nodes of one socket: an LLC each, or one for both."""
    for shared_by, expected in (("node", "remote_llc"), ("socket", "peer")):
        made = machine(of_kind(policy, shared_by=shared_by), (0, 0))
        system = new_system(made, (0, 1), np.array([4, 8]))
        assert served(system, 0, "load", 5) == ("dram", 0)
        assert served(system, 1, "load", 5) == (expected, 0)


def test_a_victim_llc_holds_what_left_l2_and_gives_it_back():
    system = new_system(machine(of_kind("victim"), (0, 1)), (0,), np.array([4, 8]))
    lines = [5, 13, 21, 29, 37]  # one more than a row of L2 holds
    assert [served(system, 0, "store", line) for line in lines] == [("dram", 0)] * 5
    assert served(system, 0, "load", 5) == ("llc", 0)  # moves back, and 13 leaves
    assert served(system, 0, "load", 13) == ("llc", 0)
    # Dirty data never went to DRAM on the way.
    assert event(system, 0, "load", 21, Event.WRITEBACKS) == 0


def test_a_snoop_filter_of_few_ways_takes_lines_from_l1():
    last = llc(64, 8, policy="victim", snoop_filter=cache(16, 2))
    system = new_system(machine(last, (0, 1)), (0,), np.array([4, 8]))
    for line in (5, 21, 37):  # in different ways of L1 and L2, in one row of the filter
        served(system, 0, "load", line)
    # Line 5 was clean, so no cache has it.
    assert served(system, 0, "load", 5) == ("dram", 0)
    assert event(system, 0, "load", 37, Event.FILTER_EVICTIONS) == 0
