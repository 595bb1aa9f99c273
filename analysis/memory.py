"""Question 7: what copies cost in memory, a node, a process, for modules, against what they gain.

Bytes are the model's exact account at a window's end. Every process has a pointer for each node the
kernel is built for, so pointers tell how many processes there were.

>>> front(pl.DataFrame({"bytes": [1, 2, 2], "a": [3.0, 3.0, 4.0]}), ["bytes"], ["a"]).to_list()
[True, False, True]
"""

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from analysis.cases import study_over
from analysis.pairs import same_seeds, undisturbed
from analysis.reference import POLICY, reference
from analysis.section import Column, Evidence, Figure, Section, Table, listed, percent
from analysis.style import MARGIN, TIP, Drawing, Glyph, Width, in_rows, key, light, stacked
from numarep.units import ENTRY_BYTES

COMMANDS = (
    "python -m numarep.sweep study=alternatives out={out}",
    "python -m numarep.sweep study=memory_cost out={out}",
)
BUILT_FOR = "kernel.max_numnodes"
_CELL = ("workload", "cache_state")
_KIND = ("machine", "nodes", "replication", BUILT_FOR)
# Mechanisms of the account by what they grow with.
_BY_NODE = ("static", "tables")
_BY_MODULE = ("modules", "area_tables")
_BY_PROCESS = ("processes", "private", "user_tables", "pointers")


def memory(cases: pl.LazyFrame, account: pl.LazyFrame) -> pl.DataFrame:
    """Return the memory of every policy, machine and MAX_NUMNODES.

    Parameters
    ----------
    cases : LazyFrame
        Of `analysis.cases`.
    account : LazyFrame
        Schema `numarep.results.MEMORY`.

    Returns
    -------
    DataFrame
        `machine`, `nodes`, `replication`, `kernel.max_numnodes`; `node_mib`, what a further node
        needs for text, rodata and tables; `modules_kib`, the same for all modules of the captured
        kernel; `process_kib`, a process, pointers and all (null where there are no pointers to
        tell their number); `padding_mib`, of alignment, once; `total_mib`, of all nodes and
        processes. Of the workload that has most of them.
    """
    runs = _runs(cases)
    sizes = _sizes(account, runs)
    if sizes.is_empty():
        return pl.DataFrame()
    further = pl.col("nodes") - 1

    def sum_of(names: Sequence[str]) -> pl.Expr:
        return pl.sum_horizontal(names)

    pointers = pl.col("pointers")
    processes = pointers / (ENTRY_BYTES * pl.col(BUILT_FOR))
    every = [name for name in sizes.columns if name not in (*_KIND, "run_id")]
    return (
        sizes.select(
            *_KIND,
            node_mib=sum_of(_BY_NODE) / further / 2**20,
            modules_kib=sum_of(_BY_MODULE) / further / 1024,
            process_kib=pl.when(pointers > 0).then(sum_of(_BY_PROCESS) / processes / 1024),
            padding_mib=sum_of(("padding",)) / 2**20,
            total_mib=sum_of(every) / 2**20,
        )
        .group_by(_KIND)
        .agg(pl.all().mean())
        .sort("nodes", "machine", BUILT_FOR, "node_mib", "process_kib", "replication")
    )


