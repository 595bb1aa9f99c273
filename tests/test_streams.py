"""Plain streams: the published latencies come back out, and an independent simulator agrees."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from numarep.memory.counts import Access, Counts, Event, Service
from numarep.memory.kinds import Kind
from numarep.price import price, stalls
from numarep.spec import CacheSpec, MachineSpec, SpecError, parse
from numarep.streams import NODE_BYTES, chase, count_stream, toy_machine
from numarep.units import cycles_to_ns

CONF = Path(__file__).parents[1] / "conf" / "machine"
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def machine() -> MachineSpec:
    return parse(MachineSpec, yaml.safe_load((CONF / "e5_2690_v3.yaml").read_text()))


def chased(machine: MachineSpec, footprint: int, page: str, node: int) -> tuple[Counts, int]:
    kind, address = chase(footprint, node * NODE_BYTES, seed=1)
    counts = count_stream(machine, kind, address, page=page, unmeasured_passes=1, dependent=True)
    return counts, len(address)


def expected_ns(machine: MachineSpec, service: Service, node: int) -> float:
    latency = machine.latency
    return {
        Service.L1: cycles_to_ns(latency.l1_cycles, ghz=machine.core.ghz),
        Service.L2: cycles_to_ns(latency.l2_cycles, ghz=machine.core.ghz),
        Service.LLC: latency.llc_ns,
        Service.DRAM: latency.dram_ns[0][node],
    }[service]


@pytest.mark.parametrize("page", ["4K", "2M"])
@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize(
    ("footprint", "service"),
    [
        (16 * KIB, Service.L1),
        (128 * KIB, Service.L2),
        (8 * MIB, Service.LLC),
        (96 * MIB, Service.DRAM),
    ],
)
def test_every_plateau_is_the_sourced_latency_plus_the_walks(
    machine: MachineSpec, footprint: int, service: Service, node: int, page: str
) -> None:
    counts, loads = chased(machine, footprint, page, node)
    near = expected_ns(machine, Service.L1, node)
    mean_ns = price(counts, machine, 0).time_serial_ns / loads + near
    walks_ns = float(stalls(counts, machine, 0)[Access.LOAD_WALK].sum()) / loads
    stlb = int(counts.events[Event.STLB_DATA_HITS]) * machine.latency.stlb_cycles
    stlb_ns = cycles_to_ns(stlb, ghz=machine.core.ghz) / loads
    found = mean_ns - walks_ns - stlb_ns
    assert found == pytest.approx(expected_ns(machine, service, node), rel=0.02)


def test_a_chase_never_overlaps(machine: MachineSpec) -> None:
    counts, _ = chased(machine, 128 * KIB, "2M", 0)
    found = price(counts, machine, 0)
    assert found.time_ns == pytest.approx(found.time_serial_ns)


def test_every_node_serves_its_own_addresses(machine: MachineSpec) -> None:
    address = np.array([0, NODE_BYTES, NODE_BYTES + 64])
    counts = count_stream(machine, np.full(3, Kind.LOAD, np.uint8), address)
    assert counts.served[Access.LOAD, 0, 0, Service.DRAM].sum(axis=-1).tolist() == [1, 2]
    walks = counts.served[Access.LOAD_WALK, :, 0, Service.DRAM].sum(axis=(0, 2))
    assert (walks > 0).all()


def misses(machine: MachineSpec, address: NDArray[np.int64]) -> tuple[int, int]:
    """Count misses of L1D and L2 by loads alone, walks left out."""
    counts = count_stream(machine, np.full(len(address), Kind.LOAD, np.uint8), address, page="1G")
    served = counts.served[Access.LOAD, 0].sum(axis=(0, 2, 3))
    return int(served[Service.L2 :].sum()), int(served[Service.LLC :].sum())


@pytest.mark.parametrize("seed", range(5))
def test_misses_equal_those_of_an_independent_simulator(seed: int) -> None:
    cachesim = pytest.importorskip("cachesim", reason="pycachesim is an extra of benchmarks")
    rng = np.random.default_rng(seed)
    sets, ways = int(2 ** rng.integers(2, 6)), int(rng.integers(1, 9))
    wide = 4 * sets
    machine = dataclasses.replace(
        toy_machine(),
        l1d=CacheSpec(size_bytes=sets * ways * 64, ways=ways),
        l2=CacheSpec(size_bytes=wide * ways * 64, ways=ways),
        llc=CacheSpec(size_bytes=1 << 26, ways=16),  # holds everything: no back-invalidation
    )
    address = rng.zipf(1.2, 20_000) % (8 * wide * ways) * 64
    memory = cachesim.MainMemory()
    second = cachesim.Cache("L2", wide, ways, 64, "LRU")
    first = cachesim.Cache("L1", sets, ways, 64, "LRU", load_from=second, store_to=second)
    memory.load_to(second)
    memory.store_from(second)
    theirs = cachesim.CacheSimulator(first, memory)
    for item in address.tolist():
        theirs.load(item, length=1)
    stats = list(theirs.stats())
    expected = stats[0]["MISS_count"], stats[1]["MISS_count"]
    # One walk for the only page: its reads go through L1D and L2 too, first of all.
    found = misses(machine, address)
    assert found == pytest.approx(expected, abs=4)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ([-64], "address: expected 0 to"),
        ([NODE_BYTES], "address: expected 0 to"),
        ([NODE_BYTES - 64], "address: expected the first"),
        ([], "kind: expected at least one"),
    ],
)
def test_addresses_outside_the_machine_are_refused(address: list[int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        count_stream(
            toy_machine(), np.full(len(address), Kind.LOAD, np.uint8), np.array(address, np.int64)
        )
