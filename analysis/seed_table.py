"""The published table beside the model's: gain of replication by workload, hot and cold.

A run's baseline is the run that differs from it in replication only, which is `none` there. Gains
follow both definitions that the published figures may have used, A = (old - new) / old and
B = old / new - 1, in %. A cell agrees when either lies within 5 points of the published figure.

>>> published().filter(workload="kill", cache_state="cold")["published"].item()
26.1
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

BASELINE = "none"
AGREE_POINTS = 5.0
ROWS_SHOWN = 40
# What the table spreads over its rows and columns; whatever else varies makes tables of its own.
_OWN = {"workload", "cache_state", "cpu_node", "seed"}
PROTOCOL = """\
hot: one unmeasured pass before. cold: all caches, TLBs and paging-structure caches of both \
sockets flushed once before the measured window. Loops are tiled from 32 captured iterations. \
home_llc: {home_llc}.
A = (old - new) / old, B = old / new - 1: mean over seeds; [min..max] by seed; band: from all \
misses one after the other to all that can overlapping; node 0: the CPU on the kernel's own node; \
agrees: the definitions within 5 points of what was published."""


def published() -> pl.DataFrame:
    """Return the published gains: workload, cache_state, published (%), in published order."""
    cells = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())
    return pl.DataFrame(
        [
            {"workload": workload, "cache_state": state, "published": value}
            for workload, states in cells.items()
            for state, value in states.items()
        ]
    )


def pairs(runs: pl.DataFrame) -> pl.DataFrame:
    """Join every finished replicated run with its baseline, and compute its gains in %."""
    finished = runs.filter(status="ok")
    times = ("time_ns", "time_serial_ns", "time_overlapped_ns")
    baseline = (
        finished.filter(replication=BASELINE)
        .unique("pair_id", keep="first", maintain_order=True)
        .select("pair_id", *(pl.col(name).alias(f"old_{name}") for name in times))
    )

    def gain(name: str) -> pl.Expr:
        return (1 - pl.col(name) / pl.col(f"old_{name}")) * 100

    return (
        finished.filter(pl.col("replication") != BASELINE)
        .join(baseline, on="pair_id", maintain_order="left")
        .with_columns(
            a=gain("time_ns"),
            b=(pl.col("old_time_ns") / pl.col("time_ns") - 1) * 100,
            a_serial=gain("time_serial_ns"),
            a_overlapped=gain("time_overlapped_ns"),
            remote=pl.col("cpu_node") != pl.col("master_node"),
        )
    )


def gains(runs: pl.DataFrame) -> pl.DataFrame:
    """Return one row per variant, workload and cache state, beside the published figure.

    Columns of gains in %: `a`, `a_min`, `a_max`, `b`, `a_serial`, `a_overlapped` for CPUs on other
    nodes than the kernel's, `a_local` on its own; `published`; and `agrees`, the definitions that
    lie within 5 points of it ("A", "B", "A, B", "no", null where nothing was published).
    """
    paired = pairs(runs)
    remote = pl.col("remote")
    rows = paired.with_columns(_variants(paired)).group_by(
        "variant", "home_llc", "workload", "cache_state"
    )
    table = rows.agg(
        *(pl.col(n).filter(remote).mean() for n in ("a", "b", "a_serial", "a_overlapped")),
        a_min=pl.col("a").filter(remote).min(),
        a_max=pl.col("a").filter(remote).max(),
        a_local=pl.col("a").filter(~remote).mean(),
    )
    order = published().with_row_index("order")
    return (
        table.join(order, on=["workload", "cache_state"], how="left")
        .with_columns(agrees=_agreement())
        .sort("variant", "order", "workload", "cache_state", nulls_last=True)
        .select(
            *("variant", "home_llc", "workload", "cache_state", "a", "a_min", "a_max", "b"),
            *("a_serial", "a_overlapped", "a_local", "published", "agrees"),
        )
    )


def show(runs: pl.DataFrame, console: Console) -> None:
    """Print the table, or the runs themselves where no run has its baseline."""
    table = gains(runs)
    for (variant, home_llc), rows in table.group_by("variant", "home_llc", maintain_order=True):
        console.print(_gain_table(str(variant), rows))
        console.print(PROTOCOL.format(home_llc=home_llc), highlight=False, markup=False)
    if table.is_empty():
        console.print(_run_table(runs))
    failures = runs.filter(status="failed")
    console.print(f"{runs.height} runs, {failures.height} failed", highlight=False)


def _agreement() -> pl.Expr:
    def near(name: str) -> pl.Expr:
        return (pl.col(name) - pl.col("published")).abs() <= AGREE_POINTS

    return (
        pl.when(near("a") & near("b"))
        .then(pl.lit("A, B"))
        .when(near("a"))
        .then(pl.lit("A"))
        .when(near("b"))
        .then(pl.lit("B"))
        .when(near("a").is_not_null())
        .then(pl.lit("no"))
    )


def _variants(runs: pl.DataFrame) -> pl.Series:
    """Name every run by the settings that vary between runs, outside the table's own."""
    specs = [dict(_flat(json.loads(spec))) for spec in runs["spec"]]
    keys = sorted({key for spec in specs for key in spec if key.split(".")[0] not in _OWN})
    varying = [key for key in keys if len({repr(spec.get(key)) for spec in specs}) > 1]
    labels = [" ".join(f"{key}={spec.get(key)}" for key in varying) for spec in specs]
    return pl.Series("variant", labels, dtype=pl.String)


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(path, value)]
    return [
        item for key, below in value.items() for item in _flat(below, f"{path}.{key}".lstrip("."))
    ]


def _gain_table(variant: str, rows: pl.DataFrame) -> Table:
    title = "Gain of replication in %, CPU on node 1, the kernel on node 0"
    caption = f"{title}\n{variant}" if variant else title
    table = Table(
        title=caption,
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("workload", no_wrap=True)
    table.add_column("caches")
    for name in ("A", "by seed", "B", "band of A", "A, node 0", "published"):
        table.add_column(name, justify="right")
    table.add_column("agrees")
    for row in rows.iter_rows(named=True):
        spread = f"[{_percent(row['a_min'])}..{_percent(row['a_max'])}]"
        table.add_row(
            row["workload"],
            row["cache_state"],
            _percent(row["a"]),
            escape(spread),
            _percent(row["b"]),
            f"{_percent(row['a_serial'])}..{_percent(row['a_overlapped'])}",
            _percent(row["a_local"]),
            _percent(row["published"]),
            row["agrees"] or "",
        )
    return table


def _run_table(runs: pl.DataFrame) -> Table:
    names = ("run_id", "workload", "cache_state", "replication", "cpu_node", "seed", "status")
    table = Table(*names, "time_us", caption=_left_out(runs.height))
    for row in runs.head(ROWS_SHOWN).iter_rows(named=True):
        time = "" if row["time_ns"] is None else f"{row['time_ns'] / 1000:.2f}"
        table.add_row(*(str(row[name]) for name in names), time)
    return table


def _left_out(rows: int) -> str | None:
    return f"and {rows - ROWS_SHOWN} more" if rows > ROWS_SHOWN else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
