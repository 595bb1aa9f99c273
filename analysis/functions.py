"""Question 3: which kernel functions gain, and where their time goes before and after.

Time is a function's own: its instructions and the stalls of what it fetched, read and wrote. A
trace has no call stacks, so flame graphs are two levels deep: the function, then who served it.

>>> rows = [("kill, cold, baseline", "do_exit", "remote DRAM", 12.4)]
>>> print(folded(pl.DataFrame(rows, schema=["window", "function", "server", "ns"], orient="row")))
kill, cold, baseline;do_exit;remote DRAM 12
"""

import json
from typing import Any

import altair as alt
import polars as pl

from analysis.reference import reference
from analysis.section import Attached, Column, Evidence, Figure, Section, Table, listed, percent
from analysis.stalls import DECIMALS, SIDES, server, sides_of
from analysis.style import (
    MARGIN,
    SERVERS,
    TIP,
    Drawing,
    Glyph,
    Width,
    key,
    light,
    server_scale,
    stacked,
)

COMMAND = "python -m numarep.sweep by_function=true out={out}"
_CELL = ("workload", "cache_state")
_WINDOW = (*_CELL, "side")
REST = "other functions"
SHOWN = 12  # functions in a picture
_LEAST = 0.004  # of the baseline's time: what an icicle still shows by itself


def by_server(cases: pl.LazyFrame, functions: pl.LazyFrame) -> pl.DataFrame:
    """Return the time of every kernel function by who served it, means over capture seeds.

    Returns
    -------
    DataFrame
        `workload`, `cache_state`, `side`, `function`, `server` (`base`: instructions), `ns`, and
        `whole_ns`, the baseline's time. Empty where the runs were not counted by function.
    """
    chosen = reference(cases)
    counted = functions.select("run_id").unique().collect(engine="streaming")
    for side in ("run_id", "old_run_id"):  # else a window would have one side, or sides unlike
        chosen = chosen.join(counted, left_on=side, right_on="run_id", how="semi")
    found = (
        functions.join(sides_of(chosen).lazy(), on="run_id")
        .with_columns(
            server=pl.when(pl.col("access") == "base").then(pl.lit("base")).otherwise(server())
        )
        .group_by(*_WINDOW, "run_id", "function", "server")
        .agg(ns=pl.sum("stall_ns"))
        .collect()
    )
    runs = found.select(*_WINDOW, "run_id").unique().group_by(_WINDOW).agg(pl.len().alias("runs"))
    whole = chosen.group_by(_CELL).agg(whole_ns=pl.mean("old_time_ns"))
    return (
        found.group_by(*_WINDOW, "function", "server")
        .agg(pl.sum("ns"))
        .filter(pl.col("ns") > 0)
        .join(runs, on=_WINDOW)
        .with_columns((pl.col("ns") / pl.col("runs")).round(DECIMALS))
        .join(whole, on=_CELL)
        .sort(*_WINDOW, "function", "server")
        .select(*_WINDOW, "function", "server", "ns", "whole_ns")
    )


def functions(cases: pl.LazyFrame, functions: pl.LazyFrame) -> pl.DataFrame:
    """Return what every kernel function gains, most first.

    Returns
    -------
    DataFrame
        `workload`, `cache_state`, `function`; `baseline_ns` and `series_ns`, its time;
        `baseline_remote_ns` and `series_remote_ns`, the part stalled on another node; `gain`, in %
        of the window's baseline.
    """
    table = by_server(cases, functions)
    remote = pl.col("server").str.starts_with("remote")
    ns = pl.col("ns")
    sums = table.group_by(*_CELL, "function").agg(
        *(ns.filter(side=s).sum().round(DECIMALS).alias(f"{s}_ns") for s in SIDES),
        *(ns.filter(remote, side=s).sum().round(DECIMALS).alias(f"{s}_remote_ns") for s in SIDES),
        whole_ns=pl.first("whole_ns"),
    )
    gain = (pl.col("baseline_ns") - pl.col("series_ns")) / pl.col("whole_ns") * 100
    return (
        sums.with_columns(gain=gain)
        .sort("gain", *_CELL, "function", descending=[True, False, False, False])
        .drop("whole_ns")
    )


