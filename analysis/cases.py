"""Runs as a table of cases: coordinates, times and every setting that varies, without the spec.

Settings are leaves of a run's spec under their dotted names (`machine.core.ghz`,
`machine.latency.dram_ns.1.0`); only those that vary between runs become columns. Some settings are
there always, because questions need them (`ALWAYS`, `rho`, `local_ns`).

>>> [name for name, _ in leaves({"core": {"ghz": 2.6}, "rows": [[1, 2]]})]
['core.ghz', 'rows.0.0', 'rows.0.1']
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from numarep.results import EVENTS, RUNS

# Settings that are columns whether they vary or not, unknown where no spec has them.
ALWAYS = {
    "kernel.dataset": pl.String,
    "kernel.layout_seed": pl.Int64,
    "kernel.max_numnodes": pl.Int64,
    "kernel.pti": pl.Boolean,
    "machine.core.base_ipc": pl.Float64,
    "machine.core.ghz": pl.Float64,
    "machine.latency.cr3_write_cycles": pl.Float64,
    "machine.latency.invlpg_cycles": pl.Float64,
    "machine.latency.ipi_cycles": pl.Float64,
    "machine.latency.l1_cycles": pl.Float64,
    "machine.latency.l2_cycles": pl.Float64,
    "machine.latency.llc_ns": pl.Float64,
    "machine.latency.stlb_cycles": pl.Float64,
    "machine.llc.size_bytes": pl.Int64,
    "replication.costs": pl.String,
    "replication.modules": pl.Boolean,
    "replication.rodata": pl.Boolean,
    "replication.tables": pl.Boolean,
    "replication.text": pl.Boolean,
    "workload.disturbance.per_iteration": pl.Int64,
    "workload.footprint_bytes": pl.Int64,
    "workload.order": pl.String,
    "workload.page": pl.String,
}
# Settings that follow from a run's coordinates, under a name that makes none of them an axis.
_PLAIN = {
    "iterations": ("workload.iterations", pl.Int64),
    "operation": ("workload.disturbance.operation", pl.String),
}
# Columns of the results that hold the same, under their own names.
_COORDINATES = {
    "machine.name",
    "kernel.name",
    "kernel.layout",
    "workload.name",
    "workload.trace",
    "workload.iterations",
    "replication.name",
    "cache_state",
    "home_llc",
    "cpu_node",
    "seed",
}
# Columns of the results that tell scenarios apart, beside the settings.
SCENARIO = ("machine", "kernel", "layout", "home_llc", "replication")
_SPEC, _DRAM = "_spec", "_dram"
# Where a spec is cut, and the pieces.
_MARKS = ('"machine":', '"replication":')
_PIECES = ("_head", "_machine", "_tail")
# What changes no result but which tables a run has; a run without is another's twin.
_DETAIL = "by_function"
DETAILED = "detailed"  # whether a run has them, where some have
_SAME = ("_head_same", "_machine_key", "_tail_key")
_DROPPED = {"spec", "study", "state_id", *EVENTS}


def cases(runs: pl.LazyFrame) -> pl.LazyFrame:
    """Replace the spec of every run by columns of the settings that vary.

    Parameters
    ----------
    runs : LazyFrame
        Schema `numarep.results.RUNS`.

    Returns
    -------
    LazyFrame
        `runs` without `spec` and events; `ALWAYS`; `local_ns` and `rho`, the idle DRAM latency of
        the CPU's own node and the ratio of the kernel's node to it; `iterations` of the workload,
        and the `operation` that disturbs it; `detailed`, whether a run is counted by function, if
        some are and some not; and one column for each setting that varies. Held in memory: a
        second question costs no second decoding.
    """
    table = cut = runs.with_columns(_pieces())
    for piece in _PIECES:
        decoded = _decoded(cut, piece).lazy()
        table = table.join(decoded, on=_key(piece), how="left", maintain_order="left")
    there = set(table.collect_schema().names())
    plain = dict(_PLAIN.values())
    wanted: dict[str, Any] = {**ALWAYS, **plain, _DRAM: pl.List(pl.List(pl.Float64))}
    unknown = [pl.lit(None, t).alias(name) for name, t in wanted.items() if name not in there]
    names = sorted(name for name in there | set(ALWAYS) if "." in name and name not in plain)
    kept = [name for name in RUNS.names if name not in _DROPPED]
    twins = [_DETAIL, *_SAME] if _DETAIL in there else []
    held = (
        table.with_columns(unknown)
        .with_columns(_dram())
        .select(*kept, "local_ns", "rho", *_plain(), *names, *twins)
        .collect(engine="streaming")
    )
    return _lean(_once_each(held) if twins else held)


def _once_each(held: pl.DataFrame) -> pl.DataFrame:
    """Keep one of every two runs that differ in the details they were asked for: that with them.

    Studies of one folder share points, and a mean would count those twice. The pairs that the
    others were in are pairs of the one that is kept.
    """
    detailed = held.filter(pl.col(_DETAIL), pl.col("status") == "ok")
    both = held.filter(~pl.col(_DETAIL)).join(
        detailed.select(*_SAME, _pair="pair_id"), on=_SAME, nulls_equal=True
    )
    kept = held.join(both, on="run_id", how="anti", maintain_order="left")
    other = both.select("pair_id", "_pair").unique("pair_id", keep="first", maintain_order=True)
    moved = kept.join(other, on="pair_id", how="left", maintain_order="left")
    now = pl.coalesce("_pair", "pair_id").alias("pair_id"), pl.col(_DETAIL).alias(DETAILED)
    return moved.with_columns(now).drop("_pair", _DETAIL, *_SAME)


def _lean(table: pl.DataFrame) -> pl.LazyFrame:
    """Hold columns of one value as that value: of a million runs, most settings are."""
    flat = [n for n, dtype in table.schema.items() if n != "run_id" and not dtype.is_nested()]
    same = [name for name in flat if table.height and table[name].n_unique() == 1]
    values = [pl.lit(table[name][0], table.schema[name]).alias(name) for name in same]
    return table.drop(same).lazy().with_columns(values).select(table.columns)


def settings_of(frame: pl.LazyFrame | pl.DataFrame) -> list[str]:
    """List the columns of `cases` that are settings of a spec."""
    return [name for name in frame.lazy().collect_schema().names() if "." in name]


def leaves(
    template: Any, path: str = "", above: pl.Expr | None = None
) -> list[tuple[str, pl.Expr]]:
    """Name every leaf of a decoded spec and give the expression that reads it."""
    column = pl.col(_SPEC) if above is None else above
    if isinstance(template, Mapping):
        below = [(key, column.struct.field(key)) for key in template]
    elif isinstance(template, list):
        steps = range(len(template))
        below = [(str(i), column.list.get(i, null_on_oob=True)) for i in steps]
    else:
        return [(path, column)]
    values = template.values() if isinstance(template, Mapping) else template
    return [
        leaf
        for (key, expression), value in zip(below, values, strict=True)
        for leaf in leaves(value, f"{path}.{key}".lstrip("."), expression)
    ]


def _template(pieces: pl.Series) -> dict[str, Any]:
    """Merge one piece of every shape: what is null or shorter in one may be there in another."""
    counts = [pieces.str.count_matches(mark, literal=True).alias(mark) for mark in ("null", ",")]
    shapes = pl.DataFrame([pieces.alias("piece"), *counts]).drop_nulls()
    merged: dict[str, Any] = {}
    for piece in shapes.group_by("null", ",").agg(pl.min("piece"))["piece"].sort():
        merged = _merge(merged, json.loads(piece))
    return merged


def _merge(one: Any, other: Any) -> Any:
    """Return the union of two specs' shapes, with the values of either."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _merge(one.get(key), other.get(key)) for key in {**one, **other}}
    if isinstance(one, list) and isinstance(other, list):
        longer, shorter = sorted((one, other), key=len, reverse=True)
        return [_merge(x, y) for x, y in zip(longer, shorter, strict=False)] + longer[
            len(shorter) :
        ]
    return other if one is None else one


