"""The published table beside the model's on the terminal: gain by workload, hot and cold.

Gains are `analysis.pairs`'s, in %. A cell agrees when either definition lies within 5 points of
the published figure. What varies beside the table's own axes is a variant and makes a table of its
own; kernel layouts (`kernel.layout_seed`) are summarised in the spread, as capture seeds are.

>>> published().filter(workload="kill", cache_state="cold")["published"].item()
26.1
"""

import re
from pathlib import Path

import polars as pl
import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.cases import cases, settings_of
from analysis.pairs import pairs

AGREE_POINTS = 5.0
ROWS_SHOWN = 40
VARIANTS_SHOWN = 8
TITLE = "Gain of replication in %, CPU on another node than the kernel's"
# Spread over, not told apart.
_GROUPS = ("machine", "kernel")  # whose name says all that always goes with it
_SPREAD = {"kernel.layout_seed"}
_SCENARIO = {"machine": "machine", "kernel": "kernel", "replication": "replication"}
PROTOCOL = """\
hot: one unmeasured pass before. cold: all caches, TLBs and paging-structure caches of all \
sockets flushed once before the measured window. Loops are tiled from 32 captured iterations.{home}
A = (old - new) / old, B = old / new - 1: mean over {spread}; [min..max] over the same; band: \
from all misses one after the other to all that can overlapping; own node: the CPU on the \
kernel's node; agrees: the definitions within 5 points of what was published."""


def published() -> pl.DataFrame:
    """Return the published gains: workload, cache_state, published (%), in published order."""
    cells = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())
    return pl.DataFrame(
        [
            {"workload": workload, "cache_state": state, "published": value}
            for workload, states in cells.items()
            for state, value in states.items()
        ]
    )


def gains(runs: pl.LazyFrame | pl.DataFrame) -> pl.DataFrame:
    """Return one row per variant, workload and cache state, beside the published figure.

    Columns of gains in %: `a`, `a_min`, `a_max`, `b`, `a_serial`, `a_overlapped` for CPUs on other
    nodes than the kernel's, `a_local` on its own; `published`; and `agrees`, the definitions that
    lie within 5 points of it ("A", "B", "A, B", "no", null where nothing was published).
    """
    return _gains(_paired(runs))


def with_published(table: pl.DataFrame, *first: str) -> pl.DataFrame:
    """Join rows of workload and cache state with what was published, and put them in its order.

    Parameters
    ----------
    table : DataFrame
        With `workload` and `cache_state`; where it has gains `a` and `b`, `agrees` is added.
    *first : str
        Columns to sort by before that.
    """
    cell = ("workload", "cache_state")
    joined = table.join(published().with_row_index("order"), on=cell, how="left")
    if {"a", "b"} <= set(table.columns):
        joined = joined.with_columns(agrees=_agreement())
    return joined.sort(*first, "order", *cell, nulls_last=True).drop("order")


def show(runs: pl.LazyFrame | pl.DataFrame, console: Console) -> None:
    """Print the table, or the runs themselves where no run has its baseline."""
    paired = _paired(runs)
    table = _gains(paired)
    variants = sorted(table.partition_by("variant"), key=lambda rows: _natural(rows["variant"][0]))
    for rows in variants[:VARIANTS_SHOWN]:
        console.print(_gain_table(rows["variant"][0], rows))
    if table.is_empty():
        console.print(_run_table(runs.lazy()))
    else:
        console.print(_protocol(paired), highlight=False, markup=False)
    if len(variants) > VARIANTS_SHOWN:
        console.print(f"and {len(variants) - VARIANTS_SHOWN} more tables: see analysis.report")
    tally = runs.lazy().select(all=pl.len(), failed=(pl.col("status") == "failed").sum())
    total, failed = tally.collect().row(0)
    console.print(f"{total} runs, {failed} failed", highlight=False)


def _natural(text: str) -> list[tuple[float, str]]:
    """Return a key that sorts numbers in a text by their size.

    >>> sorted(["n=16", "n=2"], key=_natural)
    ['n=2', 'n=16']
    """
    words = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(word), "") if word[:1].isdigit() else (-1.0, word) for word in words]


def _paired(runs: pl.LazyFrame | pl.DataFrame) -> pl.DataFrame:
    """Return all pairs with the name of their variant, in order of their coordinates."""
    paired = pairs(cases(runs.lazy())).sort("run_id").collect()
    return paired.with_columns(variant=_variant(paired))


