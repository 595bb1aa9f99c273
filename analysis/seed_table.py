"""The published table beside the model's on the terminal: gain by workload, hot and cold.

Gains are `analysis.pairs`'s, in %. A cell agrees when either definition lies within 5 points of
the published figure. What varies beside the table's own axes is a variant, told by leading columns;
kernel layouts (`kernel.layout_seed`) are summarised in the spread, as capture seeds are.

>>> published().filter(workload="kill", cache_state="cold")["published"].item()
26.1
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from analysis.cases import SCENARIO, cases, settings_of
from analysis.pairs import pairs

Cell = Callable[[Mapping[str, Any]], str]
AGREE_POINTS = 5.0
ROWS_SHOWN = 40
GAINS_SHOWN = 120
TITLE = "Gain of replication in %, CPU on another node than the kernel's"
# Spread over, not told apart.
_SPREAD = {"kernel.layout_seed"}
_PLACE = ("machine", "kernel", "layout", "cache_state", "home_llc", "cpu_node", "seed", "status")
_BOOT = '"kind":"boot"'
_OWN = ("workload", "cache_state")
_TITLES = {"workload": "workload", "cache_state": "caches"}
PROTOCOL = """\
hot: one unmeasured pass before. cold: all caches, TLBs and paging-structure caches of all \
sockets flushed once before the measured window{others}. Loops are tiled from 32 captured \
iterations.{home}
A = (old - new) / old, B = old / new - 1: mean over {spread}; [min..max] over the same; band: \
from all misses one after the other to all that can overlapping; own node: the CPU on the \
kernel's node; agrees: the definitions within 5 points of what was published."""

_COLD = {
    "cold_each": "; cold_each: before every iteration",
    "cold_text": "; cold_text: as hot, then the lines of kernel text flushed from all caches",
}


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
    also = [name for name in ("replication",) if name in joined.columns and name not in first]
    names = [*first, "order", *cell, *also]
    hot_first = [name == "cache_state" for name in names]
    return joined.sort(names, descending=hot_first, nulls_last=True).drop("order")


def show(runs: pl.LazyFrame | pl.DataFrame, console: Console) -> None:
    """Print the table, or the runs themselves where no run has its baseline.

    Boots are listed, too: without replication nothing is added to one, so no gain has a meaning.
    """
    is_boot = pl.col("spec").str.contains(_BOOT, literal=True).fill_null(value=False)
    boots = runs.lazy().filter(is_boot).collect().lazy()
    paired = _paired(runs.lazy().filter(~is_boot))
    table = _gains(paired)
    if table.is_empty() or boots.collect().height:
        console.print(_run_table(cases(runs.lazy() if table.is_empty() else boots)))
    if not table.is_empty():
        console.print(_fitting(table, console))
        console.print(_protocol(paired), highlight=False, markup=False)
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
    names = _told_apart(paired)
    parts = [pl.format(f"{name}={{}}", pl.col(name).cast(pl.String)) for name in names]
    text = pl.concat_str(parts, separator=" ", ignore_nulls=True) if parts else pl.lit("")
    return paired.with_columns(variant=text)


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


def _told_apart(paired: pl.DataFrame) -> list[str]:
    """List what tells variants apart: of what varies, whatever says more than the names before it.

    So a machine's name stands for all of its values, unless a study varies one of them.
    """
    candidates = [*SCENARIO, *settings_of(paired)]
    told: list[str] = []
    known = _kinds(paired, _OWN)
    for name in (n for n in candidates if n in paired.columns and n not in _SPREAD):
        more = _kinds(paired, (*_OWN, *told, name))
        if more > known:
            told, known = [*told, name], more
    return told


def _kinds(paired: pl.DataFrame, names: Sequence[str]) -> int:
    return paired.select(pl.struct(names).n_unique()).item() if paired.height else 0


def _protocol(paired: pl.DataFrame) -> str:
    seeds, layouts = paired["seed"].n_unique(), _layouts(paired)
    spread = f"{seeds} capture seeds" if seeds > 1 else "the one capture seed"
    if layouts > 1:
        spread += f" and {layouts} kernel layouts"
    homes = paired["home_llc"].drop_nulls().unique()
    home = f" home_llc: {homes[0]}." if len(homes) == 1 else ""
    others = "".join(text for state, text in _COLD.items() if state in paired["cache_state"])
    return PROTOCOL.format(others=others, home=home, spread=spread)


def _layouts(paired: pl.DataFrame) -> int:
    permuted = paired.filter(pl.col("layout") == "permuted")
    return permuted["kernel.layout_seed"].n_unique()


def _fitting(gains: pl.DataFrame, console: Console) -> Table:
    """Return the table of gains without as many of the least columns as the width has no room for.

    Settings are folded only where that doesn't help.
    """
    free = console.options.update(width=_ENDLESS)
    for dropped in range(len(_LEAST) + 1):
        table = _gain_table(gains, _LEAST[:dropped])
        if Measurement.get(console, free, table).maximum <= console.width:
            return table
    return _gain_table(gains, _LEAST, fold=True)


