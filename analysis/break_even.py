"""Question 5: where replication begins to pay, over latency ratio, LLC size and footprint.

Old and new time are both linear in the latency of remote DRAM, so the ratio at which they are equal
follows exactly from any two ratios of one LLC size.

>>> zero(pl.DataFrame({"rho": [1.0, 2.0], "saved_ns": [-10.0, 30.0]}))
1.25
"""

import math
from typing import Any

import altair as alt
import polars as pl

from analysis.cases import study_over
from analysis.pairs import remote_pairs
from analysis.presets import presets
from analysis.reference import reference
from analysis.section import Column, Evidence, Figure, Section, Table, listed
from analysis.seed_table import with_published
from analysis.style import (
    MARGIN,
    TIP,
    Drawing,
    Glyph,
    Width,
    beside,
    gain_key,
    gain_scale,
    key,
    light,
    stacked,
)

COMMAND = "python -m numarep.sweep study=break_even out={out}"
LLC = "machine.llc.size_bytes"
_AXES = (LLC, "machine.latency.dram_ns")
_CELL = ("workload", "cache_state")
LINE_BYTES = 64
_SOON = 1.2  # below the ratio of any two-socket machine in conf/machine


def surface(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the gain over ratio and LLC size, by workload and cache state.

    Returns
    -------
    DataFrame
        `rho`, `llc_mib`, `a` in % and `saved_ns`, old less new time; means over capture seeds.
        Empty without at least two ratios and two sizes.
    """
    study = _whole(study_over(remote_pairs(cases), _AXES, least=4))
    if study.is_empty() or min(study["rho"].n_unique(), study[LLC].n_unique()) < 2:
        return pl.DataFrame()
    rows = study.group_by(*_CELL, "rho", llc_mib=pl.col(LLC) / 2**20).agg(
        pl.mean("a"), saved_ns=(pl.col("old_time_ns") - pl.col("time_ns")).mean()
    )
    order = with_published(rows.select(_CELL).unique()).select(_CELL).with_row_index("cell")
    return rows.join(order, on=_CELL).sort("cell", "llc_mib", "rho").drop("cell")


def _whole(study: pl.DataFrame) -> pl.DataFrame:
    """Keep the grid: the ratios run for most LLC sizes, and of each cell the sizes that have all.

    A sweep cut short, or failed runs, leave holes; of a line with a hole no zero is told.
    """
    sizes = pl.col(LLC).n_unique().over("rho")
    grid = study.filter(sizes == sizes.max())
    ratios = pl.col("rho").n_unique()
    return grid.filter(ratios.over(*_CELL, LLC) == ratios)


def break_even(table: pl.DataFrame) -> pl.DataFrame:
    """Return the ratio from which replication pays, by cell and LLC size.

    Returns
    -------
    DataFrame
        `rho`: from there on a gain; 1 where already equal latencies give none; null where no
        ratio does. `at_most`, the largest gain of the surface, in %.
    """
    rows = [
        {
            **dict(zip((*_CELL, "llc_mib"), cell, strict=True)),
            "rho": zero(rows),
            "at_most": rows["a"].max(),
        }
        for cell, rows in table.group_by(*_CELL, "llc_mib", maintain_order=True)
    ]
    schema = {"workload": pl.String, "cache_state": pl.String, "llc_mib": pl.Float64}
    return pl.DataFrame(rows, schema={**schema, "rho": pl.Float64, "at_most": pl.Float64})


def zero(rows: pl.DataFrame) -> float | None:
    """Solve for the ratio at which nothing is saved; None if no ratio above 1 saves anything."""
    ends = rows.sort("rho").select("rho", "saved_ns")
    (low, first), (high, last) = ends.row(0), ends.row(-1)
    slope = (last - first) / (high - low)
    if slope <= 0:
        return 1.0 if first > 0 else None
    return float(max(1.0, low - first / slope))


def footprints(cases: pl.LazyFrame, counts: pl.LazyFrame) -> pl.DataFrame:
    """Return what a workload reads from DRAM of a cold machine, in bytes: `footprint_bytes`."""
    cold = reference(cases).filter(cache_state="cold").select("old_run_id", "workload")
    lines = pl.col("leading") + pl.col("overlapped")
    return (
        counts.filter(pl.col("served_by") == "dram")
        .join(cold.lazy(), left_on="run_id", right_on="old_run_id")
        .group_by("workload", "run_id")
        .agg(lines.sum().alias("lines"))
        .group_by("workload")
        .agg(footprint_bytes=pl.mean("lines") * LINE_BYTES)
        .collect()
        .sort("workload")
    )


def machines(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return where the machines of the results lie: `machine`, `rho`, `llc_mib`, from main runs."""
    found = reference(cases)
    return found.select("machine", "rho", llc_mib=pl.col(LLC) / 2**20).unique().sort("machine")


def section(evidence: Evidence) -> Section:
    """Answer question 5."""
    title = "From which machine on it pays"
    table = surface(evidence.cases)
    if table.is_empty():
        lacks = "no grid over the ratio of latencies and the size of the LLC"
        return Section(5, "break_even", title, missing=lacks, commands=(COMMAND,))
    lines = break_even(table).join(
        footprints(evidence.cases, evidence.counts),
        on="workload",
        how="left",
        maintain_order="left",
    )
    lines = lines.with_columns(footprint_kib=pl.col("footprint_bytes") / 1024)
    known, others = machines(evidence.cases), presets()
    return Section(
        5,
        "break_even",
        title,
        answer=_answer(lines),
        figures=(
            Figure(
                "break_even",
                _caption(known),
                lambda width: _draw(table, lines, known, others, width),
            ),
        ),
        tables=(
            Table("break_even", _TABLE_CAPTION, lines, _COLUMNS),
            Table("presets", _PRESETS_CAPTION, others, _PRESET_COLUMNS),
        ),
        how=_HOW,
    )


_RHO = "\N{GREEK SMALL LETTER RHO}"
_COLUMNS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "llc_mib": Column("LLC, MiB", 1),
    "footprint_kib": Column("footprint, KiB", 0),
    "rho": Column(f"pays from {_RHO}", 2),
    "at_most": Column("largest A, %", 1),
}
_TABLE_CAPTION = (
    f"The remote/local ratio {_RHO} from which replication pays; none: no ratio makes it pay"
)
_PRESET_COLUMNS = {
    "machine": Column("machine"),
    "cpu_node": Column("CPU on node"),
    "rho": Column(_RHO, 2),
    "llc_mib": Column("LLC, MiB", 1),
    "own_mib": Column("for own memory, MiB", 1),
}
_PRESETS_CAPTION = (
    "The machines of conf/, nearest first: the kernel on node 0, the CPU on the first node of "
    "another socket; with sub-NUMA clusters, lines of its own memory, as copies are, have a share "
    "of the socket's LLC only"
)
_HOW = (
    f"{_RHO} is remote over local idle DRAM latency, local 100 ns unless the study says otherwise. "
    "Old and new time are linear in it, so the zero line is exact. The footprint is what the "
    "workload reads from DRAM of a cold machine, 64 bytes a line. It is the workload's own, so "
    "there are as many footprints as workloads: no window can be made to fetch more of the kernel "
    "than it did, and repeated it fetches the same lines."
)


