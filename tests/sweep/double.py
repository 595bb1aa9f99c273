"""A model that takes no time: the plumbing of sweeps under test is real, the physics is not.

`NUMAREP_DOUBLE` makes it slow (`slow=SECONDS`) or lets one workload fail (`fail=WORKLOAD`) or
kill its worker (`die=WORKLOAD`).
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence

from numarep.results import EVENTS, RunResult
from numarep.spec import RunSpec, as_mapping

MODEL_VERSION = 1


def state_key(spec: RunSpec) -> str:
    mapping = as_mapping(spec)
    del mapping["machine"]["latency"]
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()


def check(specs: Iterable[RunSpec]) -> None:
    pass


def evaluate(specs: Sequence[RunSpec]) -> Iterator[RunResult]:
    kind, _, value = os.environ.get("NUMAREP_DOUBLE", "").partition("=")
    if kind == "slow":
        time.sleep(float(value))
    for spec in specs:
        if kind == "die" and spec.workload.name == value:
            os._exit(1)
        if kind == "fail" and spec.workload.name == value:
            raise ArithmeticError(f"{value} can't run\nsecond line")
        yield _result(spec)


def _result(spec: RunSpec) -> RunResult:
    number = int(state_key(spec)[:6], 16)
    time_ns = number * spec.machine.latency.llc_ns
    return RunResult(
        master_node=0,
        time_ns=time_ns,
        time_serial_ns=time_ns * 1.25,
        time_overlapped_ns=time_ns * 0.75,
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
    )
