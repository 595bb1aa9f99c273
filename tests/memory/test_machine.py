"""Machines that can't be are refused, with the path of what is wrong and what was expected."""

import copy
import re
from typing import Any

import pytest

from numarep.spec import MachineSpec, SpecError, as_mapping, parse
from tests.benchmarks.core import machine_preset

FILTER = {"size_bytes": 1 << 20, "ways": 16, "replacement": "lru"}
VICTIM = {**FILTER, "shared_by": "node", "policy": "victim"}
CLUSTERS = {**VICTIM, "snoop_filter": FILTER, "shared_by": "socket", "clusters": 2}
ODD = {**FILTER, "size_bytes": 513 * 1024}  # 513 sets


def changed(path: str, value: Any) -> dict[str, Any]:
    """The described machine of the study, with one value exchanged."""
    machine = copy.deepcopy(as_mapping(machine_preset("e5_2690_v3")))
    *steps, last = path.split(".")
    place = machine
    for step in steps:
        place = place[step]
    place[last] = value
    return machine


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sockets", [0], "machine.sockets: expected the socket of each of 2 nodes, got 1"),
        ("sockets", [0, 2], "machine.sockets: expected numbers from 0 on, none left out, got"),
        ("sockets", [1, 1], "machine.sockets: expected numbers from 0 on, none left out, got"),
        ("llc.policy", "victim", "machine.llc.snoop_filter: missing, a victim LLC needs one"),
        ("llc.snoop_filter", FILTER, "machine.llc.snoop_filter: expected none, because an incl"),
        ("llc.shared_by", "core", "machine.llc.shared_by: expected 'node' or 'socket', got 'cor"),
        ("llc.size_bytes", 64 * 20, "machine.llc.size_bytes: an inclusive LLC can't be smaller"),
        (
            "llc",
            {**VICTIM, "snoop_filter": {**FILTER, "size_bytes": 1 << 17, "ways": 8}},
            "machine.llc.snoop_filter.size_bytes: a snoop filter can't cover less than one L2",
        ),
        (
            "llc",
            {**VICTIM, "snoop_filter": {**FILTER, "size_bytes": 1000, "ways": 8}},
            "machine.llc.snoop_filter.size_bytes: 1000 is not a whole number of sets",
        ),
        ("cores_per_node", 0, "machine.cores_per_node: expected a positive"),
        ("llc.clusters", 0, "machine.llc.clusters: expected a positive"),
        ("llc.clusters", 2, "machine.llc.clusters: expected 1 of an LLC that is shared by a node"),
        ("llc", CLUSTERS, "llc.clusters: expected as many as every socket has nodes, got 2 for"),
        ("llc", {**CLUSTERS, **ODD}, "machine.llc.size_bytes: 513 sets are no equal share for"),
        (
            "llc",
            {**CLUSTERS, "snoop_filter": ODD},
            "machine.llc.snoop_filter.size_bytes: 513 sets are no equal share for each of 2",
        ),
        ("latency.peer_ns", 20.0, "machine.latency.peer_ns: another core's cache (20.0 ns)"),
        ("latency.peer_ns", None, "machine.latency.peer_ns: expected"),
    ],
)
def test_impossible_machines_are_refused(path, value, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        parse(MachineSpec, changed(path, value), "machine")


def test_victim_llc_may_be_smaller_than_l2():
    llc = {**VICTIM, "size_bytes": 1 << 17, "ways": 8, "snoop_filter": FILTER}
    machine = parse(MachineSpec, changed("llc", llc))
    assert [cache.sets for cache in machine.caches] == [64, 64, 512, 256, 1024]


def test_nodes_share_an_llc_or_not():
    cluster = machine_preset("e5_2690_v3_cod")
    assert cluster.socket_of_node == (0, 0, 1, 1)
    assert cluster.llc_of_node == (0, 1, 2, 3)
    described = as_mapping(cluster)
    described["llc"]["shared_by"] = "socket"
    assert parse(MachineSpec, described).llc_of_node == (0, 0, 1, 1)
    assert machine_preset("e5_2690_v3").llc_of_node == (0, 1)


def test_few_nodes_of_a_clustered_machine_are_where_they_were():
    """Without the socket's other nodes, their share is that of other sockets' memory still."""
    described = as_mapping(machine_preset("skylake_sp_snc2"))
    for populated, clusters in ((None, (0, 1, 0, 1)), (3, (0, 1, 0)), (1, (0,))):
        machine = parse(MachineSpec, {**described, "populated": populated})
        assert (machine.llc.clusters, machine.cluster_of_node) == (2, clusters)