def _answer(lines: pl.DataFrame) -> str:
    cells = lines.group_by(_CELL, maintain_order=True).agg(
        pl.min("rho").alias("low"),
        soon=(pl.col("rho") <= _SOON).all() & pl.col("rho").is_not_null().all(),
    )
    soon = cells.filter("soon")
    never = cells.filter(pl.col("low").is_null())
    rest = cells.filter(~pl.col("soon"), pl.col("low").is_not_null())
    parts = []
    if soon.height:
        parts.append(f"With any LLC it pays at {_RHO} = {_SOON} for {listed(_names(soon))}")
    if never.height:
        parts.append(f"it never pays, at any ratio or LLC size, for {listed(_names(never))}")
    if rest.height:
        needs = ", ".join(
            f"{name} ({low:.2f})" for name, low in zip(_names(rest), rest["low"], strict=True)
        )
        parts.append(f"it depends on the LLC, with the smallest {_RHO} that can pay, for {needs}")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _names(cells: pl.DataFrame) -> list[str]:
    return [f"{row['workload']} {row['cache_state']}" for row in cells.iter_rows(named=True)]


def _caption(known: pl.DataFrame) -> str:
    where = listed(
        [
            f"{m['machine']} ({_RHO} {m['rho']:.2f}, {m['llc_mib']:.0f} MiB)"
            for m in known.to_dicts()
        ]
    )
    return (
        "Gain by latency ratio and LLC size. Bar: break-even, where nothing is gained or "
        f"lost; panels without one lie on one side. Diamond: {where}; dots: the machines of conf/, "
        "in the row of the nearest LLC size."
    )


_LABELS = 44


def _draw(
    table: pl.DataFrame,
    lines: pl.DataFrame,
    known: pl.DataFrame,
    others: pl.DataFrame,
    width: Width,
) -> Drawing:
    plot = (width - _LABELS - MARGIN - 18) // 2
    states = [s for s in ("hot", "cold") if s in table["cache_state"]]
    names = table["workload"].unique(maintain_order=True).to_list()
    marks = _spots(table, known, others)
    rows = [
        beside(
            *(
                _panel(table, lines, marks, name, state, plot, first=not i, last=name == names[-1])
                for i, state in enumerate(states)
            ),
            spacing=18,
        )
        for name in names
    ]
    glyphs = [*gain_key(), Glyph("break-even", "M-0.18,-1.2H0.18V1.2H-0.18Z", "ink")]
    glyphs.append(Glyph("machine of the main runs", "diamond", "ink"))
    glyphs.append(Glyph("machines of conf/", "circle", "ink", hollow=True))
    return stacked(key(glyphs, width, _LABELS), *rows, spacing=10)


