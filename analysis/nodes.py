"""Question 6: gain, cost and traffic from 2 to 8 nodes.

With more nodes a CPU is more often far from the kernel, and every process pays for more tables.
Where one machine was run with several numbers of its nodes (`machine.populated`), the answer is of
that; else of presets, which differ in clock, LLC and distances beside their number of nodes.

>>> table = pl.DataFrame({"workload": "kill", "cache_state": "cold", "replication": "series",
...                       "nodes": [2, 8], "a": [25.0, 20.0]})
>>> _beside(table)[0].row(0)
('kill', 'cold', 'series', 25.0, 20.0)
"""

from typing import Any

import altair as alt
import polars as pl

from analysis import links
from analysis.cases import study_over
from analysis.pairs import undisturbed
from analysis.reference import POLICY
from analysis.section import Column, Evidence, Figure, Section, Table, percent
from analysis.seed_table import with_published
from analysis.style import MARGIN, TIP, Drawing, Glyph, Width, in_rows, key, light, stacked

_POPULATED = "machine.populated"
COMMAND = "python -m numarep.sweep study=node_scaling out={out}"
_CELL = ("workload", "cache_state")
_PLACE = ("machine", "nodes", *_CELL, "replication")


def nodes(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return gain and cost by machine, workload, cache state and policy, few nodes first.

    Returns
    -------
    DataFrame
        `nodes`; `rho`, as the CPU sees the kernel's node; `a`, the gain in %, mean over capture
        seeds; `cost`, what of it keeping the copies takes off, in points (null if never waived);
        `tables_kib`, `replicas_mib`, of all nodes together. Empty without machines of different
        numbers of nodes.
    """
    chosen = _chosen(cases)
    if chosen.is_empty():
        return pl.DataFrame()
    charged = pl.col("replication.costs") == "charged"
    seeds = chosen.group_by(*_PLACE, "seed").agg(
        pl.first("rho"),
        a=pl.col("a").filter(charged).mean(),
        cost=pl.col("a").filter(~charged).mean() - pl.col("a").filter(charged).mean(),
        tables_kib=pl.first("table_pages_per_node").list.sum() * 4,
        replicas_mib=pl.first("replica_bytes_per_node").list.sum() / 2**20,
    )
    means = seeds.group_by(_PLACE).agg(pl.mean("rho", "a", "cost", "tables_kib", "replicas_mib"))
    several = pl.col("nodes").n_unique().over(*_CELL, "replication") > 1
    means = means.drop_nulls("a").filter(several)
    return with_published(means, "nodes", "machine").drop("published")


def traffic(cases: pl.LazyFrame, counts: pl.LazyFrame) -> pl.DataFrame:
    """Return what one CPU fetches from every node (`links.traffic`), of machines as in `nodes`."""
    return links.traffic(_chosen(cases), counts)


def _chosen(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the pairs of each machine's largest study, of cells with several numbers of nodes."""
    sized = undisturbed(cases).with_columns(nodes=pl.col("table_pages_per_node").list.len())
    kinds = ("machine", "nodes", *(name for name in (_POPULATED,) if name in sized.columns))
    together = study_over(sized, ("replication.costs",), by=(*kinds, "replication"))
    # Two machines of as many nodes are two questions: of each number, the one that was run with
    # most numbers of nodes, then with most runs.
    sizes = pl.col("nodes").n_unique().over("machine").alias("sizes")
    ranked = together.with_columns(sizes).group_by(*kinds, "sizes").agg(runs=pl.len())
    ranked = ranked.sort(-pl.col("sizes").cast(pl.Int64), -pl.col("runs").cast(pl.Int64), *kinds)
    if ranked.height and ranked["sizes"][0] > 1:
        ranked = ranked.filter(pl.col("machine") == pl.first("machine"))
    first = ranked.unique("nodes", keep="first", maintain_order=True)
    one = together.join(first, on=kinds, how="semi", nulls_equal=True, maintain_order="left")
    several = pl.col("nodes").n_unique().over(*_CELL, "replication") > 1
    found = one.filter(several)
    # Where a study waived costs, that is this question's; others only share its machines.
    waived = found.filter(pl.col("replication.costs") == "waived")
    return found.join(waived, on=_CELL, how="semi") if waived.height else found


def section(evidence: Evidence) -> Section:
    """Answer question 6."""
    title = "From 2 to 8 nodes"
    table = nodes(evidence.cases)
    if table.is_empty():
        lacks = "no machines of different numbers of nodes"
        return Section(6, "nodes", title, missing=lacks, commands=(COMMAND,))
    moved = traffic(evidence.cases, evidence.counts)
    figures = [Figure("nodes", _caption(table), lambda width: _draw(table, width))]
    beside, columns = _beside(table)
    tables = [
        Table("gain_by_nodes", _BESIDE_CAPTION, beside, columns, tuple(columns)),
        Table("nodes", _TABLE_CAPTION, table, _COLUMNS),
    ]
    figures += links.shown(moved)[0]
    tables += links.shown(moved)[1]
    return Section(
        6,
        "nodes",
        title,
        answer=_answer(table, moved),
        figures=tuple(figures),
        tables=tuple(tables),
        how=_how(table),
        missing="" if table["cost"].is_not_null().any() else "no run with its costs waived",
        commands=() if table["cost"].is_not_null().any() else (COMMAND,),
    )


def _beside(table: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Column]]:
    """Put gains by number of nodes in a row, as a mail has room for."""
    names = (*_CELL, "replication")
    wide = table.pivot("nodes", index=names, values="a")
    numbers = [name for name in wide.columns if name not in names]
    shown = {name: _COLUMNS[name] for name in names}
    return wide, shown | {name: Column(f"A, {name} nodes", 1) for name in numbers}


