"""What one CPU asks of every node's LLC and DRAM, over the links and at home: part of question 6.

>>> pl.DataFrame({"cpu_node": [1, 1, 1], "master_node": 0, "node": [0, 1, 5]}).select(
...     _whose())["whose"].to_list()
["the kernel's", "the CPU's", 'another']
"""

from typing import Any

import altair as alt
import polars as pl

from analysis.reference import POLICY
from analysis.section import Column, Figure, Table
from analysis.seed_table import with_published
from analysis.stalls import server
from analysis.style import MARGIN, SERVERS, TIP, Drawing, Glyph, Width, in_rows, key, light, stacked
from numarep.units import LINE_BYTES

BASELINE = "baseline"
_CELL = ("workload", "cache_state")
_PLACE = ("machine", "nodes", *_CELL, "replication")


def traffic(chosen: pl.DataFrame, counts: pl.LazyFrame) -> pl.DataFrame:
    """Return what one CPU fetches from every node's LLC and DRAM, without and with replicas.

    Parameters
    ----------
    chosen : DataFrame
        Pairs, with the number of `nodes` of their machine.
    counts : LazyFrame
        Schema `numarep.results.COUNTS`.

    Returns
    -------
    DataFrame
        `replication`, `baseline` among them; `server`; `whose` node it is: the kernel's, the
        CPU's, or another; `bytes_per_instruction`; `gb_per_s`, what this CPU alone asks of it;
        `share` of all lines that come from beyond L2, in %. Lines fetched, page walks among them;
        lines written back are not.
    """
    if chosen.is_empty():
        return pl.DataFrame()
    runs = _runs(chosen.filter(pl.col("replication.costs") == "charged"))
    lines = pl.col("leading") + pl.col("overlapped")
    # Prefetched and missed lines alike are counted where they come from.
    fetched = (
        counts.filter(~pl.col("served_by").is_in(["l1", "l2"]))
        .join(runs.lazy(), on="run_id")
        .group_by(*_PLACE, server(), _whose())
        .agg((lines.sum() * LINE_BYTES).alias("bytes"))
        .collect()
    )
    whole = runs.group_by(_PLACE).agg(pl.sum("instructions", "time_ns"))
    size = pl.col("bytes")
    table = fetched.join(whole, on=_PLACE).with_columns(
        bytes_per_instruction=size / pl.col("instructions"),
        gb_per_s=size / pl.col("time_ns"),
        share=size / size.sum().over(_PLACE) * 100,
        rank=pl.col("server").cast(pl.Enum(list(SERVERS))).to_physical(),
        later=pl.col("replication") != BASELINE,
    )
    shown = (*_PLACE, "server", "whose", "bytes_per_instruction", "gb_per_s", "share")
    order = ("nodes", "machine")
    cells = with_published(table.select(*_PLACE).unique(), *order).select(_PLACE)
    cells = cells.with_row_index("cell")
    return (
        table.join(cells, on=_PLACE)
        .with_columns(first=pl.col("cell").min().over("machine", "nodes", *_CELL))
        .sort("first", "later", "replication", "rank", "whose")
        .select(shown)
    )


def _runs(chosen: pl.DataFrame) -> pl.DataFrame:
    """Return every run of the chosen pairs once, those without replicas as the baseline."""
    same = ("machine", "nodes", *_CELL, "cpu_node", "master_node")
    new = chosen.select("run_id", *same, "replication", "instructions", "time_ns")
    old = chosen.select(
        pl.col("old_run_id").alias("run_id"),
        *same,
        replication=pl.lit(BASELINE),
        instructions="old_instructions",
        time_ns="old_time_ns",
    )
    return pl.concat([new, old]).unique("run_id", maintain_order=True)


def _whose() -> pl.Expr:
    return (
        pl.when(pl.col("node") == pl.col("cpu_node"))
        .then(pl.lit("the CPU's"))
        .when(pl.col("node") == pl.col("master_node"))
        .then(pl.lit("the kernel's"))
        .otherwise(pl.lit("another"))
        .alias("whose")
    )


def shown(moved: pl.DataFrame) -> tuple[list[Figure], list[Table]]:
    """Return the figure and the table of `traffic`, none where nothing crosses a link."""
    far = _far(moved) if moved.height else moved
    if far.is_empty():
        return [], []
    figure = Figure("traffic", _FAR_CAPTION, lambda width: _draw(far, width))
    return [figure], [Table("traffic", _TRAFFIC_CAPTION, moved, _TRAFFIC_COLUMNS)]


