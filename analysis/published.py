"""Question 1: the published table against the prediction.

What of a published gain could be noise follows from re-linked layouts: two builds of one kernel
differ by up to slowest / fastest - 1 over all layouts, without any replica. A cell that is no
larger than that says nothing about replication.

Where model and table disagree, `analysis.requirements` says what would have to be true.
"""

from typing import Any

import altair as alt
import polars as pl

from analysis import requirements
from analysis.cases import alike
from analysis.pairs import remote_pairs
from analysis.reference import MAIN_STUDY, reference
from analysis.section import Column, Evidence, Figure, Section, Table, listed, percent
from analysis.seed_table import with_published
from analysis.style import (
    BAR,
    LINE,
    MARGIN,
    ONE_X,
    TIP,
    Drawing,
    Glyph,
    Width,
    beside,
    key,
    light,
    stacked,
)

_LAYOUT = ("layout", "kernel.layout_seed")
_CELL = ("workload", "cache_state")
LAYOUT_STUDY = "python -m numarep.sweep study=layout_noise out={out}"


def layout_noise(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return what re-linking does, by workload and cache state, in %.

    Returns
    -------
    DataFrame
        `layouts`, how many there are; `layout_min` and `layout_max`, of the gain A over them;
        `noise`, slowest / fastest - 1 of the baseline: what two builds without replicas can
        differ by.
    """
    permuted = remote_pairs(cases).filter(layout="permuted")
    old = pl.col("old_time_ns")
    return (
        alike(permuted, reference(cases), _LAYOUT)
        .group_by(_CELL)
        .agg(
            layouts=pl.col("kernel.layout_seed").n_unique(),
            layout_min=pl.min("a"),
            layout_max=pl.max("a"),
            noise=(old.max() / old.min() - 1) * 100,
        )
        .filter(pl.col("layouts") > 1)
        .sort(_CELL)
    )


def gains(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the published table beside the model's: a row a workload and cache state.

    Returns
    -------
    DataFrame
        In %: `a` and `b`, means over capture seeds; `a_min`, `a_max` over seeds; `lower`, `upper`,
        the bounds from serial and overlapped misses; `published`; `agrees`, the definitions within
        5 points of it; the columns of `layout_noise`, null without layouts; `stands_out`, whether
        the published figure is larger than the noise; `low` and `high`, all the model allows, by
        either definition; `verdict` on the published figure (see `_verdict`).
    """
    rows = (
        reference(cases)
        .group_by(_CELL)
        .agg(
            pl.mean("a"),
            pl.mean("b"),
            pl.mean("lower"),
            pl.mean("upper"),
            a_min=pl.min("a"),
            a_max=pl.max("a"),
            seeds=pl.col("seed").n_unique(),
        )
    )
    return (
        with_published(rows)
        .join(layout_noise(cases), on=_CELL, how="left", maintain_order="left")
        .with_columns(_ALLOWED)
        .with_columns(stands_out=pl.col("published") > pl.col("noise"), verdict=_verdict())
    )


_UPPER_B = pl.col("upper") / (1 - pl.col("upper") / 100)
_ALLOWED = (
    pl.min_horizontal("a", "b", "lower", "a_min", "layout_min").alias("low"),
    pl.max_horizontal("a", "b", _UPPER_B, "a_max", "layout_max").alias("high"),
)


def _verdict() -> pl.Expr:
    """Say whether the published figure lies in what the model allows, widened by the noise."""
    noise, figure = pl.col("noise"), pl.col("published")
    widened = figure.is_between(
        pl.col("low") - noise.fill_null(0.0), pl.col("high") + noise.fill_null(0.0)
    )
    return (
        pl.when(figure <= noise)
        .then(pl.lit("within noise"))
        .when(widened)
        .then(pl.lit("agrees"))
        .when(figure.is_not_null() & noise.is_null())
        .then(pl.lit("noise unknown"))
        .when(figure > pl.col("high"))
        .then(pl.lit("published higher"))
        .when(figure < pl.col("low"))
        .then(pl.lit("published lower"))
    )


def section(evidence: Evidence) -> Section:
    """Answer question 1."""
    title = "The published table against the prediction"
    table = gains(evidence.cases)
    if table.is_empty():
        return Section(
            1,
            "published",
            title,
            missing="no replicated run with its baseline, on a CPU of another node",
            commands=(MAIN_STUDY,),
        )
    needs = requirements.requirements(evidence.cases, evidence.counts)
    noisy = table["noise"].is_not_null().any()
    return Section(
        1,
        "published",
        title,
        answer=_answer(table),
        headline=_headline(table),
        figures=(Figure("published", _caption(table), lambda width: _draw(table, width)),),
        tables=(
            Table("published", _GAINS_CAPTION, table, _GAINS, _MAILED),
            requirements.shown(needs),
        ),
        how=_HOW,
        missing="" if noisy else "no re-linked layouts: which gains exceed layout noise is unknown",
        commands=() if noisy else (LAYOUT_STUDY,),
    )


_GAINS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "a": Column("A", 1),
    "b": Column("B", 1),
    "lower": Column("A, serial or overlapped", 1, to="upper"),
    "a_min": Column("A by seed", 1, to="a_max"),
    "layout_min": Column("A by layout", 1, to="layout_max"),
    "noise": Column("layout noise", 1),
    "published": Column("published", 1),
    "verdict": Column("verdict"),
}
_GAINS_CAPTION = "Gains in %, by both definitions, their bounds and spread, and what was published"
_MAILED = ("workload", "cache_state", "a", "b", "noise", "published", "verdict")
_HOW = (
    "A = (old \N{MINUS SIGN} new) / old and B = old / new \N{MINUS SIGN} 1, means over capture "
    "seeds, for a CPU on another node than the kernel's. The band runs from all misses one after "
    "the other to all that can overlapping. Layout noise is slowest / fastest \N{MINUS SIGN} 1 of "
    "the baseline over re-linked layouts, without any replica: two builds differ by that much. A "
    "published figure agrees if it lies within everything the model allows (both definitions, "
    "bounds, seeds, layouts) widened by that noise. Hot: one unmeasured pass before; cold: all "
    "caches and TLBs flushed once before the window. Nothing is fitted to the published table."
)


