"""Question 2: where the time goes, by what was accessed and who served it.

A run's time is its base (instructions at `base_ipc` and serialising instructions) and the stalls of
leading misses, as priced. A node other than the CPU's makes an LLC or DRAM remote.

>>> pl.DataFrame({"served_by": ["dram", "llc"], "node": [0, 1], "cpu_node": [1, 1]}).select(
...     server())["server"].to_list()
['remote DRAM', 'own LLC']
"""

from typing import Any

import altair as alt
import polars as pl

from analysis import events
from analysis.reference import MAIN_STUDY, reference
from analysis.section import Column, Evidence, Figure, Section, Table, listed, percent
from analysis.seed_table import with_published
from analysis.style import (
    LINE,
    MARGIN,
    ONE_X,
    SERVERS,
    TIP,
    Drawing,
    Glyph,
    Width,
    beside,
    key,
    light,
    server_scale,
    stacked,
)

SIDES = ("baseline", "series")
# Decimals of sums in ns: their last bits depend on the order of summation, and so would an order
# by their differences.
DECIMALS = 6
_CELL = ("workload", "cache_state")


def server() -> pl.Expr:
    """Name who served a row of counts, as `style.SERVERS` does."""
    served, own = pl.col("served_by"), pl.col("node") == pl.col("cpu_node")
    return (
        pl.when(served == "l1")
        .then(pl.lit("L1"))
        .when(served == "l2")
        .then(pl.lit("L2"))
        .when(served == "llc")
        .then(pl.lit("own LLC"))
        .when(served == "peer")
        .then(pl.lit("other core"))
        .when(served == "remote_llc")
        .then(pl.lit("remote LLC"))
        .when(served.is_in(["remote_dirty", "remote_dirty_away"]))
        .then(pl.lit("remote, changed"))
        .when(own)
        .then(pl.lit("own DRAM"))
        .otherwise(pl.lit("remote DRAM"))
        .alias("server")
    )


def stalls(cases: pl.LazyFrame, counts: pl.LazyFrame) -> pl.DataFrame:
    """Return where the time of baseline and series goes, means over capture seeds.

    Returns
    -------
    DataFrame
        A row for each workload, cache state, region (what was accessed) and server (who served;
        `base` is what no access takes): `baseline_ns` and `series_ns`, each per instruction of the
        baseline (`..._per_instruction`), `change`, their difference in % of the baseline's time,
        and `old_time_ns`.
    """
    chosen = reference(cases)
    sides = sides_of(chosen)
    stalled = (
        counts.filter(pl.col("stall_ns") > 0)
        .join(sides.lazy(), on="run_id")
        .group_by(*_CELL, "run_id", "side", "region", server())
        .agg(pl.sum("stall_ns"))
        .collect()
    )
    rows = pl.concat([stalled, _base(sides, stalled).select(stalled.columns)])
    return _compared(rows, chosen)


def sides_of(chosen: pl.DataFrame) -> pl.DataFrame:
    """Return every run of the chosen pairs with the side it is on."""
    new = chosen.select("run_id", "cpu_node", *_CELL, "time_ns", side=pl.lit("series"))
    old = chosen.select(
        pl.col("old_run_id").alias("run_id"),
        "cpu_node",
        *_CELL,
        pl.col("old_time_ns").alias("time_ns"),
        side=pl.lit("baseline"),
    )
    return pl.concat([new, old])


def _base(sides: pl.DataFrame, stalled: pl.DataFrame) -> pl.DataFrame:
    """Return what is left of every run's time: no access takes it."""
    total = stalled.group_by("run_id", "side").agg(pl.sum("stall_ns").alias("all_ns"))
    return sides.join(total, on=["run_id", "side"], how="left").with_columns(
        region=pl.lit("base"),
        server=pl.lit("base"),
        stall_ns=pl.col("time_ns") - pl.col("all_ns").fill_null(0.0),
    )


