"""A results folder that survives crashes.

It holds `runs.parquet` (one row a run), one file for each table of details (`counts.parquet`
...), `manifest.json` (what varies between two equal runs: times, versions, hosts), and, while a
sweep is under way or after a crash, `shards/`. A shard is one finished batch: rows of `runs` with
their details nested, in one file, so that a run is there with its details or not at all. Every
file is written under a temporary name and renamed. Compaction writes the details, then `runs`,
then deletes the shards; whatever is left by a crash in between is read again, each run once.

The bytes of the tables depend on the runs in them only, never on order, executor or crashes.

>>> file_of("counts")
'counts.parquet'
"""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from numarep.results.schema import (
    DETAILS,
    FAILED,
    KEYS,
    OK,
    RUNS,
    SCHEMA_VERSION,
    TABLES,
    digest,
)

MANIFEST, SHARDS = "manifest.json", "shards"
_VERSION_KEY = b"numarep.results.version"


def file_of(table: str) -> str:
    """Return the name of a table's file."""
    return f"{table}.parquet"


RUNS_FILE = file_of("runs")


class ResultsError(ValueError):
    """A results folder that can't be used; the message names it and what is wrong."""


@dataclass(frozen=True)
class Results:
    """A results folder that has passed all checks; opening it creates nothing."""

    path: Path

    @cached_property
    def shards(self) -> list[Path]:
        """Shards found when first asked."""
        return sorted((self.path / SHARDS).glob("*.parquet"))

    def finished(self, damaged: Sequence[Path] = ()) -> set[str]:
        """Return the ids of all runs that are there, outside `damaged`, and did not fail."""
        tables = [
            _read(path, columns=["run_id", "status"])
            for path in (self.path / RUNS_FILE, *self.shards)
            if path.exists() and path not in damaged
        ]
        return {
            identity
            for table in tables
            for identity in table.filter(pc.field("status") == OK)["run_id"].to_pylist()
        }

    def damaged(self) -> list[Path]:
        """List the shards that can't be read: cut short by a crash or a full disk."""
        return [path for path in self.shards if not _readable(path)]

    def discard(self, shards: Iterable[Path]) -> None:
        """Delete shards, and forget those found before."""
        for path in shards:
            path.unlink()
        self.__dict__.pop("shards", None)

    def add(self, shard: pa.Table) -> None:
        """Store one finished batch; when this returns it survives a crash."""
        folder = self.path / SHARDS
        folder.mkdir(exist_ok=True)
        name = digest(*shard["run_id"].to_pylist(), *shard["status"].to_pylist())
        _write(folder / f"{name}.parquet", shard)

    def compact(self) -> None:
        """Fold all shards into the tables; safe to kill at any point."""
        self.__dict__.pop("shards", None)
        if not self.shards:
            return
        runs, details = _merge(self.path, self.shards)
        for name, table in details.items():
            _write(self.path / file_of(name), table)
        _write(self.path / RUNS_FILE, runs)
        self.discard(self.shards)
        (self.path / SHARDS).rmdir()

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write `manifest.json`."""
        content = {"schema_version": SCHEMA_VERSION, **manifest}
        text = json.dumps(content, indent=2, default=str) + "\n"
        _atomically(self.path / MANIFEST, lambda path: path.write_text(text))

    def warnings(self) -> list[str]:
        """Return what the sweeps of this folder warned of, by its manifest."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text())
        except (OSError, ValueError):
            return []
        return warnings_of(manifest) if isinstance(manifest, dict) else []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder and keep other sweeps out of it.

        Raises
        ------
        ResultsError
            If the folder can't be created or written, or another sweep holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ResultsError(f"out: {self.path}: {error.strerror}") from None
        try:
            _flock(descriptor, self.path)
            self._sweep_temporaries()
            yield
        finally:
            os.close(descriptor)

    def _sweep_temporaries(self) -> None:
        for path in [*self.path.glob(".*.tmp"), *(self.path / SHARDS).glob(".*.tmp")]:
            path.unlink()


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResultsError(f"out: {path}: another sweep is writing to it") from None
    except OSError as error:
        # Some network file systems lock no folders; a lock is a courtesy, the ids are the rule.
        if error.errno not in (errno.EBADF, errno.ENOTSUP, errno.ENOLCK):
            raise


def open_results(path: Path) -> Results:
    """Check that a folder is, or can become, a results folder of this version.

    Raises
    ------
    ResultsError
        If it can't be written, is of another schema version, or holds something else.
    """
    _require_writable(path)
    if path.exists():
        _require_ours(path)
        _require_version(path)
    return Results(path.absolute())


def warnings_of(manifest: Mapping[str, Any]) -> list[str]:
    """Return a manifest's warnings; it may come from anywhere.

    >>> warnings_of({"warnings": ["a", 1]}), warnings_of({})
    (['a'], [])
    """
    told = manifest.get("warnings")
    return [text for text in told if isinstance(text, str)] if isinstance(told, list) else []


def scan_runs(path: str | Path) -> pl.LazyFrame:
    """Scan the runs of a results folder, schema `RUNS`, also before compaction.

    Raises
    ------
    ResultsError
        If the folder is of another schema version or has no results.
    """
    return _scan(Path(path), "runs")


def scan_counts(path: str | Path) -> pl.LazyFrame:
    """Scan the counts of a results folder, schema `COUNTS`; raises as `scan_runs`."""
    return _scan(Path(path), "counts")


