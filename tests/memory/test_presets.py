"""Every machine of conf/: parses, says where each number is from, and counts as the twin does."""

import random
import re

import numba
import numpy as np
import pytest
import yaml

from numarep.memory.counts import Access, Event, Service, new_counts
from numarep.memory.system import new_system, run
from numarep.price import price, stalls
from numarep.streams import count_chase
from numarep.units import LINE_BYTES, cycles_to_ns
from tests.benchmarks.core import CONF, machine_preset
from tests.memory.cases import (
    FRAMES_PER_NODE,
    REGIONS,
    as_stream,
    as_translations,
    events_by_name,
    random_pages,
    random_records,
    served_by_name,
)
from tests.twin import Page, Record, Twin

PRESETS = sorted(path.stem for path in (CONF / "machine").glob("*.yaml"))

compiled_only = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="millions of loads; the twin's cases run as plain Python"
)


def test_presets_are_found():
    assert {"e5_2690_v3", "e5_2690_v3_cod", "xeon_8s"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_says_where_it_is_from(name):
    """A comment on the line, on the key above it, or right before it."""
    sourced = False
    for line in (CONF / "machine" / f"{name}.yaml").read_text().splitlines():
        is_key = re.match(r"( *)\w+:", line)
        nested = line.startswith("  ") and sourced and "#" not in line
        sourced = "#" in line or (nested if is_key or line.strip()[:1] in "[]" else False)
        assert sourced or not re.search(r":.*\d", line) or line.startswith("name:"), line


@pytest.mark.parametrize("leaf", [1, 2, 3])
@pytest.mark.parametrize("name", PRESETS)
def test_pages_beyond_the_first_level_are_walked_for_unless_an_stlb_holds_them(name, leaf):
    machine = machine_preset(name)
    tlbs = machine.tlbs
    first = (tlbs.dtlb_4k, tlbs.dtlb_2m, tlbs.dtlb_1g)[leaf - 1]
    second = (tlbs.stlb, tlbs.stlb if tlbs.stlb_holds_2m else None, tlbs.stlb_1g)[leaf - 1]
    count = first.entries + first.sets  # one more than its ways in every row
    pages = [
        Page(n << 9 * (leaf - 1), 0, leaf, False, 1, dict.fromkeys(range(leaf, 5), 1), 0)
        for n in range(count)
    ]
    stream = as_stream([Record("load", n, 0, 1) for n in range(count)] * 2)
    ends = np.cumsum([FRAMES_PER_NODE] * machine.nodes)
    system, counts = new_system(machine, (0,), ends), new_counts(machine.nodes, REGIONS)
    run(system, 0, stream, as_translations(pages), 0, 2 * count, counts)
    found = {Event.STLB_DATA_HITS: count, Event.DATA_WALKS: count}
    expected = found if second else {Event.STLB_DATA_HITS: 0, Event.DATA_WALKS: 2 * count}
    assert {event: counts.events[event] for event in found} == expected


@pytest.mark.parametrize("name", PRESETS)
def test_preset_counts_as_the_twin_does(name):
    machine, rng = machine_preset(name), random.Random(name)
    assert machine.name == name
    for _ in range(5):
        pages, records = random_pages(rng, machine.nodes, 40), []
        ends = np.cumsum([FRAMES_PER_NODE] * machine.nodes)
        cpu_nodes = tuple(range(machine.nodes))
        system, counts = new_system(machine, cpu_nodes, ends), new_counts(machine.nodes, REGIONS)
        twin = Twin(machine, cpu_nodes, ends)
        for cpu in (*cpu_nodes, *cpu_nodes):
            records = random_records(rng, len(pages), 120)
            stream, translations = as_stream(records), as_translations(pages)
            run(system, cpu, stream, translations, 0, len(records), counts)
            twin.run(cpu, records, pages)
        assert served_by_name(counts) == dict(twin.served)
        assert events_by_name(counts) == {key: n for key, n in twin.events.items() if n}


@pytest.mark.parametrize("name", PRESETS)
def test_nearer_is_faster(name):
    """Own LLC, another core of it, another LLC, the farthest memory: in this order."""
    machine = machine_preset(name)
    latency, llcs = machine.latency, machine.llc_of_node
    for node, row in enumerate(latency.dram_ns):
        others = [
            ns for other, ns in enumerate(latency.remote_llc_ns[node]) if llcs[other] != llcs[node]
        ]
        assert all(latency.llc_ns < ns <= max(row) for ns in others)
        assert latency.llc_ns <= latency.peer_ns < max(row)


def plateaus(machine):
    """Footprint, home node, level that serves it and the latency described, for every plateau.

    Own memory has the share of its cluster in the LLC, that of another socket all of it.
    """
    latency, ghz = machine.latency, machine.core.ghz
    l2, llc = machine.l2.size_bytes, machine.llc.size_bytes
    yield machine.l1d.size_bytes // 2, 0, Service.L1, cycles_to_ns(latency.l1_cycles, ghz=ghz)
    yield l2 // 2, 0, Service.L2, cycles_to_ns(latency.l2_cycles, ghz=ghz)
    farthest = latency.dram_ns[0].index(max(latency.dram_ns[0]))
    for node, share in ((0, llc // machine.llc.clusters), (farthest, llc)):
        yield 2 * l2 + share // 8, node, Service.LLC, latency.llc_ns
        # A cyclic order finds nothing in LRU caches that are a quarter too small.
        yield (l2 + share) * 5 // 4, node, Service.DRAM, latency.dram_ns[0][node]


@compiled_only
@pytest.mark.parametrize("name", PRESETS)
def test_staircase_gives_the_described_latencies_back(name):
    """A pointer chase: each plateau within 2 % of its latency and what the walks take."""
    machine = machine_preset(name)
    for footprint, home, service, described_ns in plateaus(machine):
        loads = footprint // LINE_BYTES
        counts = count_chase(
            machine,
            loads * LINE_BYTES,
            home_node=home,
            seed=1,
            page="2M",
            unmeasured_passes=1,
        )
        near = cycles_to_ns(machine.latency.l1_cycles, ghz=machine.core.ghz)
        mean_ns = price(counts, machine, 0).time_serial_ns / loads + near
        walks_ns = float(stalls(counts, machine, 0)[Access.LOAD_WALK].sum()) / loads
        stlb = int(counts.events[Event.STLB_DATA_HITS]) * machine.latency.stlb_cycles
        stlb_ns = cycles_to_ns(stlb, ghz=machine.core.ghz) / loads
        assert mean_ns - walks_ns - stlb_ns == pytest.approx(described_ns, rel=0.02)
        node = home if service is Service.DRAM else 0
        assert counts.served[Access.LOAD, 0, :, service, node].sum() >= 0.98 * loads


@compiled_only
def test_a_measured_staircase_is_met_at_every_footprint():
    """Points nobody put into the preset: the chase of another program on the same part."""
    measured = yaml.safe_load((CONF.parent / "analysis" / "staircases.yaml").read_text())["x5650"]
    machine, found = machine_preset("x5650"), {}
    points = {point["footprint_bytes"]: point for point in measured["points"]}
    footprints = [footprint for footprint in points if footprint <= 64 << 20]
    for footprint in footprints:
        counts = count_chase(
            machine, footprint, seed=1, order="drawn", page=measured["page"], unmeasured_passes=1
        )
        near = cycles_to_ns(machine.latency.l1_cycles, ghz=machine.core.ghz)
        loads = int(counts.events[Event.REFERENCES])
        model_ns = price(counts, machine, 0).time_serial_ns / loads + near
        point = points[footprint]
        found[footprint] = model_ns / (
            cycles_to_ns(point["cycles"], ghz=measured["ghz"]) + point["ns"]
        )
    assert found == {footprint: pytest.approx(1, abs=0.07) for footprint in footprints}
