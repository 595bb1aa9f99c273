"""Every question on results made by hand: against golden tables, and against what follows by hand.

Regenerate the tables with `python -m tests.analysis.golden` and read the difference.
"""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from analysis import (
    ablation,
    break_even,
    cases,
    costs,
    functions,
    links,
    load,
    load_counts,
    memory,
    nodes,
    operations,
    own,
    pairs,
    published,
    reference,
    requirements,
    staircase,
    stalls,
    trust,
)
from analysis.assumed import Parameter
from analysis.cases import study_over
from analysis.design import design
from analysis.section import Evidence
from analysis.sensitivity import sensitivity
from analysis.sources import open_sources
from tests.analysis import golden, made


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    path = made.write(tmp_path_factory.mktemp("made") / "results", made.everything())
    return open_sources([path]).evidence


def of(table: pl.DataFrame, **cell: str) -> dict[str, Any]:
    return table.filter(**cell).row(0, named=True)


@pytest.mark.parametrize("name", golden.TABLES)
def test_table_is_the_golden_one(name: str, evidence: Evidence) -> None:
    expected = pl.read_csv(golden.FOLDER / f"{name}.csv", infer_schema_length=None)
    found = pl.read_csv(io.StringIO(golden.text(name, evidence)), infer_schema_length=None)
    assert_frame_equal(found, expected)  # meant to change? `python -m tests.analysis.golden`


def small(path: Path, *points: dict[str, Any]) -> Evidence:
    return open_sources([made.write(path / "results", list(points))]).evidence


def test_a_notebook_gets_the_same_numbers(tmp_path: Path, evidence: Evidence) -> None:
    path = made.write(tmp_path / "again", made.everything())
    table = cases(load(path))
    assert isinstance(load(path), pl.LazyFrame)
    assert_frame_equal(published.gains(table), published.gains(evidence.cases))
    again = stalls.stalls(table, load_counts(path))
    assert_frame_equal(again, stalls.stalls(evidence.cases, evidence.counts))


def test_gain_by_hand(evidence: Evidence) -> None:
    """Cold kill: 1000 ns, 110 lines at 149 ns, 31 or 32 at 4 ns; then at 99 ns, and 60 ns more."""
    old, new = 1000 + 110 * 149, 1060 + 110 * 99
    by_seed = [1 - (new + 4 * hits) / (old + 4 * hits) for hits in (31, 32)]
    kill = of(published.gains(evidence.cases), workload="kill", cache_state="cold")
    assert kill["a"] == pytest.approx(50 * sum(by_seed))
    assert (kill["a_min"], kill["a_max"]) == tuple(pytest.approx(100 * a) for a in by_seed[::-1])


def test_layout_noise_by_hand(evidence: Evidence) -> None:
    """Hot, 30 to 45 hits of 4 ns and 1 more for the seed, beside 1000 ns."""
    noise = of(published.layout_noise(evidence.cases), workload="kill", cache_state="hot")
    assert noise["layouts"] == 4
    assert noise["noise"] == pytest.approx(((1000 + 46 * 4) / (1000 + 31 * 4) - 1) * 100)


def test_verdicts_need_layout_noise(tmp_path: Path, evidence: Evidence) -> None:
    table = published.gains(evidence.cases)
    assert of(table, workload="mount_proc", cache_state="cold")["verdict"] == "published lower"
    assert of(table, workload="mount_proc", cache_state="hot")["verdict"] == "published higher"
    assert of(table, workload="kill", cache_state="hot")["verdict"] == "within noise"
    both = ["none", "series"]
    without = small(tmp_path, *made.grid(workload=["mount_proc", "fork_1"], replication=both))
    verdicts = published.gains(without.cases).select("workload", "verdict").rows()
    assert verdicts == [("fork_1", "agrees"), ("mount_proc", "noise unknown")]


def test_the_ratio_it_solves_for_gives_the_published_gain(tmp_path: Path) -> None:
    points = list(made.grid(workload=["kill"], replication=["none", "series"]))
    asked = small(tmp_path / "asked", *points)
    needed = of(requirements.requirements(asked.cases, asked.counts), workload="kill")
    for definition, name in (("a", "rho_a"), ("b", "rho_b")):
        far = 100 * needed[name]
        answered = small(
            tmp_path / name, *({**point, "dram": [[100.0, far], [far, 100.0]]} for point in points)
        )
        gain = pairs(answered.cases).select(definition).collect().item()
        assert gain == pytest.approx(needed["published"])


