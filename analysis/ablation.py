"""Question 4: what each part of the series gains, all together, alignment alone, other switches.

Text, rodata and modules need per-node tables, so a part's gain is what it adds to tables alone;
the interaction is what they add together beyond the sum. Gains are A, in %, of the same baseline.
"""

import altair as alt
import polars as pl

from analysis.cases import study_over
from analysis.pairs import BASELINE, remote_pairs, same_seeds, undisturbed
from analysis.reference import POLICY, reference
from analysis.section import Column, Evidence, Figure, Section, Table, listed, percent
from analysis.seed_table import with_published
from analysis.style import (
    MARGIN,
    STEPS,
    TIP,
    Drawing,
    Width,
    gain_key,
    gain_scale,
    key,
    light,
    stacked,
)

COMMANDS = (
    "python -m numarep.sweep study=ablation out={out}",
    "python -m numarep.sweep study=alignment_only out={out}",
    "python -m numarep.sweep study=alternatives out={out}",
)
_PARTS = ("text", "rodata", "modules")
_AXES = (*(f"replication.{part}" for part in _PARTS), "replication.costs")
_CELL = ("workload", "cache_state")


def ablation(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the gain of each part, by workload and cache state, in % of the baseline's time.

    Returns
    -------
    DataFrame
        `tables` alone; a column for each part that was switched (`text`, `rodata`, `modules`),
        what it adds to that; `interaction`; `all` together; `costs`, what charging the work of
        replication takes off `all` (null if never waived). Empty if no part was switched.
    """
    study = study_over(remote_pairs(cases), _AXES, least=3)
    parts = [part for part in _PARTS if study[f"replication.{part}"].n_unique() > 1]
    if not parts:
        return pl.DataFrame()
    charged = pl.col("replication.costs") == "charged"

    def gain(*on: str, costs: pl.Expr = charged) -> pl.Expr:
        switches = [pl.col(f"replication.{part}") == (part in on) for part in parts]
        return pl.col("a").filter(*switches, costs).mean()

    rows = study.group_by(*_CELL, "seed").agg(
        tables=gain(),
        **{part: gain(part) - gain() for part in parts},
        all=gain(*parts),
        costs=gain(*parts) - gain(*parts, costs=~charged),
    )
    # A seed counts where every part of it was run, or seeds would look like interaction.
    complete = rows.drop_nulls(["tables", *parts, "all"]).with_columns(
        interaction=pl.col("all") - pl.sum_horizontal("tables", *parts)
    )
    shown = ("tables", *parts, "interaction", "all", "costs")
    return with_published(complete.group_by(_CELL).agg(pl.mean(*shown))).drop("published")


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


def switches(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return every policy's gain beside the series', as shipped, on the main study's machine.

    Returns
    -------
    DataFrame
        `replication`, `workload`, `cache_state`; `a`, its gain in %, mean over the capture seeds
        of most policies; `beside`, that less the series' own, in points; the policy that gains
        most on average first. Policies that are the series with a switch
        set (BPF images, lazy roots, Mitosis, ...) and those with parts left out alike; only
        those run in all cells that the series was. Empty without another policy than the series.
    """
    chosen = reference(cases)
    same = pl.col("machine").is_in(chosen["machine"].unique().to_list())
    # Policies that are run in one scenario, each in its largest study there.
    together = study_over(undisturbed(cases, same), ("replication",))
    studies = same_seeds(study_over(together, (), by=("replication",)))
    kinds = (*_CELL, "seed")
    runs = studies.group_by("replication", *kinds).agg(pl.mean("a"))
    series = runs.filter(replication=POLICY).select(*kinds, series="a")
    # Seed by seed, or the captures' differences would look like the policies'.
    cells = (
        runs.join(series, on=kinds)
        .with_columns(beside=pl.col("a") - pl.col("series"))
        .group_by("replication", *_CELL)
        .agg(pl.mean("a", "beside"))
    )
    both = cells.filter(pl.len().over("replication") == pl.len().over("replication").max())
    if both["replication"].n_unique() < 2:
        return both.clear()
    means = pl.mean("beside").over("replication").round(6)
    ordered = with_published(both, "replication").drop("published")
    return ordered.sort(means, descending=True, maintain_order=True)


def section(evidence: Evidence) -> Section:
    """Answer question 4."""
    title = "What each part gains"
    parts, aligned = ablation(evidence.cases), alignment(evidence.cases)
    others = switches(evidence.cases)
    if parts.is_empty() and others.is_empty():
        lacks = "no series with its parts switched off and on"
        return Section(4, "ablation", title, missing=lacks, commands=COMMANDS)
    missing, commands = [], []
    figures, tables, answers = [], [], []
    if parts.is_empty():
        missing.append("no series with its parts switched off and on")
        commands.append(COMMANDS[0])
    else:
        table = parts.join(aligned, on=_CELL, how="left", maintain_order="left")
        answers.append(_answer(table))
        figures.append(Figure("ablation", _caption(table), lambda width: _draw(table, width)))
        tables.append(Table("ablation", _TABLE_CAPTION, table, _shown(table)))
    if aligned.is_empty():
        missing.append("no kernel as captured beside an aligned one")
        commands.append(COMMANDS[1])
    if others.is_empty():
        missing.append("no other policy beside the series")
        commands.append(COMMANDS[2])
    else:
        answers.append(_switch_answer(others))
        caption = _switch_caption(others)
        figures.append(Figure("switches", caption, lambda width: _draw_switches(others, width)))
        tables.append(Table("switches", _SWITCH_CAPTION, others, _SWITCH_COLUMNS))
    return Section(
        4,
        "ablation",
        title,
        answer=" ".join(answers),
        figures=tuple(figures),
        tables=tuple(tables),
        how=_HOW,
        missing="; ".join(missing),
        commands=tuple(commands),
    )


_SWITCH_COLUMNS = {
    "replication": Column("policy"),
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "a": Column("A, %", 2),
    "beside": Column("beside the series, points", 2),
}
_SWITCH_CAPTION = "Every policy beside the series, best first"


def _switch_caption(others: pl.DataFrame) -> str:
    worst = others.sort("a", "replication").row(0, named=True)
    best = others.sort("a", "replication", descending=[True, False]).row(0, named=True)
    return (
        f"Gain A in % of every policy, by workload and caches: from {percent(worst['a'])} "
        f"({worst['replication']}, {worst['workload']}, {worst['cache_state']}) to "
        f"{percent(best['a'])} ({best['replication']}, {best['workload']}, {best['cache_state']})."
    )


def _switch_answer(others: pl.DataFrame) -> str:
    means = (
        others.filter(pl.col("replication") != POLICY)
        .group_by("replication")
        .agg(pl.mean("beside"))
    )

    def near(beside: float) -> list[str]:
        return sorted(means.filter((pl.col("beside") - beside).abs() < 0.05)["replication"])

    def said(beside: float, how: str) -> str:
        names, points = near(beside), f"{beside:+.1f}".replace("-", "\N{MINUS SIGN}")
        return f"{listed(names)} gain{'s' * (len(names) == 1)} {how} ({points} points on average)"

    most = said(max(means["beside"]), "most beside the series")
    least, same = said(min(means["beside"]), "least"), near(0.0)
    text = f"Of other policies {most} and {least}"
    return f"{text}; {listed(same)} gain the same." if same else f"{text}."


def _draw_switches(others: pl.DataFrame, width: Width) -> Drawing:
    cells = others.with_columns(column=pl.format("{}, {}", *_CELL), gain="a", row="replication")
    order = cells["column"].unique(maintain_order=True).to_list()
    names = sorted(cells["row"].unique(maintain_order=True), key=lambda name: name != POLICY)
    return _heat(cells, names, order, width, labels=92, slant=-55 if width is Width.WIDE else -90)


_COLUMNS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    **{name: Column(name, 2) for name in ("tables", *_PARTS, "interaction", "all", "costs")},
    "alignment": Column("alignment alone", 2),
}


