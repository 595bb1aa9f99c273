"""Every replicated run beside its baseline, and what it gained.

A run's baseline is the run that differs from it in replication only, which is `none` there. Gains
follow both definitions that published figures may have used, in %: A = (old - new) / old and
B = old / new - 1.

>>> frame = pl.LazyFrame({"old_time_ns": [1000.0], "time_ns": [500.0]})
>>> frame.select(a=gain_a(), b=gain_b()).collect().row(0)
(50.0, 100.0)
"""

import polars as pl

from analysis.cases import DETAILED

BASELINE = "none"
TIMES = ("time_ns", "time_serial_ns", "time_overlapped_ns")
_NEEDED = ("pair_id", "workload", "cache_state", "cpu_node", "master_node", "time_ns")
_OLD = ("run_id", "instructions", *TIMES)


def gain_a(time: str = "time_ns") -> pl.Expr:
    """Return the gain by definition A of a time over the baseline's, in %."""
    return (1 - pl.col(time) / pl.col(f"old_{time}")) * 100


def gain_b(time: str = "time_ns") -> pl.Expr:
    """Return the gain by definition B of a time over the baseline's, in %."""
    return (pl.col(f"old_{time}") / pl.col(time) - 1) * 100


def pairs(cases: pl.LazyFrame) -> pl.LazyFrame:
    """Join every finished replicated run with its baseline.

    Parameters
    ----------
    cases : LazyFrame
        Of `analysis.cases`.

    Returns
    -------
    LazyFrame
        The replicated runs that have a baseline, with its `old_run_id`, `old_instructions` and
        times (`old_time_ns`, ...); the gains `a`, `b`, `a_serial` and `a_overlapped` in %;
        `lower` and `upper`, the bounds of `a`; `remote`, whether the CPU is on another node than
        the kernel.
    """
    # Several runs may be a pair's baseline, alike but for details: that which has them, if any.
    there = DETAILED in cases.collect_schema()
    detailed = [pl.col(DETAILED).fill_null(value=False)] if there else []
    known = pl.all_horizontal(pl.col(*_NEEDED).is_not_null())
    finished = cases.filter(pl.col("status") == "ok", known)
    baseline = (
        finished.filter(pl.col("replication") == BASELINE)
        .sort(*detailed, "run_id", descending=[*(True for _ in detailed), False])
        .unique("pair_id", keep="first", maintain_order=True)
        .select(
            "pair_id",
            *(pl.col(name).alias(f"old_{name}") for name in ("run_id", "instructions", *TIMES)),
        )
    )
    serial, overlapped = gain_a("time_serial_ns"), gain_a("time_overlapped_ns")
    return (
        finished.filter(pl.col("replication") != BASELINE)
        .drop(DETAILED, strict=False)
        .join(baseline, on="pair_id")
        .with_columns(
            a=gain_a(),
            b=gain_b(),
            a_serial=serial,
            a_overlapped=overlapped,
            lower=pl.min_horizontal(serial, overlapped, gain_a()),
            upper=pl.max_horizontal(serial, overlapped, gain_a()),
            remote=pl.col("cpu_node") != pl.col("master_node"),
        )
    )


def remote_pairs(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the pairs whose CPU is on another node than the kernel's, sorted.

    Nearly every question begins here, so the pairs of the last cases are kept.
    """
    if not (_kept and _kept[0][0] is cases):
        order = ("workload", "cache_state", "replication", "seed", "run_id")
        found = (
            pairs(cases)
            .filter("remote")
            .sort(order)
            .drop("status", "error", "pair_id", strict=False)
        )
        _kept[:] = [(cases, found.collect())]
    return _kept[0][1]


def undisturbed(cases: pl.LazyFrame, *also: pl.Expr) -> pl.DataFrame:
    """Return the remote pairs of kernels as linked, without an operation at a rate beside.

    Of each workload on a machine, those of most iterations: a window cut short is another.
    """
    plain = pl.col("layout") != "permuted", pl.col("operation").is_null()
    most = pl.col("iterations").max().over("workload", "machine")
    whole = pl.col("iterations").eq_missing(most)
    return remote_pairs(cases).filter(*plain, *also).filter(whole)


def same_seeds(found: pl.DataFrame) -> pl.DataFrame:
    """Keep of every cell the seeds of most policies: captures differ more than policies do."""
    cell = ("workload", "cache_state")
    counted = found.with_columns(_policies=pl.col("replication").n_unique().over(*cell, "seed"))
    most = pl.col("_policies") == pl.col("_policies").max().over(cell)
    return counted.filter(most).drop("_policies")


_kept: list[tuple[pl.LazyFrame, pl.DataFrame]] = []