def _panel(
    table: pl.DataFrame,
    lines: pl.DataFrame,
    marks: pl.DataFrame,
    workload: str,
    state: str,
    plot: int,
    *,
    first: bool,
    last: bool,
) -> Any:
    chosen = {"workload": workload, "cache_state": state}
    cells = _boxes(table.filter(**chosen))
    sizes = [_short(size) for size in sorted(table["llc_mib"].unique(), reverse=True)]
    domain = [min(table["rho"]), max(cells["right"])]
    scale = alt.Scale(domain=domain, nice=False)
    axis = alt.Axis(
        labels=last, tickCount=5 if plot > 200 else 3, grid=False, format=".1f", labelFlush=True
    )
    x = alt.X("left:Q", scale=scale, title=f"remote/local {_RHO}" if last else None, axis=axis)
    y = alt.Y(
        "llc:N",
        sort=sizes,
        title="LLC, MiB" if first else None,
        axis=alt.Axis(minExtent=_LABELS - 14, labels=first, labelFontSize=10),
        scale=alt.Scale(paddingInner=0, paddingOuter=0),
    )
    boxes = (
        alt.Chart(cells)
        .mark_rect(stroke=light("paper"), strokeWidth=0.5)
        .encode(
            x=x,
            x2=alt.X2("right:Q"),
            y=y,
            color=alt.Color("a:Q", scale=gain_scale(), legend=None),
            description=TIP,
        )
    )
    zeros = lines.filter(**chosen).filter(pl.col("rho").is_between(*domain)).with_columns(_llc())
    line = alt.Chart(zeros).mark_tick(color=light("ink"), thickness=2.5, size=13, aria=False)
    place = {"x": alt.X("rho:Q", scale=scale, axis=axis), "y": y}
    inside = marks.filter(pl.col("rho").is_between(*domain))
    preset = alt.Chart(inside.filter(~pl.col("main"))).mark_point(
        shape="circle", fill=light("paper"), stroke=light("ink"), size=20, opacity=1
    )
    mark = alt.Chart(inside.filter("main")).mark_point(
        shape="diamond", fill=light("ink"), stroke=light("paper"), size=70, opacity=1
    )
    spots = [found.encode(**place, description=TIP) for found in (preset, mark)]
    title = alt.Title(f"{workload}, {state}", fontSize=12, offset=2)
    return alt.layer(
        boxes, line.encode(**place), *spots, width=plot, height=13 * len(sizes), title=title
    )


def _spots(table: pl.DataFrame, known: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """Return where machines lie, each in the row of the nearest LLC size; `main` of the results."""
    names = ("machine", "rho", "llc_mib")
    both = pl.concat(
        [
            known.select(*names, main=pl.lit(True)),
            others.select(*names, main=pl.lit(False)).join(known, on="machine", how="anti"),
        ]
    )
    sizes = table["llc_mib"].unique()
    nearest = [float(min(sizes, key=lambda s: abs(math.log(s / own)))) for own in both["llc_mib"]]
    tip = pl.format(
        "{}: {} {}, LLC {} MiB",
        "machine",
        pl.lit(_RHO),
        pl.col("rho").round(2),
        pl.col("llc_mib").round(1),
    )
    return both.with_columns(
        tip=tip, llc=pl.Series([_short(size) for size in nearest], dtype=pl.String)
    )


def _llc() -> pl.Expr:
    return pl.col("llc_mib").map_elements(_short, pl.String).alias("llc")


def _short(number: float) -> str:
    return f"{number:g}"


def _boxes(rows: pl.DataFrame) -> pl.DataFrame:
    """Add each cell's box: from its ratio to the next, the last as wide as the one before."""
    following = pl.col("rho").shift(-1).over("llc_mib", order_by="rho")
    before = pl.col("rho").shift(1).over("llc_mib", order_by="rho")
    return rows.with_columns(
        _llc(),
        left=pl.col("rho"),
        right=following.fill_null(2 * pl.col("rho") - before),
        tip=pl.format(
            "{} {}: LLC {} MiB, {} {}: gain A {} %",
            *_CELL,
            pl.col("llc_mib").round(1),
            pl.lit(_RHO),
            pl.col("rho").round(2),
            pl.col("a").round(2),
        ),
    )