def _shown(table: pl.DataFrame) -> dict[str, Column]:
    return {name: column for name, column in _COLUMNS.items() if name in table.columns}


_LEAST = 0.05  # points worth a sentence
_TABLE_CAPTION = "Gain A of each part, in % of the baseline's time"
_HOW = (
    "tables: per-node page tables alone; text, rodata, modules: what each adds to that; "
    "interaction: what all add beyond the sum of each; costs: with costs charged less with costs "
    "waived. alignment: text and rodata in whole 2 MiB leaves against the kernel as captured, "
    "both without replicas; it is in baseline and series alike and so in none of the other gains. "
    "Copies of modules gain where a window runs modules (overlayfs) whose base copies lie on "
    "another node than the CPU's (kernel.module_node), and nothing elsewhere."
)


def _answer(table: pl.DataFrame) -> str:
    best = table.sort("all", descending=True).row(0, named=True)
    parts = [
        f"{part} {percent(best[part])}" for part in ("tables", *_PARTS) if part in table.columns
    ]
    apart = max(abs(value) for value in table["interaction"])
    costly = table.sort("tables").row(0, named=True)
    return (
        f"Of the {percent(best['all'])} on {best['workload']} ({best['cache_state']}), "
        f"{listed(parts)}; together they gain what they gain apart, within {apart:.2f} points. "
        f"Tables alone gain at most {percent(max(table['tables']))} and cost up to "
        f"{percent(-costly['tables'])} ({costly['workload']}, {costly['cache_state']})."
        f"{_of_modules(table)}"
    )