def folded(rows: pl.DataFrame) -> str:
    """Write stacks as flame graph tools read them: `window;function;server` and whole ns a line."""
    lines = rows.select(
        pl.format("{};{};{} {}", "window", "function", "server", pl.col("ns").round().cast(int))
    )
    return "\n".join(lines.to_series())


def speedscope(rows: pl.DataFrame) -> str:
    """Write stacks as speedscope's JSON: a profile for each window, in ns."""
    names = [*dict.fromkeys([*rows["function"], *rows["server"]])]
    frame = {name: index for index, name in enumerate(names)}
    profiles = [
        {
            "type": "sampled",
            "name": stacks["window"][0],
            "unit": "nanoseconds",
            "startValue": 0,
            "endValue": sum(stacks["ns"]),
            "samples": [
                [frame[f], frame[s]] for f, s in stacks.select("function", "server").rows()
            ],
            "weights": stacks["ns"].to_list(),
        }
        for stacks in rows.partition_by("window", maintain_order=True)
    ]
    return json.dumps(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "shared": {"frames": [{"name": name} for name in names]},
            "profiles": profiles,
        }
    )


def section(evidence: Evidence) -> Section:
    """Answer question 3."""
    title = "Which kernel functions gain"
    stacks = by_server(evidence.cases, evidence.functions)
    if stacks.is_empty():
        lacks = "no counts by kernel function"
        return Section(3, "functions", title, missing=lacks, commands=(COMMAND,))
    table = functions(evidence.cases, evidence.functions)
    most = table.group_by(_CELL).agg(pl.sum("gain")).sort("gain", *_CELL, descending=True)
    cell = most.select(_CELL).row(0, named=True)
    window = stacks.filter(**cell)
    top = table.filter(**cell).head(SHOWN)
    named = stacks.with_columns(
        pl.format("{}, {}, {}", *_WINDOW).alias("window"), pl.col("ns").round(3)
    )
    return Section(
        3,
        "functions",
        title,
        answer=_answer(table, cell),
        figures=(
            Figure("functions", _caption(top), lambda width: _draw(top, width)),
            Figure("flame", _flame_caption(cell), lambda width: _icicles(window, width)),
        ),
        tables=(Table("functions", _TABLE_CAPTION, table, _COLUMNS),),
        files=(
            Attached("functions.speedscope.json", "flame graphs for speedscope", speedscope(named)),
            Attached("functions.folded", "the same as folded stacks", folded(named)),
        ),
        how=_HOW,
    )


_COLUMNS = {
    "function": Column("function"),
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "gain": Column("gain, % of all", 2),
    "baseline_ns": Column("baseline, ns", 0),
    "series_ns": Column("series, ns", 0),
    "baseline_remote_ns": Column("remote, baseline, ns", 0),
    "series_remote_ns": Column("remote, series, ns", 0),
}
_TABLE_CAPTION = "Time of kernel functions, and how much of it is remote stall; largest gain first"
_HOW = (
    "A reference belongs to the function fetched last; a line that two share, to the one in its "
    "middle. A function's time is its own, without what it calls: instructions at the assumed IPC "
    "and the stalls of leading misses, on a CPU of another node than the kernel's, means over "
    "capture seeds."
)


def _answer(table: pl.DataFrame, cell: dict[str, Any]) -> str:
    rows = table.filter(**cell)
    gained = rows.filter(pl.col("gain") > 0)
    if gained.is_empty():
        least = rows.sort("gain").row(0, named=True)
        return (
            f"No function gains on {cell['workload']} ({cell['cache_state']}); "
            f"{least['function']} loses most, {percent(-least['gain'])} of the time."
        )
    total = sum(gained["gain"])
    needed = int((gained["gain"].cum_sum() < total / 2).sum()) + 1
    first = gained.head(3)["function"].to_list()
    return (
        f"On {cell['workload']} ({cell['cache_state']}) {listed(first)} gain most; half of what "
        f"functions gain there ({percent(total)} of the time) takes {needed} of {gained.height} "
        f"functions, the first of them {percent(gained['gain'][0])}."
    )


