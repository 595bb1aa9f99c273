"""Laws of loaded latencies: no load is no change, more is never faster, the fixed point is one."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numarep.loaded import NO_LOAD, added_ns, under_load
from numarep.memory.counts import FORWARDED, Access, Counts, Event, Overlap, Service, new_counts
from numarep.price import Added, price
from numarep.spec import LoadedSpec, MachineSpec, RunSpec, SpecError, parse
from numarep.sweep.grid import expand
from numarep.sweep.model import state_key
from tests.memory.cases import small_machine

SEEDS = st.integers(0, 2**32)


def random_curve(rng: random.Random) -> LoadedSpec:
    steps = [(rng.uniform(1, 30), rng.uniform(0, 40)) for _ in range(rng.randint(1, 5))]
    steps[-1] = (steps[-1][0], steps[-1][1] + 1)
    gb_per_s, more = [0.0], [0.0]
    for width, height in steps:
        gb_per_s.append(gb_per_s[-1] + width)
        more.append(more[-1] + height)
    return LoadedSpec(
        memory_gb_per_s=tuple(gb_per_s), added_ns=tuple(more), link_gb_per_s=rng.uniform(1, 40)
    )


def random_run(seed: int) -> tuple[MachineSpec, Counts, int]:
    rng = random.Random(seed)
    machine = small_machine(rng, rng.randint(1, 4))
    machine = replace(machine, latency=replace(machine.latency, loaded=random_curve(rng)))
    counts = new_counts(machine.nodes, 2)
    counts.events[Event.INSTRUCTIONS] = rng.randint(1, 10_000)
    for _ in range(rng.randint(0, 20)):
        where = (rng.choice(list(Access)), 0, rng.randrange(2), rng.choice(list(Service)))
        counts.served[(*where, rng.randrange(machine.nodes), rng.choice(list(Overlap)))] += (
            rng.randint(1, 10 ** rng.randint(0, 6))
        )
    return machine, counts, rng.randrange(machine.nodes)


def traffic(
    machine: MachineSpec, counts: Counts, cpu_node: int, cpus: int
) -> tuple[list[int], dict[tuple[int, int], int]]:
    """Lines from each memory and over each link of two sockets, CPU by CPU: the plain model."""
    memory, links = [0] * machine.nodes, {}
    socket = machine.socket_of_node
    for reader in [node for node in range(machine.nodes) for _ in range(cpus)]:
        for home in range(machine.nodes):
            lines = int(counts.served[:, :, :, Service.DRAM, home].sum())
            source = reader if home == cpu_node else home
            memory[source] += lines
            if home != cpu_node and socket[reader] != socket[home]:
                forwarded = int(counts.served[:, :, :, list(FORWARDED), home].sum())
                link = socket[reader], socket[home]
                links[link] = links.get(link, 0) + lines + forwarded
    return memory, links


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 200))
def test_latencies_are_those_under_the_traffic_they_allow(seed: int, cpus: int) -> None:
    machine, counts, cpu_node = random_run(seed)
    curve = machine.latency.loaded
    assert curve
    load = under_load(counts, machine, cpu_node, cpus)
    assert load.added is not None
    time_ns = price(counts, machine, cpu_node, load.added).time_ns
    memory, links = traffic(machine, counts, cpu_node, cpus)
    most, shares, socket = curve.memory_gb_per_s[-1], [], machine.socket_of_node
    for node in range(machine.nodes):
        memory_share = memory[node] * 64 / time_ns / most
        link_share = (
            links.get((socket[cpu_node], socket[node]), 0) * 64 / time_ns / curve.link_gb_per_s
        )
        link_ns = float(added_ns(curve, link_share * most))
        assert load.added.remote_llc_ns[node] == pytest.approx(link_ns, rel=1e-6, abs=1e-9)
        expected = link_ns + float(added_ns(curve, memory_share * most))
        assert load.added.dram_ns[node] == pytest.approx(expected, rel=1e-6, abs=1e-9)
        shares += [memory_share, link_share]
    assert load.share == pytest.approx(max(shares))


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_more_cpus_are_never_faster_and_none_change_nothing(seed: int) -> None:
    machine, counts, cpu_node = random_run(seed)
    idle = price(counts, machine, cpu_node)
    assert under_load(counts, machine, cpu_node, 0) == NO_LOAD
    nothing = Added(np.zeros(machine.nodes), np.zeros(machine.nodes))
    assert price(counts, machine, cpu_node, nothing) == idle
    last = idle
    for cpus in (1, 2, 3, 10, 100, 10_000):
        load = under_load(counts, machine, cpu_node, cpus)
        priced = price(counts, machine, cpu_node, load.added)
        assert priced.time_ns >= last.time_ns * (1 - 1e-12)
        assert priced.time_overlapped_ns <= priced.time_ns <= priced.time_serial_ns
        last = priced


def test_the_curve_is_the_published_one_and_goes_on_rising() -> None:
    curve = LoadedSpec(
        memory_gb_per_s=(0.0, 10.0, 30.0), added_ns=(0.0, 5.0, 45.0), link_gb_per_s=8.0
    )
    assert added_ns(curve, np.array([0.0, 10.0, 20.0, 30.0, 40.0])).tolist() == [0, 5, 25, 45, 65]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_gb_per_s": [0.0]}, "loaded.added_ns: expected one for each of two or more"),
        ({"memory_gb_per_s": [1.0, 2.0]}, r"loaded.memory_gb_per_s: expected 0.0 first"),
        ({"memory_gb_per_s": [0.0, 0.0]}, "loaded.memory_gb_per_s: expected rising"),
        ({"added_ns": [1.0, 2.0]}, "loaded.added_ns: expected 0.0 first"),
        ({"added_ns": [0.0, 0.0]}, "loaded.added_ns: expected never to fall and to end rising"),
        ({"link_gb_per_s": 0.0}, "loaded.link_gb_per_s: expected a positive number"),
    ],
)
def test_curves_that_can_not_be_are_refused(change: dict[str, object], message: str) -> None:
    good = {"memory_gb_per_s": [0.0, 50.0], "added_ns": [0.0, 9.0], "link_gb_per_s": 30.0}
    parse(LoadedSpec, good)
    with pytest.raises(SpecError, match=message):
        parse(LoadedSpec, good | change, "loaded")


def test_loads_share_a_state_and_need_a_curve_and_cores() -> None:
    points = expand(["study=single", "load.cpus_per_node=0,11"]).points
    idle, loaded = (parse(RunSpec, point) for point in points)
    assert idle != loaded
    assert state_key(idle) == state_key(loaded)
    (crowded,) = expand(["study=single", "load.cpus_per_node=12"]).points
    with pytest.raises(SpecError, match=r"^load.cpus_per_node: expected at most 11 .* 12 cores"):
        parse(RunSpec, crowded)
    (unknown,) = expand(["study=single", "machine=xeon_8s", "load.cpus_per_node=1"]).points
    with pytest.raises(SpecError, match=r"load.cpus_per_node: expected 0, because no loaded"):
        parse(RunSpec, unknown)