def _compared(rows: pl.DataFrame, chosen: pl.DataFrame) -> pl.DataFrame:
    """Return means over the pairs of a cell, both sides in one row, in published order."""
    cells = chosen.group_by(_CELL).agg(
        pl.len().alias("pairs"), pl.mean("old_time_ns", "old_instructions")
    )
    sums = rows.group_by(*_CELL, "region", "server").agg(
        pl.col("stall_ns").filter(side=side).sum().alias(f"{side}_ns") for side in SIDES
    )
    both = pl.col("baseline_ns", "series_ns")
    means = sums.join(cells, on=_CELL).with_columns((both / pl.col("pairs")).round(DECIMALS))
    near_to_far = pl.Enum(list(SERVERS))
    compared = means.with_columns(
        (both / pl.col("old_instructions")).name.suffix("_per_instruction"),
        pl.col("server").cast(near_to_far),
        change=(pl.col("series_ns") - pl.col("baseline_ns")) / pl.col("old_time_ns") * 100,
    )
    order = with_published(cells.select(_CELL)).select(_CELL).with_row_index("cell")
    return (
        compared.join(order, on=_CELL)
        .sort("cell", "server", "region")
        .drop("cell", "pairs", "old_instructions")
        .with_columns(pl.col("server").cast(pl.String))
    )


def by_server(table: pl.DataFrame) -> pl.DataFrame:
    """Sum `stalls` over regions: a row for each cell, side and server, as it is drawn.

    Returns
    -------
    DataFrame
        `share`, in % of the baseline's time; `ns`; `ns_per_instruction` of the baseline.
    """
    sides = [
        table.group_by(*_CELL, "server", maintain_order=True)
        .agg(
            ns=pl.sum(f"{side}_ns"),
            ns_per_instruction=pl.sum(f"{side}_ns_per_instruction"),
            share=pl.sum(f"{side}_ns") / pl.first("old_time_ns") * 100,
        )
        .with_columns(side=pl.lit(side))
        for side in SIDES
    ]
    return pl.concat(sides)


def by_region(table: pl.DataFrame) -> pl.DataFrame:
    """Sum the remote part of `stalls` over servers, in % of the baseline's time."""
    remote = table.filter(pl.col("server").str.starts_with("remote"))
    return remote.group_by(*_CELL, "region", maintain_order=True).agg(
        (pl.sum(f"{side}_ns") / pl.first("old_time_ns") * 100).alias(side) for side in SIDES
    )


def section(evidence: Evidence) -> Section:
    """Answer question 2."""
    title = "Where the time goes"
    table = stalls(evidence.cases, evidence.counts)
    if table.is_empty() or table["server"].n_unique() == 1:
        return Section(
            2, "stalls", title, missing="no counts of a replicated run", commands=(MAIN_STUDY,)
        )
    served, accessed = by_server(table), by_region(table)
    figures = [
        Figure("stalls", _caption(served), lambda width: _draw(served, width)),
    ]
    most = _most_remote(accessed)
    if most.height:
        caption = _remote_caption(most)
        figures.append(Figure("remote", caption, lambda width: _draw_remote(most, width)))
    shown = table.sort(pl.col("change").abs(), descending=True)
    return Section(
        2,
        "stalls",
        title,
        answer=_answer(served, accessed),
        figures=tuple(figures),
        tables=(
            Table("stalls", _TABLE_CAPTION, shown, _COLUMNS),
            events.shown(events.events(evidence.cases, evidence.events)),
        ),
        how=_HOW,
    )


_COLUMNS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "region": Column("accessed"),
    "server": Column("served by"),
    "baseline_ns": Column("baseline, ns", 0),
    "series_ns": Column("series, ns", 0),
    "baseline_ns_per_instruction": Column("baseline, ns/instr.", 4),
    "series_ns_per_instruction": Column("series, ns/instr.", 4),
    "change": Column("change, % of time", 2),
}
_TABLE_CAPTION = "Time by what was accessed and who served it, largest change first"
_HOW = (
    "Every leading miss stalls for the published latency of what served it, less that of L1; "
    "misses hidden behind another cost nothing here. base: instructions at the assumed IPC, CR3 "
    "writes, INVLPG and second-level TLB hits. Means over capture seeds, on a CPU of another node "
    "than the kernel's; per instruction of the baseline, on both sides."
)