def test_no_ratio_helps_where_nothing_became_local(evidence: Evidence) -> None:
    hot = requirements.requirements(evidence.cases, evidence.counts).filter(cache_state="hot")
    assert hot["f"].to_list() == [0.0] * hot.height
    assert hot["rho_a"].null_count() == hot.height


def test_stalls_add_up_to_the_time(evidence: Evidence) -> None:
    table = stalls.stalls(evidence.cases, evidence.counts)
    sums = table.group_by("workload", "cache_state").agg(
        pl.sum("baseline_ns"), pl.first("old_time_ns")
    )
    assert sums["baseline_ns"].to_list() == pytest.approx(sums["old_time_ns"].to_list())


def test_functions_add_up_to_the_time(evidence: Evidence) -> None:
    """What functions gain is what the window gains; text is brought near, data is not."""
    table = functions.functions(evidence.cases, evidence.functions)
    stacks = functions.by_server(evidence.cases, evidence.functions)
    kill = stacks.filter(workload="kill", cache_state="cold", side="baseline")
    assert sum(kill["ns"]) == pytest.approx(kill["whole_ns"][0])
    exit_ = of(table, workload="kill", cache_state="cold", function="do_exit")
    assert (exit_["baseline_remote_ns"], exit_["series_remote_ns"]) == (100 * 149, 0)


def test_flame_graphs_hold_all_time(evidence: Evidence) -> None:
    section = functions.section(evidence)
    files = {file.name: file.text for file in section.files}
    folded = [line.rsplit(" ", 1) for line in files["functions.folded"].splitlines()]
    graph = json.loads(files["functions.speedscope.json"])
    for profile in graph["profiles"]:
        weights = sum(profile["weights"])
        assert weights == profile["endValue"]
        there = [float(ns) for stack, ns in folded if stack.startswith(f"{profile['name']};")]
        assert sum(there) == pytest.approx(weights, abs=len(there))
        assert len(there) == len(profile["samples"])


def test_parts_and_interaction_add_up(evidence: Evidence) -> None:
    table = ablation.ablation(evidence.cases)
    parts = table.select(pl.sum_horizontal("tables", "text", "rodata", "interaction"))
    assert parts.to_series().to_list() == pytest.approx(table["all"].to_list())
    cold = of(table, workload="fork_1", cache_state="cold")
    assert cold["text"] == pytest.approx(20 * cold["rodata"])  # 200 lines against 10


def test_policies_are_beside_the_series(evidence: Evidence) -> None:
    """Lazy costs and gains here what the series does."""
    table = ablation.switches(evidence.cases)
    assert set(table["replication"]) == {"series", "lazy"}
    assert set(table["beside"]) == {0.0}


def test_a_policy_is_beside_the_series_of_the_same_capture(tmp_path: Path) -> None:
    """Lazy has one seed of the two, whose gains differ."""
    grid = {"workload": ["kill"], "cache_state": ["cold"]}
    both = made.grid(**grid, replication=["none", "series"], seed=[1, 2])
    path = made.write(tmp_path / "made", [*both, *made.grid(**grid, replication=["lazy"])])
    cases = open_sources([path]).evidence.cases
    assert pairs(cases).collect()["a"].n_unique() > 1
    table = ablation.switches(cases)
    assert of(table, replication="lazy")["beside"] == 0.0
    assert table["a"].n_unique() == 1


def test_policies_are_weighed_by_the_same_captures(tmp_path: Path) -> None:
    grid = {"workload": ["kill"], "cache_state": ["cold"]}
    both = made.grid(**grid, replication=["none", "series"], seed=[1, 2])
    path = made.write(tmp_path / "made", [*both, *made.grid(**grid, replication=["lazy"])])
    found = open_sources([path]).evidence
    assert memory.policies(found.cases, found.memory)["cold"].n_unique() == 1


