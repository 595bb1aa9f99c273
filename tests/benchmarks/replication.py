"""Cost of the replication model: `python -m tests.benchmarks.replication`, one JSON object a line.

- `relink`: a permuted layout's share of a run's time; target: under 0.2.
- `quiet`: each policy's run over the baseline's, on a window without events, costs charged, in the
  same process and in turns, for two loops; target: under 1.1. Runs that differ only in how they are
  measured share a booted kernel; `first` is the same of runs that have to boot theirs, which takes
  some ms, whatever runs on it.
- `boot`: building the model for 8 nodes on the full snapshot; target: under 0.5 s.
- `operations`: random operations with every invariant checked after each (the stateful test);
  target: 20,000 in two minutes. Only with --operations, because it takes one.

Times are CPU time, the best of all rounds.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numarep.linux.image import image_from_symbols
from numarep.linux.layout import aligned
from numarep.linux.relink import relink
from numarep.simulate import role as model
from numarep.simulate import simulate
from numarep.simulate.numbering import as_captured, labels_of
from numarep.simulate.protocol import drive
from numarep.simulate.role import roles_of
from numarep.simulate.setting import setting_of
from numarep.spec import RunSpec, parse
from numarep.sweep.grid import expand
from numarep.workload.dataset import capture_name, open_dataset
from tests.benchmarks.core import best_of
from tests.replication import test_stateful

WINDOW = ("study=single", "workload=open_close", "cpu_node=1", "cache_state=hot")
QUIET = ("open_close", "mmap_locked")  # the shortest loop and the longest without events
RELINKED = ("study=single", "workload=fork_1024", "cpu_node=1", "cache_state=hot")


def spec_of(*overrides: str) -> RunSpec:
    (point,) = expand(list(overrides)).points
    return parse(RunSpec, point)


def seconds_of(rounds: int, calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Best CPU time of each, taking turns, after one round that isn't counted."""
    for call in calls:
        call()
    found = best_of(rounds, calls)
    return [seconds for seconds in found if seconds is not None]


def relinking(rounds: int) -> dict[str, Any]:
    spec = spec_of(*RELINKED, "kernel.layout=permuted")
    dataset = open_dataset(spec.kernel.dataset)
    trace = dataset.trace(capture_name(pti=spec.kernel.pti, cpu_node=1, seed=1), "fork_1024")
    symbols = dataset.symbols()
    image = image_from_symbols(symbols)
    trace = dataclasses.replace(trace, pages=aligned(trace.pages, image))
    run_s, link_s = seconds_of(
        rounds,
        [lambda: _first_run(spec), lambda: relink(image, symbols, 0).apply(trace)],
    )
    return {
        "relink_s": round(link_s, 3),
        "run_s": round(run_s, 3),
        "share": round(link_s / run_s, 3),
    }


def quiet(rounds: int, window: str, policies: Sequence[str]) -> Iterator[dict[str, Any]]:
    options = (*WINDOW, f"workload={window}")
    none, *specs = (spec_of(*options, f"replication={name}") for name in ("none", *policies))
    for name, spec in zip(policies, specs, strict=True):
        pair = (none, spec)
        shared = seconds_of(rounds, [_later_run(s) for s in pair])
        first = seconds_of(rounds, [lambda s=s: _first_run(s) for s in pair])
        yield {
            "window": window,
            "policy": name,
            "run_s": round(shared[1], 4),
            "ratio_to_none": round(shared[1] / shared[0], 3),
            "first_s": round(first[1], 4),
            "first_ratio_to_none": round(first[1] / first[0], 3),
        }


def _later_run(spec: RunSpec) -> Callable[[], Any]:
    """Return what a run does whose kernel is booted."""
    captured = as_captured(spec, labels_of(spec))
    roles = roles_of(setting_of(captured, captured.workload))
    return lambda: drive(captured, roles)


def _first_run(spec: RunSpec) -> None:
    roles_of.cache_clear()
    simulate(spec)


def booting(rounds: int) -> dict[str, Any]:
    """Time from the window's tables to the booted 8-node kernel."""
    spec = spec_of(*WINDOW, "machine=xeon_8s", "replication=series")
    seconds = []
    replicate = model.replicate

    def timed(*arguments: Any) -> Any:
        start = time.process_time()
        try:
            return replicate(*arguments)
        finally:
            seconds.append(time.process_time() - start)

    model.replicate = timed
    try:
        for _ in range(rounds):
            _first_run(spec)
    finally:
        model.replicate = replicate
    return {"nodes": spec.machine.nodes, "boot_s": round(min(seconds), 3)}


def operations() -> dict[str, Any]:
    start = time.process_time()
    test_stateful.test_r8_r9_r19_r25_r28_random_operations_keep_every_invariant()
    wanted = test_stateful.EXAMPLES * test_stateful.STEPS
    return {"operations_at_most": wanted, "seconds": round(time.process_time() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--operations", action="store_true")
    arguments = parser.parse_args()
    _, *policies = sorted({"none", *_policies()}, key=lambda name: name != "none")
    print(json.dumps(relinking(arguments.rounds)), flush=True)
    print(json.dumps(booting(arguments.rounds)), flush=True)
    for window in QUIET:
        for row in quiet(arguments.rounds, window, policies):
            print(json.dumps(row), flush=True)
    if arguments.operations:
        print(json.dumps(operations()), flush=True)


def _policies() -> list[str]:
    points = expand([*WINDOW, "replication=glob(*)"]).points
    return sorted(point["replication"]["name"] for point in points)


if __name__ == "__main__":
    main()
