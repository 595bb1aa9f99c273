r"""Points from a file: one row a point, columns are dotted configuration keys; parsed, never run.

CSV (also on standard input, as `-`), Parquet and JSON lines. A cell of CSV is JSON where it reads
as JSON (18.0, true, [[100.0,132.0],[141.2,98.8]]), else text; an empty cell, a missing key or a
null of Parquet leaves a setting as it is.

>>> [row.settings for row in _of_csv(io.StringIO('seed,workload\n1,kill\n,boot\n'), "my.csv")]
[{'seed': 1, 'workload': 'kill'}, {'workload': 'boot'}]
"""

import csv
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from numarep.spec import SpecError

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Row:
    """One point's settings by dotted key, and where they stand, for messages."""

    where: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class PointsFile:
    """All rows of a file, and what identifies its content."""

    name: str
    sha256: str
    rows: list[Row]

    @property
    def keys(self) -> set[str]:
        """Return every key that some row sets."""
        return {key for row in self.rows for key in row.settings}


def read_points(name: str) -> PointsFile:
    """Read a file of points, its kind told by its suffix; `-` is CSV on standard input.

    Raises
    ------
    SpecError
        Naming the file, and where there is one the line, that can't be read.
    """
    if name != STANDARD_INPUT and Path(name).suffix.lower() not in _READERS:
        raise SpecError(
            f"points: {name}: expected a file {', '.join(_READERS)}, or - for CSV on standard input"
        )
    try:
        content = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
    except OSError as error:
        raise SpecError(f"points: {name}: {error.strerror}") from None
    read = _READERS[".csv" if name == STANDARD_INPUT else Path(name).suffix.lower()]
    try:
        rows = list(read(content, name))
    except UnicodeDecodeError as error:
        raise SpecError(f"points: {name}: not UTF-8 (byte {error.start})") from None
    except pa.ArrowException as error:
        raise SpecError(f"points: {name}: not Parquet ({str(error).splitlines()[0]})") from None
    if not rows:
        raise SpecError(f"points: {name}: no rows")
    return PointsFile(name, hashlib.sha256(content).hexdigest(), rows)


def _of_csv(text: TextIO, name: str) -> Iterator[Row]:
    lines = csv.reader(text, strict=True)
    try:
        keys = _checked([cell.strip() for cell in next(lines, [])], name)
        for cells in lines:
            where = f"{name}, line {lines.line_num}"
            if cells and len(cells) != len(keys):
                raise SpecError(f"points: {where}: {len(cells)} cells under {len(keys)} keys")
            settings = {k: _cell(c) for k, c in zip(keys, cells, strict=False) if c.strip()}
            if cells:
                yield Row(where, settings)
    except csv.Error as error:
        raise SpecError(f"points: {name}, line {lines.line_num}: {error}") from None


def _checked(keys: list[str], name: str) -> list[str]:
    """Refuse a header without keys, or that names one twice."""
    if not keys or "" in keys:
        raise SpecError(f"points: {name}, line 1: expected a key above every column")
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise SpecError(f"points: {name}, line 1: {twice}: named twice")
    return keys


def _cell(text: str) -> Any:
    """Read a cell as JSON where it is, else as text.

    >>> _cell("18.0"), _cell("kill"), _cell("NaN"), _cell('{"entries": 12, "ways": 2}')
    (18.0, 'kill', 'NaN', {'entries': 12, 'ways': 2})
    """
    try:
        return json.loads(text, parse_constant=_not_json)
    except ValueError:
        return text.strip()


def _not_json(word: str) -> None:
    raise ValueError(word)


def _of_json_lines(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            settings = json.loads(line, parse_constant=_not_json)
        except ValueError as error:
            raise SpecError(f"points: {where}: not JSON ({error})") from None
        if not isinstance(settings, Mapping):
            raise SpecError(f"points: {where}: expected a mapping of keys to values")
        yield Row(where, dict(settings))


def _of_parquet(content: bytes, name: str) -> Iterator[Row]:
    table = pq.read_table(io.BytesIO(content))
    _checked(table.column_names, name)
    for number, settings in enumerate(table.to_pylist(), start=1):
        known = {key: value for key, value in settings.items() if value is not None}
        yield Row(f"{name}, row {number}", known)


_READERS: dict[str, Callable[[bytes, str], Iterator[Row]]] = {
    ".csv": lambda content, name: _of_csv(io.StringIO(content.decode("utf-8-sig")), name),
    ".jsonl": lambda content, name: _of_json_lines(content.decode("utf-8-sig"), name),
    ".parquet": _of_parquet,
}
