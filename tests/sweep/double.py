"""A model that takes no time: the plumbing of sweeps under test is real, the physics is not.

The file `double` in the dataset's folder lets one workload fail (`fail=WORKLOAD`), warn
(`warn=WORKLOAD`) or kill its process (`die=WORKLOAD`), or holds the workload `kill` until a pipe is
gone (`hold=PIPE`).
"""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path

from numarep.results import EVENTS, RunResult
from numarep.spec import RunSpec, as_mapping

MODEL_VERSION = 1


def state_key(spec: RunSpec) -> str:
    mapping = as_mapping(spec)
    del mapping["machine"]["latency"]
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()


def sharing(spec: RunSpec) -> tuple[Hashable, Hashable]:
    return spec.workload, spec.replication


def check(specs: Iterable[RunSpec]) -> None:
    pass


def evaluate(specs: Sequence[RunSpec]) -> Iterator[RunResult]:
    told = Path(specs[0].kernel.dataset) / "double"
    kind, _, value = told.read_text().partition("=") if told.exists() else ("", "", "")
    for spec in specs:
        if kind == "die" and spec.workload.name == value:
            os._exit(1)
        if kind == "hold" and spec.workload.name == "kill":
            _hold(Path(value))
        if kind == "fail" and spec.workload.name == value:
            raise ArithmeticError(f"{value} can't run\nsecond line")
        if kind == "warn" and spec.workload.name == value:
            warnings.warn(f"{value} is a guess", stacklevel=1)
        yield _result(spec)


def _hold(pipe: Path) -> None:
    """Tell the test we are here, then wait for it to delete the pipe."""
    if pipe.exists():
        pipe.write_text("here")
    while pipe.exists():
        time.sleep(0.02)


def _result(spec: RunSpec) -> RunResult:
    number = int(state_key(spec)[:6], 16)
    time_ns = number * spec.machine.latency.llc_ns
    return RunResult(
        master_node=0,
        time_ns=time_ns,
        time_serial_ns=time_ns * 1.25,
        time_overlapped_ns=time_ns * 0.75,
        load_share=None,
        replica_bytes_per_node=(0, 4096 * spec.replication.text),
        table_pages_per_node=(0, 3),
        events={name: number + i for i, name in enumerate(["instructions", "references", *EVENTS])},
        counts=[
            {
                "access": access,
                "region": "text",
                "served_by": "dram",
                "node": spec.cpu_node,
                "level": 0,
                "leading": number,
                "overlapped": spec.seed,
                "stall_ns": time_ns / 3,
            }
            for access in ("load", "fetch")
        ],
        functions=[
            {
                "function": function,
                "access": "fetch",
                "served_by": "dram",
                "node": spec.cpu_node,
                "leading": number,
                "overlapped": 0,
                "stall_ns": time_ns / 3,
            }
            for function in ("pgd_alloc", "copy_page")
        ],
        memory=[{"mechanism": "static", "node": 1, "pages": number, "bytes": 4096 * number}],
    )
