"""Command line of comparisons: `python -m analysis.compare A B [--out DIR]`.

Two results folders (two kernels, two machines, two versions of the model), cell by cell, and what
differs between them that can be the cause: settings, versions, and who served the time.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from analysis.command import publish
from analysis.page import Report
from analysis.reference import MAIN_STUDY, reference
from analysis.section import Column, Evidence, Figure, Section, Table, listed, percent
from analysis.seed_table import with_published
from analysis.sources import Sources, open_sources
from analysis.stalls import SIDES, by_server, stalls
from analysis.style import MARGIN, TIP, Drawing, Glyph, Width, key, light, stacked
from analysis.trust import provenance
from numarep.results import ResultsError

_CELL = ("workload", "cache_state")
_SAME = 0.05  # points of a gain


def gains_changed(one: pl.LazyFrame, other: pl.LazyFrame) -> pl.DataFrame:
    """Return the gains of two bodies of cases side by side, where both have the cell.

    Returns
    -------
    DataFrame
        `workload`, `cache_state`; `a_one`, `a_other`, the gains A in % (means over seeds), and
        `difference` in points; `baseline` and `series`, the change of their times in %.
    """
    means = [
        reference(cases).group_by(_CELL).agg(pl.mean("a", "time_ns", "old_time_ns"))
        for cases in (one, other)
    ]
    both = means[0].join(means[1], on=_CELL, suffix="_other")
    changed = both.select(
        *_CELL,
        a_one="a",
        a_other="a_other",
        difference=pl.col("a_other") - pl.col("a"),
        baseline=(pl.col("old_time_ns_other") / pl.col("old_time_ns") - 1) * 100,
        series=(pl.col("time_ns_other") / pl.col("time_ns") - 1) * 100,
    )
    return with_published(changed).drop("published")


def settings_changed(one: Sources, other: Sources) -> pl.DataFrame:
    """Return what differs between the two beside results: `what`, `one`, `other`.

    Settings are those of the replicated runs of the first cell that both have; of manifests, the
    versions.
    """
    specs = _specs(one, other)
    versions = [_versions(sources.evidence.manifests) for sources in (one, other)]
    rows = [
        {"what": what, "one": _told(left.get(what)), "other": _told(right.get(what))}
        for left, right in (specs, versions)
        for what in sorted({**left, **right})
        if left.get(what) != right.get(what)
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(("what", "one", "other"), pl.String))


def time_changed(one: Evidence, other: Evidence) -> pl.DataFrame:
    """Return where the time differs: a row a cell, side and server.

    Returns
    -------
    DataFrame
        `workload`, `cache_state`, `side`, `server`; `one` and `other`, in ns per instruction of
        each one's baseline, and `difference`; the largest difference of a cell first.
    """
    kinds = (*_CELL, "side", "server")
    tables = [
        by_server(stalls(evidence.cases, evidence.counts)).select(*kinds, "ns_per_instruction")
        for evidence in (one, other)
    ]
    both = tables[0].join(tables[1], on=kinds, how="full", coalesce=True, suffix="_other")
    return (
        both.with_columns(pl.col("^ns_per_instruction.*$").fill_null(0.0))
        .rename({"ns_per_instruction": "one", "ns_per_instruction_other": "other"})
        .with_columns(difference=pl.col("other") - pl.col("one"))
        .sort(pl.col("difference").abs(), *kinds, descending=[True, *[False] * 4])
    )


def gain_changed(one: Evidence, other: Evidence) -> pl.DataFrame:
    """Return what every server's time adds to the difference of a gain, largest first.

    Returns
    -------
    DataFrame
        `workload`, `cache_state`, `server`; `one` and `other`, the part of the gain A that is time
        saved there, in points, which add up to A of the summed times; `difference`.
    """
    kinds = (*_CELL, "server")
    tables = [
        stalls(evidence.cases, evidence.counts)
        .group_by(kinds)
        .agg(-pl.sum("change").alias("points"))
        for evidence in (one, other)
    ]
    cells = tables[0].join(tables[1], on=_CELL, how="semi")
    both = cells.join(
        tables[1].join(tables[0], on=_CELL, how="semi"),
        on=kinds,
        how="full",
        coalesce=True,
        suffix="_other",
    )
    return (
        both.select(
            *kinds,
            one=pl.col("points").fill_null(0.0),
            other=pl.col("points_other").fill_null(0.0),
        )
        .with_columns(difference=pl.col("other") - pl.col("one"))
        .sort(pl.col("difference").abs(), *kinds, descending=[True, False, False, False])
    )


def _specs(one: Sources, other: Sources) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flatten one replicated run's spec of each, of a cell that both have."""
    chosen = [reference(sources.evidence.cases) for sources in (one, other)]
    cells = chosen[0].join(chosen[1], on=_CELL, how="semi").sort(*_CELL, "seed").head(1)
    flat = []
    for sources, rows in zip((one, other), chosen, strict=True):
        first = rows.join(cells, on=_CELL, how="semi").sort("seed", "run_id").head(1)
        ids = first["run_id"].to_list()
        spec = sources.runs.filter(pl.col("run_id").is_in(ids)).select("spec").collect()
        flat.append(_flat(json.loads(spec.item())) if spec.height else {})
    return flat[0], flat[1]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    flat: dict[str, Any] = {}
    for name, below in value.items():
        flat |= _flat(below, f"{path}.{name}".lstrip("."))
    return flat


