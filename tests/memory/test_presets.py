"""Every machine of conf/: parses, says where each number is from, and counts as the twin does."""

import random
import re

import numpy as np
import pytest

from numarep.memory.counts import new_counts
from numarep.memory.system import new_system, run
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
from tests.twin import Twin

PRESETS = sorted(path.stem for path in (CONF / "machine").glob("*.yaml"))


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
    """Own LLC, another's, own memory, another's: in this order but for the middle two."""
    latency = machine_preset(name).latency
    for node, row in enumerate(latency.dram_ns):
        others = [ns for other, ns in enumerate(latency.remote_llc_ns[node]) if other != node]
        assert all(latency.llc_ns < ns for ns in others)
        assert all(ns < max(row) for ns in others)
