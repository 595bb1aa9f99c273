"""The life of a sweep: what is missing is planned, executed, stored shard by shard, compacted.

A finished batch is on disk before the next one is asked for, so that whatever ends a sweep early
(Ctrl-C, a full disk, kill -9) costs at most what was in flight; the same command goes on from
there.
"""

import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.console import Console

from numarep.results import FAILED, Results
from numarep.spec import RunSpec, as_mapping
from numarep.sweep.executor import ExecutorSpec, start
from numarep.sweep.grid import Study
from numarep.sweep.plan import Plan, batches, group_states
from numarep.sweep.progress import Reporter, reporting
from numarep.sweep.task import Done, load_model, peak_bytes

COORDINATES = ("run_id", "workload", "cache_state", "replication", "cpu_node", "seed")
LIBRARIES = ("hydra-core", "llvmlite", "numba", "numpy", "polars", "pyarrow", "pydantic", "ray")


@dataclass
class Tally:
    """What happened so far: runs, failures, warnings, and each process's peak memory."""

    runs: int = 0
    failed: int = 0
    warned: set[str] = field(default_factory=set)
    peaks: dict[str, int] = field(default_factory=dict)

    def count(self, done: Done, reporter: Reporter) -> None:
        """Add a finished batch, and report its failures and what is new of warnings at once."""
        self.runs += done.shard.num_rows
        self.peaks[done.process] = max(done.peak_bytes, self.peaks.get(done.process, 0))
        failures = done.shard.filter(pc.field("status") == FAILED)
        self.failed += failures.num_rows
        for run in failures.select([*COORDINATES, "error"]).to_pylist():
            error = run.pop("error")
            reporter.say(f"failed: {' '.join(map(str, run.values()))}: {error}")
        for warning in done.warned:
            if warning not in self.warned:
                reporter.say(f"warning: {warning}")
        self.warned.update(done.warned)
        reporter.advance(done.shard.num_rows)


def sweep(
    study: Study, plan: Plan, executor: ExecutorSpec, results: Results, model: str, console: Console
) -> Tally:
    """Run what is missing of a plan and leave a compacted results folder.

    Raises
    ------
    TraceError
        If a trace that a missing run needs can't be used.
    ExecutorError
        If the executor can't be started.
    ResultsError
        If the folder can't be created or another sweep holds it.
    OSError
        If the disk is full; everything finished before is kept.
    """
    tally = Tally()
    damaged = results.damaged()
    for path in damaged:
        console.print(f"{path}: cut short by a crash; its runs are done again", soft_wrap=True)
    missing = plan.missing(results.finished(damaged))
    if not missing and not results.shards:
        return tally
    if missing:
        load_model(model).check(missing.values())
    before = results.warnings()
    manifest = _manifest(study, plan, executor) | {"warnings": before}
    begin = time.monotonic()
    with ExitStack() as stack:
        # The executor first: one that can't be started leaves no folder behind.
        finished = stack.enter_context(_running(study, plan, missing, executor, model, console))
        stack.enter_context(results.lock())
        results.discard(damaged)
        results.write_manifest(manifest | {"state": "running"})
        try:
            reporter = stack.enter_context(reporting(console, len(missing)))
            _collect(finished, results, tally, reporter)
        finally:
            results.compact()
            warned = {"warnings": sorted({*before, *tally.warned})}
            results.write_manifest(manifest | warned | _ending(tally, time.monotonic() - begin))
    return tally


@contextmanager
def _running(
    study: Study,
    plan: Plan,
    missing: dict[str, RunSpec],
    executor: ExecutorSpec,
    model: str,
    console: Console,
) -> Iterator[Iterator[Done]]:
    """Start the executor; yields the missing points' batches, each run as it is asked for."""
    if not missing:
        yield iter(())
        return
    states = group_states(missing, plan.checksums, model)
    console.print(
        f"{len(missing)} of {len(plan.points)} runs to do, {len(states)} states to simulate"
    )
    with start(executor) as started:
        yield started.run(batches(states, study.name, model, started.cpus))


def _collect(finished: Iterator[Done], results: Results, tally: Tally, reporter: Reporter) -> None:
    for done in finished:
        results.add(done.shard)
        tally.count(done, reporter)


def _ending(tally: Tally, wall_s: float) -> dict[str, Any]:
    peaks = {"driver": peak_bytes(), **tally.peaks}
    return {
        "state": "ended",
        "runs": tally.runs,
        "failed": tally.failed,
        "wall_s": round(wall_s, 3),
        "peak_bytes": peaks,
    }


def _manifest(study: Study, plan: Plan, executor: ExecutorSpec) -> dict[str, Any]:
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "study": study.name,
        "axes": study.axes,
        "overrides": study.arguments,
        **({"points_sha256": study.points_sha256} if study.points_sha256 else {}),
        "executor": as_mapping(executor),
        "model_version": plan.model_version,
        "datasets": plan.checksums,
        "seeds": sorted({spec.seed for spec in plan.points.values()}),
        "python": platform.python_version(),
        "libraries": libraries,
        "host": platform.node(),
        "git": _git(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git() -> dict[str, Any] | None:
    """Return the revision of the checkout this package lies in, None for an installed one."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        revision = _output(checkout, "rev-parse", "HEAD")
        return {"revision": revision, "dirty": bool(_output(checkout, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None  # no git on this machine, or a checkout of another user


def _output(checkout: Path, *arguments: str) -> str:
    command = ("git", "-C", str(checkout), *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
