"""What a run is: frozen, checked descriptions, parsed from plain mappings.

Shapes and checks live here, values live in conf/. `parse` turns a mapping (from YAML, Hydra or
JSON) into one of these dataclasses and refuses anything else with a `SpecError` that names the
offending path, what was expected and, for a misspelt name, the nearest valid one.

>>> parse(CacheSpec, {"size_bytes": 32768, "ways": 8, "replacement": "lru"}, "l1i").sets
64
>>> parse(TlbSpec, {"entries": 1024, "wys": 8}, "stlb")
Traceback (most recent call last):
    ...
numarep.spec.base.SpecError: stlb.wys: no such key; did you mean 'ways'? (valid: entries, ways)
"""

from numarep.spec.base import Spec, SpecError
from numarep.spec.disturbance import DisturbanceSpec, Operation
from numarep.spec.machine import (
    MOST_WAYS,
    CacheSpec,
    CoreSpec,
    LatencySpec,
    LlcSpec,
    LoadedSpec,
    MachineSpec,
    PrefetchSpec,
    PscSpec,
    TlbSpec,
    TlbsSpec,
)
from numarep.spec.parsing import as_mapping, nearest, parse
from numarep.spec.run import (
    BootSpec,
    ChaseSpec,
    InstructionSpec,
    KernelSpec,
    LoadSpec,
    OthersSpec,
    ReplicationSpec,
    RunSpec,
    WorkloadSpec,
)

__all__ = [
    "MOST_WAYS",
    "BootSpec",
    "CacheSpec",
    "ChaseSpec",
    "CoreSpec",
    "DisturbanceSpec",
    "InstructionSpec",
    "KernelSpec",
    "LatencySpec",
    "LlcSpec",
    "LoadSpec",
    "LoadedSpec",
    "MachineSpec",
    "Operation",
    "OthersSpec",
    "PrefetchSpec",
    "PscSpec",
    "ReplicationSpec",
    "RunSpec",
    "Spec",
    "SpecError",
    "TlbSpec",
    "TlbsSpec",
    "WorkloadSpec",
    "as_mapping",
    "nearest",
    "parse",
]