def _versions(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return dict(provenance(manifests).select("item", "value").iter_rows())


def _told(value: Any) -> str:
    return "none" if value is None else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        `sys.argv` by default.
    """
    options = _parser().parse_args(arguments)
    out = options.out or options.other / "compare"

    def make() -> Report:
        one, other = open_sources([options.one]), open_sources([options.other])
        return build_comparison(one, other, (str(options.one), str(options.other)))

    def told(section: Section) -> str:
        return section.answer or f"{section.title}: {section.missing}"

    return publish(make, out, "comparison", told)


def build_comparison(one: Sources, other: Sources, names: tuple[str, str]) -> Report:
    """Compare two results folders.

    Raises
    ------
    ResultsError
        If they have no cell in common.
    """
    gains = gains_changed(one.evidence.cases, other.evidence.cases)
    if gains.is_empty():
        raise ResultsError(
            f"{names[0]} and {names[1]} have no workload and cache state in common that was run "
            f"with and without replicas; {MAIN_STUDY} runs all"
        )
    changed = settings_changed(one, other)
    moved = time_changed(one.evidence, other.evidence)
    parts = gain_changed(one.evidence, other.evidence)
    return Report(
        f"{names[1]} against {names[0]}",
        f"one: {names[0]}; other: {names[1]}. Cells that both have: {gains.height}.",
        [_gains_section(gains), _causes_section(changed), _time_section(gains, parts, moved)],
        [*one.notes, *other.notes],
        f"python -m analysis.compare {names[0]} {names[1]}",
    )


def _gains_section(gains: pl.DataFrame) -> Section:
    most = gains.sort(pl.col("difference").abs(), descending=True).row(0, named=True)
    same = gains.filter(pl.col("difference").abs() < _SAME).height
    answer = (
        f"Of {gains.height} gains, {same} are the same within 0.05 points; the largest difference "
        f"is {percent(most['a_one'])} against {percent(most['a_other'])} ({most['workload']}, "
        f"{most['cache_state']})."
    )
    columns = {
        "workload": Column("workload"),
        "cache_state": Column("caches"),
        "a_one": Column("A, one, %", 1),
        "a_other": Column("A, other, %", 1),
        "difference": Column("points", 2),
        "baseline": Column("baseline's time, %", 2),
        "series": Column("series' time, %", 2),
    }
    caption = "Gains of both, and by how much the times of baseline and series differ"
    return Section(
        1,
        "gains",
        "Gains side by side",
        answer=answer,
        headline=answer,
        figures=(Figure("gains", "Gain A of both folders.", lambda width: _draw(gains, width)),),
        tables=(Table("gains", caption, gains, columns, tuple(columns)[:5]),),
        how="Means over capture seeds of the largest study of one scenario in each folder.",
    )


def _causes_section(changed: pl.DataFrame) -> Section:
    if changed.is_empty():
        answer = "Nothing but the results can differ: settings and versions are the same."
        return Section(2, "causes", "What differs beside results", answer=answer)
    names = _grouped(changed)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    answer = f"What differs, and so can be the cause: {listed(names[:6])}{more}."
    columns = {
        "what": Column("what"),
        "one": Column("one", wraps=True),
        "other": Column("other", wraps=True),
    }
    return Section(
        2,
        "causes",
        "What differs beside results",
        answer=answer,
        tables=(Table("causes", "Settings and versions that differ", changed, columns),),
    )


def _grouped(changed: pl.DataFrame) -> list[str]:
    """Name what differs, all of a machine (or another part that has a name) as one."""
    rows = {row["what"]: row for row in changed.iter_rows(named=True)}
    named = {what.removesuffix(".name") for what in rows if what.endswith(".name")}
    told = []
    for part in sorted(named):
        row = rows[f"{part}.name"]
        settings = sum(what.startswith(f"{part}.") for what in rows) - 1
        count = f" and {settings} setting{'s' * (settings > 1)}" if settings else ""
        told.append(f"the {part} ({row['one']} against {row['other']}{count})")
    return told + [what for what in rows if what.split(".")[0] not in named]


def _time_section(gains: pl.DataFrame, parts: pl.DataFrame, moved: pl.DataFrame) -> Section:
    title = "Where the gain and the time differ"
    if moved.is_empty():
        return Section(3, "time", title, missing="no counts in one of the folders")
    first = moved.row(0, named=True)
    answer = _parts_answer(gains, parts) + (
        f"The largest difference is {first['server']} of the {first['side']} of "
        f"{first['workload']} ({first['cache_state']}): {first['one']:.3f} against "
        f"{first['other']:.3f} ns per instruction."
        if abs(first["difference"]) > 5e-4
        else "No server's share of the time differs by as much as 0.0005 ns per instruction."
    )
    columns = {
        "workload": Column("workload"),
        "cache_state": Column("caches"),
        "side": Column("side"),
        "server": Column("served by"),
        "one": Column("one, ns/instr.", 4),
        "other": Column("other, ns/instr.", 4),
        "difference": Column("difference", 4),
    }
    caption = "Time by who served, largest difference first"
    shown = {
        **{name: columns[name] for name in ("workload", "cache_state", "server")},
        "one": Column("one, points", 2),
        "other": Column("other, points", 2),
        "difference": Column("difference", 2),
    }
    part_caption = "The gain A by whose time it saves, largest difference first"
    assert set(moved["side"]) <= set(SIDES)
    tables = (
        Table("gain_parts", part_caption, parts, shown),
        Table("time", caption, moved, columns),
    )
    return Section(3, "time", title, answer, tables=tables)


def _parts_answer(gains: pl.DataFrame, parts: pl.DataFrame) -> str:
    """Say whose time makes the largest difference of a gain."""
    most = gains.sort(pl.col("difference").abs(), descending=True).row(0, named=True)
    if abs(most["difference"]) < _SAME:
        return ""
    cell = {name: most[name] for name in _CELL}
    rows = parts.filter(pl.col("difference").abs() >= _SAME, **cell).head(3)
    each = [f"{row['difference']:+.1f} {row['server']}" for row in rows.iter_rows(named=True)]
    text = listed(each).replace("-", "\N{MINUS SIGN}")
    difference = f"{most['difference']:+.1f}".replace("-", "\N{MINUS SIGN}")
    return f"Of the {difference} points on {cell['workload']} ({cell['cache_state']}): {text}. "


_LABELS = 124


def _draw(gains: pl.DataFrame, width: Width) -> Drawing:
    tip = pl.format(
        "{} {}: one {} %, other {} %",
        *_CELL,
        pl.col("a_one").round(2),
        pl.col("a_other").round(2),
    )
    shown = gains.with_columns(pl.format("{}, {}", *_CELL).alias("row"), tip.alias("tip"))
    axis = alt.Axis(minExtent=_LABELS)
    y = alt.Y("row:N", sort=shown["row"].to_list(), title=None, axis=axis)
    base = alt.Chart(shown).encode(y=y, description=TIP)

    def x(name: str) -> alt.X:
        return alt.X(f"{name}:Q", title="gain A, %", axis=alt.Axis(tickCount=6))

    ring = base.mark_point(size=60, opacity=1, stroke=light("series"), fill=light("paper"))
    layers = (
        base.mark_rule(strokeWidth=2, color=light("band")).encode(
            x=x("a_one"), x2=alt.X2("a_other:Q")
        ),
        ring.encode(x=x("a_one")),
        base.mark_point(size=60, opacity=1, filled=True, color=light("series")).encode(
            x=x("a_other")
        ),
    )
    chart = alt.layer(*layers, width=width - _LABELS - MARGIN, height=22 * shown.height)
    glyphs = [
        Glyph("one", "circle", "series", hollow=True),
        Glyph("other", "circle", "series"),
    ]
    return stacked(key(glyphs, width, _LABELS), chart)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare",
        description="Compare two results folders: gains side by side, and what can be the cause.",
        epilog="exit codes: 0 a comparison was made; 2 none could be made",
    )
    parser.add_argument("one", type=Path, help="a folder written by python -m numarep.sweep")
    parser.add_argument("other", type=Path, help="another")
    parser.add_argument("--out", type=Path, help="where it goes (default: OTHER/compare)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
