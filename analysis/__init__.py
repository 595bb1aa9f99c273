"""Questions asked of results folders; reads results only.

`load` opens a folder, `cases` turns its runs into one table, and each question is a module with a
function that returns a frame:

- `published.gains`, `requirements.requirements`: the published table beside the model's, and what
  would have to be true where they disagree;
- `stalls.stalls`: where the time goes; `events.events`: what else is counted;
- `functions.functions`: which kernel functions gain;
- `ablation.ablation`, `ablation.alignment`, `ablation.switches`: what each part gains;
- `break_even.surface`: over latency ratio, LLC size and workload;
- `nodes.nodes`, `nodes.traffic`: gain, cost and traffic from 2 to 8 nodes;
- `memory.memory`, `memory.policies`: memory by policy, and against gain;
- `operations.costs`, `costs.used_up`: what an operation costs, and the rate that uses up a gain;
- `sensitivity.sensitivity`: which assumed parameters move the gain;
- `trust.checks`: laws and null tests the results must pass;
- `own.own`: machines, kernels and workloads beside the published study's.

>>> load("/nowhere")
Traceback (most recent call last):
    ...
numarep.results.folder.ResultsError: /nowhere: no results folder
"""

import os
from collections.abc import Iterable
from pathlib import Path

# Polars' allocator keeps freed pages for later unless told before it is loaded: of a million runs,
# as much again as they take.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")

import polars as pl

from analysis.cases import cases
from analysis.pairs import pairs
from numarep.results import scan_counts, scan_runs

__all__ = ["cases", "load", "load_counts", "pairs"]


def load(path: str | Path, run_ids: Iterable[str] | None = None) -> pl.LazyFrame:
    """Scan the runs of a results folder, all or some; schema `numarep.results.RUNS`.

    Raises
    ------
    ResultsError
        If the folder has no results or is of another schema version.
    """
    runs = scan_runs(path)
    return runs if run_ids is None else runs.filter(pl.col("run_id").is_in(list(run_ids)))


def load_counts(path: str | Path) -> pl.LazyFrame:
    """Scan the counts of a results folder; schema `numarep.results.COUNTS`.

    Raises
    ------
    ResultsError
        If the folder has no results or is of another schema version.
    """
    return scan_counts(path)
