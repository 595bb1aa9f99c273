"""Plain streams: the published latencies come back out, and an independent simulator agrees."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from numarep import units
from numarep.memory.counts import Access, Counts, Event, Service
from numarep.memory.kinds import Kind
from numarep.price import price, stalls
from numarep.spec import MachineSpec, SpecError, parse
from numarep.streams import (
    LEAVES,
    NODE_BYTES,
    chase_lines,
    count_chase,
    count_stream,
    toy_machine,
)
from numarep.units import cycles_to_ns
from tests.agreement import WALK_READS, our_misses, random_loads, their_misses

CONF = Path(__file__).parents[1] / "conf" / "machine"
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def machine() -> MachineSpec:
    return parse(MachineSpec, yaml.safe_load((CONF / "e5_2690_v3.yaml").read_text()))


def chased(machine: MachineSpec, footprint: int, page: str, node: int) -> tuple[Counts, int]:
    counts = count_chase(machine, footprint, home_node=node, seed=1, page=page, unmeasured_passes=1)
    return counts, footprint // 64


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


@pytest.mark.parametrize("order", ["cycle", "drawn"])
def test_a_chase_stays_within_its_buffer(order: Literal["cycle", "drawn"]) -> None:
    loads = chase_lines(64 * KIB, seed=1, order=order)
    lines, times = np.unique(loads, return_counts=True)
    assert 0 <= lines.min() <= lines.max() < 1024
    assert len(loads) == (4096 if order == "drawn" else 1024)
    assert (len(lines), int(times.max())) == (1024, 1) if order == "cycle" else times.max() > 1


def test_a_cache_serves_drawn_loads_by_its_share_of_the_buffer(machine: MachineSpec) -> None:
    """Of a buffer 4 times a cache, whatever the order is that lines were drawn in."""
    footprint = 4 * machine.l1d.size_bytes
    counts = count_chase(machine, footprint, seed=1, order="drawn", page="2M", unmeasured_passes=1)
    served = counts.served[Access.LOAD, 0, 0].sum(axis=(1, 2))
    assert served[Service.L1] / served.sum() == pytest.approx(1 / 4, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 1000),
    st.integers(0, 99),
    st.sampled_from(["cycle", "drawn"]),
    st.sampled_from(list(LEAVES)),
    st.integers(0, 1),
)
@example(64 * 512 + 1, 7, "drawn", "4K", 1)  # whose last page, of another table, is never drawn
def test_a_chase_is_the_stream_of_its_loads(
    machine: MachineSpec,
    lines: int,
    seed: int,
    order: Literal["cycle", "drawn"],
    page: str,
    home: int,
) -> None:
    address = chase_lines(lines * 64, seed, order) * np.int64(64) + home * NODE_BYTES
    kind = np.full(len(address), Kind.LOAD)
    expected = count_stream(machine, kind, address, page=page, unmeasured_passes=1, dependent=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "_PART", 100)
        found = count_chase(
            machine,
            lines * 64,
            home_node=home,
            seed=seed,
            order=order,
            page=page,
            unmeasured_passes=1,
        )
    assert all(map(np.array_equal, found, expected))


def test_a_chase_beyond_its_node_is_refused(machine: MachineSpec) -> None:
    with pytest.raises(SpecError, match="footprint_bytes: expected 64 to 17112760320, got"):
        count_chase(machine, NODE_BYTES, seed=1)


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


LOADS = [Kind.LOAD] * 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"address": [0, 64, -64]}, "address: expected integers 0 to"),
        ({"address": [0, 64, NODE_BYTES]}, "address: expected integers 0 to"),
        ({"address": [0, 64, 2**64]}, "address: expected"),
        ({"address": [0, 64, NODE_BYTES - 64]}, "address: expected the first"),
        ({"address": [0.0, 64.0, 0.5]}, "address: expected integers .* got float64"),
        ({"address": [0, 64]}, r"address: expected one dimension, of 3 references, got \(2,\)"),
        ({"address": [[0, 64, 0]]}, "address: expected one dimension"),
        ({"address": [0, [64, 0]]}, "address: expected an array of integers"),
        ({"kind": [], "address": []}, "kind: expected at least one"),
        ({"kind": [0, -1, 2]}, "kind: expected integers 0 to 2, got -1 to 2"),
        ({"kind": np.array([0, -1, 2], np.int8)}, "kind: expected integers 0 to 2, got -1 to 2"),
        ({"kind": [0, 1, Kind.CR3]}, "kind: expected integers 0 to 2, got 0 to 3"),
        ({"kind": [0, 1, 258]}, "kind: expected integers 0 to 2"),
        ({"kind": [0, 1.5, 2]}, "kind: expected integers 0 to 2, got float64"),
        ({"kind": [True, False, True]}, "kind: expected integers 0 to 2, got bool"),
        ({"function": [0, 1]}, "function: expected one dimension, of 3 references"),
        ({"function": [0, -1, 1]}, "function: expected integers"),
        ({"page": "8K"}, "page: expected one of 4K, 2M, 1G"),
        ({"levels": 3}, "levels: expected 4 or 5"),
        ({"passes": 0}, "passes: expected >= 1, got 0"),
        ({"passes": -1}, "passes: expected >= 1, got -1"),
        ({"unmeasured_passes": -1}, "unmeasured_passes: expected >= 0, got -1"),
        ({"node_bytes": (1 << 24) + 1}, "node_bytes: expected whole 4K pages"),
        ({"node_bytes": (1 << 30) + 4096, "page": "1G"}, "node_bytes: expected whole 1G pages"),
        ({"node_bytes": 1 << 12}, "node_bytes: expected whole 4K pages"),
        ({"node_bytes": 1 << 48}, "node_bytes: expected whole 4K pages"),
        ({"cpu_node": 1}, "cpu_nodes: expected nodes 0 to 0"),
    ],
)
def test_what_is_no_stream_is_refused(changed: dict[str, Any], message: str) -> None:
    given = {"kind": LOADS, "address": [0, 64, 4096]} | changed
    with pytest.raises(SpecError, match=message):
        count_stream(toy_machine(), given.pop("kind"), given.pop("address"), **given)


REFERENCES = st.lists(
    st.tuples(st.integers(-2, 4), st.integers(-(1 << 7), (1 << 15) - 1)), min_size=1, max_size=40
)
DTYPES = st.sampled_from([np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64, None])


@settings(max_examples=100, deadline=None)
@given(REFERENCES, DTYPES, st.sampled_from([np.int16, np.int32, np.int64, None]))
def test_integers_of_any_type_count_alike_or_are_refused(
    references: list[tuple[int, int]], of_kind: Any, of_address: Any
) -> None:
    """Refused exactly if a kind or an address is none, else counted as the usual types are."""
    kind, address = (np.array(column) for column in zip(*references, strict=True))
    as_told = (
        values.tolist() if dtype is None else values.astype(dtype)
        for values, dtype in ((kind, of_kind), (address, of_address))
    )
    is_stream = kind.min() >= 0 and kind.max() <= Kind.STORE and address.min() >= 0
    if not is_stream:
        with pytest.raises(SpecError, match=r"^(kind|address): expected"):
            count_stream(toy_machine(), *as_told)
        return
    expected = count_stream(toy_machine(), kind.astype(np.uint8), address.astype(np.int64))
    found = count_stream(toy_machine(), *as_told)
    assert all(map(np.array_equal, found, expected))


def test_five_levels_read_one_table_more() -> None:
    four, five = (count_stream(toy_machine(), [Kind.LOAD], [0], levels=n) for n in (4, 5))
    walked = [counts.served[Access.LOAD_WALK].sum(axis=(1, 2, 3, 4)) for counts in (four, five)]
    assert walked[0].tolist() == [0, 1, 1, 1, 1, 0]
    assert walked[1].tolist() == [0, 1, 1, 1, 1, 1]


def test_tables_of_the_smallest_nodes_are_beside_what_they_map(machine: MachineSpec) -> None:
    """No line of a load is one of a table, though every usable page of every node is loaded."""
    node_bytes = 1 << 24
    within = np.arange(0, node_bytes - node_bytes // 256, 4096)
    address = np.concatenate([within, within + node_bytes])
    counts = count_stream(
        machine, np.full(len(address), Kind.LOAD), address, levels=5, node_bytes=node_bytes
    )
    assert counts.served[Access.LOAD, 0, 0, Service.DRAM].sum(axis=-1).tolist() == [len(within)] * 2