_BESIDE_CAPTION = "Gain A in % by number of nodes"
_COLUMNS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "replication": Column("replication"),
    "nodes": Column("nodes", 0),
    "a": Column("A, %", 1),
    "cost": Column("cost, points", 1),
    "rho": Column("\N{GREEK SMALL LETTER RHO}", 2),
    "replicas_mib": Column("text and rodata copies, MiB", 0),
    "tables_kib": Column("table copies, KiB", 0),
    "machine": Column("machine"),
}
_TABLE_CAPTION = "Gain, what of it keeping copies takes off, and static memory of all nodes"
_HOW = (
    "Gains as in question 1, the CPU on node 1. cost: the gain with costs waived less the gain "
    "with costs charged. Traffic: every line that comes from beyond L2, 64 bytes each, page walks "
    "among them, over instructions and over the run's own time; write-backs and the messages of "
    "coherence are not counted. One CPU runs at a time: n CPUs ask n times as much, until a link "
    "or a memory controller is full, which the model doesn't know. "
)


def _how(table: pl.DataFrame) -> str:
    machines = sorted(set(table["machine"]))
    if len(machines) > 1:
        return f"{_HOW}The machines differ in clock, LLC and distances, too."
    return f"{_HOW}All are {machines[0]} with its first nodes only, so the number alone differs."


def _answer(table: pl.DataFrame, moved: pl.DataFrame) -> str:
    own = table.filter(replication=POLICY)
    rows = table if own.is_empty() else own
    ends = rows.group_by("replication", *_CELL, maintain_order=True).agg(
        low=pl.col("nodes").min(),
        high=pl.col("nodes").max(),
        first=pl.col("a").sort_by("nodes").first(),
        last=pl.col("a").sort_by("nodes").last(),
    )
    best = ends.sort("first", *_CELL, descending=[True, False, False]).row(0, named=True)
    worst = ends.sort(pl.col("last") - pl.col("first"), *_CELL).row(0, named=True)
    text = (
        f"From {best['low']} to {best['high']} nodes the gain on {best['workload']} "
        f"({best['cache_state']}) {_change(best)}"
    )
    if worst["last"] >= worst["first"]:
        return f"{text}.{links.answer(moved)}"
    text += (
        f"; every node costs a fork more, so {worst['workload']} ({worst['cache_state']}) "
        f"{_change(worst)}"
    )
    lazy = table.filter(
        replication="lazy", workload=worst["workload"], cache_state=worst["cache_state"]
    )
    if lazy.height:
        last = lazy.sort("nodes")["a"][-1]
        text += f", with page-table roots made only where a process runs {percent(last)}"
    return f"{text}.{links.answer(moved)}"