def _gain_table(gains: pl.DataFrame, dropped: Sequence[str], *, fold: bool = False) -> Table:
    """Return a table of gains, with a column for each setting that tells variants apart."""
    variants = sorted(gains.partition_by("variant"), key=lambda part: _natural(part["variant"][0]))
    told = {part["variant"][0]: _read(part["variant"][0]) for part in variants}
    names = list(dict.fromkeys(name for values in told.values() for name in values))
    whole = pl.concat(variants)
    own = [name for name in _OWN if not names or whole[name].n_unique() > 1]
    same = ", ".join(whole[name][0] for name in _OWN if name not in own)
    table = Table(
        title=f"{TITLE}: {same}" if same else TITLE,
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=_caption(_left_out(whole.height, GAINS_SHOWN), dropped),
    )
    for title in _short(names):
        heading = escape(title.replace("_", " " if fold else "\n"))
        table.add_column(heading, overflow="fold", no_wrap=not fold)
    for name in own:
        table.add_column(_TITLES[name], no_wrap=True)
    kept = {title: cell for title, cell in _CELLS.items() if title not in dropped}
    shown = {title: cell for title, cell in kept.items() if not names or _any(whole, cell)}
    for title in shown:
        left = title == "agrees"
        table.add_column(escape(title), justify="left" if left else "right", no_wrap=True)
    last = None
    for row in whole.head(GAINS_SHOWN).iter_rows(named=True):
        values = [told[row["variant"]].get(name, "") for name in names]
        if last not in (None, row["variant"]) and len(variants) < whole.height:
            table.add_section()
        last = row["variant"]
        cells = [escape(cell(row)) for cell in shown.values()]
        table.add_row(*values, *(row[name] for name in own), *cells)
    return table


def _any(rows: pl.DataFrame, cell: Cell) -> bool:
    return any(cell(row) not in ("", "-") for row in rows.iter_rows(named=True))


_CELLS: dict[str, Cell] = {
    "A": lambda row: _percent(row["a"]),
    "[min..max]": lambda row: f"[{_percent(row['a_min'])}..{_percent(row['a_max'])}]",
    "B": lambda row: _percent(row["b"]),
    "band of A": lambda row: f"{_percent(row['a_serial'])}..{_percent(row['a_overlapped'])}",
    "A, own node": lambda row: _percent(row["a_local"]),
    "published": lambda row: _percent(row["published"]),
    "agrees": lambda row: row["agrees"] or "",
}


# Columns that a narrow terminal leaves out, first to last, and a width that has room for all.
_LEAST = ("[min..max]", "B", "band of A", "A, own node")
_ENDLESS = 1000


def _read(variant: str) -> dict[str, str]:
    """Read a variant's name back: its settings, by name."""
    return dict(part.split("=", 1) for part in variant.split())


def _short(names: Sequence[str]) -> list[str]:
    """Shorten dotted names to what tells them apart; of a list's first value, to the list's.

    >>> _short(["workload.disturbance.per_iteration", "machine.latency.dram_ns.0.1"])
    ['per_iteration', 'dram_ns.0.1']
    >>> _short(["machine", "others.nodes.0"])
    ['machine', 'others.nodes']
    """
    pattern = r"[^.]+\.[^.\d]+(?=\.0$)|[^.]+(?:\.\d+)*$"
    last = [re.findall(pattern, name)[0] for name in names]
    return [s if last.count(s) == 1 else name for s, name in zip(last, names, strict=True)]


def _run_table(known: pl.LazyFrame) -> Table:
    """List runs by workload, policy and all else that tells them apart."""
    listed = known.collect()
    varying = [name for name in _PLACE if listed[name].n_unique() > 1]
    names = list(dict.fromkeys(("workload", "replication", *varying, *_told_apart(listed))))
    table = Table(box=box.SIMPLE_HEAD, caption=_left_out(listed.height, ROWS_SHOWN))
    for title in _short(names):
        table.add_column(escape(title.replace("_", " ")), overflow="fold")
    table.add_column("us", justify="right")
    for row in listed.sort(*names, "run_id").head(ROWS_SHOWN).iter_rows(named=True):
        time = "" if row["time_ns"] is None else f"{row['time_ns'] / 1000:.2f}"
        table.add_row(*(escape(str(row[name])) for name in names), time)
    return table


def _caption(rows: str | None, dropped: Sequence[str]) -> str | None:
    columns = f"no room for {', '.join(map(escape, dropped))}" if dropped else None
    return "; ".join(filter(None, (rows, columns))) or None


def _left_out(rows: int, shown: int) -> str | None:
    return f"and {rows - shown} more" if rows > shown else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.{0 if abs(value) >= 100 else 1}f}"
