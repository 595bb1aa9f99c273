"""Plain streams: the published latencies come back out, and an independent simulator agrees."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from numarep.memory.counts import Access, Counts, Event, Service
from numarep.memory.kinds import Kind
from numarep.price import price, stalls
from numarep.spec import MachineSpec, SpecError, parse
from numarep.streams import NODE_BYTES, chase, count_stream, toy_machine
from numarep.units import cycles_to_ns
from tests.agreement import WALK_READS, our_misses, random_loads, their_misses

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


@pytest.mark.parametrize("seed", range(5))
def test_misses_equal_those_of_an_independent_simulator(seed: int) -> None:
    pytest.importorskip("cachesim", reason="pycachesim is an extra of benchmarks")
    machine, address = random_loads(seed)
    expected = their_misses(machine, address)
    assert our_misses(machine, address) == pytest.approx(expected, abs=WALK_READS)


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