def _caption(top: pl.DataFrame) -> str:
    before, after = (sum(top[f"{side}_remote_ns"]) / 1000 for side in SIDES)
    return (
        f"Remote stall before and after, of the {top.height} functions that gain most: "
        f"{before:.1f} \N{GREEK SMALL LETTER MU}s become {after:.1f} \N{GREEK SMALL LETTER MU}s."
    )


_LABELS = 150


def _draw(top: pl.DataFrame, width: Width) -> Drawing:
    tip = pl.format(
        "{}: remote stall {} ns, {} ns with replicas; gain {} % of {} ({})",
        "function",
        pl.col("baseline_remote_ns").round(0),
        pl.col("series_remote_ns").round(0),
        pl.col("gain").round(2),
        *_CELL,
    )
    order = top["function"].to_list()
    axis = alt.Axis(minExtent=_LABELS, labelLimit=_LABELS)
    base = alt.Chart(top.with_columns(tip.alias("tip"))).encode(
        y=alt.Y("function:N", sort=order, title=None, axis=axis), description=TIP
    )

    def x(side: str) -> alt.X:
        axis = alt.Axis(tickCount=5)
        return alt.X(f"{side}_remote_ns:Q", title="remote stall, ns", axis=axis)

    def dot(side: str) -> Any:
        return base.mark_point(filled=True, size=64, opacity=1, color=light(side)).encode(x=x(side))

    line = base.mark_rule(strokeWidth=2, color=light("band"))
    spans = line.encode(x=x("baseline"), x2=alt.X2("series_remote_ns:Q"))
    chart = alt.layer(
        spans, *map(dot, SIDES), width=width - _LABELS - MARGIN, height=21 * len(order)
    )
    glyphs = [Glyph(side, "circle", side) for side in SIDES]
    return stacked(key(glyphs, width, _LABELS), chart)


def _flame_caption(cell: dict[str, Any]) -> str:
    return (
        f"Flame graph of {cell['workload']} ({cell['cache_state']}): functions by their own time, "
        "and below who served it; the series on the same scale. Names where they fit; hovering "
        "shows the others."
    )


def _icicles(window: pl.DataFrame, width: Width) -> Drawing:
    plot = width - MARGIN
    whole = float(window["whole_ns"][0])
    totals = window.group_by("side").agg(pl.sum("ns"))["ns"]
    scale = alt.Scale(domain=[0, max(whole, *totals)], nice=False)
    present = [name for name in SERVERS if name in window["server"]]
    order = _order(window, whole)
    charts = [
        _icicle(_boxes(window.filter(side=side), order), side, scale, present, plot, width)
        for side in SIDES
    ]
    glyphs = [Glyph(name, "square", SERVERS[name]) for name in present]
    return stacked(key(glyphs, width, 0), *charts)


def _order(window: pl.DataFrame, whole: float) -> list[str]:
    """List the functions that are shown by themselves, largest in the baseline first."""
    large = (
        window.group_by("function")
        .agg(
            pl.col("ns").filter(side="baseline").sum().alias("first"),
            most=pl.max_horizontal(*(pl.col("ns").filter(side=side).sum() for side in SIDES)),
        )
        .filter(pl.col("most") >= _LEAST * whole)
        .sort("first", "function", descending=[True, False])
    )
    return [*large["function"], REST]