_TRAFFIC_COLUMNS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "nodes": Column("nodes", 0),
    "replication": Column("replication"),
    "server": Column("served by"),
    "whose": Column("whose node"),
    "bytes_per_instruction": Column("bytes/instr.", 4),
    "gb_per_s": Column("GB/s a CPU", 3),
    "share": Column("share, %", 1),
}
_TRAFFIC_CAPTION = "What one CPU fetches from every node's LLC and DRAM"
_FAR_CAPTION = (
    "What one CPU asks of other nodes, over the links, with cold caches. Replicas take most of it "
    "off the kernel's node; a fork then writes a page-table root on every node instead."
)


def answer(moved: pl.DataFrame) -> str:
    """Say what the links carry, with a space before it; nothing where they carry nothing."""
    if moved.is_empty():
        return ""
    both = moved.filter(replication=POLICY).select(*_PLACE).unique()
    home = moved.filter(whose="the kernel's", replication=BASELINE).join(
        both, on=[name for name in _PLACE if name != "replication"], how="semi"
    )
    if home.is_empty():
        return ""
    most = home.group_by(*_PLACE).agg(pl.sum("gb_per_s")).sort("gb_per_s", *_PLACE)
    cell = most.row(-1, named=True)
    same = {name: cell[name] for name in _PLACE if name != "replication"}
    after = moved.filter(replication=POLICY, whose="the kernel's", **same)["gb_per_s"].sum()
    return (
        f" A CPU of another node asks up to {cell['gb_per_s']:.2f} GB/s of the kernel's node "
        f"({cell['workload']}, {cell['cache_state']}, {cell['nodes']} nodes), with replicas "
        f"{after:.2f}."
    )


def _far(moved: pl.DataFrame) -> pl.DataFrame:
    """Keep what crosses a link with cold caches, without replicas and with the series'."""
    sides = pl.col("replication").is_in([BASELINE, POLICY])
    rows = moved.filter(sides, pl.col("whose") != "the CPU's", pl.col("cache_state") == "cold")
    return rows.group_by(*_PLACE, "whose", maintain_order=True).agg(
        pl.sum("gb_per_s", "bytes_per_instruction")
    )


_LABELS = 120
_FAR = SERVERS["remote DRAM"]


def _draw(far: pl.DataFrame, width: Width) -> Drawing:
    wide = width is Width.WIDE
    columns = 2 if wide else 1
    names = far["workload"].unique(maintain_order=True).to_list()
    plot = (width - _LABELS - MARGIN - 30 * (columns - 1)) // columns
    top = max(far.group_by(_PLACE).agg(pl.sum("gb_per_s"))["gb_per_s"])
    panels = [
        _bars(far.filter(workload=name), plot, top, named=not number % columns)
        for number, name in enumerate(names)
    ]
    glyphs = [
        Glyph("the kernel's node", "square", _FAR),
        Glyph("other nodes", "square", _FAR, hollow=True),
    ]
    return stacked(key(glyphs, width, _LABELS), *in_rows(panels, columns, 30))


def _bars(rows: pl.DataFrame, plot: int, top: float, *, named: bool) -> Any:
    label = pl.format("{} nodes, {}", "nodes", "replication").alias("row")
    tip = pl.format(
        "{}, {}: {} GB/s, {} bytes per instruction, from {} node",
        "workload",
        label,
        pl.col("gb_per_s").round(3),
        pl.col("bytes_per_instruction").round(4),
        "whose",
    )
    shown = rows.with_columns(label, tip.alias("tip"))
    order = shown["row"].unique(maintain_order=True).to_list()
    y = alt.Y(
        "row:N",
        sort=order,
        title=None,
        axis=alt.Axis(minExtent=_LABELS) if named else alt.Axis(labels=False),
    )
    scale = alt.Scale(domain=[0, top * 1.2], nice=False)
    x = alt.X("gb_per_s:Q", title="GB/s a CPU", scale=scale, axis=alt.Axis(tickCount=4))
    others = pl.col("whose").replace_strict({"the kernel's": 0, "another": 1})
    fill = alt.condition(alt.datum.others == 1, alt.value(light("paper")), alt.value(light(_FAR)))
    bars = (
        alt.Chart(shown.with_columns(others=others))
        .mark_bar(size=11, stroke=light(_FAR))
        .encode(y=y, x=x, fill=fill, order="others:O", description=TIP)
    )
    ends = shown.group_by("row", maintain_order=True).agg(pl.sum("gb_per_s"))
    texts = alt.Chart(ends).mark_text(align="left", dx=4, fontSize=10, aria=False)
    numbers = texts.encode(y=y, x=alt.X("gb_per_s:Q"), text=alt.Text("gb_per_s:Q", format=".2f"))
    title = alt.Title(f"{rows['workload'][0]}, cold", fontSize=12)
    return alt.layer(bars, numbers, width=plot, height=18 * len(order), title=title)
