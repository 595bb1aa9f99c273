"""What replication adds to one operation: a fork, a module loaded, a site of text patched.

The rate studies do an operation a growing number of times in an otherwise unchanged window. What
each one costs is the slope: extra time of the replicated run between the lowest and the highest
rate, over the operations between them. A fork is also there as captured, with all that it evicts:
the loop of forks with costs charged, less with costs waived.
"""

from typing import NamedTuple

import polars as pl

from analysis.cases import study_over
from analysis.pairs import remote_pairs
from analysis.reference import POLICY

RATE = "workload.disturbance.per_iteration"
FORK_LOOP = "fork_1024"  # each of its iterations is a fork and its exit


class Operation(NamedTuple):
    """One operation: its name, the same in a sentence, and the study that measures it."""

    short: str
    long: str
    study: str


# By name in `numarep.replication.scenarios`, and the loop of forks as captured.
OPERATIONS = {
    "module": Operation("module load", "a module loaded and unloaded", "module_rate"),
    FORK_LOOP: Operation("fork + exit, captured", "a captured fork and exit", "ablation"),
    "bpf": Operation("BPF load", "a BPF program loaded and unloaded", "bpf_rate"),
    "patch": Operation("text patch", "a site of text patched", "patch_rate"),
    "fork_tree": Operation("fork + exit, bare", "a bare fork and exit", "fork_rate"),
    "slots": Operation("PGD slot", "a PGD slot filled and cleared", "pgd_sync_rate"),
    "threads": Operation("threads", "threads put on all nodes and off", "fork_rate"),
    "visitor": Operation("visit", "a visit to every node", "visitor"),
}
# Below this an operation costs nothing that a clock could show.
FREE_NS = 0.05
_KIND = ("operation", "replication", "machine", "nodes")


def costs(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return what replication adds to one operation, on CPUs of other nodes than the kernel's.

    Returns
    -------
    DataFrame
        `operation`, a key of `OPERATIONS` or what the spec calls it; `replication`; `machine` and
        its `nodes`; `ns` and `instructions` each operation costs more than without replicas, means
        over capture seeds; `bent`, how far the rates between lie off the line, in % of the highest
        rate's cost, and `rates`, how many there are (null where there was no need of rates).
        Empty without two rates of one operation.
    """
    found = remote_pairs(cases).filter(pl.col("layout") != "permuted")
    found = found.with_columns(nodes=pl.col("table_pages_per_node").list.len().cast(pl.Int64))
    means = pl.concat([_by_rate(found), _by_waiving(found)])
    order = pl.Enum([*OPERATIONS, *sorted(set(means["operation"]) - set(OPERATIONS))])
    return means.sort(
        pl.col("operation").cast(order),
        pl.col("replication") != POLICY,
        "replication",
        "nodes",
        "machine",
    )


def _by_rate(found: pl.DataFrame) -> pl.DataFrame:
    disturbed = found.filter(pl.col("operation").is_not_null())
    per_run = study_over(disturbed, (RATE,), by=_KIND, least=2).with_columns(
        done=pl.col(RATE) * pl.col("iterations"),
        extra_ns=pl.col("time_ns") - pl.col("old_time_ns"),
        extra=(pl.col("instructions") - pl.col("old_instructions")).cast(pl.Float64),
    )
    # A seed counts where it has several rates, or it has no slope.
    by_seed = (
        per_run.group_by(*_KIND, "seed")
        .agg(ns=_slope("extra_ns"), instructions=_slope("extra"), bent=_bent(), rates=_rates())
        .filter(pl.col("rates") > 1)
    )
    return by_seed.group_by(_KIND).agg(
        pl.mean("ns", "instructions"), pl.max("bent"), pl.min("rates")
    )


def _by_waiving(found: pl.DataFrame) -> pl.DataFrame:
    """Return the cost of a fork and exit in the captured loop: charged less waived."""
    loops = found.filter(
        pl.col("workload") == FORK_LOOP, pl.col("cache_state") == "hot", pl.col("iterations") > 0
    ).with_columns(operation=pl.lit(FORK_LOOP))
    studies = study_over(loops, ("replication.costs",), by=_KIND, least=2)
    charged = pl.col("replication.costs") == "charged"

    def more(name: str) -> pl.Expr:
        value = pl.col(name).cast(pl.Float64) / pl.col("iterations")
        return value.filter(charged).mean() - value.filter(~charged).mean()

    by_seed = studies.group_by(*_KIND, "seed")
    differences = by_seed.agg(ns=more("time_ns"), instructions=more("instructions")).drop_nulls()
    return differences.group_by(_KIND).agg(
        pl.mean("ns", "instructions"),
        bent=pl.lit(None, pl.Float64),
        rates=pl.lit(None, pl.UInt32),
    )


def _rates() -> pl.Expr:
    return pl.col(RATE).n_unique()


def _slope(name: str) -> pl.Expr:
    low, high = (pl.col(name).sort_by("done").get(at) for at in (0, -1))
    return (high - low) / (pl.max("done") - pl.min("done"))


def _bent() -> pl.Expr:
    """Return the largest distance of a rate from the line through the ends, in % of the top."""
    first, last = (pl.col("extra_ns").sort_by("done").get(at) for at in (0, -1))
    line = first + _slope("extra_ns") * (pl.col("done") - pl.min("done"))
    off = (pl.col("extra_ns") - line).abs().max()
    return pl.when(last.abs() > 0).then(off / last.abs() * 100).otherwise(0.0)


def short() -> pl.Expr:
    """Name operations as tables and figures do."""
    names = {name: known.short for name, known in OPERATIONS.items()}
    return pl.col("operation").replace(names)


def long(operation: str) -> str:
    """Name an operation as a sentence does."""
    known = OPERATIONS.get(operation)
    return known.long if known else operation