def _cells(table: pl.DataFrame, verdict: str) -> list[str]:
    chosen = table.filter(verdict=verdict)
    return [f"{row['workload']} {row['cache_state']}" for row in chosen.iter_rows(named=True)]


def _headline(table: pl.DataFrame) -> str:
    real = pl.col("a") > pl.max_horizontal(pl.col("noise").fill_null(0.0), pl.lit(1.0))
    gain, rest = table.filter(real), table.filter(~real)
    text = "On a CPU of another node than the kernel's, replication "
    if gain.is_empty():
        return text + f"gains nothing here: {_span(rest)}."
    names = listed([f"{r['workload']} ({r['cache_state']})" for r in gain.iter_rows(named=True)])
    text += f"saves {_span(gain)} of the time of {names}"
    return text + (f"; everything else changes by {_span(rest)}." if rest.height else ".")


def _span(table: pl.DataFrame) -> str:
    low, high = (percent(value) for value in (min(table["a"]), max(table["a"])))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _answer(table: pl.DataFrame) -> str:
    compared = table.drop_nulls("published")
    best = table.sort("a", descending=True).row(0, named=True)
    worst = min(0.0, *table["a"].to_list())
    text = (
        f"The model's largest gain is {percent(best['a'])} ({best['workload']}, "
        f"{best['cache_state']} caches), its largest loss {percent(worst)}. "
    )
    if compared.is_empty():
        return text
    noise = _cells(table, "within noise")
    if noise:
        text += (
            f"Of {compared.height} published gains, {len(noise)} are no larger than what linking "
            "the same kernel in another order does. "
        )
    said = [f"The model agrees with {_names(table, 'agrees')}"]
    if _cells(table, "published higher"):
        said.append(f"published is higher than it allows for {_names(table, 'published higher')}")
    if _cells(table, "published lower"):
        said.append(f"published is lower for {_names(table, 'published lower')}")
    if unknown := _cells(table, "noise unknown"):
        said.append(f"of {len(unknown)} others it can't be said, because layout noise is unknown")
    return f"{text}{'; '.join(said)}."


