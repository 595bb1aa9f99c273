"""A whole small dataset on disk, of a `SmallKernel`, for tests that need no real capture."""

import json
from collections.abc import Callable
from pathlib import Path

from numarep.replication.watch import watched
from numarep.workload.dataset import capture_name, write_index, write_trace
from numarep.workload.trace import Trace, write_table
from tests.kernels import SmallKernel
from tests.traces import kernel_trace

EVENTS = ((3, "pgd_alloc"), (9, "pgd_free"), (6, "__pud_alloc"))


def write_small_dataset(
    folder: Path, change: Callable[[Trace], Trace] = lambda t: t, *, levels: int = 4
) -> Path:
    """Write captures of two windows, `fork` and `quiet`, on both nodes; return the folder."""
    for cpu_node in (0, 1):
        kernel = SmallKernel(processes=(cpu_node,), levels=levels)
        capture = folder / capture_name(pti=False, cpu_node=cpu_node, seed=1)
        capture.mkdir(parents=True)
        for name, events in (("fork", EVENTS), ("quiet", ())):
            write_trace(capture, name, change(kernel_trace(kernel, kernel.roots[1], events=events)))
        write_table(capture / "tables.parquet", kernel.snapshot("fork"), "tables")
        (capture / "capture.json").write_text(json.dumps(_meta(kernel, cpu_node)))
    write_table(folder / "symbols.parquet", kernel.symbols(), "symbols")
    write_index(folder, "small")
    return folder


def _meta(kernel: SmallKernel, cpu_node: int) -> dict[str, object]:
    window = {
        "window": "every page once, twice",
        "iterations": 2,
        "records": 0,
        "instructions": 0,
        "loads": 0,
        "stores": 0,
    }
    return {
        "kernel_release": "small",
        "kernel_package": "none",
        "command_line": "",
        "qemu": "none",
        "seed": 1,
        "seed_effect": "none",
        "cpu_node": cpu_node,
        "pti": False,
        "levels": kernel.levels,
        "tick_hz": 250,
        "memory": [
            {"node": node, "start_pfn": start, "end_pfn": end}
            for node, (start, end) in enumerate(kernel.ranges)
        ],
        "bases": {name: f"{va + (1 << 64):#x}" for name, va in kernel.bases.items()},
        "modules": [],
        "watched": [*watched(kernel.levels)],
        "workloads": {"fork": window, "quiet": window},
    }