def test_a_run_asked_twice_for_other_details_counts_once(tmp_path: Path) -> None:
    grid = {"workload": ["kill"], "cache_state": ["cold"]}
    both = list(made.grid(**grid, replication=["none", "series"], seed=[1, 2], by_function=[True]))
    again = [point | {"by_function": False} for point in both if point["seed"] == 1]
    lazy = made.grid(**grid, replication=["lazy"], by_function=[False])
    once = open_sources([made.write(tmp_path / "once", both)]).evidence.cases
    twice = open_sources([made.write(tmp_path / "twice", [*both, *again, *lazy])]).evidence.cases
    kinds = ("replication", "seed")
    paired = pairs(twice).select(*kinds, "a").sort(kinds).collect()
    assert paired.select(kinds).rows() == [("lazy", 1), ("series", 1), ("series", 2)]
    assert_frame_equal(published.gains(once), published.gains(twice))
    failed = [
        point | {"error": "x"} if point["by_function"] else point for point in [*both, *again]
    ]
    kept = open_sources([made.write(tmp_path / "failed", failed)]).evidence.cases
    assert pairs(kept).select("seed").collect()["seed"].to_list() == [1]


def test_a_baseline_with_details_goes_before_one_without(tmp_path: Path) -> None:
    """Of several baselines of a pair, else alike, ids alone would choose."""
    grid = {"workload": ["kill"], "cache_state": ["cold"], "seed": list(range(1, 9))}
    both = list(made.grid(**grid, replication=["none", "series"], by_function=[True]))
    again = [point | {"by_function": False} for point in both]
    waived = [point | {"costs": "waived"} for point in again if point["replication"] == "none"]
    once = open_sources([made.write(tmp_path / "once", both)]).evidence.cases
    beside = open_sources([made.write(tmp_path / "beside", [*both, *again, *waived])])
    order = ["seed", "old_run_id"]
    assert_frame_equal(
        pairs(beside.evidence.cases).select(order).sort(order).collect(),
        pairs(once).select(order).sort(order).collect(),
    )


def test_a_window_cut_short_is_no_run_of_its_workload(tmp_path: Path) -> None:
    both = list(made.grid(workload=["kill"], replication=["none", "series"]))
    short = [point | {"iterations": 1, "seed": 2} for point in both]
    cases = open_sources([made.write(tmp_path / "made", [*both, *short])]).evidence.cases
    assert reference.reference(cases)["seed"].to_list() == [1]


def test_what_comes_with_numarep_is_not_the_readers_own(tmp_path: Path) -> None:
    both = list(made.grid(workload=["kill"], replication=["none", "series"], machine=["xeon_8s"]))
    path = made.write(tmp_path / "bundled", both)
    section = own.section(open_sources([path]).evidence)
    assert (section.answered, bool(section.commands)) == (True, True)
    path = made.write(tmp_path / "mine", [*both, *(p | {"machine": "mine"} for p in both)])
    section = own.section(open_sources([path]).evidence)
    assert (section.answered, section.missing) == (True, "")


def test_break_even_is_where_a_run_gains_nothing(tmp_path: Path, evidence: Evidence) -> None:
    lines = break_even.break_even(break_even.surface(evidence.cases))
    rho = lines.filter(workload="kill", cache_state="cold")["rho"][0]
    far = [[100.0, 100 * rho], [100 * rho, 100.0]]
    points = list(made.grid(workload=["kill"], replication=["none", "series"], dram=[far]))
    gain = pairs(small(tmp_path, *points).cases).select("a").collect().item()
    assert gain == pytest.approx(0, abs=1e-9)


def test_a_fork_pays_for_every_further_node(evidence: Evidence) -> None:
    """Hot kill: 1000 ns and 31 or 32 hits of 4 ns; 60 ns a further node."""
    table = nodes.nodes(evidence.cases).filter(workload="kill", cache_state="hot")
    assert table["nodes"].to_list() == [2, 4]
    for row in table.iter_rows(named=True):
        extra = 60 * (row["nodes"] - 1)
        expected = sum(100 * extra / (1000 + 4 * hits) for hits in (31, 32)) / 2
        assert row["a"] == pytest.approx(-expected)
    four = table.row(1, named=True)
    assert four["cost"] == pytest.approx(-four["a"])


