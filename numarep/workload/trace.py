"""The trace format: what one CPU did in one measured window, at cache-line granularity.

A trace is four tables. `records` lists, in order, lines fetched, loaded and stored, CR3 writes and
TLB flushes; each points at a row of `pages`, one row per translation as seen under one root, with
the page-table pages its walk reads. `events` marks records: where iterations begin and where
watched kernel functions are entered. A folder of traces is a dataset (see `dataset`).

Records are run-length coded. A FETCH record is `count` instructions fetched from one line, even
when data records came in between; a LOAD or STORE record is `count` references to the line and
kind of the last data record. Each stands where its first reference was. The format therefore
leaves out the order of references inside one line's run, and the values of data.

>>> schema_names(RECORDS)
['kind', 'page', 'line', 'count']
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from numarep.memory.kinds import Kind
from numarep.units import LINES_PER_PAGE, MAX_LEVELS

FORMAT_VERSION = 1
_VERSION_KEY = b"numarep.trace.version"
_TABLE_KEY = b"numarep.trace.table"


class TraceError(ValueError):
    """A trace that can't be trusted; the message names the file and what is wrong."""


class Flag(IntEnum):
    """Effective permissions over a translation's whole path."""

    WRITABLE = 1
    EXECUTABLE = 2
    USER = 4
    GLOBAL = 8


RECORDS = pa.schema(
    [("kind", pa.uint8()), ("page", pa.int32()), ("line", pa.uint8()), ("count", pa.int32())]
)
PAGES = pa.schema(
    [
        ("vpn", pa.int64()),  # va >> 12, sign-extended: kernel addresses are negative
        ("pfn", pa.int64()),  # pa >> 12 of this 4 KiB page, whatever its leaf
        ("leaf", pa.uint8()),  # level of the leaf: 1 4K, 2 2M, 3 1G, 0 no translation
        ("flags", pa.uint8()),
        *((f"table{level}", pa.int64()) for level in range(1, MAX_LEVELS + 1)),
    ]
)
EVENTS = pa.schema([("record", pa.int64()), ("name", pa.string())])
ITERATION = "iteration"


@dataclass(frozen=True, slots=True)
class Records:
    """Parallel arrays of n records."""

    kind: NDArray[np.uint8]
    page: NDArray[np.int32]
    line: NDArray[np.uint8]
    count: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Pages:
    """Parallel arrays of p translations; `table[i, level - 1]` is -1 where no table is read."""

    vpn: NDArray[np.int64]
    pfn: NDArray[np.int64]
    leaf: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    table: NDArray[np.int64]  # int64[p, 5]: pfn of the table page read at each level

    @property
    def root(self) -> NDArray[np.int64]:
        """Pfn of each row's top-level table, int64[p]."""
        p4d, pgd5 = self.table[:, MAX_LEVELS - 2], self.table[:, MAX_LEVELS - 1]
        root: NDArray[np.int64] = np.where(pgd5 >= 0, pgd5, p4d)
        return root


@dataclass(frozen=True, slots=True)
class Trace:
    """One window: records, the translations they point at, and marked records."""

    records: Records
    pages: Pages
    event_record: NDArray[np.int64]
    event_name: tuple[str, ...]

    @property
    def iterations(self) -> NDArray[np.int64]:
        """Record index where each captured iteration starts, and the end: int64[k + 1]."""
        starts = [
            record
            for record, name in zip(self.event_record.tolist(), self.event_name, strict=True)
            if name == ITERATION
        ]
        return np.array([*starts, len(self.records.kind)], dtype=np.int64)

    @property
    def instructions(self) -> int:
        """Number of instructions fetched."""
        return int(self.records.count[self.records.kind == Kind.FETCH].sum())

    @property
    def references(self) -> int:
        """Number of instruction fetches, loads and stores."""
        return int(self.records.count[self.records.kind <= Kind.STORE].sum())


def select(trace: Trace, keep: NDArray[np.bool_]) -> Trace:
    """Return a trace with only some records; a mark on one left out moves to the next kept."""
    records = Records(*(getattr(trace.records, name)[keep] for name in RECORDS.names))
    left_out_before = np.searchsorted(np.flatnonzero(~keep), trace.event_record)
    return dataclasses.replace(
        trace, records=records, event_record=trace.event_record - left_out_before
    )


def schema_names(schema: pa.Schema) -> list[str]:
    """List a schema's column names in order."""
    return list(schema.names)


def write_table(path: Path, table: pa.Table, name: str) -> None:
    """Write one table of a trace or dataset so that equal tables give equal, small files.

    One row group and one page a column, plainly encoded, so that zstd sees the repeats of a whole
    loop: an eighth of the size of delta encoding, whose bit packing hides them (measured).
    """
    text = [f.name for f in table.schema if pa.types.is_string(f.type)]
    metadata = {_VERSION_KEY: str(FORMAT_VERSION).encode(), _TABLE_KEY: name.encode()}
    rows = max(1, table.num_rows)
    pq.write_table(
        table.replace_schema_metadata(metadata),
        path,
        row_group_size=rows,
        data_page_size=1 << 30,
        max_rows_per_page=rows,
        use_dictionary=text or False,
        compression="zstd",
        compression_level=19,
        write_statistics=False,
    )


