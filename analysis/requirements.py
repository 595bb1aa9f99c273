"""What would have to be true for each published figure, where the model disagrees.

Which ratio rho of remote to local DRAM latency, or which share f of the old time becoming local,
would give the published figure; gain A = f (1 - 1 / rho).

>>> pl.DataFrame({"time_ns": [150.0], "old_time_ns": [200.0], "misses": [0.0], "old_misses": [1.0],
...               "local_ns": [100.0], "rho": [1.5]}).select(_ratio_for(pl.lit(0.25))).item()
1.5
"""

import polars as pl

from analysis.reference import reference
from analysis.section import Column, Table
from analysis.seed_table import with_published

_CELL = ("workload", "cache_state")


def requirements(cases: pl.LazyFrame, counts: pl.LazyFrame) -> pl.DataFrame:
    """Return what would have to be true for each published figure.

    Returns
    -------
    DataFrame
        `rho`, of the machine; `f`, the share of the old time that replication made local;
        `rho_a`, `rho_b`, the ratio at which the model's gain is the published one, by either
        definition (null: none is); `f_a`, `f_b`, the share needed at the machine's rho (above 1:
        impossible).
    """
    chosen = reference(cases)
    remote = _remote(chosen, counts)
    old = remote.select(pl.all().name.prefix("old_"))
    both = ("stall_ns", "misses", "old_stall_ns", "old_misses")
    rows = (
        chosen.join(remote, on="run_id", how="left")
        .join(old, on="old_run_id", how="left")
        .with_columns(pl.col(both).fill_null(0.0))
        .group_by(_CELL)
        .agg(pl.mean("rho", "local_ns", "time_ns", "old_time_ns", *both))
    )
    target_a = pl.col("published") / 100
    target_b = 1 - 1 / (1 + target_a)
    becomes_local = (pl.col("old_stall_ns") - pl.col("stall_ns")) / pl.col("old_time_ns")
    return (
        with_published(rows)
        .drop_nulls("published")
        .select(
            *(*_CELL, "published", "rho"),
            f=becomes_local,
            rho_a=_ratio_for(target_a),
            rho_b=_ratio_for(target_b),
            f_a=target_a / (1 - 1 / pl.col("rho")),
            f_b=target_b / (1 - 1 / pl.col("rho")),
        )
    )


def _remote(chosen: pl.DataFrame, counts: pl.LazyFrame) -> pl.DataFrame:
    """Return what each of the chosen runs, old and new, waits for remote DRAM.

    Returns
    -------
    DataFrame
        `run_id`; `stall_ns`; `misses`, how many leading ones: time grows by them with latency.
    """
    new = chosen.select("run_id", "cpu_node")
    old = chosen.select(pl.col("old_run_id").alias("run_id"), "cpu_node")
    wanted = pl.concat([new, old]).unique()
    return (
        counts.filter(pl.col("served_by") == "dram")
        .join(wanted.lazy(), on="run_id")
        .filter(pl.col("node") != pl.col("cpu_node"))
        .group_by("run_id")
        .agg(pl.sum("stall_ns"), misses=pl.sum("leading").cast(pl.Float64))
        .collect()
        .sort("run_id")
    )


def _ratio_for(target: pl.Expr) -> pl.Expr:
    """Solve (1 - target) old = new for rho; both times are linear in it."""
    short_ns = pl.col("time_ns") - (1 - target) * pl.col("old_time_ns")
    each_ns = ((1 - target) * pl.col("old_misses") - pl.col("misses")) * pl.col("local_ns")
    ratio = pl.col("rho") + short_ns / each_ns
    return pl.when(each_ns > 0, ratio >= 1).then(ratio)


def shown(needs: pl.DataFrame) -> Table:
    """Return the requirements as the report shows them."""
    return Table("requirements", _CAPTION, needs, _COLUMNS)


_COLUMNS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "published": Column("published, %", 1),
    "f": Column("share f, model", 2),
    "f_a": Column("f needed, A", 2),
    "f_b": Column("f needed, B", 2),
    "rho": Column("\N{GREEK SMALL LETTER RHO}, machine", 2),
    "rho_a": Column("\N{GREEK SMALL LETTER RHO} needed, A", 2),
    "rho_b": Column("\N{GREEK SMALL LETTER RHO} needed, B", 2),
}
_CAPTION = (
    "What would have to be true for the published figure: the share f of the old time that becomes "
    "local (above 1 is impossible), or the remote/local latency ratio \N{GREEK SMALL LETTER RHO} "
    "(none: no ratio does it, because nothing remote became local)"
)