def _change(ends: dict[str, Any]) -> str:
    """Say how a gain changes from the fewest nodes to the most."""
    first, last = percent(ends["first"]), percent(ends["last"])
    return f"stays at {last}" if first == last else f"goes from {first} to {last}"


def _caption(table: pl.DataFrame) -> str:
    cells = table.filter(replication=POLICY)
    flat = cells.filter(pl.col("cost").abs() < 0.5).height
    return (
        "Gain by number of nodes, eager page-table roots (as the series) beside lazy ones. Where "
        "nothing forks the number of nodes costs nothing."
        if flat
        else "Gain by number of nodes."
    )


_LABELS = 34


def _draw(table: pl.DataFrame, width: Width) -> Drawing:
    columns = 4 if width is Width.WIDE else 2
    others = sorted(set(table["replication"]) - {POLICY}, key=lambda name: (name != "lazy", name))
    policies = [POLICY, *others][:2]
    rows = table.filter(pl.col("replication").is_in(policies))
    ends = sorted([0.0, *rows["a"]])
    domain = [ends[0] - 9, ends[-1] + 9]  # labels below, titles above
    cells = rows.select(_CELL).unique(maintain_order=True).rows()
    plot = (width - _LABELS - MARGIN - 14 * (columns - 1)) // columns
    panels = [
        _panel(
            rows.filter(workload=workload, cache_state=state),
            f"{workload}, {state}",
            policies,
            domain,
            plot,
            first=not number % columns,
        )
        for number, (workload, state) in enumerate(cells)
    ]
    glyphs = [
        Glyph(policy, "circle", "series", hollow=policy != POLICY)
        for policy in policies
        if policy in rows["replication"]
    ]
    rows_of_panels = in_rows(panels, columns, 14)
    return stacked(key(glyphs, width, _LABELS), *rows_of_panels, spacing=12)


def _panel(
    rows: pl.DataFrame,
    title: str,
    policies: list[str],
    domain: list[float],
    plot: int,
    *,
    first: bool,
) -> Any:
    tip = pl.format(
        "{} {}, {}, {} nodes ({}): gain A {} %",
        *_CELL,
        "replication",
        "nodes",
        "machine",
        pl.col("a").round(2),
    )
    shown = rows.with_columns(tip.alias("tip"))
    x = alt.X(
        "nodes:O",
        title="nodes",
        axis=alt.Axis(labelAngle=0, grid=False),
        scale=alt.Scale(padding=0.5),
    )
    y = alt.Y(
        "a:Q",
        title="gain A, %" if first else None,
        scale=alt.Scale(domain=domain, nice=False),
        axis=alt.Axis(labels=first, grid=True, tickCount=5, minExtent=_LABELS - 14 if first else 0),
    )
    base = alt.Chart(shown).encode(x=x, y=y)
    zero = alt.Chart(pl.DataFrame({"a": [0.0]})).mark_rule(color=light("zero"), aria=False)
    layers = [zero.encode(y=y)]
    for policy in policies:
        some = base.transform_filter(alt.datum.replication == policy)
        dash = [1, 0] if policy == POLICY else [4, 3]
        fill = light("series") if policy == POLICY else light("paper")
        layers.append(some.mark_line(color=light("series"), strokeDash=dash, aria=False))
        points = some.mark_point(fill=fill, stroke=light("series"), size=46, opacity=1)
        layers.append(points.encode(description=TIP))
    ends = shown.filter(replication=policies[0]).sort("nodes")
    numbers = pl.concat([ends.head(1), ends.tail(1)])
    texts = alt.Chart(numbers).mark_text(dy=12, fontSize=10, aria=False)
    layers.append(texts.encode(x=x, y=y, text=alt.Text("a:Q", format=".1f")))
    heading = alt.Title(title, fontSize=12, offset=2)
    return alt.layer(*layers, width=plot, height=120, title=heading)