@contextmanager
def _opened(path: Path, schema: pa.Schema, name: str) -> Iterator[pq.ParquetFile]:
    """Open one table to read it, refusing another format version, table or schema.

    It is read by one thread: for tables this small, starting more takes longer.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            found = file.schema_arrow
            metadata = found.metadata or file.metadata.metadata or {}
            version = metadata.get(_VERSION_KEY, b"none").decode()
            if version != str(FORMAT_VERSION):
                raise TraceError(
                    f"{path}: trace format version {version}, expected {FORMAT_VERSION}"
                )
            if metadata.get(_TABLE_KEY) != name.encode():
                raise TraceError(f"{path}: expected the table {name!r}")
            if [(f.name, f.type) for f in found] != [(f.name, f.type) for f in schema]:
                raise TraceError(f"{path}: columns are {found.names}, expected {schema.names}")
            yield file
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(f"{path}: not a readable trace table ({reason})") from None
    finally:
        pa.default_memory_pool().release_unused()  # else Arrow keeps more than a table takes


def _refuse_missing(path: Path, column: pa.Array | pa.ChunkedArray) -> None:
    if column.null_count:
        raise TraceError(f"{path}: has missing values, expected none")


def read_table(path: Path, schema: pa.Schema, name: str) -> pa.Table:
    """Read one table, refusing another format version, table or schema.

    Raises
    ------
    TraceError
        If the file is missing, truncated, no Parquet, of another version or of another shape.
    """
    with _opened(path, schema, name) as file:
        table = file.read(use_threads=False)
    for column in table.columns:
        _refuse_missing(path, column)
    return table


def read_records(path: Path) -> Records:
    """Read a table of records as arrays, a column after the other: there are millions.

    Raises
    ------
    TraceError
        As `read_table` does.
    """
    with _opened(path, RECORDS, "records") as file:
        return Records(*(_read_column(path, file, field) for field in RECORDS))


def _read_column(path: Path, file: pq.ParquetFile, field: pa.Field) -> NDArray[Any]:
    """Read one column of numbers, a piece at a time."""
    column = np.empty(file.metadata.num_rows, field.type.to_pandas_dtype())
    done = 0
    for batch in file.iter_batches(columns=[field.name], use_threads=False):
        _refuse_missing(path, batch.column(0))
        column[done : done + len(batch)] = batch.column(0)
        done += len(batch)
    if done != len(column):
        raise TraceError(f"{path}: {field.name}: {done} rows, expected {len(column)}")
    pa.default_memory_pool().release_unused()
    return column


def _column(table: pa.Table, name: str) -> Any:
    return np.ascontiguousarray(table.column(name).to_numpy())


def records_table(records: Records) -> pa.Table:
    """Return records as a table of schema `RECORDS`."""
    return pa.table([getattr(records, name) for name in RECORDS.names], schema=RECORDS)


def pages_table(pages: Pages) -> pa.Table:
    """Return translations as a table of schema `PAGES`."""
    levels = [pages.table[:, level] for level in range(MAX_LEVELS)]
    return pa.table([pages.vpn, pages.pfn, pages.leaf, pages.flags, *levels], schema=PAGES)


def pages_from(table: pa.Table) -> Pages:
    """Return the arrays of a table of schema `PAGES`."""
    levels = np.stack([_column(table, f"table{level}") for level in range(1, MAX_LEVELS + 1)], 1)
    vpn, pfn, leaf, flags = (_column(table, name) for name in PAGES.names[:4])
    return Pages(vpn, pfn, leaf, flags, np.ascontiguousarray(levels))


def check(trace: Trace, where: str) -> None:
    """Refuse a trace whose records or events point outside it.

    Everything compiled code indexes with is checked here, once, because compiled code does not
    check bounds and traces may come from strangers.

    Raises
    ------
    TraceError
        Naming `where`, the first offending record and what was expected.
    """
    records, pages = trace.records, trace.pages
    rows = len(pages.vpn)
    is_line = records.kind <= Kind.STORE
    leaf = pages.leaf[np.clip(records.page, 0, max(rows - 1, 0))] if rows else np.zeros(0, np.uint8)
    checks = (
        ("kind", f"0 to {max(Kind)}", records.kind > max(Kind)),
        ("page", f"0 to {rows - 1}", (records.page < 0) | (records.page >= rows)),
        ("line", f"0 to {LINES_PER_PAGE - 1}", records.line >= LINES_PER_PAGE),
        ("count", "zero or more", records.count < 0),
    )
    for column, expected, bad in checks:
        _refuse(bad, where, column, expected)
    _refuse(is_line & (leaf == 0), where, "page", "a row with a translation")
    if rows:
        _check_pages(pages, where)
    starts = trace.iterations[:-1]
    if len(starts) == 0 or starts[0] != 0 or (np.diff(trace.iterations) <= 0).any():
        raise TraceError(f"{where}: expected iterations that start at record 0 and never go back")
    inside = (trace.event_record >= 0) & (trace.event_record < len(records.kind))
    _refuse(~inside, where, "event", f"a record below {len(records.kind)}")


def _check_pages(pages: Pages, where: str) -> None:
    _refuse(pages.leaf > 3, where, "leaf", "0 to 3")
    _refuse(pages.root < 0, where, "root", "a top-level table in every row")
    _refuse((pages.pfn < 0) & (pages.leaf > 0), where, "pfn", "a frame for every translation")
    for level in range(1, 4):
        wanted = (pages.leaf > 0) & (pages.leaf <= level)
        missing = wanted & (pages.table[:, level - 1] < 0)
        _refuse(missing, where, f"table{level}", "a table page at every level down to the leaf")


def _refuse(bad: NDArray[np.bool_], where: str, column: str, expected: str) -> None:
    if bad.any():
        raise TraceError(f"{where}: row {int(np.argmax(bad))}: {column}: expected {expected}")
