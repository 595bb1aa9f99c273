"""Question 8: what keeping copies costs an operation, and the rate at which that uses up the gain.

A gain of g % is used up by g / 100 / cost operations a second; costs are those of
`analysis.operations`.

>>> frame = pl.DataFrame({"a": [25.0], "ns": [500.0]})
>>> frame.select(_used_up()).item()
500000.0
"""

import math

import altair as alt
import polars as pl

from analysis.operations import FORK_LOOP, FREE_NS, OPERATIONS, costs, long, short
from analysis.reference import POLICY, reference
from analysis.section import Column, Evidence, Figure, Section, Table, listed, percent
from analysis.style import MARGIN, TIP, Drawing, Glyph, Width, key, light, stacked

STUDIES = (
    "ablation",
    "fork_rate",
    "patch_rate",
    "module_rate",
    "bpf_rate",
    "pgd_sync_rate",
    "visitor",
)
COMMANDS = tuple(f"python -m numarep.sweep study={study} out={{out}}" for study in STUDIES)


def used_up(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the rate at which an operation uses up each gain of the main study.

    Returns
    -------
    DataFrame
        `operation`; `workload`, `cache_state` and their gain `a` in %; `ns` an operation;
        `per_s`, operations a second on that CPU from which on there is no gain left. Of the main
        study's machine and policy; operations that cost nothing, and gains below half a per
        cent, are left out.
    """
    chosen = reference(cases)
    table = costs(cases)
    if chosen.is_empty() or table.is_empty():
        return pl.DataFrame()
    one = chosen.row(0, named=True)
    own = table.filter(
        pl.col("machine").eq_missing(one["machine"]),
        pl.col("replication") == one["replication"],
        pl.col("ns") > FREE_NS,
    )
    gains = chosen.group_by("workload", "cache_state").agg(pl.mean("a")).filter(pl.col("a") > 0.5)
    both = own.select("operation", "ns").join(gains, how="cross")
    return both.with_columns(per_s=_used_up()).sort(
        "per_s", "operation", "workload", descending=[True, False, False]
    )


def _used_up() -> pl.Expr:
    return pl.col("a") / 100 / pl.col("ns") * 1e9


def section(evidence: Evidence) -> Section:
    """Answer question 8."""
    title = "What keeping copies costs"
    table = costs(evidence.cases)
    if table.is_empty():
        lacks = "no operation done at several rates"
        return Section(8, "costs", title, missing=lacks, commands=COMMANDS)
    limits = used_up(evidence.cases)
    named = table.with_columns(what=short())
    figures = [Figure("costs", _caption(table), lambda width: _draw(named, width))]
    mailed = (*tuple(_COLUMNS)[:5], "machine")
    tables = [Table("costs", _TABLE_CAPTION, named, _COLUMNS, mailed)]
    if limits.height:
        limited = limits.with_columns(what=short())
        caption = _limits_caption(limits)
        figures.append(Figure("used_up", caption, lambda width: _draw_limits(limited, width)))
        tables.append(Table("used_up", _LIMITS_CAPTION, limited, _LIMITS_COLUMNS))
    lacking = [known for name, known in OPERATIONS.items() if name not in set(table["operation"])]
    studies = {known.study for known in lacking}
    return Section(
        8,
        "costs",
        title,
        answer=_answer(table, limits),
        figures=tuple(figures),
        tables=tuple(tables),
        how=_HOW,
        missing=f"no rates of: {'; '.join(o.long for o in lacking)}" if lacking else "",
        commands=tuple(c for c in COMMANDS if any(f"study={s} " in c for s in studies)),
    )


_COLUMNS = {
    "what": Column("operation"),
    "replication": Column("replication"),
    "nodes": Column("nodes", 0),
    "ns": Column("ns each", 1),
    "instructions": Column("instructions each", 0),
    "bent": Column("off the line, %", 1),
    "rates": Column("rates", 0),
    "machine": Column("machine"),
}
_TABLE_CAPTION = "What replication adds to one operation"
_LIMITS_COLUMNS = {
    "what": Column("operation"),
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "a": Column("gain A, %", 1),
    "ns": Column("ns each", 1),
    "per_s": Column("used up at, 1/s", 0),
}
_LIMITS_CAPTION = "Operations a second and CPU that use up a workload's gain"
_HOW = (
    "Each operation is done at several rates in a captured window with hot caches, on a CPU of "
    "another node than the kernel's; only what replication adds to it is counted, instructions "
    "and stalls, and the cost is the slope between the lowest and the highest rate. exec makes "
    "and frees page-table roots as fork and exit do (bare: what the series adds, its pages hot; "
    "captured: in the loop fork_1024, with what it evicts). Work on other CPUs is taken as this "
    "one's. Used up: gain / cost, the cost taken as independent of the workload."
)


def _own(table: pl.DataFrame) -> pl.DataFrame:
    """Keep the series' rows on the machine with fewest nodes, one an operation."""
    rows = table.filter(replication=POLICY)
    rows = table if rows.is_empty() else rows
    return rows.sort("nodes", maintain_order=True).unique(
        "operation", keep="first", maintain_order=True
    )


def _answer(table: pl.DataFrame, limits: pl.DataFrame) -> str:
    own = _own(table)
    if FORK_LOOP in own["operation"]:  # the bare one is the same operation, less what it evicts
        own = own.filter(pl.col("operation") != "fork_tree")
    paid = own.filter(pl.col("ns") > FREE_NS).sort("ns", descending=True)
    free = own.filter(pl.col("ns") <= FREE_NS)
    parts = [f"{_time(ns)} to {long(name)}" for name, ns in paid.select("operation", "ns").rows()]
    if free.height and not parts:
        parts.append(f"nothing to {listed([long(name) for name in free['operation']])}")
    text = f"On {own['nodes'][0]} nodes replication adds {listed(parts)}."
    if limits.is_empty():
        return text
    best = limits.sort("a", descending=True).row(0, named=True)
    rows = limits.filter(workload=best["workload"], cache_state=best["cache_state"]).sort("per_s")
    rates = [
        f"{long(name)} {_count(rate)} times"
        for name, rate in rows.select("operation", "per_s").rows()
        if name in own["operation"]
    ]
    return (
        f"{text} To use up the gain of {percent(best['a'])} on {best['workload']} "
        f"({best['cache_state']}) takes, in every second of a CPU, {' or '.join(rates[:2])}."
    )


def _time(ns: float) -> str:
    micro = "\N{GREEK SMALL LETTER MU}s"
    return f"{ns / 1000:.1f} {micro}" if ns >= 1000 else f"{ns:.0f} ns"


def _count(number: float) -> str:
    """Write a number in words a reader can hold: two digits.

    >>> _count(368123.0), _count(7.6e6)
    ('370,000', '7.6 million')
    """
    rounded = float(f"{number:.2g}")
    return f"{rounded / 1e6:g} million" if rounded >= 1e6 else f"{rounded:,.0f}"


def _caption(table: pl.DataFrame) -> str:
    free = table.filter(pl.col("ns") <= FREE_NS, pl.col("replication") == POLICY)
    text = "What replication adds to one operation, by policy and number of nodes"
    what = listed([long(name) for name in free["operation"].unique(maintain_order=True)])
    return f"{text}. Free with the series: {what}." if free.height else f"{text}."


_LABELS = 158


def _draw(table: pl.DataFrame, width: Width) -> Drawing:
    rows = table.filter(pl.col("ns") > FREE_NS).with_columns(
        pl.when(pl.col("replication") == POLICY)
        .then(pl.col("what"))
        .otherwise(pl.format("{}, {}", pl.col("what").str.split(",").list.first(), "replication"))
        .alias("row"),
        pl.format(
            "{}, {}, {} nodes: {} ns, {} instructions",
            *("what", "replication", "nodes"),
            pl.col("ns").round(1),
            pl.col("instructions").round(0),
        ).alias("tip"),
    )
    order = rows["row"].unique(maintain_order=True).to_list()
    low, high = _decades(rows["ns"])
    few = min(rows["nodes"])
    x = alt.X(
        "ns:Q",
        title="ns an operation",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=_powers(low, high), format="~s"),
    )
    y = alt.Y("row:N", sort=order, title=None, axis=alt.Axis(minExtent=_LABELS, labelLimit=_LABELS))
    base = alt.Chart(rows).encode(x=x, y=y)
    fill = alt.condition(
        alt.datum.nodes == few, alt.value(light("series")), alt.value(light("paper"))
    )
    points = base.mark_point(size=60, opacity=1, stroke=light("series")).encode(
        fill=fill, description=TIP
    )
    ends = rows.group_by("row", maintain_order=True).agg(low=pl.min("ns"), high=pl.max("ns"))
    texts = [
        " \N{HORIZONTAL ELLIPSIS} ".join(dict.fromkeys((_time(low), _time(high))))
        for low, high in ends.select("low", "high").iter_rows()
    ]
    ends = ends.with_columns(text=pl.Series(texts, dtype=pl.String))
    spans = alt.Chart(ends).mark_rule(strokeWidth=2, color=light("band"), aria=False)
    labels = alt.Chart(ends).mark_text(align="left", dx=9, fontSize=10, aria=False)
    chart = alt.layer(
        spans.encode(x=alt.X("low:Q"), x2=alt.X2("high:Q"), y=y),
        points,
        labels.encode(x=alt.X("high:Q"), y=y, text=alt.Text("text:N")),
        width=width - _LABELS - MARGIN,
        height=20 * len(order),
    )
    counts = rows["nodes"].unique().sort().to_list()
    glyphs = [Glyph(f"{few} nodes", "circle", "series")]
    if len(counts) > 1:
        more = " or ".join(str(n) for n in counts[1:])
        glyphs.append(Glyph(f"{more} nodes", "circle", "series", hollow=True))
    return stacked(key(glyphs, width, _LABELS), chart)


