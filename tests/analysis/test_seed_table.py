"""The seed table on a hand-made frame, against a golden file.

Regenerate with `python -m tests.analysis.test_seed_table` and read the difference.
"""

import io
import json
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from analysis import seed_table
from numarep.results import RUNS

GOLDEN = Path(__file__).parent / "seed_table.txt"


def run(
    workload: str,
    cache_state: str,
    replication: str,
    time_ns: float | None,
    *,
    cpu_node: int = 1,
    seed: int = 1,
    ghz: float = 2.6,
    layout_seed: int | None = None,
) -> dict[str, object]:
    kernel = {"layout_seed": layout_seed or 0}
    spec = {
        "machine": {"core": {"ghz": ghz}},
        "kernel": kernel,
        "replication": {"name": replication},
        "seed": seed,
    }
    point = f"{workload}-{cache_state}-{cpu_node}-{seed}-{ghz}-{layout_seed}"
    finished = time_ns is not None
    return {
        "run_id": f"{point}-{replication}",
        "layout": "aligned" if layout_seed is None else "permuted",
        "workload": workload,
        "cache_state": cache_state,
        "replication": replication,
        "cpu_node": cpu_node,
        "master_node": 0 if finished else None,
        "seed": seed,
        "home_llc": "cold",
        "status": "ok" if finished else "failed",
        "error": None if finished else "ValueError: no",
        "time_ns": time_ns,
        "time_serial_ns": time_ns and time_ns * (2 if replication == "none" else 1.5),
        "time_overlapped_ns": time_ns and time_ns / 2,
        "pair_id": point,
        "spec": json.dumps(spec),
    }