def test_replicas_bring_the_traffic_to_the_own_node(evidence: Evidence) -> None:
    """Cold kill: 100 lines of text and 15 of rodata, 64 bytes each, for two seeds."""
    table = nodes.traffic(evidence.cases, evidence.counts)
    kill = table.filter(workload="kill", cache_state="cold", nodes=4)
    before, after = (of(kill, replication=side) for side in ("baseline", "series"))
    assert (before["whose"], after["whose"]) == ("the kernel's", "the CPU's")
    assert before["bytes_per_instruction"] == pytest.approx(115 * 64 / made.INSTRUCTIONS)
    assert before["share"] == after["share"] == 100


def test_a_process_pays_for_roots_and_pointers(evidence: Evidence) -> None:
    """Two processes: 8 KiB of roots on every further node each, and 64 pointers."""
    table = memory.memory(evidence.cases, evidence.memory)
    series = table.filter(replication="series")
    assert series["nodes"].to_list() == [2, 4]
    assert series["process_kib"].to_list() == [8.5, 24.5]
    assert table.filter(replication="lazy")["process_kib"].to_list() == [0.5]
    assert set(table["node_mib"]) == {1 + 20 / 1024}
    weighed = memory.policies(evidence.cases, evidence.memory)
    assert dict(weighed.select("replication", "front").rows()) == {"lazy": True, "series": False}


def test_an_operation_costs_its_slope(evidence: Evidence) -> None:
    """Seven instructions of 1 ns an operation, on a line; what comes with no operation is none."""
    table = operations.costs(evidence.cases)
    assert table["operation"].to_list() == ["module", "patch"]
    assert table["ns"].to_list() == pytest.approx([7.0, 7.0])
    assert table["instructions"].to_list() == [7.0, 7.0]
    assert max(table["bent"]) == pytest.approx(0, abs=1e-9)


def test_at_the_rate_that_uses_it_up_no_gain_is_left(evidence: Evidence) -> None:
    kill = of(costs.used_up(evidence.cases), workload="kill", cache_state="cold", operation="patch")
    second = 1e9
    assert kill["per_s"] * 7.0 == pytest.approx(kill["a"] / 100 * second)


def test_laws_hold_and_a_broken_one_is_seen(tmp_path: Path, evidence: Evidence) -> None:
    assert set(trust.laws(evidence.cases, evidence.events, evidence.counts)["verdict"]) == {"holds"}
    wrong = evidence.cases.with_columns(pl.col("references") + 1)
    broken = trust.laws(wrong, evidence.events, evidence.counts).filter(verdict="BROKEN")
    assert "every reference is served once" in broken["law"].to_list()
    table = dataclasses.replace(evidence, cases=wrong)
    assert trust.section(table).answer.startswith("DO NOT TRUST")


def test_a_gain_that_must_not_be_is_seen(evidence: Evidence) -> None:
    assert set(trust.nulls(evidence.cases)["verdict"]) == {"holds"}
    wrong = evidence.cases.with_columns(
        time_ns=pl.when(pl.col("replication") == "series").then(1.0).otherwise(pl.col("time_ns"))
    )
    assert "BROKEN" in trust.nulls(wrong)["verdict"].to_list()


def test_of_two_machines_of_as_many_nodes_the_one_with_most_runs_counts(tmp_path: Path) -> None:
    four = [[100.0 if here == there else 300.0 for here in range(4)] for there in range(4)]
    other = made.grid(
        workload=["kill"],
        cache_state=["cold"],
        replication=["none", "series"],
        machine=["another"],
        nodes=[4],
        dram=[four],
    )
    path = made.write(tmp_path / "both", [*made.everything(), *other])
    table = nodes.nodes(open_sources([path]).evidence.cases)
    assert table.filter(nodes=4)["machine"].unique().to_list() == ["e7_4850_v3"]
    assert not table.select("nodes", "workload", "cache_state", "replication").is_duplicated().any()


@pytest.fixture
def grown(tmp_path: Path) -> Evidence:
    """All made results, and one machine with 2, 3 and 5 nodes."""

    def matrix(size: int) -> list[list[float]]:
        return [[100.0 if i == j else 300.0 for j in range(size)] for i in range(size)]

    own: list[dict[str, Any]] = []
    for size in (2, 3, 5):
        own += made.grid(
            workload=["kill", "fork_1024"],
            cache_state=["hot", "cold"],
            replication=["none", "series"],
            costs=["charged", "waived"],
            machine=["grown"],
            populated=[size],
            nodes=[size],
            dram=[matrix(size)],
        )
    path = made.write(tmp_path / "grown", [*made.everything(), *own])
    return open_sources([path]).evidence


