"""From the points of a grid to states to simulate: each state once, for all its points.

Points that differ only in what pricing reads (latencies, clock) share a state. Points whose run
is finished are left out, found by their ids. States that read the same window, or even boot the
same kernel, are neighbours, because a process keeps both.
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from numarep.results import digest, run_id
from numarep.spec import RunSpec, parse
from numarep.sweep.task import Batch, State, load_model
from numarep.workload.dataset import open_dataset

# Enough tasks for a large cluster, so few that a task's own cost and its shard don't matter.
TASKS = 1024
# So many that CPUs end at about the same time, and that little is lost with one.
TASKS_PER_CPU = 16
POINTS_PER_STATE = 1000


@dataclass(frozen=True)
class Plan:
    """All points of a study, parsed, by run id."""

    points: dict[str, RunSpec]
    checksums: dict[str, str]  # by dataset
    model_version: int

    def missing(self, finished: Set[str]) -> dict[str, RunSpec]:
        """Return the points whose run is not finished."""
        return {key: spec for key, spec in self.points.items() if key not in finished}


def build_plan(points: Iterable[Mapping[str, Any]], model: str) -> Plan:
    """Parse and identify every point before any runs.

    Raises
    ------
    SpecError
        Naming the first offending path of the first point that can't be run.
    TraceError
        If a dataset is not there, damaged or of another version.
    """
    specs: dict[str, RunSpec] = {}
    checksums: dict[str, str] = {}
    version = load_model(model).MODEL_VERSION
    for point in points:
        spec = parse(RunSpec, point)
        dataset = spec.kernel.dataset
        if dataset not in checksums:
            checksums[dataset] = open_dataset(dataset).checksum
        specs[run_id(spec, checksums[dataset], version)] = spec
    return Plan(specs, checksums, version)


def group_states(
    points: Mapping[str, RunSpec], checksums: Mapping[str, str], model: str
) -> list[State]:
    """Group points by the state they share; a state with very many points is simulated again."""
    state_key = load_model(model).state_key
    grouped: dict[str, list[tuple[str, RunSpec]]] = {}
    for identity, spec in points.items():
        state_id = digest(state_key(spec), checksums[spec.kernel.dataset])
        grouped.setdefault(state_id, []).append((identity, spec))
    return [
        State(state_id, tuple(members[start : start + POINTS_PER_STATE]))
        for state_id, members in grouped.items()
        for start in range(0, len(members), POINTS_PER_STATE)
    ]


def batches(states: list[State], study: str, model: str, cpus: int) -> list[Batch]:
    """Cut states into batches, one task each: those that share a window or a kernel together."""
    sharing = load_model(model).sharing
    windows: dict[Hashable, dict[Hashable, list[State]]] = {}
    for state in states:
        window, kernel = sharing(state.points[0][1])
        windows.setdefault(window, {}).setdefault(kernel, []).append(state)
    least = math.ceil(len(states) / TASKS)
    most = max(least, math.ceil(len(states) / (TASKS_PER_CPU * cpus)))
    cut: list[list[State]] = []
    for kernels in windows.values():
        if not cut or len(cut[-1]) >= least:
            cut.append([])
        for state in itertools.chain.from_iterable(kernels.values()):
            if len(cut[-1]) == most:
                cut.append([])
            cut[-1].append(state)
    return [Batch(study, model, tuple(batch)) for batch in cut]
