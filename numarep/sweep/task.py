"""One task: simulate a batch of states and price their points; the same for every executor.

A model is a module with `state_key`, `sharing`, `check` and `evaluate`, named by its dotted path so
that a task can be sent to another process; `numarep.sweep.model` is the real one. An exception
becomes failed rows of the points it concerns, never the end of the sweep.
"""

import importlib
import os
import re
import resource
import socket
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pyarrow as pa

from numarep.results import RunResult, row, shard_table
from numarep.spec import RunSpec

MODEL = "numarep.sweep.model"
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Model(Protocol):
    """What a task needs of a model."""

    MODEL_VERSION: int

    def state_key(self, spec: RunSpec) -> str:
        """Return a key equal for specs that differ only in what pricing reads."""

    def sharing(self, spec: RunSpec) -> tuple[Hashable, Hashable]:
        """Return what a state's simulation reads, and what it builds of it before it counts.

        States with equal ones are done in less time by one process, one after the other.
        """

    def check(self, specs: Iterable[RunSpec]) -> None:
        """Refuse specs whose traces can't be used."""

    def evaluate(self, specs: Sequence[RunSpec]) -> Iterator[RunResult]:
        """Simulate the state that all specs share, then price each in turn."""


@dataclass(frozen=True)
class State:
    """Points of one simulation: run ids and their specs."""

    state_id: str
    points: tuple[tuple[str, RunSpec], ...]


@dataclass(frozen=True)
class Batch:
    """What one task does: some states of a study, with a model."""

    study: str
    model: str
    states: tuple[State, ...]

    def split(self) -> list["Batch"]:
        """Return one batch a state."""
        return [Batch(self.study, self.model, (state,)) for state in self.states]


@dataclass(frozen=True)
class Done:
    """A finished batch, what was warned of on the way, and the process that did it."""

    shard: pa.Table
    process: str
    peak_bytes: int
    warned: tuple[str, ...] = ()


def load_model(name: str) -> Model:
    """Import a model by its dotted path."""
    return cast(Model, importlib.import_module(name))


def run_batch(batch: Batch) -> Done:
    """Run every state of a batch; failures become rows."""
    model = load_model(batch.model)
    with warnings.catch_warnings(record=True) as caught:  # what workers print, nobody reads
        rows = [row for state in batch.states for row in _run_state(model, batch.study, state)]
    warned = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return Done(shard_table(rows), f"{socket.gethostname()}:{os.getpid()}", peak_bytes(), warned)


def failed(batch: Batch, error: BaseException) -> Done:
    """Return a batch none of whose points could run."""
    reason = one_line(error)
    rows = [
        row(identity, state.state_id, batch.study, spec, reason)
        for state in batch.states
        for identity, spec in state.points
    ]
    return Done(shard_table(rows), "", 0)


def peak_bytes() -> int:
    """Return this process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_line(error: BaseException) -> str:
    r"""Return an exception's type and first line, without the colours Ray gives its messages.

    >>> one_line(ValueError("bad \x1b[36mrow\x1b[39m\nmore"))
    'ValueError: bad row'
    """
    lines = _COLOUR.sub("", str(error)).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _run_state(model: Model, study: str, state: State) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        results = model.evaluate([spec for _, spec in state.points])
        for (identity, spec), result in zip(state.points, results, strict=True):
            rows.append(row(identity, state.state_id, study, spec, result))
    except Exception as error:
        rest = state.points[len(rows) :]
        rows += [
            row(identity, state.state_id, study, spec, one_line(error)) for identity, spec in rest
        ]
    return rows
