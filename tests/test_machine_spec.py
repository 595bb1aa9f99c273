"""Machines that can't be are refused, with the path of what is wrong: presets, broken anywhere."""

import copy
import dataclasses
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numarep.spec import MachineSpec, SpecError, as_mapping, parse
from tests.benchmarks.core import CONF, machine_preset

Mapping = dict[str, Any]
PRESETS = sorted(path.stem for path in (CONF / "machine").glob("*.yaml"))
CACHES, SIZES = ("l1i", "l1d", "l2", "llc"), ("itlb_4k", "dtlb_4k", "dtlb_1g", "stlb")


@pytest.fixture(scope="module")
def presets() -> list[Mapping]:
    # Lists where the spec has tuples, as YAML has.
    return [copy.deepcopy(as_mapping(machine_preset(name))) for name in PRESETS]


def rows(matrix: Any) -> list[list[float]]:
    return [list(row) for row in matrix]


def nodes_of(machine: Mapping, rng: random.Random) -> tuple[int, int]:
    one, other = rng.sample(range(len(machine["latency"]["dram_ns"])), 2)
    return one, other


TABLES = {"dram_ns", "remote_llc_ns", "remote_dirty_ns", "remote_dirty_away_ns"}


def short_row(machine: Mapping, rng: random.Random) -> str:
    name = rng.choice(sorted(TABLES))
    matrix = rows(machine["latency"][name] or machine["latency"]["dram_ns"])
    matrix[rng.randrange(len(matrix))].pop()
    machine["latency"][name] = matrix
    return rf"latency\.{name}: expected a square matrix"


def missing_row(machine: Mapping, rng: random.Random) -> str:
    name = rng.choice(sorted(TABLES))
    machine["latency"][name] = rows(machine["latency"][name] or machine["latency"]["dram_ns"])[:-1]
    return r"latency\.\w+_ns: expected a square matrix"


def near_memory(machine: Mapping, rng: random.Random) -> str:
    matrix, (one, other) = rows(machine["latency"]["dram_ns"]), nodes_of(machine, rng)
    matrix[one][other] = matrix[one][one] * rng.uniform(0.1, 0.99)
    machine["latency"]["dram_ns"] = matrix
    return rf"latency\.dram_ns\[{one}\]: remote memory .* nearer than local"


def memory_before_llc(machine: Mapping, rng: random.Random) -> str:
    matrix, (node, _) = rows(machine["latency"]["dram_ns"]), nodes_of(machine, rng)
    matrix[node][node] = machine["latency"]["llc_ns"] * rng.uniform(0.1, 0.99)
    machine["latency"]["dram_ns"] = matrix
    return rf"latency\.dram_ns\[{node}\]: local memory .* nearer than the LLC"


def near_llc(machine: Mapping, rng: random.Random) -> str:
    name = rng.choice(sorted(TABLES - {"dram_ns"}))
    matrix, (one, other) = rows(machine["latency"]["remote_llc_ns"]), nodes_of(machine, rng)
    matrix[one][other] = machine["latency"]["llc_ns"] * rng.uniform(0.1, 0.99)
    machine["latency"][name] = matrix
    return rf"latency\.{name}\[{one}\]: a remote LLC .* nearer than the local"


def near_peer(machine: Mapping, rng: random.Random) -> str:
    machine["latency"]["peer_ns"] = machine["latency"]["llc_ns"] * rng.uniform(0.1, 0.99)
    return r"latency\.peer_ns: .* nearer"


def slow_l1(machine: Mapping, rng: random.Random) -> str:
    machine["latency"]["l1_cycles"] = machine["latency"]["l2_cycles"] * rng.uniform(1.01, 9)
    return r"latency\.l2_cycles: .* below l1_cycles"


def llc_before_l2(machine: Mapping, rng: random.Random) -> str:
    l2_ns = machine["latency"]["l2_cycles"] / machine["core"]["ghz"]
    machine["latency"]["llc_ns"] = l2_ns * rng.uniform(0.1, 0.99)
    return r"latency\.llc_ns: the LLC is nearer than L2"


def no_time(machine: Mapping, rng: random.Random) -> str:
    name = rng.choice(["l1_cycles", "l2_cycles", "stlb_cycles", "llc_ns"])
    machine["latency"][name] = -rng.random()
    return rf"latency\.{name}: expected a positive number"


def broken_cache(machine: Mapping, rng: random.Random) -> str:
    name = rng.choice(CACHES)
    machine[name]["size_bytes"] += rng.randint(1, 63)
    return rf"{name}\.size_bytes: .* not a whole number of sets"


def broken_tlb(machine: Mapping, rng: random.Random) -> str:
    name = rng.choice(SIZES)
    machine["tlbs"][name]["entries"] += rng.randint(1, machine["tlbs"][name]["ways"] - 1)
    return rf"tlbs\.{name}\.entries: .* not a multiple of ways"


def small_llc(machine: Mapping, _: random.Random) -> str:
    machine["llc"] |= {"policy": "inclusive", "snoop_filter": None}
    machine["llc"]["size_bytes"] = machine["llc"]["clusters"] * machine["llc"]["ways"] * 64
    return r"llc\.size_bytes: an inclusive LLC can't be smaller than L2"