def _dtype(template: Any) -> Any:
    if isinstance(template, Mapping):
        return pl.Struct({key: _dtype(value) for key, value in template.items()})
    if isinstance(template, list):
        return pl.List(_dtype(template[0]) if template else pl.Null)
    kinds = {bool: pl.Boolean, int: pl.Int64, float: pl.Float64}
    return kinds.get(type(template), pl.String)


def _pieces() -> list[pl.Expr]:
    """Cut specs in three that repeat: a grid's machines, say, are far fewer than its runs.

    Decoding is what costs, so only different pieces are decoded. A piece is known by its hash.
    """
    spec = pl.col("spec")
    start, end = (spec.str.find(mark, literal=True) for mark in _MARKS)
    cut = start < end
    start, end = (pl.when(cut).then(at) for at in (start, end))
    text = spec.cast(pl.Binary)
    length = spec.str.len_bytes()
    pieces = (
        text.bin.slice(1, start.fill_null(length - 1) - 1),
        text.bin.slice(start, end - start),
        text.bin.slice(end, length - 1 - end),
    )
    named = list(zip(_PIECES, pieces, strict=True))
    return [
        *(piece.alias(name) for name, piece in named),
        *(piece.hash().alias(_key(name)) for name, piece in named),
    ]


def _key(piece: str) -> str:
    return f"{piece}_key"