def _decades(values: pl.Series) -> tuple[float, float]:
    """Return the powers of ten around some values, room for a label above."""
    numbers = values.to_list()
    low, high = (math.floor(math.log10(end)) for end in (min(numbers), max(numbers)))
    return 10.0**low, 10.0 ** (high + 1) * 8


def _powers(low: float, high: float) -> list[float]:
    powers = []
    while low <= high:
        powers.append(low)
        low *= 10
    return powers


def _limits_caption(limits: pl.DataFrame) -> str:
    first = limits.sort("per_s").row(0, named=True)
    return (
        "Operations a second and CPU that use up the gain of a workload, a dot each. The first to "
        f"do so: {long(first['operation'])}, {_count(first['per_s'])} times for "
        f"{first['workload']} ({first['cache_state']})."
    )


def _draw_limits(limits: pl.DataFrame, width: Width) -> Drawing:
    rows = limits.with_columns(
        pl.format(
            "{}: the gain of {} % on {} ({}) is used up at {} a second",
            "what",
            pl.col("a").round(1),
            "workload",
            "cache_state",
            pl.col("per_s").round(0).cast(pl.Int64),
        ).alias("tip")
    )
    order = rows["what"].unique(maintain_order=True).to_list()
    low, high = _decades(rows["per_s"])
    x = alt.X(
        "per_s:Q",
        title="operations a second that use up the gain",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=_powers(low, high)[:: 1 if width is Width.WIDE else 2], format="~s"),
    )
    y = alt.Y("what:N", sort=order, title=None, axis=alt.Axis(minExtent=_LABELS))
    base = alt.Chart(rows).encode(x=x, y=y)
    points = base.mark_point(size=60, opacity=1, filled=True, color=light("series"))
    most = rows.sort("a").unique("what", keep="last", maintain_order=True)
    most = most.with_columns(pl.format("{}, {}", "workload", "cache_state").alias("name"))
    texts = alt.Chart(most).mark_text(align="left", dx=8, fontSize=10, aria=False)
    chart = alt.layer(
        points.encode(description=TIP),
        texts.encode(x=x, y=y, text=alt.Text("name:N")),
        width=width - _LABELS - MARGIN,
        height=24 * len(order),
    )
    return stacked(chart)