def no_filter(machine: Mapping, _: random.Random) -> str:
    machine["llc"] |= {"policy": "victim", "snoop_filter": None}
    return r"llc\.snoop_filter: missing"


def huge_cache(machine: Mapping, rng: random.Random) -> str:
    name = rng.choice(CACHES)
    cache = machine[name]
    cache["size_bytes"] = cache["ways"] * 64 * (1 << rng.randint(26, 40))
    return rf"{name}\.size_bytes: expected at most"


def huge_tlb(machine: Mapping, rng: random.Random) -> str:
    name = rng.choice(SIZES)
    machine["tlbs"][name]["entries"] = machine["tlbs"][name]["ways"] << rng.randint(20, 40)
    return rf"tlbs\.{name}\.entries: expected at most"


def small_l2(machine: Mapping, rng: random.Random) -> str:
    name = rng.choice(("l1i", "l1d"))
    machine[name] |= {"ways": 16, "size_bytes": machine["l2"]["size_bytes"] * 2}
    return rf"{name}\.size_bytes: .* more than L2"


def far_peer(machine: Mapping, rng: random.Random) -> str:
    farthest = max(map(max, machine["latency"]["dram_ns"]))
    machine["latency"]["peer_ns"] = farthest * rng.uniform(1.01, 9)
    return r"latency\.peer_ns: .* farther than any memory"


def far_stlb(machine: Mapping, rng: random.Random) -> str:
    farthest = max(map(max, machine["latency"]["dram_ns"])) * machine["core"]["ghz"]
    machine["latency"]["stlb_cycles"] = farthest * rng.uniform(1.01, 9)
    return r"latency\.stlb_cycles: .* farther than any memory"


def near_slit(machine: Mapping, rng: random.Random) -> str:
    """Another node nearer than the node itself, at no distance, or before it."""
    nodes, (one, other) = len(machine["latency"]["dram_ns"]), nodes_of(machine, rng)
    slit = [[10 if row == column else 20 for column in range(nodes)] for row in range(nodes)]
    slit[one][rng.choice((one, other))] = rng.randint(-5, 0)
    slit[one][other] = min(slit[one][other], rng.choice((9, 20)))
    machine["slit"] = slit
    return rf"slit\[{one}\]: expected the node itself"


def too_many_nodes(machine: Mapping, rng: random.Random) -> str:
    nodes = rng.randint(257, 300)
    machine["sockets"], machine["slit"] = None, None
    machine["latency"]["dram_ns"] = [[100.0] * nodes] * nodes
    return r"latency\.dram_ns: expected at most 256 nodes"


def wrong_sockets(machine: Mapping, rng: random.Random) -> str:
    nodes = len(machine["latency"]["dram_ns"])
    machine["sockets"] = rng.choice([[0] * (nodes + 1), [1] * nodes, [0] * (nodes - 1) + [7]])
    return r"sockets: expected"


BREAKS: list[Callable[[Mapping, random.Random], str]] = [
    *(short_row, missing_row, near_memory, memory_before_llc, near_llc, near_peer, slow_l1),
    *(llc_before_l2, no_time, broken_cache, broken_tlb, small_llc, no_filter, wrong_sockets),
    *(huge_cache, huge_tlb, small_l2, far_peer, far_stlb, near_slit, too_many_nodes),
]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(PRESETS) - 1), st.sampled_from(BREAKS), st.integers(0, 2**32))
def test_what_can_not_be_is_refused_by_its_path(
    presets: list[Mapping],
    preset: int,
    break_it: Callable[[Mapping, random.Random], str],
    seed: int,
) -> None:
    machine = copy.deepcopy(presets[preset])
    parse(MachineSpec, machine, "machine")
    message = break_it(machine, random.Random(seed))
    with pytest.raises(SpecError) as refused:
        parse(MachineSpec, machine, "machine")
    assert re.match(rf"machine\.{message}", str(refused.value)), refused.value


@pytest.mark.parametrize("name", PRESETS)
def test_a_machine_with_fewer_nodes_populated_is_that_machine_cut(name: str) -> None:
    whole = machine_preset(name)
    for nodes in range(1, whole.nodes + 1):
        mapping = as_mapping(whole) | {"populated": nodes}
        few = parse(MachineSpec, mapping)
        assert few.nodes == len(few.socket_of_node) == nodes
        assert few.socket_of_node == whole.socket_of_node[:nodes]
        for table in TABLES:
            cut, told = getattr(few.latency, table), getattr(whole.latency, table)
            assert cut == (told and tuple(row[:nodes] for row in told[:nodes]))
        assert parse(MachineSpec, as_mapping(few)) == few
        same = dataclasses.replace(
            few, latency=whole.latency, sockets=whole.sockets, populated=None
        )
        assert same == whole


@pytest.mark.parametrize("nodes", [0, 3, -1])
def test_nodes_that_a_machine_has_not_are_not_populated(nodes: int) -> None:
    mapping = as_mapping(machine_preset("e5_2690_v3")) | {"populated": nodes}
    with pytest.raises(SpecError, match=r"^populated: expected null or 1 to 2 nodes of e5_2690_v3"):
        parse(MachineSpec, mapping)
