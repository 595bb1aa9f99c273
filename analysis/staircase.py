"""The published latencies back out of the model: a pointer chase over growing footprints.

Every load needs the one before, so the time of a load is the latency of what serves it, and of the
page walk where the TLB misses. A level's own latency shows where nearly all loads are served by it.
"""

from typing import Any

import altair as alt
import polars as pl

from analysis.section import Column, Figure, Table
from analysis.stalls import server
from analysis.style import MARGIN, TIP, Drawing, Glyph, Width, in_rows, key, light, stacked

COMMAND = "python -m numarep.sweep study=latency_staircase out={out}"
FOOTPRINT, PAGE = "workload.footprint_bytes", "workload.page"
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
        `run_id`, `machine`, `footprint_bytes`, `page`, `home` (the buffer's node: own, remote, or
        near if memory of another node here is farther), `load_ns` and the published latencies `L1`
        to `remote DRAM` of the run's machine, null where the buffer lies elsewhere. Empty without a
        pointer chase.
    """
    if FOOTPRINT not in cases.collect_schema().names():
        return pl.DataFrame()
    ghz = pl.col("machine.core.ghz")
    remote = pl.col("cpu_node") != pl.col("master_node")
    remote_ns = pl.when(remote).then(pl.col("rho") * pl.col("local_ns"))
    is_near = remote_ns < remote_ns.max().over("machine")
    l1_ns = pl.col("machine.latency.l1_cycles") / ghz
    page = pl.col(PAGE) if PAGE in cases.collect_schema().names() else pl.lit("")
    return (
        cases.filter(pl.col("status") == "ok")
        .drop_nulls([FOOTPRINT, "cpu_node", "master_node", "time_ns", "references"])
        .select(
            "run_id",
            "machine",
            footprint_bytes=FOOTPRINT,
            page=page,
            home=pl.when(is_near)
            .then(pl.lit("near"))
            .when(remote)
            .then(pl.lit("remote"))
            .otherwise(pl.lit("own")),
            load_ns=pl.col("time_ns") / pl.col("references") + l1_ns,
            **{"L1": l1_ns, "L2": pl.col("machine.latency.l2_cycles") / ghz},
            **{"own LLC": pl.col("machine.latency.llc_ns"), "own DRAM": pl.col("local_ns")},
            **{"remote DRAM": remote_ns},
        )
        .sort("machine", "page", "home", "footprint_bytes", "run_id")
        .collect()
    )


def plateaus(table: pl.DataFrame, counts: pl.LazyFrame, cases: pl.LazyFrame) -> pl.DataFrame:
    """Return each level's latency where it serves nearly all loads, beside the published one.

    Returns
    -------
    DataFrame
        `machine`, `server`, `published_ns`, `model_ns`, `difference` in %, and `footprint_bytes`,
        `page` of the run with the shortest load among those; of each distance one remote DRAM.
    """
    node = cases.select("run_id", "cpu_node")
    loads = pl.col("leading") + pl.col("overlapped")
    shares = (
        counts.filter(pl.col("level") == 0)
        .join(table.select("run_id").lazy(), on="run_id", how="semi")
        .join(node, on="run_id")
        .group_by("run_id", server())
        .agg(loads.sum().alias("loads"))
        .with_columns(share=pl.col("loads") / pl.sum("loads").over("run_id"))
        .filter(pl.col("share") >= MOSTLY)
        .collect()
    )
    rows = table.unpivot(
        [name for name in _PUBLISHED if name in table.columns],
        index=["machine", "run_id", "footprint_bytes", "page", "load_ns"],
        variable_name="server",
        value_name="published_ns",
    )
    order = ("machine", "load_ns", "footprint_bytes", "run_id")
    ranked = rows.drop_nulls("published_ns").join(shares, on=["run_id", "server"]).sort(order)
    level = ["machine", "server", "published_ns"]
    first = ranked.unique(level, keep="first", maintain_order=True)
    return first.select(
        "machine",
        "server",
        "published_ns",
        model_ns="load_ns",
        difference=(pl.col("load_ns") / pl.col("published_ns") - 1) * 100,
        footprint_bytes="footprint_bytes",
        page="page",
    )


def shown(table: pl.DataFrame, steps: pl.DataFrame) -> tuple[Figure, list[Table]]:
    """Return the staircase's figure, and its table unless nothing says who served the loads."""
    caption = "Latency of a load in a pointer chase, by footprint; 4 KiB pages add page walks."
    if steps.height:
        apart = max(abs(value) for value in steps["difference"])
        caption += (
            " Where one level serves nearly all loads, its published latency comes back within "
            f"{apart:.1f} %."
        )
    columns = {
        "machine": Column("machine"),
        "server": Column("served by"),
        "published_ns": Column("published, ns", 1),
        "model_ns": Column("model, ns", 1),
        "difference": Column("difference, %", 1),
        "footprint_bytes": Column("footprint, bytes", 0),
        "page": Column("pages"),
    }
    below = "Published latencies beside the chase's, each where that level serves nearly all loads"
    figure = Figure("staircase", caption, lambda width: _draw(table, width))
    return figure, [Table("staircase", below, steps, columns)] if steps.height else []


_LABELS = 40
_APART = 1.4  # between labels, on the logarithmic axis of a low panel
_NAMES = 86  # right of a plot: what its lines are


def _draw(table: pl.DataFrame, width: Width) -> Drawing:
    tip = pl.format(
        "{}: {} KiB, {} pages, memory of {} node: {} ns",
        "machine",
        (pl.col("footprint_bytes") / 1024).round(0).cast(pl.Int64),
        "page",
        "home",
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
    base = alt.Chart(rows).encode(
        x=x,
        y=y,
        color=alt.Color("home:N", scale=colours, legend=None),
        strokeDash=alt.StrokeDash(
            "page:N", scale=alt.Scale(domain=["2M", "4K"], range=[[1, 0], [4, 3]]), legend=None
        ),
    )
    lines = base.mark_line(strokeWidth=2)
    points = base.mark_point(filled=True, size=24, opacity=1).encode(description=TIP)
    return alt.layer(
        *_published(rows, ends[1]),
        lines,
        points,
        width=plot,
        height=300 if tall else 200,
        title=rows["machine"][0],
    )


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
