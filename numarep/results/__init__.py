"""Results of runs: their schema, and a folder of Parquet files that survives crashes.

`schema` says what a run's row holds, and the tables that give its details (`DETAILS`); `folder`
stores and scans them.
"""

from numarep.results.folder import (
    MANIFEST,
    RUNS_FILE,
    SHARDS,
    Results,
    ResultsError,
    file_of,
    open_results,
    scan_counts,
    scan_functions,
    scan_memory,
    scan_runs,
)
from numarep.results.schema import (
    COUNTS,
    DETAILS,
    EVENTS,
    FAILED,
    FUNCTIONS,
    MEMORY,
    OK,
    RUNS,
    SCHEMA_VERSION,
    SHARD,
    TABLES,
    RunResult,
    canonical,
    digest,
    row,
    run_id,
    shard_table,
)

__all__ = [
    "COUNTS",
    "DETAILS",
    "EVENTS",
    "FAILED",
    "FUNCTIONS",
    "MANIFEST",
    "MEMORY",
    "OK",
    "RUNS",
    "RUNS_FILE",
    "SCHEMA_VERSION",
    "SHARD",
    "SHARDS",
    "TABLES",
    "Results",
    "ResultsError",
    "RunResult",
    "canonical",
    "digest",
    "file_of",
    "open_results",
    "row",
    "run_id",
    "scan_counts",
    "scan_functions",
    "scan_memory",
    "scan_runs",
    "shard_table",
]
