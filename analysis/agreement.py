"""What independent simulators say of the same references, where a results folder holds it.

`python -m tests.agreement RESULTS`, in a checkout, writes the table: reports only read it.

>>> of([], []).columns == list(SCHEMA)
True
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from analysis.section import UNREADABLE, Column, Table, first_line

FILE = "agreement.parquet"
COMMAND = "python -m tests.agreement {out}"
SCHEMA = {
    "simulator": pl.String,
    "version": pl.String,
    "machine": pl.String,
    "stream": pl.String,
    "references": pl.Int64,
    "compared": pl.Int64,  # how many counts
    "equal": pl.Int64,  # how many of them are the same
    "largest": pl.Int64,  # difference of a count
    "model_version": pl.Int64,
}


def of(paths: Sequence[Path], notes: list[str]) -> pl.DataFrame:
    """Return the comparisons that some results folders hold, schema `SCHEMA`.

    Files that can't be read, or hold other columns, are left out and noted.
    """
    found = [pl.DataFrame(schema=SCHEMA)]
    for file in (path / FILE for path in paths if (path / FILE).exists()):
        try:
            found.append(pl.read_parquet(file, columns=list(SCHEMA)).match_to_schema(SCHEMA))
        except UNREADABLE as error:
            notes.append(f"{file}: left out: {first_line(error)}")
    return pl.concat(found).unique(maintain_order=True)


def sentence(table: pl.DataFrame) -> str:
    """Say how many comparisons agree."""
    counted = table.group_by("simulator", maintain_order=True).agg(
        pl.len().alias("all"), same=(pl.col("equal") == pl.col("compared")).sum()
    )
    parts = [
        f"{row['simulator']} in {row['same']} of {row['all']}"
        for row in counted.iter_rows(named=True)
    ]
    return f"The core counts what independent simulators count: {' and '.join(parts)} comparisons"


def shown(table: pl.DataFrame) -> Table:
    """Return the comparisons as the report shows them."""
    return Table("agreement", "The core beside independent simulators", table, _COLUMNS)


_COLUMNS = {
    "machine": Column("machine"),
    "stream": Column("references of"),
    "references": Column("references", 0),
    "simulator": Column("simulator"),
    "compared": Column("counts", 0),
    "equal": Column("equal", 0),
    "largest": Column("largest difference", 0),
}