def test_one_machine_with_several_numbers_of_nodes_goes_before_several_machines(
    grown: Evidence, evidence: Evidence
) -> None:
    table = nodes.nodes(grown.cases)
    assert table.select("machine", "nodes").unique(maintain_order=True).rows() == [
        ("grown", 2),
        ("grown", 3),
        ("grown", 5),
    ]
    assert "the number alone differs" in nodes.section(grown).how
    assert "differ in clock" in nodes.section(evidence).how


def test_every_number_of_nodes_has_its_costs_and_its_traffic(grown: Evidence) -> None:
    forks = operations.costs(grown.cases).filter(operation="fork_1024", machine="grown")
    assert forks["nodes"].to_list() == [2, 3, 5]
    moved = nodes.traffic(grown.cases, grown.counts)
    assert moved["nodes"].is_sorted()


def test_what_replicas_leave_of_the_traffic_is_told_for_the_same_number_of_nodes() -> None:
    asked = [("baseline", 2, 0.4), ("series", 2, 0.1), ("baseline", 4, 0.5), ("series", 4, 0.2)]
    moved = pl.DataFrame(asked, ["replication", "nodes", "gb_per_s"], orient="row").with_columns(
        machine=pl.lit("grown"),
        workload=pl.lit("kill"),
        cache_state=pl.lit("cold"),
        whose=pl.lit("the kernel's"),
    )
    told = "asks up to 0.50 GB/s of the kernel's node (kill, cold, 4 nodes), with replicas 0.20."
    assert links.answer(moved).endswith(told)


def sensitivity_cases(parameters: list[Parameter]) -> pl.LazyFrame:
    """Pairs at every point of the design, whose gain is 10 x the one factor + 2 x the other."""
    rows = []
    for number, (one, other) in enumerate(design(parameters).tolist()):
        settings = {
            parameter.path: float(parameter.scaled(factor))
            for parameter, factor in zip(parameters, (one, other), strict=True)
        }
        for replication, time in (("none", 100.0), ("series", 100.0 - 10 * one - 2 * other)):
            rows.append(
                {
                    **{"workload": "kill", "cache_state": "cold", "home_llc": "cold"},
                    **{"run_id": f"{number}-{replication}", "pair_id": str(number)},
                    **{"replication": replication, "status": "ok", "seed": 1, "instructions": 1},
                    **{"cpu_node": 1, "master_node": 0},
                    **dict.fromkeys(("time_ns", "time_serial_ns", "time_overlapped_ns"), time),
                    **settings,
                }
            )
    return pl.LazyFrame(rows)


def test_sensitivity_of_a_linear_gain_is_its_slope() -> None:
    parameters = [Parameter("machine.x", 1000.0), Parameter("machine.y", 50.0)]
    table = sensitivity(sensitivity_cases(parameters), parameters)
    assert table["parameter"].to_list() == ["machine.x", "machine.y"]
    assert table["mu_star"].to_list() == pytest.approx([10.0, 2.0])
    assert table["sigma"].to_list() == pytest.approx([0.0, 0.0], abs=1e-9)


def test_sensitivity_needs_every_point() -> None:
    parameters = [Parameter("machine.x", 1000.0), Parameter("machine.y", 50.0)]
    x, y = (p.scaled(f) for p, f in zip(parameters, design(parameters)[3], strict=True))
    at_point = (pl.col("machine.x") == x) & (pl.col("machine.y") == y)
    some = sensitivity_cases(parameters).filter(~at_point)
    assert sensitivity(some, parameters).is_empty()


