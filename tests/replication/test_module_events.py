"""Modules loaded, sealed and unloaded inside a traced window are charged (R25, R26, R28, R30)."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from numarep.linux.layout import Region
from numarep.memory.counts import Access, Event, Service
from numarep.memory.kinds import Kind
from numarep.replication.clues import Clues
from numarep.replication.events import Replay, ReplicationWarning
from numarep.replication.invariants import violations
from numarep.replication.kernel import Kernel
from numarep.replication.module_clues import ModuleClues
from numarep.replication.view import on_node
from numarep.simulate import simulate
from numarep.spec import RunSpec, parse
from numarep.workload.trace import Flag, Trace, check
from tests.alone import ALONE
from tests.datasets import write_small_dataset
from tests.kernels import BASES, SERIES, SmallKernel
from tests.test_simulate import conf
from tests.traces import LOADED_PFN, LOADED_VPN, module_trace

COSTS = dataclasses.replace(SERIES.instructions, entry=7)


def replayed(nodes: int, **changes: object) -> tuple[Kernel, Trace, Trace]:
    small = SmallKernel(nodes=nodes, processes=(0,))
    before = module_trace(small, small.roots[1])
    check(before, "made")
    kernel = small.booted(instructions=COSTS, **changes)
    after = Replay(kernel, before, kernel.cpus[0]).trace()
    check(after, "charged")
    return kernel, before, after


def added(before: Trace, after: Trace, kind: Kind) -> int:
    totals = [int(t.records.count[t.records.kind == kind].sum()) for t in (after, before)]
    return totals[0] - totals[1]


def test_r30_r25_r28_clues_tell_a_modules_parts_its_protection_and_its_end() -> None:
    small = SmallKernel(nodes=2, processes=(0,))
    trace = module_trace(small, small.roots[1])
    kernel = small.booted()
    clues = ModuleClues(Clues(trace, BASES, small.image), kernel)
    load = trace.event_name.index("load_module")
    parts = clues.loaded(int(trace.event_record[load]))
    assert [(p.start - LOADED_VPN, len(p.frames), p.what) for p in parts] == [
        (0, 1, "text"),  # its second page is never fetched: read-only is all that is known
        (1, 2, "rodata"),
        (3, 1, "data"),
        (5, 1, "init"),
    ]


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_r30_r25_r28_a_traced_modules_life_costs_what_the_model_says(nodes: int) -> None:
    kernel, before, after = replayed(nodes)
    further, rounds = nodes - 1, 2
    # Five pages mapped, two protected twice and one once, four freed; the first one's init later.
    entries = rounds * (5 + 2 + 2 + 1 + 4) + 1
    wanted = further * (rounds * 3 * COSTS.area_page + entries * COSTS.entry)
    assert added(before, after, Kind.FETCH) == wanted
    assert (after.records.kind == Kind.IPI).sum() == (4 if further else 0)  # text, rodata; twice
    assert violations(kernel) == []
    assert [area.start - LOADED_VPN for area in kernel.areas] == [5]  # init, until the next load


@pytest.mark.parametrize("name", ["rox", "np", "global", "nonglobal"])
def test_r25_every_protection_change_of_a_trace_is_charged_alike(name: str) -> None:
    small = SmallKernel(nodes=3, processes=(0,))
    first = module_trace(small, small.roots[1])
    names = [f"set_memory_{name}" if n == "set_memory_x" else n for n in first.event_name]
    trace = dataclasses.replace(first, event_name=tuple(names))
    kernel = small.booted(instructions=COSTS)
    after = Replay(kernel, trace, kernel.cpus[0]).trace()
    _, before, as_x = replayed(3)
    assert added(trace, after, Kind.STORE) == added(before, as_x, Kind.STORE)
    assert added(trace, after, Kind.FETCH) == added(before, as_x, Kind.FETCH)
    assert violations(kernel) == []


def test_r30_costs_stand_where_the_module_is_sealed() -> None:
    _, before, after = replayed(2)
    n = int(before.event_record[before.event_name.index("set_memory_ro")])
    for column in ("kind", "page", "line", "count"):
        old, new = getattr(before.records, column), getattr(after.records, column)
        np.testing.assert_array_equal(old[: n + 1], new[: n + 1])
    assert int(after.event_record[before.event_name.index("set_memory_x")]) > n + 3 * 64


@pytest.mark.parametrize("modules", [True, False])
def test_r28_records_before_an_unload_still_mean_the_copies(modules: bool) -> None:
    kernel, before, _ = replayed(3, modules=modules)
    for node in range(3):
        moved = on_node(kernel, before.pages, node, {})
        for place in range(3):
            here = before.pages.vpn == LOADED_VPN + place
            written = before.pages.flags & Flag.WRITABLE != 0
            for rows, owner in ((here & ~written, node if modules else 0), (here & written, 0)):
                assert {kernel.frames.node_of(pfn) for pfn in moved.pfn[rows].tolist()} <= {owner}
        data = moved.pfn[before.pages.vpn == LOADED_VPN + 3]
        assert data.tolist() == [LOADED_PFN + 3]


def test_r30_r38_a_module_without_clues_is_charged_by_default_and_says_so() -> None:
    small = SmallKernel(nodes=2, processes=(0,))
    before = module_trace(small, small.roots[1], clues=False)
    kernel = small.booted()
    with pytest.warns(ReplicationWarning) as warned:
        after = Replay(kernel, before, kernel.cpus[0]).trace()
    said = [str(warning.message) for warning in warned]
    assert any("load_module is entered" in text and "16 pages" in text for text in said)
    assert any("free_module" in text and "the oldest one" in text for text in said)
    assert any("set_memory_x" in text and "youngest module's text" in text for text in said)
    assert added(before, after, Kind.FETCH) == 2 * 12 * SERIES.instructions.area_page
    assert violations(kernel) == []


def test_r30_a_module_loaded_in_a_window_is_charged_through_the_caches(tmp_path: Path) -> None:
    small = SmallKernel(processes=(1,))
    folder = write_small_dataset(tmp_path, lambda _: module_trace(small, small.roots[1]))
    run = {
        "machine": conf("machine/e5_2690_v3.yaml"),
        "kernel": conf("kernel/debian_6_1_nopti.yaml") | {"dataset": str(folder)},
        "workload": {"kind": "captured", "name": "load", "trace": "quiet", "iterations": 2},
        "replication": conf("replication/series.yaml"),
        "cache_state": "cold",
        "home_llc": "cold",
        **ALONE,
        "cpu_node": 1,
        "seed": 1,
    }
    ours = simulate(parse(RunSpec, run)).counts
    theirs = simulate(parse(RunSpec, run | {"replication": conf("replication/none.yaml")})).counts
    more = ours.events - theirs.events
    assert more[Event.INSTRUCTIONS] == 2 * 3 * SERIES.instructions.area_page
    assert more[Event.IPIS] == more[Event.TLB_FLUSHES] == 4
    # Each copied line is loaded from its master and stored to its copy, on the CPU's own node.
    copied = ours.served[:, 0, Region.DIRECT_MAP] - theirs.served[:, 0, Region.DIRECT_MAP]
    assert copied[Access.LOAD].sum() >= 2 * 3 * 64 * 8
    assert copied[Access.STORE, Service.DRAM, 1].sum() >= 3 * 64
    fetched = ours.served[Access.FETCH, 0, Region.MODULE_TEXT]
    assert (
        fetched[Service.DRAM, 0].sum()
        == 0
        < theirs.served[Access.FETCH, 0, Region.MODULE_TEXT, Service.DRAM, 0].sum()
    )