def scan_functions(path: str | Path) -> pl.LazyFrame:
    """Scan the counts by kernel function, schema `FUNCTIONS`; raises as `scan_runs`."""
    return _scan(Path(path), "functions")


def scan_memory(path: str | Path) -> pl.LazyFrame:
    """Scan the memory that replication holds, schema `MEMORY`; raises as `scan_runs`."""
    return _scan(Path(path), "memory")


def _scan(path: Path, name: str) -> pl.LazyFrame:
    if not path.is_dir():
        raise ResultsError(f"{path}: no results folder")
    _require_version(path, {"runs", name})  # another table may be damaged
    shards = [shard for shard in sorted((path / SHARDS).glob("*.parquet")) if _readable(shard)]
    if shards:
        runs, details = _merge(path, shards)
        return pl.LazyFrame(pl.from_arrow({"runs": runs, **details}[name]))
    file = path / file_of(name)
    if not file.exists():
        raise ResultsError(f"{path}: no {file.name}; did the sweep run?")
    columns = pl.Schema(pl.DataFrame(TABLES[name].empty_table()).schema)
    return pl.scan_parquet(file, schema=columns, missing_columns="insert", glob=False)


def _require_writable(path: Path) -> None:
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise ResultsError(f"out: {path}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ResultsError(f"out: {path}: no permission to write in {existing}")


def _require_ours(path: Path) -> None:
    names = {p.name for p in path.iterdir() if not p.name.endswith(".tmp")}
    if names and not names & {MANIFEST, RUNS_FILE, SHARDS}:
        raise ResultsError(
            f"out: {path}: holds other files and no {MANIFEST}; choose a new or an empty folder"
        )


def _require_version(path: Path, names: Iterable[str] = TABLES) -> None:
    """Refuse a folder of which any file is of another schema version; of tables, those named."""
    manifest = path / MANIFEST
    if manifest.exists():
        try:
            version = json.loads(manifest.read_text()).get("schema_version")
        except (ValueError, AttributeError):
            raise ResultsError(f"{manifest}: not a manifest; move it away to go on") from None
        _require_equal(version, path)
    for file in (path / file_of(name) for name in names):
        if file.exists():
            _require_equal(_version(file), path)
    for file in (path / SHARDS).glob("*.parquet"):
        if _readable(file):
            _require_equal(_version(file), path)


def _require_equal(version: object, path: Path) -> None:
    if version != SCHEMA_VERSION:
        raise ResultsError(
            f"{path}: results of schema version {version}, expected {SCHEMA_VERSION}; "
            "choose another folder"
        )


def _version(path: Path) -> int | None:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(f"{path}: not readable ({_first_line(error)})") from None
    version = metadata.get(_VERSION_KEY, b"")
    return int(version) if version.isdigit() else None


def _readable(path: Path) -> bool:
    try:
        pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return False
    return True


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        # ParquetFile, because read_table would take a folder name for a partition.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(f"{path}: not readable ({_first_line(error)})") from None


def _merge(path: Path, shards: list[Path]) -> tuple[pa.Table, dict[str, pa.Table]]:
    """Take every run once, finished before failed, newer before older, with its own details."""
    runs: list[pa.Table] = []
    details: dict[str, list[pa.Table]] = {name: [] for name in DETAILS}
    sources = [_parts(_read(shard)) for shard in shards]
    if (path / RUNS_FILE).exists():
        compacted = {name: _read(path / file_of(name)) for name in DETAILS}
        sources.append((_read(path / RUNS_FILE), compacted))
    seen: set[str] = set()
    for status in (OK, FAILED):
        for source_runs, source_details in sources:
            rows = source_runs.filter(pc.field("status") == status)
            wanted = [identity for identity in rows["run_id"].to_pylist() if identity not in seen]
            seen.update(wanted)
            chosen = pa.array(wanted, pa.string())
            runs.append(rows.filter(pc.is_in(rows["run_id"], chosen)))
            for name, table in source_details.items() if status == OK else ():
                details[name].append(table.filter(pc.is_in(table["run_id"], chosen)))
    merged = {name: _sorted(tables, name) for name, tables in details.items()}
    return _sorted(runs, "runs"), merged


def _parts(shard: pa.Table) -> tuple[pa.Table, dict[str, pa.Table]]:
    """Return the runs of a shard, and their details."""
    return shard.select(RUNS.names), {name: _unnest(shard, name) for name in DETAILS}


def _unnest(shard: pa.Table, name: str) -> pa.Table:
    """Return the nested rows of one table of a shard."""
    nested = shard[name].combine_chunks()
    columns = pc.list_flatten(nested).flatten()
    owner = pc.take(shard["run_id"].combine_chunks(), pc.list_parent_indices(nested))
    return pa.table([owner, *columns], schema=DETAILS[name])


def _sorted(tables: list[pa.Table], name: str) -> pa.Table:
    # Cast for metadata and nullability; one chunk, because chunks shape the pages of the file.
    schema = TABLES[name]
    table = pa.concat_tables([table.cast(schema) for table in tables])
    keys = schema.names[: KEYS[name]]
    return table.sort_by([(key, "ascending") for key in keys]).combine_chunks()


def _write(path: Path, table: pa.Table) -> None:
    table = table.replace_schema_metadata({_VERSION_KEY: str(SCHEMA_VERSION).encode()})
    _atomically(
        path, lambda p: pq.write_table(table, p, compression="zstd", write_page_checksum=True)
    )


def _atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file next to `path`, put it on disk, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