def _runs(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the replicated runs of one workload, each policy's own settings only."""
    nodes = pl.col("table_pages_per_node").list.len().cast(pl.Int64)
    studies = study_over(undisturbed(cases), (), by=("machine", "replication", BUILT_FOR))
    together = studies.with_columns(nodes=nodes).drop_nulls("nodes")
    kinds = together.group_by("workload").agg(pl.struct(_KIND).n_unique().alias("kinds"))
    most = kinds.sort("kinds", "workload", descending=[True, False]).head(1)
    return together.join(most, on="workload", how="semi").select("run_id", *_KIND)


def _sizes(account: pl.LazyFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """Return bytes by mechanism, a row a run and a column a mechanism; 0 where it has none."""
    there = account.join(runs.select("run_id").lazy(), on="run_id", how="semi").collect()
    if there.is_empty():
        return pl.DataFrame()
    wide = there.group_by("run_id", "mechanism").agg(pl.sum("bytes"))
    wide = wide.sort("mechanism").pivot("mechanism", index="run_id", values="bytes")
    known = (*_BY_NODE, *_BY_MODULE, *_BY_PROCESS, "padding")
    lacking = [pl.lit(0).alias(name) for name in known if name not in wide.columns]
    table = runs.join(wide, on="run_id", how="left").with_columns(lacking)
    return table.with_columns(pl.exclude("run_id", *_KIND).fill_null(0))


def policies(cases: pl.LazyFrame, account: pl.LazyFrame) -> pl.DataFrame:
    """Return memory against gain on the main study's machine, a row a policy, least memory first.

    Returns
    -------
    DataFrame
        `replication`; `node_mib`, `modules_kib`, `process_kib` as in `memory`; `cold` and `worst`,
        the mean gain of the cold cells and the smallest of all, in %, over the cells that all
        policies have; `front`, whether no other takes as little a node and a process and
        gains as much in both.
    """
    chosen = reference(cases)
    table = memory(cases, account)
    if chosen.is_empty() or table.is_empty():
        return pl.DataFrame()
    machine = chosen["machine"][0]
    gains = _gains(cases, machine)
    own = table.filter(pl.col("machine").eq_missing(machine))
    usual = own.select(pl.col(BUILT_FOR).mode().min()).item()
    own = own.filter(pl.col(BUILT_FOR).eq_missing(usual))
    both = own.select("replication", "node_mib", "modules_kib", "process_kib").join(
        gains, on="replication"
    )
    spent = both.with_columns(pl.col("process_kib").fill_null(0.0))
    best = front(spent, ["node_mib", "process_kib"], ["cold", "worst"])
    return both.with_columns(front=best).sort(
        "node_mib", "modules_kib", "process_kib", "replication"
    )


def _gains(cases: pl.LazyFrame, machine: str) -> pl.DataFrame:
    found = undisturbed(cases, pl.col("machine").eq_missing(machine))
    studies = same_seeds(study_over(found, (), by=("replication",)))
    cells = studies.group_by("replication", *_CELL).agg(pl.mean("a"))
    everywhere = pl.col("replication").n_unique().over(_CELL) == cells["replication"].n_unique()
    return (
        cells.filter(everywhere)
        .group_by("replication")
        .agg(cold=pl.col("a").filter(cache_state="cold").mean(), worst=pl.min("a"))
        .drop_nulls("cold")
    )


def front(table: pl.DataFrame, less: Sequence[str], more: Sequence[str]) -> pl.Series:
    """Say of every row whether no other is as good in everything and better in something."""
    columns = [*(-pl.col(name) for name in less), *map(pl.col, more)]
    good = table.select(column.cast(pl.Float64).round(3) for column in columns).rows()
    beaten = [
        any(other != row and all(x >= y for x, y in zip(other, row, strict=True)) for other in good)
        for row in good
    ]
    return pl.Series("front", [not is_beaten for is_beaten in beaten])


def section(evidence: Evidence) -> Section:
    """Answer question 7."""
    title = "Memory against gain"
    table = memory(evidence.cases, evidence.memory)
    if table.is_empty():
        lacks = "no account of memory of a replicated run"
        return Section(7, "memory", title, missing=lacks, commands=COMMANDS)
    against = policies(evidence.cases, evidence.memory)
    several = against.height > 1
    missing = [] if several else ["one policy only: nothing to weigh against it"]
    commands = [] if several else [COMMANDS[0]]
    if table[BUILT_FOR].n_unique() == 1:
        missing.append("one MAX_NUMNODES only")
        commands.append(COMMANDS[1])
    figures = (Figure("memory", _caption(against), lambda width: _draw(against, width)),)
    return Section(
        7,
        "memory",
        title,
        answer=_answer(table, against),
        figures=figures if several else (),
        tables=(
            *([Table("memory_gain", _GAIN_CAPTION, against, _GAIN_COLUMNS)] if several else []),
            Table("memory", _TABLE_CAPTION, table, _COLUMNS),
        ),
        how=_HOW,
        missing="; ".join(missing),
        commands=tuple(commands),
    )


_MEMORY = {
    "node_mib": Column("a further node, MiB", 2),
    "modules_kib": Column("modules, a further node, KiB", 0),
    "process_kib": Column("a process, KiB", 2),
}
_GAIN_COLUMNS = {
    "replication": Column("policy"),
    **_MEMORY,
    "cold": Column("cold, mean A, %", 1),
    "worst": Column("worst A, %", 1),
    "front": Column("best of its size"),
}
_GAIN_CAPTION = "Memory of each policy against what it gains, on the main study's machine"
_COLUMNS = {
    "replication": Column("policy"),
    "nodes": Column("nodes", 0),
    BUILT_FOR: Column("MAX_NUMNODES", 0),
    **_MEMORY,
    "padding_mib": Column("padding, once, MiB", 2),
    "total_mib": Column("all, at the end, MiB", 1),
    "machine": Column("machine"),
}
_TABLE_CAPTION = "Memory by policy, number of nodes, and nodes the kernel is built for"
_HOW = (
    "The account of the replicated kernel at the window's end, exact in bytes. A further node: "
    "copies of text and rodata in whole 2 MiB leaves, and of the kernel's page tables. A process: "
    "further page-table roots, tables of its own, and 8 bytes a possible node (MAX_NUMNODES). "
    "Padding aligns text and rodata to 2 MiB, with replicas or without. Gains as in question 1."
)


def _answer(table: pl.DataFrame, against: pl.DataFrame) -> str:
    own = table.filter(replication=POLICY)
    rows = (table if own.is_empty() else own).sort("nodes", BUILT_FOR)
    first = rows.row(0, named=True)
    text = (
        f"Every further node takes {first['node_mib']:.1f} MiB for text, rodata and tables and "
        f"{first['modules_kib']:.0f} KiB for modules"
    )
    sizes = rows.filter(pl.col("process_kib").is_not_null())
    if sizes.height:
        few, many = sizes.row(0, named=True), sizes.row(-1, named=True)
        text += f", every process {few['process_kib']:.1f} KiB with {few['nodes']} nodes"
        if many != few:
            text += (
                f" ({many['process_kib']:.0f} KiB with {many['nodes']} and MAX_NUMNODES "
                f"{many[BUILT_FOR]})"
            )
    if against.height < 2:
        return f"{text}."
    order = {"cold": True, "process_kib": False, "replication": False}
    ranked = against.filter("front").sort(*order, descending=list(order.values()))
    best = ranked.row(0, named=True)
    alike = [(pl.col(name) - best[name]).abs() < 0.05 for name in ("cold", "worst")]
    names = ranked.filter(alike)["replication"].to_list()
    text += (
        f"; of all policies {listed(names)} gain{'s' * (len(names) == 1)} most, "
        f"{percent(best['cold'])} over the cold workloads and {percent(best['worst'])} at worst"
    )
    series = against.filter(replication=POLICY)
    if POLICY not in names and series.height:
        theirs = series.row(0, named=True)
        text += f" ({POLICY}: {percent(theirs['cold'])} and {percent(theirs['worst'])})"
    return f"{text}."


def _caption(against: pl.DataFrame) -> str:
    if against.is_empty():
        return ""
    names = against.filter("front")["replication"].to_list()
    return (
        "Policies by memory and gain. Filled: no other needs as little and gains as much "
        f"({listed(names)})."
    )


_LABELS = 84
_PANELS = {
    "node_mib": "MiB a further node",
    "process_kib": "KiB a process",
    "cold": "cold, mean gain, %",
    "worst": "worst gain, %",
}


def _draw(against: pl.DataFrame, width: Width) -> Drawing:
    columns = 4 if width is Width.WIDE else 2
    plot = (width - _LABELS - MARGIN - 16 * (columns - 1)) // columns
    shown = against.with_columns(_tip())
    panels = [
        _panel(shown, name, title, plot, named=not number % columns)
        for number, (name, title) in enumerate(_PANELS.items())
    ]
    glyphs = [
        Glyph("best of its size", "circle", "series"),
        Glyph("another does as well with less", "circle", "series", hollow=True),
    ]
    return stacked(key(glyphs, width, _LABELS), *in_rows(panels, columns, 16))


def _tip() -> pl.Expr:
    return pl.format(
        "{}: {} MiB a further node, {} KiB a process; cold {} %, worst {} %",
        "replication",
        pl.col("node_mib").round(2),
        pl.col("process_kib").round(2).cast(pl.String).fill_null("no"),
        pl.col("cold").round(2),
        pl.col("worst").round(2),
    ).alias("tip")


def _panel(rows: pl.DataFrame, name: str, title: str, plot: int, *, named: bool) -> Any:
    axis = alt.Axis(minExtent=_LABELS) if named else alt.Axis(labels=False)
    order = rows["replication"].to_list()
    # A policy without processes to count still has its row.
    scale = alt.Scale(domain=order)
    y = alt.Y("replication:N", sort=order, scale=scale, title=None, axis=axis)
    x = alt.X(f"{name}:Q", title=title, axis=alt.Axis(tickCount=3), scale=alt.Scale(zero=True))
    base = alt.Chart(rows.drop_nulls(name).with_columns(zero=0.0)).encode(y=y)
    stems = base.mark_rule(strokeWidth=2, color=light("band"), aria=False)
    fill = alt.condition(alt.datum.front, alt.value(light("series")), alt.value(light("paper")))
    dots = base.mark_point(size=56, opacity=1, stroke=light("series"))
    return alt.layer(
        stems.encode(x=alt.X("zero:Q"), x2=f"{name}:Q"),
        dots.encode(x=x, fill=fill, description=TIP),
        width=plot,
        height=19 * rows.height,
    )
