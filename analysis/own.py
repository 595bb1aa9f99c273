"""Question 11: the reader's own machine, kernel or program, where the results contain them.

A run is one's own if its machine, its kernel's dataset or its workload is not the published
study's.
"""

import polars as pl

from analysis.assumed import options
from analysis.cases import SCENARIO, study_over
from analysis.pairs import undisturbed
from analysis.section import Column, Evidence, Section, Table, listed, percent
from analysis.seed_table import published

PUBLISHED_MACHINE = "e5_2690_v3"
BUNDLED = "debian-6.1"
COMMANDS = (
    "python -m numarep.capture --out CAPTURE",
    "python -m numarep.sweep kernel.dataset=CAPTURE out={out}",
    "python -m numarep.sweep machine.name=MINE "
    "machine.latency.dram_ns='[[LOCAL,REMOTE],[REMOTE,LOCAL]]' out={out}",
)
_GROUP = (*SCENARIO, "kernel.dataset", "workload", "cache_state")


def own(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the gains of runs beside the published study's, one row a scenario and workload.

    Returns
    -------
    DataFrame
        Names of the scenario, `kernel.dataset`, `workload`, `cache_state`; `a`, `b`, their means
        over seeds, in %; `lower` and `upper`, the bounds of A; `rho`, the mean ratio of the
        kernel's node's DRAM latency to the CPU's own; `time_us`, of the replicated run; `runs`.
    """
    is_own = pl.col("machine") != PUBLISHED_MACHINE
    is_own |= ~pl.col("workload").is_in(published()["workload"].unique().to_list())
    is_own |= pl.col("kernel.dataset") != BUNDLED
    # Of each, the largest study: whatever it sweeps beside must not be averaged over.
    # Disturbed windows are question 8's.
    studies = study_over(
        undisturbed(cases, is_own), (), by=("machine", "kernel", "replication", "workload")
    )
    return (
        studies.group_by(_GROUP)
        .agg(
            pl.mean("a"),
            pl.mean("b"),
            pl.mean("lower"),
            pl.mean("upper"),
            pl.mean("rho"),
            time_us=pl.mean("time_ns") / 1000,
            runs=pl.len(),
        )
        .sort(_GROUP, descending=[name == "cache_state" for name in _GROUP])  # hot first
    )


def section(evidence: Evidence) -> Section:
    """Answer question 11."""
    title = "Your machine, kernel and program"
    table = own(evidence.cases)
    if table.is_empty():
        lacks = "no machine, kernel or workload beside the published study's"
        return Section(11, "own", title, missing=lacks, commands=COMMANDS)
    bundled = table.filter(
        pl.col("machine").is_in(options("machine")),
        pl.col("workload").is_in(options("workload")),
        pl.col("kernel.dataset") == BUNDLED,
    )
    all_bundled = bundled.height == table.height
    best, worst = (table.sort("a", descending=d).row(0, named=True) for d in (True, False))
    answer = (
        f"On {listed(sorted(set(table['machine'])))}, beside the published study, replication "
        f"gains between {percent(worst['a'])} "
        f"({worst['workload']}, {worst['cache_state']}) and {percent(best['a'])} "
        f"({best['workload']}, {best['cache_state']})."
    )
    caption = "Gains of machines, kernels and workloads beside the published study's"
    return Section(
        11,
        "own",
        title,
        answer=answer,
        tables=(Table("own", caption, table, _COLUMNS),),
        how=_HOW,
        missing="no machine, kernel or program but those that come with numarep" * all_bundled,
        commands=COMMANDS if all_bundled else (),
    )


_COLUMNS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "machine": Column("machine"),
    "kernel": Column("kernel"),
    "replication": Column("replication"),
    "a": Column("A, %", 1),
    "b": Column("B, %", 1),
    "lower": Column("A, serial or overlapped", 1, to="upper"),
    "rho": Column("\N{GREEK SMALL LETTER RHO}", 2),
    "time_us": Column("time, \N{GREEK SMALL LETTER MU}s", 1),
    "runs": Column("runs", 0),
}
_HOW = (
    "As question 1, for every run whose machine, dataset or workload is not the published study's: "
    "of each machine, kernel and workload the settings with most runs, means over capture seeds. "
    "\N{GREEK SMALL LETTER RHO} is the DRAM latency of the kernel's node over that of the CPU's "
    "own; near 1, the CPU's node lies in the kernel's own socket, as node 1 does of machines with "
    "several nodes a socket."
)
