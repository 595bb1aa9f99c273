"""Whole runs on a small kernel: the null tests, what replication moves, and what it costs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from numarep.linux.layout import Region
from numarep.memory.counts import FORWARDED, Access, Counts, Event, Service, new_counts
from numarep.memory.passes import Lane, repeat_together
from numarep.memory.system import Stream, new_system
from numarep.price import function_stalls, price, stalls
from numarep.replication.kernel import ReplicationError
from numarep.simulate import Outcome, simulate, state_key
from numarep.simulate.numbering import as_captured, labels_of
from numarep.simulate.role import roles_of
from numarep.simulate.setting import setting_of
from numarep.spec import OthersSpec, ReplicationSpec, RunSpec, SpecError, parse
from numarep.sweep.model import check
from numarep.workload.trace import Trace, TraceError
from tests.alone import ALONE
from tests.benchmarks.core import RUNS, machine_preset, memory
from tests.datasets import write_small_dataset

CONF = Path(__file__).parents[1] / "conf"


def conf(path: str) -> dict[str, Any]:
    """Read a file of conf/, with the file it builds on."""
    loaded: dict[str, Any] = yaml.safe_load((CONF / path).read_text())
    (base,) = loaded.pop("defaults", [None])
    return {**conf(str(Path(path).with_name(f"{base}.yaml"))), **loaded} if base else loaded


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    folder = write_small_dataset(tmp_path_factory.mktemp("small"))
    run = {
        "machine": conf("machine/e5_2690_v3.yaml"),
        "kernel": {
            "name": "small",
            "dataset": str(folder),
            "pti": False,
            "layout": "aligned",
            "layout_seed": 0,
            "kasan": False,
            "max_numnodes": 1024,
        },
        "workload": {"kind": "captured", "name": "fork", "trace": "fork", "iterations": 2},
        "replication": conf("replication/none.yaml"),
        "cache_state": "hot",
        "home_llc": "cold",
        **ALONE,
        "cpu_node": 1,
        "seed": 1,
    }
    return parse(RunSpec, run)


def series(run: RunSpec, **changes: Any) -> RunSpec:
    spec = parse(type(run.replication), conf("replication/series.yaml"))
    return dataclasses.replace(run, replication=dataclasses.replace(spec, **changes))


def with_window(run: RunSpec, trace: str) -> RunSpec:
    return dataclasses.replace(run, workload=dataclasses.replace(run.workload, trace=trace))


def cold(run: RunSpec) -> RunSpec:
    return dataclasses.replace(run, cache_state="cold")


def on_node(run: RunSpec, node: int) -> RunSpec:
    return dataclasses.replace(run, cpu_node=node)


def same_counts(ours: Counts, theirs: Counts) -> bool:
    return np.array_equal(ours.served, theirs.served) and np.array_equal(ours.events, theirs.events)


def time_ns(run: RunSpec, outcome: Outcome) -> float:
    return price(outcome.counts, run.machine, run.cpu_node).time_ns


@pytest.mark.parametrize("state", ["hot", "cold", "cold_each", "cold_text"])
def test_null_a_cpu_on_the_master_node_gains_nothing(baseline: RunSpec, state: str) -> None:
    run = on_node(dataclasses.replace(baseline, cache_state=state), 0)
    ours = simulate(series(run, costs="waived"))
    assert same_counts(ours.counts, simulate(run).counts)


@pytest.mark.parametrize("state", ["hot", "cold", "cold_each", "cold_text"])
def test_null_equal_latencies_give_no_gain(baseline: RunSpec, state: str) -> None:
    flat = dataclasses.replace(
        baseline.machine.latency,
        dram_ns=((100.0, 100.0), (100.0, 100.0)),
        remote_llc_ns=((100.0, 100.0), (100.0, 100.0)),
        remote_dirty_ns=None,
        remote_dirty_away_ns=None,
    )
    machine = dataclasses.replace(baseline.machine, latency=flat)
    run = dataclasses.replace(with_window(baseline, "quiet"), machine=machine, cache_state=state)
    assert time_ns(run, simulate(series(run))) == time_ns(run, simulate(run))


def test_null_all_switches_off_is_the_baseline(baseline: RunSpec) -> None:
    off = series(baseline, tables=False, text=False, rodata=False, modules=False)
    assert same_counts(simulate(off).counts, simulate(baseline).counts)


def with_latencies(run: RunSpec, dram_ns: Sequence[Sequence[float]]) -> RunSpec:
    rows = tuple(tuple(row) for row in dram_ns)
    latency = dataclasses.replace(
        run.machine.latency,
        dram_ns=rows,
        remote_llc_ns=rows,
        remote_dirty_ns=None,
        remote_dirty_away_ns=None,
    )
    return dataclasses.replace(run, machine=dataclasses.replace(run.machine, latency=latency))


@pytest.mark.parametrize("state", ["hot", "cold", "cold_each", "cold_text"])
def test_null_one_node_gains_nothing_and_pays_nothing(baseline: RunSpec, state: str) -> None:
    run = on_node(dataclasses.replace(baseline, cache_state=state), 0)
    alone = with_latencies(run, [[100.0]])
    ours = simulate(series(alone))
    assert same_counts(ours.counts, simulate(alone).counts)
    assert ours.replica_bytes_per_node == ours.table_pages_per_node == (0,)
    assert {row.mechanism for row in ours.memory} == {"padding", "pointers"}  # paid in any case


@pytest.mark.parametrize(("master", "cpu"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_another_master_node_is_the_same_run_with_other_node_numbers(
    baseline: RunSpec, master: int, cpu: int
) -> None:
    captured = on_node(cold(baseline), int(master != cpu))
    for run in (captured, series(captured)):
        moved = on_node(run, cpu)
        replication = dataclasses.replace(run.replication, master_node=master)
        ours = simulate(dataclasses.replace(moved, replication=replication))
        theirs = simulate(run)
        flip = slice(None, None, -1 if master else 1)
        assert ours.master_node == master
        np.testing.assert_array_equal(ours.counts.served, theirs.counts.served[:, :, :, :, flip])
        assert ours.replica_bytes_per_node == theirs.replica_bytes_per_node[flip]


def beside(run: RunSpec, *nodes: int) -> RunSpec:
    return dataclasses.replace(run, others=OthersSpec(nodes=nodes, quantum=5))


def test_a_cpu_beside_hands_over_text_and_takes_lines_away(baseline: RunSpec) -> None:
    alone, both = simulate(baseline).counts, simulate(beside(baseline, 0)).counts
    assert both.events[Event.REFERENCES] == alone.events[Event.REFERENCES]
    remote = list(FORWARDED)
    assert alone.served[Access.FETCH, 0, Region.TEXT, remote].sum() == 0
    assert (
        simulate(beside(cold(baseline), 0))
        .counts.served[Access.FETCH, 0, Region.TEXT, remote, 0]
        .sum()
    )
    assert both.events[Event.UPGRADES] > alone.events[Event.UPGRADES] == 0  # stores to shared data


def test_a_cpu_beside_runs_its_own_replicas(baseline: RunSpec) -> None:
    run = beside(cold(baseline), 0)
    served = simulate(series(run)).counts.served
    for region in (Region.TEXT, Region.RODATA):
        assert served[Access.FETCH, 0, region, list(FORWARDED)].sum() == 0
    unshared = simulate(series(cold(baseline))).counts.served
    np.testing.assert_array_equal(
        served[Access.FETCH, 0, Region.TEXT], unshared[Access.FETCH, 0, Region.TEXT]
    )


def test_cpus_at_once_are_the_same_run_with_other_node_numbers(baseline: RunSpec) -> None:
    one = simulate(series(beside(on_node(cold(baseline), 1), 0)))
    run = series(beside(on_node(cold(baseline), 0), 1))
    other = simulate(
        dataclasses.replace(run, replication=dataclasses.replace(run.replication, master_node=1))
    )
    np.testing.assert_array_equal(one.counts.served, other.counts.served[:, :, :, :, ::-1])


def test_cpus_at_once_share_the_tables_of_another_boot_cpu(baseline: RunSpec) -> None:
    """A page that both read before the tables moved is one that both read after."""
    run = beside(cold(baseline), 0)

    def tables(boot: int | None) -> list[list[int]]:
        replication = dataclasses.replace(run.replication, boot_node=boot)
        spec = dataclasses.replace(run, replication=replication)
        spec = as_captured(spec, labels_of(spec))
        roles = roles_of(setting_of(spec, spec.workload))
        return [role.trace.pages.table.ravel().tolist() for role in roles]

    (mine, other), (mine_now, other_now) = tables(None), tables(1)
    assert mine != mine_now
    went = dict(zip(mine, mine_now, strict=True))
    assert all(went.get(old, new) == new for old, new in zip(other, other_now, strict=True))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [((1,), "beside the CPU's"), ((2,), "others.nodes: expected 0 to 1"), ((0, 0), "every node")],
)
def test_cpus_that_can_not_be_beside_are_refused(
    baseline: RunSpec, nodes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        beside(baseline, *nodes)


def test_a_cpu_may_be_on_a_node_the_capture_did_not_have(baseline: RunSpec) -> None:
    far = [[100.0 + 20 * abs(a - b) for a in range(4)] for b in range(4)]
    near, distant = (on_node(with_latencies(cold(baseline), far), node) for node in (1, 3))
    ours, theirs = simulate(series(distant)), simulate(series(near))
    swapped = theirs.counts.served[:, :, :, :, [0, 3, 2, 1]]
    np.testing.assert_array_equal(ours.counts.served, swapped)
    assert ours.replica_bytes_per_node[0] == 0
    assert min(ours.replica_bytes_per_node[1:]) > 0


def three_nodes(run: RunSpec, near: int) -> RunSpec:
    """Node 2 has no memory; `near` is the node it is nearest to."""
    far = 1 - near
    rows = [[100.0, 150.0, 200.0], [150.0, 100.0, 200.0], [0.0, 0.0, 90.0]]
    rows[2][near], rows[2][far] = 110.0, 180.0
    run = with_latencies(cold(run), rows)
    return on_node(
        dataclasses.replace(run, machine=dataclasses.replace(run.machine, memoryless=(2,))), 2
    )


@pytest.mark.parametrize("near", [0, 1])
def test_r2_a_cpu_without_memory_uses_the_nearest_nodes(baseline: RunSpec, near: int) -> None:
    run = three_nodes(baseline, near)
    before, after = simulate(run), simulate(series(run))
    assert before.counts.served[..., Service.DRAM, 2, :].sum() == 0
    assert after.counts.served[..., Service.DRAM, 2, :].sum() == 0
    assert after.replica_bytes_per_node[0] == after.replica_bytes_per_node[2] == 0
    assert after.replica_bytes_per_node[1] > 0
    text = after.counts.served[Access.FETCH, 0, Region.TEXT, Service.DRAM].sum(-1)
    assert text.tolist() == [text[near] if near == node else 0 for node in range(3)]
    own = on_node(run, near)  # the same capture on a CPU of the node whose memory it is
    np.testing.assert_array_equal(
        simulate(own).counts.served[:, :, :, Service.DRAM],
        before.counts.served[:, :, :, Service.DRAM],
    )


def test_r2_firmwares_distances_go_before_latencies(baseline: RunSpec) -> None:
    run = three_nodes(baseline, 0)
    slit = ((10, 20, 30), (20, 10, 30), (30, 20, 10))
    by_slit = dataclasses.replace(run, machine=dataclasses.replace(run.machine, slit=slit))
    assert state_key(by_slit) == state_key(three_nodes(baseline, 1)) != state_key(run)
    text = simulate(series(by_slit)).counts.served[Access.FETCH, 0, Region.TEXT, Service.DRAM]
    assert text[1].sum() > 0 == text[0].sum()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"memoryless": (0, 1)}, "memoryless: expected some of the nodes 0 to 1, not all"),
        ({"memoryless": (5,)}, "memoryless: expected some"),
        ({"slit": ((10, 20),)}, "slit: expected a square matrix of 2 x 2"),
    ],
)
def test_r2_machines_that_cannot_be_are_refused(
    baseline: RunSpec, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SpecError, match=reason):
        dataclasses.replace(baseline.machine, **changes)


def test_r2_a_kernel_on_a_node_without_memory_is_refused(baseline: RunSpec) -> None:
    with pytest.raises(SpecError, match=r"replication.master_node: expected a node"):
        series(three_nodes(baseline, 1), master_node=2)


@pytest.mark.parametrize("node", [-1, 2])
def test_a_master_node_the_machine_lacks_is_refused(baseline: RunSpec, node: int) -> None:
    with pytest.raises(SpecError, match=r"replication.master_node: expected 0 to 1"):
        series(baseline, master_node=node)


@pytest.mark.parametrize("name", ["none", "series"])
def test_r13_r14_the_boot_cpus_node_holds_the_shared_tables_and_nothing_else(
    baseline: RunSpec, name: str
) -> None:
    """But for its PGD, the direct map's walks read the boot node's tables."""
    run = with_window(cold(baseline), "quiet")
    spec = parse(type(run.replication), conf(f"replication/{name}.yaml"))
    served = {}
    for boot in (None, 0, 1):
        replication = dataclasses.replace(spec, boot_node=boot)
        served[boot] = simulate(dataclasses.replace(run, replication=replication)).counts.served
    for boot in (0, 1):
        walks = served[boot][Access.LOAD_WALK, :, Region.DIRECT_MAP, Service.DRAM]
        assert walks[1:4, boot].sum() > 0 == walks[1:4, 1 - boot].sum()
    np.testing.assert_array_equal(served[None], served[0])  # the small kernel was booted there
    np.testing.assert_array_equal(served[0].sum(4), served[1].sum(4))  # nodes alone differ
    own = served[0][: Access.FETCH_WALK, 0] - served[1][: Access.FETCH_WALK, 0]
    assert not own[:, [r for r in Region if r != Region.PAGE_TABLES]].any()


def test_a_boot_node_the_machine_lacks_is_refused(baseline: RunSpec) -> None:
    with pytest.raises(SpecError, match=r"replication.boot_node: expected null or 0 to 1"):
        series(baseline, boot_node=2)


def test_replication_makes_remote_text_and_its_tables_local(baseline: RunSpec) -> None:
    run = cold(baseline)
    before, after = simulate(run).counts.served, simulate(series(run)).counts.served
    for access in (Access.FETCH, Access.FETCH_WALK):
        remote = (access, slice(None), Region.TEXT, Service.DRAM, 0)
        local = (access, slice(None), Region.TEXT, Service.DRAM, 1)
        assert before[remote].sum() > 0
        assert after[remote].sum() == 0
        assert after[local].sum() == before[remote].sum() + before[local].sum()


def test_replication_moves_no_data(baseline: RunSpec) -> None:
    run = cold(with_window(baseline, "quiet"))
    data = (Access.LOAD, 0, Region.DATA)
    before, after = simulate(run).counts.served[data], simulate(series(run)).counts.served[data]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("node", [0, 1])
def test_costs_are_charged_where_processes_are_made(baseline: RunSpec, node: int) -> None:
    run = on_node(baseline, node)
    free, charged = simulate(series(run, costs="waived")), simulate(series(run))
    more = charged.counts.events - free.counts.events
    assert more[Event.INSTRUCTIONS] == 610 + 200 + 63
    assert time_ns(run, charged) > time_ns(run, free)


def test_costs_can_make_replication_lose(baseline: RunSpec) -> None:
    run = on_node(baseline, 0)
    assert time_ns(run, simulate(series(run))) > time_ns(run, simulate(run))


def test_a_warm_home_llc_serves_what_a_cold_one_leaves_to_memory(baseline: RunSpec) -> None:
    run = cold(with_window(baseline, "quiet"))
    warm = dataclasses.replace(run, home_llc="warm")
    served = simulate(warm).counts.served
    assert served[Access.FETCH, 0, Region.TEXT, Service.REMOTE_LLC].sum() > 0
    assert served[Access.FETCH, 0, Region.TEXT, Service.DRAM].sum() == 0
    assert simulate(run).counts.served[:, :, :, list(FORWARDED)].sum() == 0


def test_only_text_can_be_cold(baseline: RunSpec) -> None:
    """Text is then served as to a cold run, all else as to a hot one."""
    for run in (with_window(baseline, "quiet"), series(with_window(baseline, "quiet"))):
        hot, text, all_of_it = (
            simulate(dataclasses.replace(run, cache_state=state)).counts.served.sum(axis=5)
            for state in ("hot", "cold_text", "cold")
        )
        is_text = np.isin(list(Region), (Region.TEXT, Region.MODULE_TEXT))
        kinds = slice(Access.FETCH, Access.STORE + 1)
        assert (text[:, :, ~is_text] == hot[:, :, ~is_text]).all()
        assert (text[kinds, 0][:, is_text] == all_of_it[kinds, 0][:, is_text]).all()
        assert (text[kinds, 0][:, is_text] != hot[kinds, 0][:, is_text]).any()


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize(("home_llc", "others"), [("cold", ()), ("warm", ()), ("cold", (0,))])
def test_each_iteration_can_be_cold(
    baseline: RunSpec, home_llc: str, others: tuple[int, ...], iterations: int
) -> None:
    """Every wanted iteration is simulated alone here, on a new system."""
    workload = dataclasses.replace(baseline.workload, iterations=iterations)
    run = series(dataclasses.replace(baseline, workload=workload, cache_state="cold_each"))
    run = dataclasses.replace(run, home_llc=home_llc, others=OthersSpec(nodes=others, quantum=50))
    roles = roles_of(setting_of(run, run.workload))
    nodes = [role.node for role in roles]
    views = [role.translations for role in roles]
    if home_llc == "warm":
        nodes, views = [*nodes, 0], [*views, roles[0].translations_on(0)]
    ends = np.array([end for _, end in roles[0].window.ranges])
    total = new_counts(2, len(Region))
    for each in range(iterations):
        system = new_system(run.machine, tuple(nodes), ends)

        def lane(cpu: int, each: int = each) -> Lane:
            role = roles[min(cpu, len(roles) - 1)]
            first, stop = role.trace.iterations[[each % 2, each % 2 + 1]]
            kind, page, line, repeats, _ = role.stream
            part = (column[first:stop] for column in (kind, page, line, repeats))
            return Lane(cpu, Stream(*part), views[cpu], new_counts(2, len(Region)))

        if home_llc == "warm":
            repeat_together(system, [lane(1)], 1, 50)
        lanes = [lane(cpu) for cpu in range(len(roles))]
        repeat_together(system, lanes, 1, 50)
        total.served[:] += lanes[0].counts.served
        total.events[:] += lanes[0].counts.events
    assert same_counts(simulate(run).counts, total)
    once = simulate(dataclasses.replace(run, cache_state="cold")).counts
    assert same_counts(once, total) == (iterations == 1)


@pytest.mark.parametrize("nodes", [3, 8])
def test_a_machine_may_have_more_nodes_than_the_capture(baseline: RunSpec, nodes: int) -> None:
    flat = tuple(tuple(100.0 + 50 * (a != b) for a in range(nodes)) for b in range(nodes))
    run = cold(with_latencies(baseline, flat))
    outcome = simulate(series(run))
    assert outcome.replica_bytes_per_node[0] == 0
    assert set(outcome.replica_bytes_per_node[1:]) == {
        simulate(series(cold(baseline))).replica_bytes_per_node[1]
    }
    more = outcome.counts.events - simulate(series(run, costs="waived")).counts.events
    assert more[Event.INSTRUCTIONS] == (nodes - 1) * (610 + 200) + 63 + (nodes - 2) * 24


def test_memory_is_accounted_by_mechanism_and_node(baseline: RunSpec) -> None:
    memory = {(row.mechanism, row.node): row.bytes for row in simulate(series(baseline)).memory}
    assert memory["static", 1] == simulate(series(baseline)).replica_bytes_per_node[1]
    assert memory["tables", 1] == 5 * 4096
    assert memory["processes", 0] % 8192 == 0
    assert simulate(baseline).memory == ()


def test_iterations_tile_the_captured_ones(baseline: RunSpec) -> None:
    def instructions(iterations: int) -> int:
        workload = dataclasses.replace(baseline.workload, iterations=iterations)
        outcome = simulate(dataclasses.replace(baseline, workload=workload))
        return int(outcome.counts.events[Event.INSTRUCTIONS])

    one, two, seven = instructions(1), instructions(2), instructions(7)
    assert one < two
    assert seven == 3 * two + one


def test_permuted_layouts_run_the_same_code_elsewhere(baseline: RunSpec) -> None:
    def permuted(run: RunSpec, seed: int) -> RunSpec:
        kernel = dataclasses.replace(run.kernel, layout="permuted", layout_seed=seed)
        return dataclasses.replace(run, kernel=kernel)

    one = simulate(permuted(baseline, 1)).counts
    assert one.events[Event.REFERENCES] == simulate(baseline).counts.events[Event.REFERENCES]
    assert same_counts(one, simulate(permuted(baseline, 1)).counts)
    at_home = on_node(permuted(baseline, 1), 0)
    assert same_counts(simulate(series(at_home, costs="waived")).counts, simulate(at_home).counts)


@pytest.mark.parametrize("policy", ["none", "series", "everything"])
def test_runs_that_share_a_kernel_count_as_if_each_had_its_own(
    baseline: RunSpec, policy: str
) -> None:
    run = dataclasses.replace(
        baseline, replication=parse(ReplicationSpec, conf(f"replication/{policy}.yaml"))
    )
    runs = [run, cold(run), dataclasses.replace(run, home_llc="warm"), run]
    roles_of.cache_clear()
    shared = [simulate(each) for each in runs]
    assert roles_of.cache_info().hits == len(runs) - 1
    for each, outcome in zip(runs, shared, strict=True):
        roles_of.cache_clear()
        own = simulate(each)
        assert same_counts(own.counts, outcome.counts)
        assert own.memory == outcome.memory


@pytest.mark.parametrize("layout", ["captured", "aligned", "permuted"])
def test_functions_share_out_all_stalls_and_instructions(baseline: RunSpec, layout: str) -> None:
    """They are the same ones wherever the code is linked."""
    kernel = dataclasses.replace(baseline.kernel, layout=layout, layout_seed=3)
    run = dataclasses.replace(cold(baseline), kernel=kernel, by_function=True)
    found, plain = simulate(run), simulate(dataclasses.replace(run, by_function=False))
    assert (found.counts.served == plain.counts.served).all()
    assert not plain.functions.names
    assert not plain.counts.functions.size
    assert found.functions.instructions.sum() == found.counts.events[Event.INSTRUCTIONS]
    stall_ns = function_stalls(found.counts, run.machine, 1).sum()
    assert stall_ns == pytest.approx(stalls(found.counts, run.machine, 1).sum())
    elsewhere = simulate(dataclasses.replace(run, kernel=baseline.kernel)).functions
    assert found.functions.names == elsewhere.names
    assert (found.functions.instructions == elsewhere.instructions).all()


@pytest.mark.parametrize("nodes", [2, 8])
def test_device_memory_is_left_out(tmp_path: Path, baseline: RunSpec, nodes: int) -> None:
    """Also where a machine of more nodes than the captured one has memory at its address."""

    def with_device_page(trace: Trace) -> Trace:
        pfn = trace.pages.pfn.copy()
        pfn[-1] = 0xFEE00  # a local APIC, beyond all captured memory
        return dataclasses.replace(trace, pages=dataclasses.replace(trace.pages, pfn=pfn))

    folder = write_small_dataset(tmp_path, change=with_device_page)
    kernel = dataclasses.replace(baseline.kernel, dataset=str(folder))
    run = with_window(baseline, "quiet")
    if nodes > run.machine.nodes:
        run = dataclasses.replace(run, machine=machine_preset("xeon_8s"))
    assert run.machine.nodes == nodes
    whole = simulate(run).counts.events
    less = simulate(dataclasses.replace(run, kernel=kernel)).counts.events
    assert less[Event.INSTRUCTIONS] == whole[Event.INSTRUCTIONS]
    assert whole[Event.REFERENCES] - less[Event.REFERENCES] == 2 * 2  # a load and a store


def test_points_that_differ_in_pricing_only_share_a_state(baseline: RunSpec) -> None:
    machine = baseline.machine
    slower = dataclasses.replace(
        machine,
        core=dataclasses.replace(machine.core, ghz=3.0, base_ipc=1.0),
        latency=dataclasses.replace(machine.latency, llc_ns=30.0),
    )
    assert state_key(dataclasses.replace(baseline, machine=slower)) == state_key(baseline)
    wider = dataclasses.replace(machine, core=dataclasses.replace(machine.core, reorder_window=9))
    assert state_key(dataclasses.replace(baseline, machine=wider)) != state_key(baseline)
    assert state_key(series(baseline)) != state_key(baseline)


@pytest.mark.parametrize("levels", [4, 5])
def test_r1_r35_kasan_is_refused_with_replicas_on_5_levels_and_changes_nothing_else(
    tmp_path: Path, baseline: RunSpec, levels: int
) -> None:
    folder = write_small_dataset(tmp_path, levels=levels)
    plain = dataclasses.replace(baseline.kernel, dataset=str(folder))
    without = dataclasses.replace(baseline, kernel=plain)
    run = dataclasses.replace(without, kernel=dataclasses.replace(plain, kasan=True))
    check([run])
    assert same_counts(simulate(run).counts, simulate(without).counts)
    if levels == 4:
        check([series(run)])
        assert same_counts(simulate(series(run)).counts, simulate(series(without)).counts)
        return
    check([series(without)])
    with pytest.raises(SpecError, match=r"kernel.kasan: .*!\(KASAN && X86_5LEVEL\)"):
        check([run, series(run)])
    with pytest.raises(ReplicationError, match=r"kernel\.kasan false"):
        simulate(series(run))


def test_what_the_dataset_lacks_is_named(baseline: RunSpec) -> None:
    with pytest.raises(TraceError, match="no capture 'pti-off_node1_seed7'"):
        simulate(dataclasses.replace(baseline, seed=7))
    with pytest.raises(TraceError, match="no trace 'forkk'; did you mean 'fork'"):
        simulate(with_window(baseline, "forkk"))


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_a_run_takes_no_more_memory_than_wanted(run: Sequence[str]) -> None:
    (taken,) = memory([run])
    assert taken["as_wanted"], taken