def _gains(paired: pl.DataFrame) -> pl.DataFrame:
    remote = pl.col("remote")
    table = paired.group_by("variant", "home_llc", "workload", "cache_state").agg(
        *(pl.col(n).filter(remote).mean() for n in ("a", "b", "a_serial", "a_overlapped")),
        a_min=pl.col("a").filter(remote).min(),
        a_max=pl.col("a").filter(remote).max(),
        a_local=pl.col("a").filter(~remote).mean(),
    )
    return with_published(table, "variant").select(
        *("variant", "home_llc", "workload", "cache_state", "a", "a_min", "a_max", "b"),
        *("a_serial", "a_overlapped", "a_local", "published", "agrees"),
    )


def _agreement() -> pl.Expr:
    def near(name: str) -> pl.Expr:
        return (pl.col(name) - pl.col("published")).abs() <= AGREE_POINTS

    return (
        pl.when(near("a") & near("b"))
        .then(pl.lit("A, B"))
        .when(near("a"))
        .then(pl.lit("A"))
        .when(near("b"))
        .then(pl.lit("B"))
        .when(near("a").is_not_null())
        .then(pl.lit("no"))
    )


def _variant(paired: pl.DataFrame) -> pl.Expr:
    """Name every pair by the settings that vary between pairs, outside the table's own."""
    columns = {name: name for name in settings_of(paired) if name not in _SPREAD}
    columns = {name: label for name, label in columns.items() if not _of_group(paired, name)}
    columns |= _SCENARIO | {"layout": "kernel.layout", "home_llc": "home_llc"}
    varying = sorted((label, name) for name, label in columns.items() if _varies(paired, name))
    parts = [pl.format(f"{label}={{}}", pl.col(name).cast(pl.String)) for label, name in varying]
    return pl.concat_str(parts, separator=" ", ignore_nulls=True) if parts else pl.lit("")


def _of_group(paired: pl.DataFrame, name: str) -> bool:
    """Tell whether a setting is just what a machine or kernel that varies has."""
    group = name.split(".")[0]
    if group not in _GROUPS or not _varies(paired, group):
        return False
    return paired.group_by(group).agg(pl.col(name).n_unique())[name].max() == 1


def _varies(frame: pl.DataFrame, name: str) -> bool:
    return frame[name].n_unique() > 1


def _protocol(paired: pl.DataFrame) -> str:
    seeds, layouts = paired["seed"].n_unique(), _layouts(paired)
    spread = f"{seeds} capture seeds" if seeds > 1 else "the one capture seed"
    if layouts > 1:
        spread += f" and {layouts} kernel layouts"
    homes = paired["home_llc"].drop_nulls().unique()
    home = f" home_llc: {homes[0]}." if len(homes) == 1 else ""
    return PROTOCOL.format(home=home, spread=spread)


def _layouts(paired: pl.DataFrame) -> int:
    permuted = paired.filter(pl.col("layout") == "permuted")
    return permuted["kernel.layout_seed"].n_unique()


def _gain_table(variant: str, rows: pl.DataFrame) -> Table:
    caption = f"{TITLE}\n{variant}" if variant else TITLE
    table = Table(
        title=caption,
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("workload", no_wrap=True)
    table.add_column("caches")
    for name in ("A", "[min..max]", "B", "band of A", "A, own node", "published"):
        table.add_column(escape(name), justify="right")
    table.add_column("agrees")
    for row in rows.iter_rows(named=True):
        spread = f"[{_percent(row['a_min'])}..{_percent(row['a_max'])}]"
        table.add_row(
            row["workload"],
            row["cache_state"],
            _percent(row["a"]),
            escape(spread),
            _percent(row["b"]),
            f"{_percent(row['a_serial'])}..{_percent(row['a_overlapped'])}",
            _percent(row["a_local"]),
            _percent(row["published"]),
            row["agrees"] or "",
        )
    return table


def _run_table(runs: pl.LazyFrame) -> Table:
    names = ("run_id", "workload", "cache_state", "replication", "cpu_node", "seed", "status")
    listed = runs.select(*names, "time_ns").sort(*names[1:], "run_id").collect()
    table = Table(*names, "time_us", caption=_left_out(listed.height))
    for row in listed.head(ROWS_SHOWN).iter_rows(named=True):
        time = "" if row["time_ns"] is None else f"{row['time_ns'] / 1000:.2f}"
        table.add_row(*(str(row[name]) for name in names), time)
    return table


def _left_out(rows: int) -> str | None:
    return f"and {rows - ROWS_SHOWN} more" if rows > ROWS_SHOWN else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
