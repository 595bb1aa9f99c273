"""Results of runs: schema, run ids, and a folder that survives crashes.

A results folder holds `runs.parquet` (one row a run), `counts.parquet` (one row a kind of access),
`manifest.json` (what varies between two equal runs: times, versions, hosts), and, while a sweep is
under way or after a crash, `shards/`. A shard is one finished batch: rows of `runs` with their
counts nested, in one file, so that a run is there with its counts or not at all. Every file is
written under a temporary name and renamed. Compaction writes `counts`, then `runs`, then deletes
the shards; whatever is left by a crash in between is read again, each run once.

The bytes of the two tables depend on the runs in them only, never on order, executor or crashes.

>>> SCHEMA_VERSION, RUNS.names[:3]
(1, ['run_id', 'study', 'machine'])
"""

import errno
import fcntl
import hashlib
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

from numarep.memory.counts import Event
from numarep.spec import RunSpec, as_mapping

SCHEMA_VERSION = 1

OK, FAILED = "ok", "failed"
MANIFEST, RUNS_FILE, COUNTS_FILE, SHARDS = (
    "manifest.json",
    "runs.parquet",
    "counts.parquet",
    "shards",
)
_VERSION_KEY = b"numarep.results.version"

# Two of the events stand first, as what a run is most often divided by.
EVENTS = [e.name.lower() for e in Event if e not in (Event.INSTRUCTIONS, Event.REFERENCES)]
_per_node = pa.list_(pa.field("element", pa.int64()))
RUNS = pa.schema(
    [
        ("run_id", pa.string()),
        ("study", pa.string()),
        ("machine", pa.string()),
        ("kernel", pa.string()),
        ("workload", pa.string()),
        ("cache_state", pa.string()),
        ("replication", pa.string()),
        ("cpu_node", pa.int64()),
        ("master_node", pa.int64()),
        ("seed", pa.int64()),
        ("status", pa.string()),  # ok | failed
        ("error", pa.string()),  # one line; null unless failed
        ("instructions", pa.int64()),
        ("references", pa.int64()),
        ("time_ns", pa.float64()),
        ("time_serial_ns", pa.float64()),
        ("time_overlapped_ns", pa.float64()),
        ("replica_bytes_per_node", _per_node),
        ("table_pages_per_node", _per_node),
        ("home_llc", pa.string()),
        ("layout", pa.string()),
        *((name, pa.int64()) for name in EVENTS),
        ("state_id", pa.string()),  # equal for runs that differ in pricing only
        ("pair_id", pa.string()),  # equal for runs that differ in replication only
        ("spec", pa.string()),  # the whole RunSpec as canonical JSON
    ]
)
COUNTS = pa.schema(
    [
        ("run_id", pa.string()),
        ("access", pa.string()),
        ("region", pa.string()),
        ("served_by", pa.string()),
        ("node", pa.int64()),
        ("level", pa.int64()),
        ("leading", pa.int64()),
        ("overlapped", pa.int64()),
        ("stall_ns", pa.float64()),  # of the leading ones: their share of time_ns
    ]
)
_COUNT = [field for field in COUNTS if field.name != "run_id"]
SHARD = RUNS.append(pa.field("counts", pa.list_(pa.field("element", pa.struct(_COUNT)))))


class ResultsError(ValueError):
    """A results folder that can't be used; the message names it and what is wrong."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one run yields: columns of `RUNS`, and rows of `COUNTS` without their run_id."""

    master_node: int
    time_ns: float
    time_serial_ns: float
    time_overlapped_ns: float
    replica_bytes_per_node: tuple[int, ...]
    table_pages_per_node: tuple[int, ...]
    events: Mapping[str, int]  # instructions, references and EVENTS
    counts: list[dict[str, Any]]


def canonical(mapping: Mapping[str, Any]) -> str:
    """Return a mapping as JSON that is equal for equal mappings.

    >>> canonical({"b": 1, "a": [2.0]})
    '{"a":[2.0],"b":1}'
    """
    return json.dumps(mapping, sort_keys=True, separators=(",", ":"))


