"""Reports on results folders; reads results only.

>>> load("/nowhere")
Traceback (most recent call last):
    ...
numarep.results.ResultsError: /nowhere: no results folder
"""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from numarep.results import scan_runs


def load(path: str | Path, run_ids: Iterable[str] | None = None) -> pl.DataFrame:
    """Read the runs of a results folder, all or some, in order of their coordinates.

    Raises
    ------
    ResultsError
        If the folder has no results or is of another schema version.
    """
    runs = scan_runs(path)
    if run_ids is not None:
        runs = runs.filter(pl.col("run_id").is_in(list(run_ids)))
    return runs.collect().sort(
        "machine", "kernel", "workload", "cache_state", "cpu_node", "seed", "replication", "run_id"
    )
