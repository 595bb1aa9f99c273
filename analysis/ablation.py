"""Question 4: what each part of the series gains, what they gain together, and alignment alone.

Text and rodata need per-node tables, so a part's gain is what it adds to tables alone; the
interaction is what both add together beyond the sum. Gains are A, in %, of the same baseline.
"""

from typing import Any

import altair as alt
import polars as pl

from analysis.cases import study_over
from analysis.pairs import BASELINE, remote_pairs
from analysis.section import Column, Evidence, Figure, Section, Table, percent
from analysis.seed_table import with_published
from analysis.style import MARGIN, STEPS, Width, gain_key, gain_scale, key, light

COMMANDS = (
    "python -m numarep.sweep study=ablation out={out}",
    "python -m numarep.sweep study=alignment out={out}",
)
_SWITCHES = ("replication.tables", "replication.text", "replication.rodata")
_CELL = ("workload", "cache_state")
PARTS = ("tables", "text", "rodata", "interaction", "all", "costs")


def ablation(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the gain of each part, by workload and cache state, in % of the baseline's time.

    Returns
    -------
    DataFrame
        `tables` alone; `text` and `rodata`, each on top of tables; `interaction`; `all` together;
        `costs`, what charging the work of replication takes off `all` (null if never waived).
        Empty unless every combination of text and rodata was run.
    """
    found = remote_pairs(cases)
    if not {*_SWITCHES, "replication.costs"} <= set(found.columns):
        return pl.DataFrame()
    study = study_over(found, (*_SWITCHES, "replication.costs"), least=4)
    charged = pl.col("replication.costs") == "charged"

    def gain(text: bool, rodata: bool, costs: pl.Expr = charged) -> pl.Expr:
        parts = (pl.col("replication.text") == text, pl.col("replication.rodata") == rodata)
        return pl.col("a").filter(*parts, costs).mean()

    alone, both = gain(text=False, rodata=False), gain(text=True, rodata=True)
    parts = study.group_by(*_CELL, "seed").agg(
        tables=alone,
        text=gain(text=True, rodata=False) - alone,
        rodata=gain(text=False, rodata=True) - alone,
        all=both,
        costs=both - gain(text=True, rodata=True, costs=~charged),
    )
    # A seed counts where every combination of it was run, or seeds would look like interaction.
    complete = parts.drop_nulls(["tables", "text", "rodata", "all"]).with_columns(
        interaction=pl.col("all") - pl.sum_horizontal("tables", "text", "rodata")
    )
    means = complete.group_by(_CELL).agg(pl.mean(*PARTS))
    return with_published(means).drop("published")


def alignment(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return what aligning text and rodata to 2 MiB gains without any replica, `alignment` in %."""
    plain = cases.filter(
        pl.col("status") == "ok",
        pl.col("replication") == BASELINE,
        pl.col("cpu_node") != pl.col("master_node"),
        pl.col("layout").is_in(["captured", "aligned"]),
    ).collect()
    study = study_over(plain, ("layout",), least=2)

    def time(layout: str) -> pl.Expr:
        return pl.col("time_ns").filter(pl.col("layout") == layout).first()

    gains = (
        study.sort("run_id")
        .group_by(*_CELL, "seed")
        .agg(alignment=(1 - time("aligned") / time("captured")) * 100)
        .group_by(_CELL)
        .agg(pl.mean("alignment"))
        .drop_nulls()
    )
    return with_published(gains).drop("published")


def section(evidence: Evidence) -> Section:
    """Answer question 4."""
    title = "What each part gains"
    parts, aligned = ablation(evidence.cases), alignment(evidence.cases)
    if parts.is_empty():
        lacks = "the series with text and rodata switched off and on"
        return Section(4, "ablation", title, missing=lacks, commands=COMMANDS)
    table = parts.join(aligned, on=_CELL, how="left", maintain_order="left")
    return Section(
        4,
        "ablation",
        title,
        answer=_answer(table),
        figures=(Figure("ablation", _caption(table), lambda width: _draw(table, width)),),
        tables=(Table("ablation", _TABLE_CAPTION, table, _COLUMNS),),
        how=_HOW,
        missing="modules can't be replicated yet (issue 4)"
        + ("" if aligned.height else "; no kernel as captured beside an aligned one"),
        commands=() if aligned.height else COMMANDS[1:],
    )


_COLUMNS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    **{part: Column(part, 2) for part in PARTS},
    "alignment": Column("alignment alone", 2),
}
_TABLE_CAPTION = "Gain A of each part, in % of the baseline's time"
_HOW = (
    "tables: per-node page tables alone; text and rodata: what each adds to that; interaction: "
    "what both add beyond the sum of each; costs: with costs charged less with costs waived. "
    "alignment: text and rodata in whole 2 MiB leaves against the kernel as captured, both without "
    "replicas; it is in baseline and series alike and so in none of the other gains."
)


def _answer(table: pl.DataFrame) -> str:
    best = table.sort("all", descending=True).row(0, named=True)
    apart = max(abs(value) for value in table["interaction"])
    costly = table.sort("tables").row(0, named=True)
    return (
        f"Text brings {percent(best['text'])} of the {percent(best['all'])} that all gain on "
        f"{best['workload']} ({best['cache_state']}), rodata {percent(best['rodata'])}; together "
        f"they gain what they gain apart, within {apart:.2f} points. Tables alone gain at most "
        f"{percent(max(table['tables']))} and cost up to {percent(-costly['tables'])} "
        f"({costly['workload']}, {costly['cache_state']})."
    )


def _caption(table: pl.DataFrame) -> str:
    sums = {part: sum(table[part]) for part in ("tables", "text", "rodata")}
    most, least = max(sums, key=lambda p: sums[p]), min(sums, key=lambda p: sums[p])
    return (
        f"Gain in % by part: {most} gains most, {least} least. all = tables + text + rodata + "
        "interaction; costs is the part of it that pays for keeping copies."
    )


def _draw(table: pl.DataFrame, width: Width) -> Any:
    parts = [p for p in (*PARTS, "alignment") if table[p].is_not_null().any()]
    rows = table.with_columns(pl.format("{}, {}", *_CELL).alias("row"))
    cells = rows.unpivot(parts, index="row", variable_name="part", value_name="gain").drop_nulls()
    cells = cells.with_columns(
        pl.format("{}: {} {} %", "row", "part", pl.col("gain").round(2)).alias("tip")
    )
    labels = 124
    small = width is Width.NARROW
    top = alt.Axis(orient="top", labelAngle=-55 if small else 0)
    x = alt.X("part:N", sort=parts, title=None, axis=top)
    base = alt.Chart(cells).encode(
        x=x,
        y=alt.Y("row:N", sort=rows["row"].to_list(), title=None, axis=alt.Axis(minExtent=labels)),
    )
    boxes = base.mark_rect(stroke=light("paper"), strokeWidth=2).encode(
        color=alt.Color("gain:Q", scale=gain_scale(), legend=None), description="tip:N"
    )
    strong = (alt.datum.gain > STEPS[-1]) | (alt.datum.gain < STEPS[0])
    numbers = base.mark_text(fontSize=9 if small else 12, aria=False).encode(
        text=alt.Text("gain:Q", format=".0f" if small else ".1f"),
        color=alt.condition(strong, alt.value(light("paper")), alt.value(light("ink"))),
    )
    chart = alt.layer(boxes, numbers).properties(
        width=width - labels - MARGIN, height=22 * rows.height
    )
    return alt.vconcat(key(gain_key(), width, labels), chart)
