"""How the core compares with other simulators, as a table that reports show.

`python -m tests.agreement RESULTS` runs the same references through the core, through pycachesim
(RRZE's, where it is installed) and through `tests.twin`, the plain-Python model that shares no code
with the core, and writes `agreement.parquet` (schema `analysis.agreement.SCHEMA`) into a results
folder. pycachesim has no page walks and no inclusive LLC, so the machines it sees have one page
and an LLC that holds everything; what it can't express, the twin checks.
"""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis.agreement import FILE, SCHEMA
from numarep.memory.counts import Access, Service
from numarep.memory.kinds import Kind
from numarep.simulate import MODEL_VERSION
from numarep.spec import MachineSpec
from numarep.streams import count_stream, toy_machine
from numarep.units import LINE_BYTES, LINES_PER_PAGE
from tests.benchmarks.core import machine_preset
from tests.memory.cases import (
    cache,
    events_by_name,
    llc,
    random_case,
    run_core,
    run_twin,
    served_by_name,
)
from tests.memory.real import bundled, on_slices

RANDOM = 8
REFERENCES = 1_000_000
# The walk of the only page reads its tables through L1D and L2, first of all.
WALK_READS = 4
ROOMY = llc(1 << 16, 16)
TRACES = (
    ("pti-on_node1_seed1", "fork_1024"),
    ("pti-off_node0_seed1", "kill"),
    ("pti-off_node0_seed1", "mount_proc"),
)


def our_misses(machine: MachineSpec, address: NDArray[np.int64]) -> tuple[int, int]:
    """Count misses of L1D and L2 by loads alone, walks left out."""
    counts = count_stream(machine, np.full(len(address), Kind.LOAD, np.uint8), address, page="1G")
    served = counts.served[Access.LOAD, 0].sum(axis=(0, 2, 3))
    return int(served[Service.L2 :].sum()), int(served[Service.LLC :].sum())


def their_misses(machine: MachineSpec, address: NDArray[np.int64]) -> tuple[int, int]:
    """Count the same in pycachesim.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    cachesim: Any = importlib.import_module("cachesim")
    memory = cachesim.MainMemory()
    second = cachesim.Cache("L2", machine.l2.sets, machine.l2.ways, LINE_BYTES, "LRU")
    l1d = machine.l1d
    first = cachesim.Cache(
        "L1", l1d.sets, l1d.ways, LINE_BYTES, "LRU", load_from=second, store_to=second
    )
    memory.load_to(second)
    memory.store_from(second)
    simulator = cachesim.CacheSimulator(first, memory)
    simulator.load(address.tolist(), length=1)
    stats = list(simulator.stats())
    return stats[0]["MISS_count"], stats[1]["MISS_count"]


def random_loads(seed: int) -> tuple[MachineSpec, NDArray[np.int64]]:
    """Return a machine with small random caches, and Zipf loads that overflow them."""
    rng = np.random.default_rng(seed)
    sets, ways = int(2 ** rng.integers(2, 6)), int(rng.integers(1, 9))
    wide = 4 * sets
    machine = dataclasses.replace(
        toy_machine(),
        l1d=cache(sets, ways),
        l2=cache(wide, ways),
        llc=ROOMY,
    )
    return machine, rng.zipf(1.2, 20_000) % (8 * wide * ways) * LINE_BYTES


def traced_loads(capture: str, workload: str) -> NDArray[np.int64]:
    """Return the physical addresses a bundled trace refers to, at most `REFERENCES` of them."""
    stream, translations, _ = bundled(capture, workload)
    keep = stream.kind <= Kind.STORE
    line = translations.pfn[stream.page[keep]] * LINES_PER_PAGE + stream.line[keep]
    return np.repeat(line * LINE_BYTES, np.maximum(stream.repeats[keep], 1))[:REFERENCES]


def with_pycachesim() -> Iterator[dict[str, Any]]:
    """Yield a row a machine and stream: misses of L1D and L2."""
    known = {"simulator": "pycachesim", "version": version("pycachesim")}
    cases = [(f"random caches {seed}", "Zipf", *random_loads(seed)) for seed in range(RANDOM)]
    preset = dataclasses.replace(machine_preset("e5_2690_v3"), llc=ROOMY)
    cases += [(preset.name, name, preset, traced_loads(at, name)) for at, name in TRACES]
    for machine_name, stream, machine, address in cases:
        pairs = zip(our_misses(machine, address), their_misses(machine, address), strict=True)
        apart = [abs(one - other) for one, other in pairs]
        yield known | {
            "machine": machine_name,
            "stream": stream,
            "references": len(address),
            "compared": len(apart),
            "equal": sum(difference <= WALK_READS for difference in apart),
            "largest": max(apart),
        }


def with_twin() -> Iterator[dict[str, Any]]:
    """Yield a row a random machine and a slice of a trace: all counts and events."""
    known = {"simulator": "plain-Python twin", "version": str(MODEL_VERSION)}
    for seed in range(RANDOM):
        case = random_case(seed, 400)
        counts, twin = run_core(case)[1], run_twin(case)
        row = {"machine": f"random {seed}", "stream": "random"}
        yield known | row | _agreed(counts, twin)
    for capture, workload in TRACES:
        machine = machine_preset("e5_2690_v3")
        counts, twin = on_slices(machine, capture, workload)
        yield known | {"machine": machine.name, "stream": workload} | _agreed(counts, twin)


def _agreed(counts: Any, twin: Any) -> dict[str, int]:
    ours = served_by_name(counts) | events_by_name(counts)
    theirs = dict(twin.served) | {name: n for name, n in twin.events.items() if n}
    apart = [abs(ours.get(key, 0) - theirs.get(key, 0)) for key in {*ours, *theirs}]
    return {
        "references": twin.events["references"],
        "compared": len(apart),
        "equal": apart.count(0),
        "largest": max(apart),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.agreement", description=__doc__)
    parser.add_argument("results", type=Path, help="the folder that the table is written into")
    options = parser.parse_args(arguments)
    rows = list(with_twin())
    try:
        rows += with_pycachesim()
    except ImportError:
        print("note: no pycachesim (pip install '.[bench]' builds it)", file=sys.stderr)
    table = pl.DataFrame([row | {"model_version": MODEL_VERSION} for row in rows], schema=SCHEMA)
    options.results.mkdir(parents=True, exist_ok=True)
    table.write_parquet(options.results / FILE)
    differ = table.filter(pl.col("equal") < pl.col("compared"))
    print(f"{options.results / FILE}: {table.height} comparisons, {differ.height} differ")
    return 1 if differ.height else 0


if __name__ == "__main__":
    sys.exit(main())
