"""Everything counted that is no access, without and with replicas: question 2's second table.

TLB lookups and walks, paging-structure cache hits, CR3 writes, invalidations, interrupts; copies
that stores drop in other cores, entries that fall out of a snoop filter.

>>> shown(pl.DataFrame({"workload": ["kill"], "change": [1.0]})).name
'events'
"""

import polars as pl

from analysis.reference import reference
from analysis.section import Column, Table
from analysis.seed_table import with_published
from numarep.results import EVENTS

_CELL = ("workload", "cache_state")
_SIDES = ("baseline", "series")


def events(cases: pl.LazyFrame, counted: pl.LazyFrame) -> pl.DataFrame:
    """Return how often every event happens in the main study, means over capture seeds.

    Parameters
    ----------
    cases : LazyFrame
        Of `analysis.cases`.
    counted : LazyFrame
        `run_id` and `numarep.results.EVENTS`.

    Returns
    -------
    DataFrame
        `workload`, `cache_state`, `event`; `baseline` and `series`, times a window;
        `baseline_per_thousand`, `series_per_thousand`, by instructions of the baseline, and
        `change`, their difference. Events that never happen in a cell are left out.
    """
    chosen = reference(cases)
    ids = [*chosen["run_id"], *chosen["old_run_id"]]
    found = counted.filter(pl.col("run_id").is_in(ids)).collect()
    sides = [
        chosen.select(*_CELL, "old_instructions", run_id=name)
        .join(found, on="run_id")
        .unpivot(EVENTS, index=[*_CELL, "old_instructions"], variable_name="event")
        .group_by(*_CELL, "event")
        .agg(pl.mean("value").alias(side), pl.mean("old_instructions"))
        for side, name in zip(_SIDES, ("old_run_id", "run_id"), strict=True)
    ]
    both = sides[0].join(sides[1].drop("old_instructions"), on=[*_CELL, "event"])
    rows = both.filter(pl.sum_horizontal(_SIDES) > 0).with_columns(
        (pl.col(side) * 1000 / pl.col("old_instructions")).alias(f"{side}_per_thousand")
        for side in _SIDES
    )
    cells = with_published(rows.select(_CELL).unique()).select(_CELL).with_row_index("cell")
    change = pl.col("series_per_thousand") - pl.col("baseline_per_thousand")
    return (
        rows.join(cells, on=_CELL)
        .sort("cell", pl.col("event").cast(pl.Enum(EVENTS)))
        .drop("cell", "old_instructions")
        .with_columns(change=change)
    )


def shown(table: pl.DataFrame) -> Table:
    """Return the events as the report shows them, largest change first."""
    changed = table.sort(pl.col("change").abs(), descending=True, maintain_order=True)
    return Table("events", "Events beside accesses, largest change first", changed, _COLUMNS)


_COLUMNS = {
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "event": Column("event"),
    "baseline": Column("baseline", 0),
    "series": Column("series", 0),
    "baseline_per_thousand": Column("baseline, /1000 instr.", 3),
    "series_per_thousand": Column("series, /1000 instr.", 3),
    "change": Column("change", 3),
}
