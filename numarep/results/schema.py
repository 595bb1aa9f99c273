"""What a run's results are: one row of `RUNS`, and rows of tables that give its details.

- `COUNTS`: accesses by kind, region and the level that served them.
- `FUNCTIONS`: the same by kernel function, if the run asked for it (`by_function`).
- `MEMORY`: what replication holds at the window's end, by mechanism and node.

>>> SCHEMA_VERSION, RUNS.names[:3], list(DETAILS)
(2, ['run_id', 'study', 'machine'], ['counts', 'functions', 'memory'])
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from numarep.memory.counts import Event
from numarep.spec import RunSpec, as_mapping

SCHEMA_VERSION = 2

OK, FAILED = "ok", "failed"
BASE, CORE = "base", "core"  # access and served_by of a function's instructions
# Two of the events stand first, as what a run is most often divided by.
EVENTS = [e.name.lower() for e in Event if e not in (Event.INSTRUCTIONS, Event.REFERENCES)]
_PLACES = ("master_node", "boot_node")  # of a replication, that its baseline shares
_per_node = pa.list_(pa.field("element", pa.int64()))
RUNS = pa.schema(
    [
        ("run_id", pa.string()),
        ("study", pa.string()),
        ("machine", pa.string()),
        ("kernel", pa.string()),
        ("workload", pa.string()),
        ("cache_state", pa.string()),
        ("replication", pa.string()),
        ("cpu_node", pa.int64()),
        ("master_node", pa.int64()),
        ("seed", pa.int64()),
        ("status", pa.string()),  # ok | failed
        ("error", pa.string()),  # one line; null unless failed
        ("instructions", pa.int64()),
        ("references", pa.int64()),
        ("time_ns", pa.float64()),
        ("time_serial_ns", pa.float64()),
        ("time_overlapped_ns", pa.float64()),
        ("load_share", pa.float64()),  # null without load; from 1 on, saturated (see loaded)
        ("replica_bytes_per_node", _per_node),
        ("table_pages_per_node", _per_node),
        ("home_llc", pa.string()),
        ("layout", pa.string()),
        *((name, pa.int64()) for name in EVENTS),
        ("state_id", pa.string()),  # equal for runs that differ in pricing only
        ("pair_id", pa.string()),  # equal for runs that differ in what is replicated only
        ("spec", pa.string()),  # the whole RunSpec as canonical JSON
    ]
)
COUNTS = pa.schema(
    [
        ("run_id", pa.string()),
        ("access", pa.string()),
        ("region", pa.string()),
        ("served_by", pa.string()),
        ("node", pa.int64()),
        ("level", pa.int64()),
        ("leading", pa.int64()),
        ("overlapped", pa.int64()),
        ("stall_ns", pa.float64()),  # of the leading ones: their share of time_ns
    ]
)
FUNCTIONS = pa.schema(
    [
        ("run_id", pa.string()),
        ("function", pa.string()),  # the kernel symbol fetched last; [user], [MODULE], [other]
        ("access", pa.string()),  # as in COUNTS; or `base`, the function's instructions
        ("served_by", pa.string()),  # beyond L1 only; `core` for the base
        ("node", pa.int64()),
        ("leading", pa.int64()),
        ("overlapped", pa.int64()),
        ("stall_ns", pa.float64()),  # of the leading ones; of the base, its time at base_ipc
    ]
)
MEMORY = pa.schema(
    [
        ("run_id", pa.string()),
        ("mechanism", pa.string()),  # see replication.account
        ("node", pa.int64()),
        ("pages", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
DETAILS = {"counts": COUNTS, "functions": FUNCTIONS, "memory": MEMORY}
TABLES = {"runs": RUNS, **DETAILS}
# How many of a table's first columns identify a row; tables are sorted by them.
KEYS = {"runs": 1, "counts": 6, "functions": 5, "memory": 3}


def _nested(schema: pa.Schema) -> pa.DataType:
    fields = [field for field in schema if field.name != "run_id"]
    return pa.list_(pa.field("element", pa.struct(fields)))


SHARD = pa.schema([*RUNS, *(pa.field(name, _nested(table)) for name, table in DETAILS.items())])


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one run yields: columns of `RUNS`, and rows of `DETAILS` without their run_id."""

    master_node: int
    time_ns: float
    time_serial_ns: float
    time_overlapped_ns: float
    load_share: float | None
    replica_bytes_per_node: tuple[int, ...]
    table_pages_per_node: tuple[int, ...]
    events: Mapping[str, int]  # instructions, references and EVENTS
    counts: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    memory: list[dict[str, Any]]


def canonical(mapping: Mapping[str, Any]) -> str:
    """Return a mapping as JSON that is equal for equal mappings.

    >>> canonical({"b": 1, "a": [2.0]})
    '{"a":[2.0],"b":1}'
    """
    return json.dumps(mapping, sort_keys=True, separators=(",", ":"))


def digest(*parts: str) -> str:
    """Return 80 bits of the SHA-256 of some strings, in hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def run_id(spec: RunSpec, checksum: str, model_version: int) -> str:
    """Identify a run by all it depends on: spec, dataset and model, never study or executor."""
    return digest(canonical(as_mapping(spec)), checksum, str(model_version))


def row(
    identity: str, state: str, study: str, spec: RunSpec, outcome: RunResult | str
) -> dict[str, Any]:
    """Return one row of schema `SHARD`: of a finished run, or a failed one and its error."""
    mapping = as_mapping(spec)
    known: dict[str, Any] = {
        "run_id": identity,
        "study": study,
        "machine": spec.machine.name,
        "kernel": spec.kernel.name,
        "workload": spec.workload.name,
        "replication": spec.replication.name,
        "layout": spec.kernel.layout,
        **{name: mapping[name] for name in ("cache_state", "home_llc", "cpu_node", "seed")},
        "state_id": state,
        "spec": canonical(mapping),
    }
    # Where the kernel lies is the machine's business, not the policy's.
    mapping["replication"] = {name: mapping["replication"][name] for name in _PLACES}
    known["pair_id"] = digest(canonical(mapping))
    if isinstance(outcome, str):
        return known | {"status": FAILED, "error": outcome, **{name: [] for name in DETAILS}}
    values = {name: getattr(outcome, name) for name in RunResult.__dataclass_fields__}
    return known | {"status": OK} | values | dict(values.pop("events"))


def shard_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows of `row` as a table of schema `SHARD`."""
    return pa.Table.from_pylist(rows, schema=SHARD)