def _names(table: pl.DataFrame, verdict: str) -> str:
    return listed(_cells(table, verdict))


def _caption(table: pl.DataFrame) -> str:
    hot = table.filter(cache_state="hot")
    inside = hot.filter(verdict="within noise").height
    text = "Predicted and published gain of replication by workload."
    if hot.height and table["noise"].is_not_null().any():
        text += (
            f" {inside} of the {hot.drop_nulls('published').height} published gains with hot "
            "caches lie within the noise of code layout; cold single calls are far out of it."
        )
    return text


_LABELS = 92
_KEY = (
    Glyph("published", "diamond", "ink"),
    Glyph("model, A", "circle", "series"),
    Glyph("model, B", "circle", "series", hollow=True),
    Glyph("A by seed and layout", LINE, "series"),
    Glyph("A, misses serial to overlapped", BAR, "series-band"),
    Glyph("noise of code layout alone", BAR, "band"),
)


def _draw(table: pl.DataFrame, width: Width) -> Drawing:
    states = [s for s in ("hot", "cold") if s in table["cache_state"]]
    wide = width is Width.WIDE
    plot = (width - _LABELS - MARGIN - 14) // 2 if wide else width - _LABELS - MARGIN
    names = table["workload"].unique(maintain_order=True).to_list()  # of all panels, or rows shift
    panels = [
        _panel(table.filter(cache_state=state), state, names, plot, named=not wide or not i)
        for i, state in enumerate(states)
    ]
    side = beside if wide else stacked
    return stacked(key(_KEY, width, _LABELS), side(*panels, **ONE_X))


def _panel(rows: pl.DataFrame, state: str, names: list[str], plot: int, *, named: bool) -> Any:
    shown = rows.with_columns(
        pl.min_horizontal("a_min", "layout_min").alias("spread_min"),
        pl.max_horizontal("a_max", "layout_max").alias("spread_max"),
        (-pl.col("noise")).alias("minus_noise"),
        _tip(),
    )
    axis = alt.Axis(minExtent=_LABELS) if named else alt.Axis(labels=False)
    base = alt.Chart(shown).encode(
        y=alt.Y("workload:N", scale=alt.Scale(domain=names), title=None, axis=axis),
        description=TIP,
    )

    def x(name: str) -> alt.X:
        return alt.X(f"{name}:Q", title="gain, %", axis=alt.Axis(tickCount=6))

    def bar(low: str, high: str, role: str, size: int) -> Any:
        return base.mark_bar(color=light(role), size=size).encode(x=x(low), x2=f"{high}:Q")

    def point(name: str, fill: str, **mark: Any) -> Any:
        style: dict[str, Any] = {"stroke": light("series"), "size": 52, "opacity": 1}
        return base.mark_point(fill=light(fill), **(style | mark)).encode(x=x(name))

    zero = alt.Chart(pl.DataFrame({"zero": [0]}))
    label = base.mark_text(dy=-14, fontSize=11, aria=False).encode(
        x=x("published"), text=alt.Text("published:Q", format=".1f")
    )
    layers = (
        bar("minus_noise", "noise", "band", 18),
        zero.mark_rule(color=light("zero"), aria=False).encode(x=alt.X("zero:Q")),
        bar("lower", "upper", "series-band", 10),
        bar("spread_min", "spread_max", "series", 2),
        point("b", "paper"),
        point("a", "series"),
        point("published", "ink", shape="diamond", stroke=light("paper"), size=80),
        label,
    )
    title = f"{state} caches"
    return alt.layer(*layers, width=plot, height=34 * len(names), title=title)


def _tip() -> pl.Expr:
    """Exact values, as shown on hovering."""
    return pl.format(
        "{} {}: A {} %, B {} %; A from {} to {} %; layout noise \N{PLUS-MINUS SIGN}{} %; "
        "published {} %",
        *("workload", "cache_state"),
        *(
            pl.col(name).round(1).cast(pl.String).fill_null("unknown")
            for name in ("a", "b", "lower", "upper", "noise", "published")
        ),
    ).alias("tip")
