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
from analysis.published import MAIN_STUDY, reference
from analysis.section import Column, Evidence, Figure, Section, Table, listed, percent
from analysis.seed_table import with_published
from analysis.sources import Sources, open_sources
from analysis.stalls import SIDES, by_server, stalls
from analysis.style import MARGIN, Glyph, Width, key, light
from analysis.trust import provenance
from numarep.results import ResultsError

_CELL = ("workload", "cache_state")


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
    return Report(
        f"{names[1]} against {names[0]}",
        f"one: {names[0]}; other: {names[1]}. Cells that both have: {gains.height}.",
        [_gains_section(gains), _causes_section(changed), _time_section(moved)],
        [*one.notes, *other.notes],
        f"python -m analysis.compare {names[0]} {names[1]}",
    )


def _gains_section(gains: pl.DataFrame) -> Section:
    most = gains.sort(pl.col("difference").abs(), descending=True).row(0, named=True)
    same = gains.filter(pl.col("difference").abs() < 0.05).height
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
    names = changed["what"].to_list()
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


def _time_section(moved: pl.DataFrame) -> Section:
    title = "Where the time differs"
    if moved.is_empty():
        return Section(3, "time", title, missing="no counts in one of the folders")
    first = moved.row(0, named=True)
    answer = (
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
    assert set(moved["side"]) <= set(SIDES)
    return Section(3, "time", title, answer, tables=(Table("time", caption, moved, columns),))


_LABELS = 124


def _draw(gains: pl.DataFrame, width: Width) -> Any:
    tip = pl.format(
        "{} {}: one {} %, other {} %",
        *_CELL,
        pl.col("a_one").round(2),
        pl.col("a_other").round(2),
    )
    shown = gains.with_columns(pl.format("{}, {}", *_CELL).alias("row"), tip.alias("tip"))
    axis = alt.Axis(minExtent=_LABELS)
    y = alt.Y("row:N", sort=shown["row"].to_list(), title=None, axis=axis)
    base = alt.Chart(shown).encode(y=y, description="tip:N")

    def x(name: str) -> alt.X:
        return alt.X(f"{name}:Q", title="gain A, %", axis=alt.Axis(tickCount=6))

    ring = base.mark_point(size=60, opacity=1, stroke=light("series"), fill=light("paper"))
    layers = (
        base.mark_rule(strokeWidth=2, color=light("band")).encode(x=x("a_one"), x2="a_other:Q"),
        ring.encode(x=x("a_one")),
        base.mark_point(size=60, opacity=1, filled=True, color=light("series")).encode(
            x=x("a_other")
        ),
    )
    chart = alt.layer(*layers).properties(width=width - _LABELS - MARGIN, height=22 * shown.height)
    glyphs = [
        Glyph("one", "circle", "series", hollow=True),
        Glyph("other", "circle", "series"),
    ]
    return alt.vconcat(key(glyphs, width, _LABELS), chart)


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