def _of_modules(table: pl.DataFrame) -> str:
    """Say where copies of modules gain most, if anywhere."""
    if "modules" not in table.columns or max(table["modules"]) < _LEAST:
        return ""
    most = table.sort("modules", descending=True).row(0, named=True)
    place = f"{most['workload']} ({most['cache_state']})"
    return f" Copies of modules gain {percent(most['modules'])} on {place}."


def _caption(table: pl.DataFrame) -> str:
    sums = {part: sum(table[part]) for part in ("tables", *_PARTS) if part in table.columns}
    most, least = max(sums, key=lambda p: sums[p]), min(sums, key=lambda p: sums[p])
    return (
        f"Gain in % by part: {most} gains most, {least} least. all is the sum of the parts and "
        "their interaction; costs is the part of it that pays for keeping copies."
    )


def _draw(table: pl.DataFrame, width: Width) -> Drawing:
    names = [name for name in _shown(table) if name not in _CELL]
    parts = [name for name in names if table[name].is_not_null().any()]
    rows = table.with_columns(pl.format("{}, {}", *_CELL).alias("row"))
    cells = rows.unpivot(parts, index="row", variable_name="column", value_name="gain")
    slant = -55 if width is Width.NARROW else 0
    return _heat(cells.drop_nulls(), rows["row"].to_list(), parts, width, labels=124, slant=slant)


def _heat(
    cells: pl.DataFrame, rows: list[str], columns: list[str], width: Width, labels: int, slant: int
) -> Drawing:
    """Draw gains as a map of `row` by `column`, with numbers where they fit."""
    tip = pl.format("{}: {} {} %", "row", "column", pl.col("gain").round(2)).alias("tip")
    plot = width - labels - MARGIN
    room = plot // len(columns)
    top = alt.Axis(orient="top", labelAngle=slant)
    base = alt.Chart(cells.with_columns(tip)).encode(
        x=alt.X("column:N", sort=columns, title=None, axis=top),
        y=alt.Y("row:N", sort=rows, title=None, axis=alt.Axis(minExtent=labels)),
    )
    boxes = base.mark_rect(stroke=light("paper"), strokeWidth=2 if room > 20 else 0.5).encode(
        color=alt.Color("gain:Q", scale=gain_scale(), legend=None), description=TIP
    )
    strong = (alt.datum.gain > STEPS[-1]) | (alt.datum.gain < STEPS[0])
    size = 12 if room > 45 else 10 if room > 32 else 9
    numbers = base.mark_text(fontSize=size, aria=False).encode(
        text=alt.Text("gain:Q", format=".1f"),
        color=alt.condition(strong, alt.value(light("paper")), alt.value(light("ink"))),
    )
    layers = (boxes, numbers) if room > 20 else (boxes,)
    chart = alt.layer(*layers, width=plot, height=22 * len(rows))
    return stacked(key(gain_key(), width, labels), chart)