def _answer(served: pl.DataFrame, accessed: pl.DataFrame) -> str:
    total = served.filter(pl.col("server").str.starts_with("remote"))
    wide = total.group_by(*_CELL, "side").agg(pl.sum("share")).sort("share", descending=True)
    old = wide.filter(side="baseline")
    if old.is_empty() or old["share"][0] < 0.05:
        return "Nothing that replication could bring nearer is far away: no stall is remote."
    first = old.row(0, named=True)
    cell = {name: first[name] for name in _CELL}
    new = sum(wide.filter(side="series", **cell)["share"].to_list())
    hot = max([0.0, *old.filter(cache_state="hot")["share"].to_list()])
    what = accessed.filter(**cell).sort("baseline", descending=True)["region"][0]
    text = (
        f"Remote memory takes up to {percent(first['share'])} of the baseline's time "
        f"({first['workload']}, {first['cache_state']} caches, mostly {what}) and "
        f"{percent(new)} with replicas; "
    )
    if hot < 0.05:
        return text + "with hot caches none, because the CPU's own LLC then holds all it touches."
    return text + f"with hot caches at most {percent(hot)}."


def _caption(served: pl.DataFrame) -> str:
    return (
        "Time of baseline and series by who served, in % of the baseline's time; at the bars' "
        "ends, ns per instruction. Replication turns "
        "orange (remote) into blue (own node) where there is any orange."
        if served["server"].str.contains("remote").any()
        else "Time of baseline and series by who served, in % of the baseline's time."
    )


_LABELS = 92


def _draw(served: pl.DataFrame, width: Width) -> Drawing:
    states = [s for s in ("hot", "cold") if s in served["cache_state"]]
    wide = width is Width.WIDE
    plot = (width - _LABELS - MARGIN - 40) // 2 if wide else width - _LABELS - MARGIN - 10
    names = served["workload"].unique(maintain_order=True).to_list()  # of all panels, or rows shift
    panels = [
        _panel(served.filter(cache_state=state), state, names, plot, named=not wide or not i)
        for i, state in enumerate(states)
    ]
    side = beside(*panels, spacing=36) if wide else stacked(*panels)
    present = [name for name in SERVERS if name in served["server"]]
    glyphs = [Glyph(name, "square", SERVERS[name]) for name in present]
    glyphs += [Glyph("upper bar: baseline", LINE, "baseline")]
    glyphs += [Glyph("lower bar: series; at the ends: ns per instruction", LINE, "series")]
    return stacked(key(glyphs, width, _LABELS), side)


def _panel(rows: pl.DataFrame, state: str, names: list[str], plot: int, *, named: bool) -> Any:
    present = [name for name in SERVERS if name in rows["server"]]
    shown = rows.with_columns(_tip(), rank=pl.col("server").cast(pl.Enum(present)).to_physical())
    axis = alt.Axis(minExtent=_LABELS) if named else alt.Axis(labels=False)
    y = alt.Y("workload:N", scale=alt.Scale(domain=names), title=None, axis=axis)
    offset = alt.YOffset("side:N", sort=list(SIDES))
    bars = (
        alt.Chart(shown)
        .mark_bar(size=12)
        .encode(
            y=y,
            yOffset=offset,
            x=alt.X("share:Q", title="time, % of the baseline's", axis=alt.Axis(tickCount=5)),
            color=alt.Color("server:N", scale=server_scale(present), legend=None),
            order="rank:O",
            description=TIP,
        )
    )
    ends = rows.group_by("workload", "side").agg(pl.sum("share", "ns_per_instruction"))
    ends = ends.sort("workload", "side")
    text = alt.Text("ns_per_instruction:Q", format=".2f")
    labels = (
        alt.Chart(ends)
        .mark_text(align="left", dx=4, fontSize=10, aria=False)
        .encode(
            y=y,
            yOffset=offset,
            x=alt.X("share:Q"),
            text=text,
            color=alt.Color(
                "side:N",
                scale=alt.Scale(domain=list(SIDES), range=[light(s) for s in SIDES]),
                legend=None,
            ),
        )
    )
    both = alt.layer(bars, labels).resolve_scale(color="independent")
    return both.properties(width=plot, height=38 * len(names), title=f"{state} caches")