def digest(*parts: str) -> str:
    """Return 80 bits of the SHA-256 of some strings, in hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def run_id(spec: RunSpec, checksum: str, model_version: int) -> str:
    """Identify a run by all it depends on: spec, dataset and model, never study or executor."""
    return digest(canonical(as_mapping(spec)), checksum, str(model_version))


def row(
    identity: str, state: str, study: str, spec: RunSpec, outcome: RunResult | str
) -> dict[str, Any]:
    """Return one row of schema `SHARD`: of a finished run, or a failed one and its error."""
    mapping = as_mapping(spec)
    known: dict[str, Any] = {
        "run_id": identity,
        "study": study,
        "machine": spec.machine.name,
        "kernel": spec.kernel.name,
        "workload": spec.workload.name,
        "replication": spec.replication.name,
        "layout": spec.kernel.layout,
        **{name: mapping[name] for name in ("cache_state", "home_llc", "cpu_node", "seed")},
        "state_id": state,
        "spec": canonical(mapping),
    }
    del mapping["replication"]
    known["pair_id"] = digest(canonical(mapping))
    if isinstance(outcome, str):
        return known | {"status": FAILED, "error": outcome, "counts": []}
    values = {name: getattr(outcome, name) for name in RunResult.__dataclass_fields__}
    return known | {"status": OK} | values | dict(values.pop("events"))


def shard_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows of `row` as a table of schema `SHARD`."""
    return pa.Table.from_pylist(rows, schema=SHARD)


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
        """Fold all shards into the two tables; safe to kill at any point."""
        self.__dict__.pop("shards", None)
        if not self.shards:
            return
        runs, counts = _merge(self.path, self.shards)
        _write(self.path / COUNTS_FILE, counts)
        _write(self.path / RUNS_FILE, runs)
        self.discard(self.shards)
        (self.path / SHARDS).rmdir()

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write `manifest.json`."""
        content = {"schema_version": SCHEMA_VERSION, **manifest}
        text = json.dumps(content, indent=2, default=str) + "\n"
        _atomically(self.path / MANIFEST, lambda path: path.write_text(text))

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


def scan_runs(path: str | Path) -> pl.LazyFrame:
    """Scan the runs of a results folder, schema `RUNS`, also before compaction.

    Raises
    ------
    ResultsError
        If the folder is of another schema version or has no results.
    """
    return _scan(Path(path), RUNS_FILE, RUNS)


def scan_counts(path: str | Path) -> pl.LazyFrame:
    """Scan the counts of a results folder, schema `COUNTS`, also before compaction.

    Raises
    ------
    ResultsError
        If the folder is of another schema version or has no results.
    """
    return _scan(Path(path), COUNTS_FILE, COUNTS)


def _scan(path: Path, name: str, schema: pa.Schema) -> pl.LazyFrame:
    if not path.is_dir():
        raise ResultsError(f"{path}: no results folder")
    _require_version(path)
    shards = [shard for shard in sorted((path / SHARDS).glob("*.parquet")) if _readable(shard)]
    if shards:
        runs, counts = _merge(path, shards)
        return pl.LazyFrame(pl.from_arrow(runs if schema is RUNS else counts))
    if not (path / name).exists():
        raise ResultsError(f"{path}: no {name}; did the sweep run?")
    columns = pl.Schema(pl.DataFrame(schema.empty_table()).schema)
    return pl.scan_parquet(path / name, schema=columns, missing_columns="insert", glob=False)


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


def _require_version(path: Path) -> None:
    """Refuse a folder of which any file is of another schema version."""
    manifest = path / MANIFEST
    if manifest.exists():
        try:
            version = json.loads(manifest.read_text()).get("schema_version")
        except (ValueError, AttributeError):
            raise ResultsError(f"{manifest}: not a manifest; move it away to go on") from None
        _require_equal(version, path)
    for file in (path / RUNS_FILE, path / COUNTS_FILE):
        if file.exists():
            _require_equal(_version(file), path)
    for file in (path / SHARDS).glob("*.parquet"):
        if _readable(file):
            _require_equal(_version(file), path)


def _require_equal(version: object, path: Path) -> None:
    if version != SCHEMA_VERSION:
        raise ResultsError(
            f"out: {path}: results of schema version {version}, expected {SCHEMA_VERSION}; "
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


def _merge(path: Path, shards: list[Path]) -> tuple[pa.Table, pa.Table]:
    """Take every run once, finished before failed, newer before older, with its own counts."""
    runs, counts, seen = [], [], set()
    tables = [_read(shard) for shard in shards]
    sources = [(table.select(RUNS.names), _unnest(table)) for table in tables]
    if (path / RUNS_FILE).exists():
        sources.append((_read(path / RUNS_FILE), _read(path / COUNTS_FILE)))
    for status in (OK, FAILED):
        for source_runs, source_counts in sources:
            rows = source_runs.filter(pc.field("status") == status)
            wanted = [identity for identity in rows["run_id"].to_pylist() if identity not in seen]
            seen.update(wanted)
            chosen = pa.array(wanted, pa.string())
            runs.append(rows.filter(pc.is_in(rows["run_id"], chosen)))
            if status == OK:
                counts.append(source_counts.filter(pc.is_in(source_counts["run_id"], chosen)))
    return _sorted(runs, RUNS, ["run_id"]), _sorted(counts, COUNTS, COUNTS.names[:6])


def _unnest(shard: pa.Table) -> pa.Table:
    """Return the nested counts of a shard as rows of `COUNTS`."""
    nested = shard["counts"].combine_chunks()
    columns = pc.list_flatten(nested).flatten()
    owner = pc.take(shard["run_id"].combine_chunks(), pc.list_parent_indices(nested))
    return pa.table([owner, *columns], schema=COUNTS)


def _sorted(tables: list[pa.Table], schema: pa.Schema, keys: list[str]) -> pa.Table:
    # Cast for metadata and nullability; one chunk, because chunks shape the pages of the file.
    table = pa.concat_tables([table.cast(schema) for table in tables])
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