def _decoded(table: pl.LazyFrame, piece: str) -> pl.DataFrame:
    """Decode the different pieces of one kind: the settings that vary between them, by hash."""
    different = (
        table.select(_key(piece), piece)
        .group_by(_key(piece))
        .agg(pl.first(piece))
        .collect(engine="streaming")
    )
    inside = pl.col(piece).cast(pl.String).str.strip_chars(", ")
    whole = pl.concat_str(pl.lit("{"), inside, pl.lit("}"))
    pieces = different.select(_key(piece), inside=inside, whole=whole)
    template = _template(pieces["whole"])
    settings = dict(leaves(template))
    wide = pieces.with_columns(pl.col("whole").str.json_decode(_dtype(template)).alias(_SPEC))
    columns = [leaf.alias(name) for name, leaf in settings.items()]
    found = wide.select(*columns, *_matrix(settings))
    kept = [values for values in found if _kept(values)]
    if any(values.name == _DETAIL for values in kept):
        without = pl.col("inside").str.replace(rf'"{_DETAIL}": ?(true|false),? ?', "").hash()
        kept.append(wide.select(without.alias(_SAME[0])).to_series())
    return pl.DataFrame([pieces[_key(piece)], *kept])


def _kept(values: pl.Series) -> bool:
    """Say whether a setting is here, and varies or is always wanted."""
    if values.null_count() == len(values):
        return False
    always = values.name in (*ALWAYS, *(path for path, _ in _PLAIN.values()), _DRAM)
    return always or (values.name not in _COORDINATES and values.n_unique() > 1)


def _matrix(settings: Mapping[str, pl.Expr]) -> list[pl.Expr]:
    if not any(name.startswith("machine.latency.dram_ns.") for name in settings):
        return []
    latency = pl.col(_SPEC).struct.field("machine").struct.field("latency")
    return [latency.struct.field("dram_ns").alias(_DRAM)]


def _dram() -> list[pl.Expr]:
    """Return `local_ns` and `rho` as seen by the run's CPU."""
    row = pl.col(_DRAM).list.get(pl.col("cpu_node"), null_on_oob=True)
    local, remote = (row.list.get(pl.col(n), null_on_oob=True) for n in ("cpu_node", "master_node"))
    return [local.alias("local_ns"), (remote / local).alias("rho")]


def _plain() -> list[pl.Expr]:
    return [pl.col(path).alias(name) for name, (path, _) in _PLAIN.items()]


def study_over(
    frame: pl.DataFrame, axes: Sequence[str], *, by: Sequence[str] = (), least: int = 1
) -> pl.DataFrame:
    """Keep the rows of the largest study over some settings: all else the same in all its rows.

    Parameters
    ----------
    frame : DataFrame
        Rows of `cases` or `pairs`.
    axes : sequence of str
        Columns, and prefixes of columns, that may vary. Of the others, settings and the names in
        `SCENARIO` may not.
    by : sequence of str
        Columns of whose every combination the largest study is kept; by default one of all rows.
    least : int
        How many different values of the axes a study must have.

    Returns
    -------
    DataFrame
        Of the rows of `frame`, those of the settings with most values of the axes, then most rows,
        then the first in order, switches on before off; empty if none has `least`.
    """
    free, fixed = _split(frame, axes)
    fixed = [name for name in fixed if name not in by]
    values = pl.struct(free).n_unique() if free else pl.lit(1, pl.UInt32)
    schema = frame.schema
    switches = [schema[name] == pl.Boolean for name in fixed]  # on before off
    ranked = (
        frame.group_by(*by, *fixed, pl.lit(0).alias("_all"))
        .agg(values.alias("_values"), pl.len().alias("_rows"))
        .filter(pl.col("_values") >= least)
        .sort("_values", "_rows", *fixed, descending=[True, True, *switches])
    )
    return _only(frame, ranked.unique(by or "_all", keep="first"), [*by, *fixed])


def alike(frame: pl.DataFrame, model: pl.DataFrame, axes: Sequence[str]) -> pl.DataFrame:
    """Keep the rows that have the settings of `model`'s first row, but for the axes."""
    fixed = _split(pl.concat([frame, model]), axes)[1]
    return _only(frame, model.head(1), fixed)


def _split(frame: pl.DataFrame, axes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the settings that are axes, and those that are not and yet vary."""
    there = set(frame.columns)
    names = [name for name in (*SCENARIO, *settings_of(frame)) if name in there]
    free = [name for name in names if _among(name, axes)]
    fixed = [name for name in names if name not in free and frame[name].n_unique() > 1]
    return free, fixed


def _only(frame: pl.DataFrame, rows: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    if rows.is_empty() or not names:
        return frame.clear() if rows.is_empty() else frame
    return frame.join(rows, on=names, how="semi", nulls_equal=True, maintain_order="left")


def _among(name: str, axes: Sequence[str]) -> bool:
    return any(name == axis or name.startswith(f"{axis}.") for axis in axes)