def frame(*runs: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame([*runs], schema=pl.DataFrame(RUNS.empty_table()).schema)


def study() -> pl.DataFrame:
    """By hand: kill cold 1000 -> 800 is A 20, B 25; 1000 -> 700 is A 30, B 42.9; and so on."""
    return frame(
        run("kill", "cold", "none", 1000.0),
        run("kill", "cold", "series", 800.0),
        run("kill", "cold", "none", 1000.0, seed=2),
        run("kill", "cold", "series", 700.0, seed=2),
        run("kill", "cold", "none", 500.0, cpu_node=0),
        run("kill", "cold", "series", 505.0, cpu_node=0),
        run("fork_1", "cold", "none", 1000.0),
        run("fork_1", "cold", "series", 690.0),  # A 31.0 is far from 42.7, B 44.9 is near
        run("mount_proc", "cold", "none", 1000.0),
        run("mount_proc", "cold", "series", 920.0),  # A 8.0 and B 8.7 are both near 4.1
        run("open_close", "hot", "none", 1000.0),
        run("open_close", "hot", "series", 1100.0),  # a loss
        run("overlayfs", "hot", "none", 1000.0),
        run("overlayfs", "hot", "series", 990.0),  # never published
        run("fork_1", "hot", "none", 1000.0),
        run("fork_1", "hot", "series", None),  # failed
        run("mmap_locked", "hot", "series", 1000.0),  # its baseline did not run
    )


def printed(runs: pl.DataFrame, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    seed_table.show(runs, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_gains_by_hand() -> None:
    kill = seed_table.gains(study()).row(by_predicate=pl.col("workload") == "kill", named=True)
    assert kill["a"] == pytest.approx(25.0)
    assert (kill["a_min"], kill["a_max"]) == (pytest.approx(20.0), pytest.approx(30.0))
    assert kill["b"] == pytest.approx((25.0 + 100 * 3 / 7) / 2)
    assert kill["a_serial"] == pytest.approx((40.0 + 47.5) / 2)
    assert kill["a_overlapped"] == pytest.approx(25.0)
    assert kill["a_local"] == pytest.approx(-1.0)
    assert (kill["published"], kill["agrees"]) == (26.1, "A")


def test_table_is_the_golden_one() -> None:
    assert printed(study()) == GOLDEN.read_text(), __doc__


def test_row_order_does_not_matter() -> None:
    assert printed(study()[::-1]) == printed(study())


def test_a_table_for_each_setting_that_varies() -> None:
    pair = [
        run("kill", "hot", name, time, ghz=ghz)
        for ghz in (2.6, 3.0)
        for name, time in (("none", 1000.0), ("series", 900.0 + ghz))
    ]
    table = seed_table.gains(frame(*pair))
    assert table["variant"].to_list() == ["machine.core.ghz=2.6", "machine.core.ghz=3.0"]
    assert table["a"].to_list() == [pytest.approx(9.74), pytest.approx(9.7)]


def layouts() -> pl.DataFrame:
    """By hand: three layouts of which replication gains 10, 0 and -10 %."""
    return frame(
        *(run("kill", "hot", "none", 1000.0, layout_seed=seed) for seed in range(3)),
        *(run("kill", "hot", "series", 900.0 + 100 * s, layout_seed=s) for s in range(3)),
    )


def test_layouts_are_spread_over_not_told_apart() -> None:
    row = seed_table.gains(layouts()).row(0, named=True)
    assert row["variant"] == ""
    assert row["a"] == pytest.approx(0.0)
    assert (row["a_min"], row["a_max"]) == (pytest.approx(-10.0), pytest.approx(10.0))
    assert "over the one capture seed and 3 kernel layouts" in " ".join(printed(layouts()).split())


def test_protocol_is_printed_once() -> None:
    variants = [
        run("kill", "hot", name, 1000.0, ghz=ghz)
        for ghz in (2.0, 2.5, 3.0)
        for name in ("none", "series")
    ]
    text = printed(frame(*variants))
    assert text.count("Gain of replication") == 1
    assert text.count("all caches") == 1
    first = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert [word for word in first if word in ("2.0", "2.5", "3.0")] == ["2.0", "2.5", "3.0"]


def test_what_follows_from_a_machine_tells_no_variants_apart() -> None:
    variants = [
        run("kill", "hot", name, 1000.0, ghz=ghz) | {"machine": machine}
        for machine, ghz in (("one", 2.0), ("other", 2.5))
        for name in ("none", "series")
    ]
    assert seed_table.gains(frame(*variants))["variant"].to_list() == [
        "machine=one",
        "machine=other",
    ]


def test_a_machine_is_named_not_spelt_out() -> None:
    """What always goes with a machine is not said; what varies on one machine is."""
    runs = [
        {**run("kill", "cold", replication, 1000.0, ghz=ghz), "machine": machine}
        for machine, ghz in (("slow", 2.0), ("fast", 3.0), ("fast", 3.5))
        for replication in ("none", "series")
    ]
    for each in runs:
        each["pair_id"] = f"{each['machine']}-{each['pair_id']}"
    named = seed_table.gains(frame(*runs))["variant"].to_list()
    assert sorted(named) == [
        *(f"machine=fast machine.core.ghz={ghz}" for ghz in (3.0, 3.5)),
        "machine=slow machine.core.ghz=2.0",
    ]
    assert seed_table.gains(frame(*runs[:4]))["variant"].to_list() == [
        "machine=fast",
        "machine=slow",
    ]


def test_the_protocol_says_of_every_state_there_what_it_is() -> None:
    cold, each = (
        frame(*(run("kill", state, name, 1000.0) for name in ("none", "series")))
        for state in ("cold", "cold_each")
    )
    assert "cold_" not in printed(cold)
    assert "cold_each: before every iteration" in " ".join(printed(each).split())


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_loses_columns_but_no_value(width: int) -> None:
    machines = ("e5_2690_v3", "cascade_lake_8269cy_snc2")
    pairs = [
        run(workload, "cold", name, time, ghz=ghz) | {"machine": machine}
        for ghz, machine in zip((2.6, 3.0), machines, strict=True)
        for workload in ("mmap_munmap", "fork_1")
        for name, time in (("none", 1000.0), ("series", 850.0))
    ]
    runs = frame(*(pair | {"pair_id": f"{pair['pair_id']}-{pair['machine']}"} for pair in pairs))
    lines = printed(runs, width).splitlines()
    assert max(map(len, lines)) <= width
    for machine in machines:
        told = [line for line in lines if machine in line]
        assert [line.split()[1] for line in told] == ["fork_1", "mmap_munmap"]
        assert all("15.0" in line for line in told)
    assert any("no room for [min..max]" in line for line in lines) == (width == 80)


def test_many_variants_are_cut() -> None:
    variants = [
        run("kill", "hot", name, 1000.0, ghz=1.0 + i)
        for i in range(124)
        for name in ("none", "series")
    ]
    assert "and 4 more" in printed(frame(*variants))


def test_runs_without_a_baseline_are_listed() -> None:
    text = printed(frame(run("kill", "hot", "series", 1234.5), run("kill", "cold", "none", None)))
    assert "1.23" in text
    assert "failed" in text
    assert "2 runs, 1 failed" in text


def test_boots_are_listed_with_their_times_and_gain_nothing() -> None:
    """Without replication nothing is added to a boot, so its baseline is no time to compare."""
    boots = frame(run("boot", "cold", "none", 16.0), run("boot", "cold", "series", 2.5e6))
    spec = pl.col("spec").str.replace("{", '{"workload":{"kind":"boot"},', literal=True)
    text = printed(boots.with_columns(spec))
    assert "Gain" not in text
    assert "2500.00" in text
    both = printed(pl.concat([study(), boots.with_columns(spec)]))
    assert "2500.00" in both
    assert "Gain" in both


def test_a_list_of_runs_says_what_varies() -> None:
    text = printed(frame(*(run("kill", "hot", "series", 9.0, ghz=ghz) for ghz in (2.6, 3.0))))
    assert "ghz" in text
    assert "3.0" in text
    assert "cpu node" not in text


def test_many_runs_are_cut() -> None:
    many = [run("kill", "hot", "none", 1.0, seed=seed) for seed in range(50)]
    assert "and 10 more" in printed(frame(*many))


def test_published_table_is_complete() -> None:
    published = seed_table.published()
    assert published.height == 14
    assert published["workload"].n_unique() == 7
    # The sum of the table as printed in the series' cover letter.
    assert published["published"].sum() == pytest.approx(33.6 + 92.3)


if __name__ == "__main__":
    GOLDEN.write_text(printed(study()))