def chase() -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Four chases: all from L2, from remote DRAM, half from each, from a nearer node's DRAM.

    Those from DRAM ask the second-level TLB for 2 ns a load; that from the nearer node walks for 5.
    """
    latencies = {"machine.latency.l1_cycles": 4.0, "machine.latency.l2_cycles": 12.0}
    known = {"machine.core.ghz": 2.0, "machine.latency.llc_ns": 20.0} | latencies
    place = {
        "machine": "m",
        "status": "ok",
        "cpu_node": 1,
        "master_node": 0,
        "rho": 1.5,
        "local_ns": 100.0,
    }
    runs = [
        {
            "run_id": "a",
            "workload.footprint_bytes": 1024,
            "time_ns": 8 * 4.0,
            "time_serial_ns": 8 * 4.0,
        },
        {
            "run_id": "b",
            "workload.footprint_bytes": 4096,
            "time_ns": 8 * 148.0,
            "time_serial_ns": 8 * 150.0,
        },
        {
            "run_id": "c",
            "workload.footprint_bytes": 2048,
            "time_ns": 8 * 76.0,
            "time_serial_ns": 8 * 76.0,
        },
        {
            "run_id": "d",
            "workload.footprint_bytes": 4096,
            "time_ns": 8 * 123.0,
            "time_serial_ns": 8 * 125.0,
        },
    ]
    count = {"level": 0, "overlapped": 0, "stall_ns": 0.0}
    counts = [
        {"run_id": "a", "served_by": "l2", "node": 1, "leading": 8},
        {"run_id": "b", "served_by": "dram", "node": 0, "leading": 8},
        {"run_id": "c", "served_by": "l2", "node": 1, "leading": 4},
        {"run_id": "c", "served_by": "dram", "node": 0, "leading": 4},
        {"run_id": "d", "served_by": "dram", "node": 2, "leading": 8},
        {"run_id": "d", "served_by": "l2", "node": 1, "leading": 8, "level": 1, "stall_ns": 40.0},
    ]
    page = {"workload.page": "2M", "workload.order": "cycle", "references": 8}
    return (
        pl.LazyFrame(
            [
                run | known | place | page | ({"master_node": 2, "rho": 1.2} if near else {})
                for run, near in zip(runs, (False, False, False, True), strict=True)
            ]
        ),
        pl.LazyFrame([count | row for row in counts]),
    )


def test_published_latencies_come_back() -> None:
    runs, counts = chase()
    steps = staircase.staircase(runs)
    assert steps["load_ns"].to_list() == [127.0, 6.0, 78.0, 152.0]
    assert steps["home"].to_list() == ["near", *["remote"] * 3]
    table = staircase.plateaus(steps, counts, runs)
    assert table["server"].to_list() == ["L2", "remote DRAM", "remote DRAM"]
    assert table["model_ns"].to_list() == table["published_ns"].to_list() == [6.0, 120.0, 150.0]
    assert table["stlb_ns"].to_list() == [0.0, 2.0, 2.0]
    assert table["walk_ns"].to_list() == [0.0, 5.0, 0.0]
    assert table["difference"].to_list() == [0.0] * 3


def test_measured_points_stand_beside_both_orders() -> None:
    """Only of the machine, page and node they were measured on; what hasn't been run is unknown."""
    run = {"machine": "x5650", "page": "2M", "home": "own", "footprint_bytes": 16 << 20}
    rows = [
        run | {"order": "drawn", "load_ns": 36.0},
        run | {"order": "cycle", "load_ns": 60.0},
        run | {"order": "cycle", "load_ns": 60.0, "footprint_bytes": 32 << 20},
        run | {"order": "drawn", "load_ns": 60.0, "footprint_bytes": 64 << 20, "page": "4K"},
        run | {"order": "drawn", "load_ns": 60.0, "footprint_bytes": 64 << 20, "home": "remote"},
        run | {"order": "drawn", "load_ns": 60.0, "machine": "another"},
    ]
    found = staircase.measured(pl.DataFrame(rows))
    assert found["footprint_bytes"].to_list() == [16 << 20, 32 << 20]
    ns = 40 / 2.666 + 15
    assert found["measured_ns"][0] == pytest.approx(ns)
    assert found["drawn_difference"].to_list() == [pytest.approx((36 / ns - 1) * 100), None]
    assert found["cycle_difference"][0] == pytest.approx((60 / ns - 1) * 100)


@pytest.mark.parametrize("order", [1, -1])
def test_of_equally_large_studies_the_one_with_switches_on_is_told(order: int) -> None:
    rows = pl.DataFrame({"workload": ["kill", "kill"], "replication.text": [False, True]})
    told = study_over(rows[::order], ["workload"])
    assert told["replication.text"].to_list() == [True]
