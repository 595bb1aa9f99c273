"""Results folders as evidence: what can be read of them, and what can't, in words.

Folders may be several: studies of the same model are one body of runs, each run once. Whatever is
unusable is left out and noted; only where no run can be read at all is there no report.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from analysis import agreement
from analysis.cases import cases
from analysis.section import UNREADABLE, Evidence, first_line
from numarep.results import (
    DETAILS,
    EVENTS,
    KEYS,
    MANIFEST,
    TABLES,
    ResultsError,
    file_of,
    scan_counts,
    scan_functions,
    scan_memory,
    scan_runs,
    warnings_of,
)

_SCANS = {"counts": scan_counts, "functions": scan_functions, "memory": scan_memory}
_LOST = {
    "counts": "where the time goes is unknown",
    "functions": "which kernel functions gain is unknown",
    "memory": "what copies cost in memory is unknown",
}


@dataclass(frozen=True)
class Sources:
    """Evidence, and notes on what is wrong with it, a sentence each."""

    evidence: Evidence
    runs: pl.LazyFrame
    notes: list[str]


def open_sources(paths: Sequence[Path]) -> Sources:
    """Open results folders of one model.

    Raises
    ------
    ResultsError
        If no run can be read in any of them.
    """
    notes: list[str] = []
    manifests = {str(path): _manifest(path, notes) for path in paths}
    kept = _one_model(paths, manifests, notes)
    found = {path: scan for path in kept if (scan := _runs(path, notes)) is not None}
    if not found:
        raise ResultsError("; ".join(notes))
    runs = list(found.values())
    details = {name: [_details(path, name, notes) for path in found] for name in DETAILS}
    together = _once(runs, ["run_id"])
    table = _cases(together)
    notes += _failures(table)
    once = {name: _once(each, TABLES[name].names[: KEYS[name]]) for name, each in details.items()}
    events = together.select("run_id", *EVENTS)
    read = {str(path): manifests[str(path)] for path in found}
    compared = agreement.of(list(found), notes)
    notes += dict.fromkeys(text for manifest in read.values() for text in warnings_of(manifest))
    evidence = Evidence(table, events, **once, manifests=read, agreement=compared)
    return Sources(evidence, together, notes)


def _manifest(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_dir():
        return {}  # which is what will be said of it
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        notes.append(f"{path}: no readable {MANIFEST}: versions and protocol are unknown")
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _one_model(
    paths: Sequence[Path], manifests: dict[str, dict[str, Any]], notes: list[str]
) -> list[Path]:
    """Keep the folders of the newest model: results of different models never mix."""
    versions = {path: manifests[str(path)].get("model_version") for path in paths}
    known = [version for version in versions.values() if isinstance(version, int)]
    newest = max(known, default=None)
    kept = [path for path in paths if versions[path] in (newest, None)]
    notes += [
        f"{path}: left out, its model version is {versions[path]} and the others' {newest}"
        for path in paths
        if path not in kept
    ]
    return kept


def _runs(path: Path, notes: list[str]) -> pl.LazyFrame | None:
    try:
        runs = scan_runs(path)
        notes += _lacking(path, "runs")
        return runs
    except ResultsError as error:
        notes.append(str(error))
        return None


def _cases(runs: pl.LazyFrame) -> pl.LazyFrame:
    try:
        return cases(runs)
    except UNREADABLE as error:
        raise ResultsError(f"runs can't be read: {first_line(error)}") from error


def _details(path: Path, name: str, notes: list[str]) -> pl.LazyFrame:
    try:
        details = _SCANS[name](path)
        notes += _lacking(path, name)
        return details
    except ResultsError as error:
        notes.append(f"{error}; {_LOST[name]}")
        return pl.LazyFrame(pl.DataFrame(TABLES[name].empty_table()))


def _lacking(path: Path, name: str) -> list[str]:
    """Note the columns a table lacks: they read as unknown.

    Raises
    ------
    ResultsError
        If one of them tells its rows apart.
    """
    file = path / file_of(name)
    if not file.exists():  # a sweep is under way: shards hold the runs
        return []
    there = pq.read_schema(file).names
    lacking = [column for column in TABLES[name].names if column not in there]
    if not lacking:
        return []
    said = f"{file}: no column {', '.join(lacking)}"
    if set(lacking) & set(TABLES[name].names[: KEYS[name]]):
        raise ResultsError(f"{said}, so its rows can't be told apart")
    return [f"{said}; taken as unknown"]


def _once(frames: list[pl.LazyFrame], key: list[str]) -> pl.LazyFrame:
    if len(frames) == 1:
        return frames[0]
    return pl.concat(frames).unique(key, keep="first", maintain_order=True)


def _failures(table: pl.LazyFrame) -> list[str]:
    failed = table.filter(pl.col("status") == "failed").select("error").collect()["error"]
    if failed.is_empty():
        return []
    total = table.select(pl.len()).collect().item()
    counted = failed.value_counts(sort=True).sort("count", "error", descending=[True, False])
    first = counted.row(0, named=True)
    return [
        f"{len(failed)} of {total} runs failed and are left out; most often, {first['count']} "
        f"times: {first['error']}"
    ]
