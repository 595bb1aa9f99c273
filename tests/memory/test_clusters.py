"""Sub-NUMA clusters: which memory's lines meet in a socket's LLC, whoever uses them."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from numarep.memory.counts import Access, Service, new_counts
from numarep.memory.system import System, new_system, run
from numarep.spec import PrefetchSpec
from tests.memory.cases import as_stream, as_translations, cache, llc, small_machine
from tests.twin import Page, Record

FRAMES = 16  # of each node
LINES = 64 * FRAMES
SHARE, WAYS = 32, 8  # rows of a node's lines, and lines in each
QUIET = PrefetchSpec(next_line_fetch=False, adjacent_line=False, stream=False)
NEAR = {"l1", "l2", "llc", "peer"}

each_kind = pytest.mark.parametrize("policy", ["inclusive", "victim"])
each_number = pytest.mark.parametrize("clusters", [2, 3])


def clustered(policy: str, clusters: int) -> System:
    """Two sockets; a CPU on each node of the first; all translations are known."""
    nodes = 2 * clusters
    sets = clusters * SHARE
    snoop_filter = cache(sets, WAYS) if policy == "victim" else None
    shared = {"shared_by": "socket", "clusters": clusters}
    machine = replace(
        small_machine(random.Random(0), nodes),
        **{"l1i": cache(8, 2), "l1d": cache(8, 2), "l2": cache(8, 2), "prefetch": QUIET},
        llc=llc(sets, WAYS, policy=policy, snoop_filter=snoop_filter, **shared),
        sockets=tuple(node // clusters for node in range(nodes)),
    )
    ends = np.arange(1, nodes + 1) * FRAMES
    system = new_system(machine, tuple(range(clusters)), ends)
    for cpu in range(clusters):
        loads(system, cpu, lines_of(nodes - 1, 1))
    return system


def loads(system: System, cpu: int, lines: Iterable[int]) -> Counter[str]:
    """Load lines and return how many each level served; walks set aside."""
    frames = int(system.node_end_pfn[-1])
    tables = {3: frames - 1, 4: frames - 2}  # other sockets' memory
    pages = [Page(0, frame, 3, True, 0, tables, 0) for frame in range(frames)]
    records = [Record("load", line // 64, line % 64, 1) for line in lines]
    counts = new_counts(system.machine.nodes, 1)
    run(system, cpu, as_stream(records), as_translations(pages), 0, len(records), counts)
    served = counts.served[Access.LOAD, 0].sum(axis=(0, 2, 3))
    return Counter({Service(n).name.lower(): int(served[n]) for n in np.flatnonzero(served)})


def lines_of(node: int, count: int) -> range:
    return range(node * LINES, node * LINES + count)


@each_kind
@each_number
def test_lines_of_one_cluster_never_evict_those_of_another(policy, clusters):
    system = clustered(policy, clusters)
    fit = SHARE * (WAYS - 3)  # the others are for tables and the first line
    for node in range(clusters):
        loads(system, node, lines_of(node, fit))
    for user, home in ((user, home) for user in range(clusters) for home in range(1, clusters)):
        loads(system, user, lines_of(home, LINES))
    assert set(loads(system, 0, lines_of(0, fit))) <= NEAR
    assert loads(system, 0, lines_of(1, fit))["dram"] > 0


@each_kind
@each_number
@pytest.mark.parametrize("user", [0, 1])
def test_a_node_s_lines_have_its_share_other_sockets_all(policy, clusters, user):
    """Half as much again as a share: too much of one node, not of two or of another socket."""
    size = SHARE * WAYS * 3 // 2
    spread = [*lines_of(0, size // 2), *lines_of(1, size // 2)]
    for lines, fits in (
        (lines_of(0, size), False),
        (lines_of(1, size), False),
        (spread, True),
        (lines_of(clusters, size), True),
    ):
        system = clustered(policy, clusters)
        loads(system, user, lines)
        again = loads(system, user, lines)
        assert again["dram"] == (0 if fits else size)