def _tip() -> pl.Expr:
    return pl.format(
        "{} {}, {}: {} {} ns, {} ns per instruction, {} % of the baseline's time",
        *("workload", "cache_state", "side", "server"),
        pl.col("ns").round(0),
        pl.col("ns_per_instruction").round(4),
        pl.col("share").round(2),
    ).alias("tip")


def _most_remote(accessed: pl.DataFrame, panels: int = 3) -> pl.DataFrame:
    """Keep the cells with most remote stall to lose, and what matters in them."""
    lost = accessed.group_by(_CELL).agg(lost=(pl.col("baseline") - pl.col("series")).sum())
    cells = lost.filter(pl.col("lost") > 1).sort("lost", *_CELL, descending=True).head(panels)
    matters = pl.max_horizontal("baseline", "series") > 0.2
    return accessed.filter(matters).join(cells, on=_CELL, maintain_order="left")


def _remote_caption(most: pl.DataFrame) -> str:
    left = most.group_by("region").agg(pl.mean("series")).sort("series", descending=True)
    rest = left.filter(pl.col("series") > 1)["region"].to_list()
    return (
        "Remote stall by what was accessed, before and after, where most goes away. What stays "
        f"remote: {listed(rest[:4])}."
    )


def _draw_remote(most: pl.DataFrame, width: Width) -> Drawing:
    cells = most.select("lost", *_CELL).unique().sort("lost", *_CELL, descending=True)
    wide = width is Width.WIDE
    columns = cells.height if wide else 1
    plot = (width - _LABELS - MARGIN - 16 * (columns - 1)) // columns
    regions = most.group_by("region").agg(pl.sum("baseline"))
    regions = regions.sort("baseline", "region", descending=[True, False])
    panels = [
        _dumbbells(
            most.join(cell, on=_CELL, how="semi"),
            regions["region"].to_list(),
            plot,
            named=not wide or not i,
        )
        for i, cell in enumerate(cells.iter_slices(1))
    ]
    both = beside(*panels, spacing=16, **ONE_X) if wide else stacked(*panels, **ONE_X)
    glyphs = [Glyph(side, "circle", side) for side in SIDES]
    return stacked(key(glyphs, width, _LABELS), both)


def _dumbbells(rows: pl.DataFrame, regions: list[str], plot: int, *, named: bool) -> Any:
    tip = pl.format(
        "{}: baseline {} %, series {} % of the baseline's time",
        "region",
        pl.col("baseline").round(2),
        pl.col("series").round(2),
    )
    axis = alt.Axis(minExtent=_LABELS) if named else alt.Axis(labels=False)
    scale = alt.Scale(domain=regions)
    base = alt.Chart(rows.with_columns(tip.alias("tip"))).encode(
        y=alt.Y("region:N", sort=regions, scale=scale, title=None, axis=axis),
        description=TIP,
    )

    def x(name: str) -> alt.X:
        axis = alt.Axis(tickCount=5)
        return alt.X(f"{name}:Q", title="% of the baseline's time", axis=axis)

    def dot(side: str) -> Any:
        # What stays as it is shows as a ring around a dot.
        size = 120 if side == SIDES[0] else 48
        mark = base.mark_point(filled=True, size=size, opacity=1, color=light(side))
        return mark.encode(x=x(side))

    line = base.mark_rule(strokeWidth=2, color=light("band"))
    layers = (line.encode(x=x("baseline"), x2=alt.X2("series:Q")), *map(dot, SIDES))
    title = f"{rows['workload'][0]}, {rows['cache_state'][0]} caches"
    return alt.layer(*layers, width=plot, height=22 * len(regions), title=title)
