"""The published latencies back out of the model: a pointer chase over growing footprints.

Every load needs the one before, so nothing hides anything and the serial time counts: a load takes
what the level that serves it takes, what the second-level TLB takes where that is asked, and the
page walk where it misses too. A level's own latency shows where nearly all loads are served by it,
less the TLB's and the walks' share, which the model's own counts tell.

Where others measured a chase (staircases.yaml), their points stand beside it; nothing is fitted to
them.
"""

from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import yaml

from analysis.section import Column, Figure, Table
from analysis.stalls import server
from analysis.style import MARGIN, TIP, Drawing, Glyph, Width, in_rows, key, light, stacked
from numarep.units import cycles_to_ns

COMMAND = "python -m numarep.sweep study=latency_staircase out={out}"
FOOTPRINT, PAGE, ORDER = "workload.footprint_bytes", "workload.page", "workload.order"
CYCLE, DRAWN = "cycle", "drawn"
# The share of loads that one level must serve to show its latency.
MOSTLY = 0.9
_PUBLISHED = ("L1", "L2", "own LLC", "own DRAM", "remote DRAM")
# The buffer's node, by how far its memory is: name, role of its colour.
HOMES = {"own": "dram-local", "near": "remote-llc", "remote": "dram-remote"}


def staircase(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the latency of a load by footprint, in ns.

    Returns
    -------
    DataFrame
        `run_id`, `machine`, `footprint_bytes`, `page`, `order` (of the lines: cycle or drawn),
        `home` (the buffer's node: own, remote, or near if memory of another node here is farther),
        `load_ns`, of which `stlb_ns` for hits of the second-level TLB, and the published latencies
        `L1` to `remote DRAM` of the run's machine, null where the buffer lies elsewhere. Empty
        without a pointer chase.
    """
    if FOOTPRINT not in cases.collect_schema().names():
        return pl.DataFrame()
    ghz = pl.col("machine.core.ghz")
    remote = pl.col("cpu_node") != pl.col("master_node")
    remote_ns = pl.when(remote).then(pl.col("rho") * pl.col("local_ns"))
    is_near = remote_ns < remote_ns.max().over("machine")
    l1_ns = pl.col("machine.latency.l1_cycles") / ghz
    serial_ns, loads = pl.col("time_serial_ns"), pl.col("references")
    return (
        cases.filter(pl.col("status") == "ok")
        .drop_nulls([FOOTPRINT, "cpu_node", "master_node", "time_ns", "references"])
        .select(
            "run_id",
            "machine",
            footprint_bytes=FOOTPRINT,
            page=PAGE,
            order=pl.col(ORDER).fill_null(CYCLE),
            home=pl.when(is_near)
            .then(pl.lit("near"))
            .when(remote)
            .then(pl.lit("remote"))
            .otherwise(pl.lit("own")),
            load_ns=serial_ns / loads + l1_ns,
            # All that the two times of a chase differ in: no load overlaps another, none stores.
            stlb_ns=(serial_ns - pl.col("time_ns")) / loads,
            **{"L1": l1_ns, "L2": pl.col("machine.latency.l2_cycles") / ghz},
            **{"own LLC": pl.col("machine.latency.llc_ns"), "own DRAM": pl.col("local_ns")},
            **{"remote DRAM": remote_ns},
        )
        .sort("machine", "page", "home", "order", "footprint_bytes", "run_id")
        .collect()
    )


def plateaus(table: pl.DataFrame, counts: pl.LazyFrame, cases: pl.LazyFrame) -> pl.DataFrame:
    """Return each level's latency where it serves nearly all loads, beside the published one.

    Returns
    -------
    DataFrame
        `machine`, `server`, `page`, `published_ns`, `load_ns`, of which `walk_ns` and `stlb_ns` for
        translation, `model_ns` (the rest), `difference` of that from the published in % and
        `footprint_bytes` of the run among those that differs most; of each distance one remote
        DRAM.
    """
    node = cases.select("run_id", "cpu_node")
    loads, is_data = pl.col("leading") + pl.col("overlapped"), pl.col("level") == 0
    chases = counts.join(table.select("run_id").lazy(), on="run_id", how="semi")
    shares = (
        chases.filter(is_data)
        .join(node, on="run_id")
        .group_by("run_id", server())
        .agg(loads.sum().alias("loads"))
        .with_columns(
            share=pl.col("loads") / pl.sum("loads").over("run_id"),
            run_loads=pl.sum("loads").over("run_id"),
        )
        .filter(pl.col("share") >= MOSTLY)
        .collect()
    )
    walks = chases.filter(~is_data).group_by("run_id").agg(walked_ns=pl.sum("stall_ns")).collect()
    rows = table.filter(pl.col("order") == CYCLE).unpivot(
        [name for name in _PUBLISHED if name in table.columns],
        index=["machine", "run_id", "footprint_bytes", "page", "load_ns", "stlb_ns"],
        variable_name="server",
        value_name="published_ns",
    )
    model_ns = pl.col("load_ns") - pl.col("walk_ns") - pl.col("stlb_ns")
    found = (
        rows.drop_nulls("published_ns")
        .join(shares, on=["run_id", "server"])
        .join(walks, on="run_id", how="left")
        .with_columns(walk_ns=pl.col("walked_ns").fill_null(0.0) / pl.col("run_loads"))
        .with_columns(model_ns=model_ns)
        .with_columns(difference=(pl.col("model_ns") / pl.col("published_ns") - 1) * 100)
        .with_columns(rank=-pl.col("difference").abs().round(6))
    )
    level = ["machine", "published_ns", "server", "page"]
    ranked = found.sort(*level, "rank", "footprint_bytes", "run_id")
    first = ranked.unique(level, keep="first", maintain_order=True)
    return first.select(
        *("machine", "server", "page", "published_ns", "load_ns", "walk_ns", "stlb_ns"),
        *("model_ns", "difference", "footprint_bytes"),
    )


@cache
def _points() -> pl.DataFrame:
    """Return the points others measured: machine, page, footprint, and ns with what cycles take."""
    read = yaml.safe_load((Path(__file__).parent / "staircases.yaml").read_text())
    rows = [
        {
            "machine": machine,
            "page": chase["page"],
            "footprint_bytes": point["footprint_bytes"],
            "measured_ns": cycles_to_ns(point["cycles"], ghz=chase["ghz"]) + point["ns"],
        }
        for machine, chase in read.items()
        for point in chase["points"]
    ]
    return pl.DataFrame(rows)


def measured(table: pl.DataFrame) -> pl.DataFrame:
    """Return what others measured of a machine in its own memory beside the model's chase there.

    Parameters
    ----------
    table : DataFrame
        Of `staircase`.

    Returns
    -------
    DataFrame
        `machine`, `page`, `footprint_bytes`, `measured_ns`, and of each order `drawn_ns`,
        `drawn_difference` in %, `cycle_ns` and `cycle_difference`, null where it has not been run.
    """
    if table.is_empty():
        return pl.DataFrame()
    own = table.filter(pl.col("home") == "own")
    where = ["machine", "page", "footprint_bytes"]
    rows = _points().join(own, on=where, how="semi", maintain_order="left")
    for order in (DRAWN, CYCLE):
        load = own.filter(pl.col("order") == order).unique(where, keep="first", maintain_order=True)
        rows = rows.join(
            load.select(*where, pl.col("load_ns").alias(f"{order}_ns")),
            on=where,
            how="left",
            maintain_order="left",
        ).with_columns(
            ((pl.col(f"{order}_ns") / pl.col("measured_ns") - 1) * 100).alias(f"{order}_difference")
        )
    return rows


def shown(table: pl.DataFrame, steps: pl.DataFrame) -> tuple[Figure, list[Table]]:
    """Return the staircase's figure, and its tables unless nothing says who served the loads."""
    caption = (
        "Latency of a load in a pointer chase, by footprint; with 4 KiB pages the second-level TLB "
        "and page walks come on top."
    )
    tables = []
    if steps.height:
        apart = max(abs(value) for value in steps["difference"])
        caption += (
            " Where one level serves nearly all loads, its published latency comes back within "
            f"{apart:.1f} % once what the model counts for these is taken off."
        )
        below = (
            "Published latencies beside the chase's where that level serves nearly all loads; of "
            "several such footprints the one farthest off"
        )
        tables.append(Table("staircase", below, steps, _STEPS))
    points = measured(table)
    if points.height:
        caption += f" {_MEASURED}"
        tables.append(Table("measured_staircase", _BESIDE, points, _POINTS))
    return Figure("staircase", caption, lambda width: _draw(table, width)), tables


_MEASURED = "Diamonds: measured by others on such a machine; nothing is fitted to them."
_BESIDE = (
    "Chases measured by others (7-cpu.com) beside the model's in two orders. The source doesn't "
    "tell its order, but its times are those of loads that a cache serves as often as its share of "
    "the buffer, as where every line is drawn anew. In a cycle, LRU keeps nothing of a buffer that "
    "doesn't fit, so the model has cliffs where such a measurement has slopes"
)
_STEPS = {
    "machine": Column("machine"),
    "server": Column("served by"),
    "page": Column("pages"),
    "published_ns": Column("published, ns", 1),
    "load_ns": Column("a load, ns", 1),
    "walk_ns": Column("of it walks, ns", 1),
    "stlb_ns": Column("second-level TLB, ns", 1),
    "model_ns": Column("the rest, ns", 1),
    "difference": Column("difference, %", 1),
    "footprint_bytes": Column("footprint, bytes", 0),
}
_POINTS = {
    "machine": Column("machine"),
    "footprint_bytes": Column("footprint, bytes", 0),
    "measured_ns": Column("measured, ns", 1),
    "drawn_ns": Column("model, lines drawn anew, ns", 1),
    "drawn_difference": Column("off by, %", 1),
    "cycle_ns": Column("model, in a cycle, ns", 1),
    "cycle_difference": Column("off by, %", 1),
}
_LABELS = 40
_APART = 1.4  # between labels, on the logarithmic axis of a low panel
_NAMES = 86  # right of a plot: what its lines are


def _draw(table: pl.DataFrame, width: Width) -> Drawing:
    tip = pl.format(
        "{}: {} KiB, {} pages, memory of {} node{}: {} ns",
        "machine",
        (pl.col("footprint_bytes") / 1024).round(0).cast(pl.Int64),
        "page",
        "home",
        pl.when(pl.col("order") == DRAWN).then(pl.lit(", lines drawn anew")).otherwise(pl.lit("")),
        pl.col("load_ns").round(2),
    )
    drawn = table.with_columns(tip.alias("tip"), mib=pl.col("footprint_bytes") / 2**20)
    machines = drawn.partition_by("machine", maintain_order=True)
    columns = 2 if width is Width.WIDE and len(machines) > 1 else 1
    ends = float(drawn.select(pl.min("mib")).item()), float(drawn.select(pl.max("mib")).item())
    plot = (width - MARGIN - 20 * (columns - 1)) // columns - _LABELS - _NAMES
    panels = [_panel(rows, ends, plot, tall=len(machines) == 1) for rows in machines]
    names = {"own": "own node", "near": "nearer of the other nodes", "remote": "remote node"}
    homes = [home for home in HOMES if home in table["home"]]
    glyphs = [
        *(Glyph(names[home], "circle", HOMES[home]) for home in homes),
        Glyph("2 MiB pages", "M-1.6,-0.15H1.6V0.15H-1.6Z", "ink"),
        Glyph("4 KiB pages", "M-1.6,-0.15H-0.5V0.15H-1.6ZM0.5,-0.15H1.6V0.15H0.5Z", "ink"),
    ]
    if DRAWN in table["order"]:
        glyphs.append(Glyph("lines drawn anew", "M-1.6,-0.05H1.6V0.05H-1.6Z", "ink"))
    if measured(table).height:
        glyphs.append(Glyph("measured by others", "diamond", "ink", hollow=True))
    return stacked(key(glyphs, width, _LABELS), *in_rows(panels, columns, 20))


def _panel(rows: pl.DataFrame, ends: tuple[float, float], plot: int, *, tall: bool) -> Any:
    """Draw one machine's staircase."""
    scale = alt.Scale(type="log", base=4, domain=list(ends), nice=False)
    ticks = [4.0**power for power in range(-4, 6, 1 if plot > 400 else 2)]
    written = (
        "datum.value < 1 ? datum.value * 1024 + ' K' : "
        "datum.value < 1024 ? datum.value + ' M' : datum.value / 1024 + ' G'"
    )
    x_axis = alt.Axis(values=ticks, labelExpr=written, grid=False)
    y_axis = alt.Axis(values=[1, 2, 5, 10, 20, 50, 100, 200], grid=True, minExtent=_LABELS - 12)
    x = alt.X("mib:Q", title="footprint, bytes", scale=scale, axis=x_axis)
    y = alt.Y(
        "load_ns:Q",
        title="ns a load",
        axis=y_axis,
        scale=alt.Scale(type="log", domain=[1, 350], nice=False),
    )
    colours = alt.Scale(domain=list(HOMES), range=[light(role) for role in HOMES.values()])
    colour = alt.Color("home:N", scale=colours, legend=None)
    dash = alt.Scale(domain=["2M", "4K"], range=[[1, 0], [4, 3]])
    layers = _published(rows, ends[1])
    for order, stroke, size in ((CYCLE, 2, 24), (DRAWN, 1, 12)):
        lines = rows.filter(pl.col("order") == order)
        if lines.height:
            base = alt.Chart(lines).encode(x=x, y=y, color=colour)
            dashed = alt.StrokeDash("page:N", scale=dash, legend=None)
            layers.append(base.mark_line(strokeWidth=stroke).encode(strokeDash=dashed))
            points = base.mark_point(filled=True, size=size, opacity=1)
            layers.append(points.encode(description=TIP))
    others = measured(rows)
    if others.height:
        layers.append(_diamonds(others, x, y))
    return alt.layer(*layers, width=plot, height=300 if tall else 200, title=rows["machine"][0])


def _diamonds(points: pl.DataFrame, x: Any, y: Any) -> Any:
    """Draw what others measured."""
    tip = pl.format(
        "{}, measured by others: {} KiB: {} ns",
        "machine",
        pl.col("footprint_bytes") // 1024,
        pl.col("measured_ns").round(2),
    )
    drawn = points.select(
        tip.alias("tip"), mib=pl.col("footprint_bytes") / 2**20, load_ns="measured_ns"
    )
    marks = alt.Chart(drawn).mark_point(
        shape="diamond", size=60, color=light("ink"), strokeWidth=1.5, opacity=1
    )
    return marks.encode(x=x, y=y, description=TIP)


def _published(drawn: pl.DataFrame, top: float) -> list[Any]:
    """Draw the published latencies as labelled lines."""
    values = [(name, drawn[name].drop_nulls().unique().sort()) for name in _PUBLISHED]
    rows = [
        {"name": name if ns == found[-1] else "near DRAM", "ns": ns, "mib": top}
        for name, found in values
        for ns in found
    ]
    below = 0.0
    for row in sorted(rows, key=lambda row: row["ns"]):
        below = row["at"] = max(row["ns"], below * _APART)
    marks = alt.Chart(pl.DataFrame(rows))
    rules = marks.mark_rule(color=light("zero"), strokeDash=[2, 2], aria=False)
    texts = marks.mark_text(align="left", dx=8, color=light("muted"), fontSize=11, aria=False)
    return [
        rules.encode(y=alt.Y("ns:Q")),
        texts.encode(x=alt.X("mib:Q"), y=alt.Y("at:Q"), text=alt.Text("name:N")),
    ]