def _boxes(rows: pl.DataFrame, order: list[str]) -> pl.DataFrame:
    """Lay functions side by side, and below each who served it, near to far."""
    near_to_far = pl.Enum(list(SERVERS))
    small = ~pl.col("function").is_in(order)
    laid = (
        rows.with_columns(
            function=pl.when(small).then(pl.lit(REST)).otherwise(pl.col("function")),
        )
        .group_by("function", "server", "side")
        .agg(pl.sum("ns"))
        .sort(pl.col("function").cast(pl.Enum(order)), pl.col("server").cast(near_to_far))
        .with_columns(end=pl.col("ns").cum_sum())
        .with_columns(start=pl.col("end") - pl.col("ns"))
    )
    above = laid.group_by("function", "side", maintain_order=True).agg(
        pl.sum("ns"), pl.min("start"), pl.max("end"), server=pl.lit(None, pl.String)
    )
    names = pl.format("{} ({}): {} ns", "function", "side", pl.col("ns").round(0))
    served = pl.format("{} ({}), {}: {} ns", "function", "side", "server", pl.col("ns").round(0))
    columns = ("function", "server", "start", "end", "row", "tip")
    return pl.concat(
        [
            above.with_columns(row=pl.lit(0), tip=names).select(columns),
            laid.with_columns(row=pl.lit(1), tip=served).select(columns),
        ]
    )


# Where functions begin and end, and below who served them, in pixels; names fit a page only.
_LEVELS = {Width.WIDE: (0, 104, 144), Width.NARROW: (0, 30, 66)}
_UPRIGHT = 10  # pixels that an upright name needs


def _icicle(
    boxes: pl.DataFrame, side: str, scale: alt.Scale, present: list[str], plot: int, width: Width
) -> Any:
    x = alt.X(
        "start:Q",
        scale=scale,
        title="time, ns",
        axis=alt.Axis(grid=False, tickCount=4 if width is Width.NARROW else 8, format=",d"),
    )
    levels = _LEVELS[width]
    y_scale = alt.Scale(domain=[levels[-1], 0], nice=False)
    rows = pl.DataFrame({"row": [0, 1], "top": levels[:-1], "bottom": levels[1:]})
    pixels = (pl.col("end") - pl.col("start")) * plot / scale.domain[1]
    laid = boxes.join(rows, on="row").with_columns(
        middle=(pl.col("start") + pl.col("end")) / 2, pixels=pixels
    )
    colour = alt.Color("server:N", scale=server_scale(present), legend=None)

    def rects(row: int, **channels: Any) -> Any:
        marks = alt.Chart(laid.filter(row=row)).mark_rect(stroke=light("paper"), strokeWidth=0.5)
        place = {"x": x, "x2": "end:Q", "y": alt.Y("top:Q", scale=y_scale, axis=None)}
        return marks.encode(**place, y2=alt.Y2("bottom:Q"), description=TIP, **channels)

    above = rects(0, color=alt.value(light("band")))
    return alt.layer(
        above,
        rects(1, color=colour),
        *_names(laid.filter(row=0), scale, y_scale),
        width=plot,
        height=levels[-1],
        title=side,
    )


def _names(boxes: pl.DataFrame, x_scale: alt.Scale, y_scale: alt.Scale) -> list[Any]:
    """Write names into their boxes: along where they fit, upright where that fits, or not."""
    name = pl.col("function")
    along = pl.col("pixels") > 8 + 6.2 * name.str.len_chars()
    most = int((_LEVELS[Width.WIDE][1] - 8) / 5.6)
    cut = pl.format("{}\N{HORIZONTAL ELLIPSIS}", name.str.head(most - 1))
    short = pl.when(name.str.len_chars() <= most).then(name).otherwise(cut)
    upright = boxes.filter(~along, pl.col("pixels") >= _UPRIGHT).with_columns(text=short)
    layers = []
    place = alt.X("middle:Q", scale=x_scale)
    kinds: tuple[tuple[pl.DataFrame, dict[str, Any], str], ...] = (
        (boxes.filter(along), {"baseline": "top", "dy": 4}, "function:N"),
        (upright, {"angle": 270, "align": "right", "dx": -4, "baseline": "middle"}, "text:N"),
    )
    for rows, mark, text in kinds:
        if rows.height:
            marks = alt.Chart(rows).mark_text(fontSize=10, aria=False, **mark)
            y = alt.Y("top:Q", scale=y_scale, axis=None)
            layers.append(marks.encode(x=place, y=y, text=text))
    return layers
