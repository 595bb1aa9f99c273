"""Results made by hand: a toy whose gains follow from a handful of round numbers.

Text lies on node 0. A cold window fetches 100 lines of it and 10 of rodata from DRAM, a hot one
only what the LLC can't hold. Every access outside the first-level cache stalls for its latency less
1 ns. Replicas bring the lines to the CPU's node and cost 60 instructions a further node, of 1 ns
each; an operation costs 7 a further node.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numarep.results import Results, shard_table

MASTER = 0
INSTRUCTIONS = 1000
FLAT = [[100.0, 100.0], [100.0, 100.0]]
FAR = [[100.0, 150.0], [150.0, 100.0]]
POINT: dict[str, Any] = {
    "workload": "kill",
    "cache_state": "cold",
    "replication": "series",
    "cpu_node": 1,
    "seed": 1,
    "machine": "e5_2690_v3",
    "layout": "aligned",
    "layout_seed": 0,
    "dram": FAR,
    "llc": 8 << 20,
    "text": True,
    "rodata": True,
    "costs": "charged",
    "pti": False,
    "base_ipc": 1.0,
    "error": None,
    "nodes": 2,
    "operation": None,
    "rate": None,
    "iterations": 4,
    "by_function": None,
    "populated": None,
}
# Lines of text that a cold window fetches.
LINES = {"kill": 100, "fork_1": 200, "mount_proc": 50, "overlayfs": 20}


def write(path: Path, points: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> Path:
    """Write a results folder of runs at these points, and return it."""
    results = Results(path)
    path.mkdir(parents=True)
    # Studies share points; a results folder holds each run once.
    runs = {made["run_id"]: made for made in (row(**point) for point in points)}
    results.add(shard_table(list(runs.values())))
    results.compact()
    results.write_manifest({"study": "made", "model_version": 1, "seeds": [1, 2]})
    return path


def everything() -> Iterator[dict[str, Any]]:
    """Yield the points of every study that a report asks for."""
    cells = {"workload": list(LINES), "cache_state": ["hot", "cold"]}
    both = {"replication": ["none", "series"]}
    yield from grid(**cells, **both, cpu_node=[0, 1], seed=[1, 2])
    layouts = {"layout": ["permuted"], "layout_seed": [0, 1, 2, 3]}
    yield from grid(**cells, **both, **layouts)
    parts = {"text": [True, False], "rodata": [True, False], "costs": ["charged", "waived"]}
    yield from grid(**cells, **parts)
    yield from grid(**cells, replication=["none"], layout=["captured"], seed=[1, 2])
    nulls = {"costs": ["waived"], "dram": [FLAT], "pti": [False, True]}
    yield from grid(**cells, **both, **nulls)
    yield from grid(workload=["kill"], **both, cpu_node=[0], costs=["waived"])
    drams = [[[100.0, far], [far, 100.0]] for far in (100.0, 120.0, 200.0, 300.0)]
    # The main study is one more ratio of the larger size, and not of this grid.
    sizes = [1 << 20, POINT["llc"]]
    yield from grid(**cells, **both, dram=drams, llc=sizes)
    four = [[100.0 if here == there else 150.0 for here in range(4)] for there in range(4)]
    waived = {"costs": ["charged", "waived"]}
    yield from grid(
        **cells, **both, **waived, machine=["e7_4850_v3"], nodes=[4], dram=[four], seed=[1, 2]
    )
    rates = {"rate": [1, 2, 4], "seed": [1, 2]}
    yield from grid(**cells, replication=["lazy"], seed=[1, 2])
    for operation in ("patch", "module"):
        yield from grid(workload=[operation], operation=[operation], **both, **rates)


def grid(**axes: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of some axes."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def row(**changes: Any) -> dict[str, Any]:
    """Return one run as a row of a shard, with its counts."""
    point = POINT | changes
    identity = json.dumps(point, sort_keys=True)
    pair = {
        key: value
        for key, value in point.items()
        if key not in ("replication", "text", "rodata", "costs")
    }
    known = {
        "run_id": identity,
        "study": "made",
        "kernel": "debian",
        "home_llc": "cold",
        "state_id": identity,
        "pair_id": json.dumps(pair, sort_keys=True),
        "spec": json.dumps(_spec(point)),
        **{key: point[key] for key in ("workload", "cache_state", "replication", "cpu_node")},
        **{key: point[key] for key in ("seed", "machine", "layout")},
    }
    if point["error"]:
        return known | {
            "status": "failed",
            "error": point["error"],
            "counts": [],
            "functions": [],
            "memory": [],
        }
    return known | {"status": "ok", "master_node": MASTER} | _outcome(point)


def _active(point: dict[str, Any]) -> bool:
    return bool(point["replication"] != "none")


def _spec(point: dict[str, Any]) -> dict[str, Any]:
    active = _active(point)
    latency = {"dram_ns": point["dram"], "l1_cycles": 1.0, "stlb_cycles": 8.0}
    detail = point["by_function"]
    return {
        **({} if detail is None else {"by_function": detail}),
        "machine": {
            "name": point["machine"],
            **({"populated": point["populated"]} if point["populated"] else {}),
            "core": {"ghz": 1.0, "base_ipc": point["base_ipc"]},
            "latency": latency
            | {"cr3_write_cycles": 100.0, "invlpg_cycles": 100.0, "ipi_cycles": 5000.0},
            "llc": {"size_bytes": point["llc"], "ways": 16},
        },
        "kernel": {
            "name": "debian",
            "dataset": "debian-6.1",
            "pti": point["pti"],
            "layout": point["layout"],
            "layout_seed": point["layout_seed"],
            "kasan": False,
            "max_numnodes": 64,
        },
        "replication": {
            "name": point["replication"],
            "tables": active,
            "text": active and point["text"],
            "rodata": active and point["rodata"],
            "costs": point["costs"],
        },
        **{key: point[key] for key in ("cache_state", "cpu_node", "seed")},
        "workload": {
            "name": point["workload"],
            "iterations": point["iterations"],
            "disturbance": {"operation": point["operation"], "per_iteration": point["rate"]}
            if point["operation"]
            else None,
        },
        "home_llc": "cold",
        "load": {"cpus_per_node": 0},
    }


def _outcome(point: dict[str, Any]) -> dict[str, Any]:
    counts = _counts(point)
    each = 60 + 7 * point["iterations"] * (point["rate"] or 0)
    further = point["nodes"] - 1
    extra = each * further if _active(point) and point["costs"] == "charged" else 0
    instructions = INSTRUCTIONS + extra
    base = instructions / point["base_ipc"]
    stall = sum(count["stall_ns"] for count in counts)
    stalls = [(count["stall_ns"] / count["leading"], count) for count in counts if count["leading"]]
    hidden = sum(stall_ns * count["overlapped"] for stall_ns, count in stalls)
    fetches = sum(c["stall_ns"] for c in counts if c["access"] == "fetch")
    references = sum(count["leading"] + count["overlapped"] for count in counts)
    fetched = sum(c["leading"] + c["overlapped"] for c in counts if c["access"] == "fetch")
    zero = ("itlb_misses", "dtlb_misses", "stlb_fetch_hits", "stlb_data_hits", "fetch_walks")
    psc = ("psc_pmd_hits", "psc_pud_hits", "psc_pgd_hits", "psc_misses")
    none = (*zero, "data_walks", *psc, "cr3_writes", "invlpgs", "tlb_flushes", "ipis")
    return {
        "instructions": instructions,
        "replica_bytes_per_node": [0, *[_active(point) << 20] * further],
        "table_pages_per_node": [0, *[5 * _active(point)] * further],
        "references": references,
        "itlb_hits": fetched,
        "dtlb_hits": references - fetched,
        **dict.fromkeys(none, 0),
        "time_ns": base + stall,
        "time_serial_ns": base + stall + hidden,
        "time_overlapped_ns": base + fetches,
        "counts": counts,
        "functions": _functions(counts, base),
        "memory": _memory(point) if _active(point) else [],
    }


def _memory(point: dict[str, Any]) -> list[dict[str, Any]]:
    """Two processes, whose roots are copied unless they are made lazily; 1 MiB of text."""
    sizes = {"static": 1 << 20, "tables": 5 << 12}
    if point["replication"] == "series":
        sizes["processes"] = 2 * 2 << 12
    rows = [("pointers", 0, 2 * 64 * 8)]
    rows += [(name, node, sizes[name]) for node in range(1, point["nodes"]) for name in sizes]
    names = ("mechanism", "node", "bytes")
    return [dict(zip(names, row, strict=True)) | {"pages": -(-row[2] // 4096)} for row in rows]


def _counts(point: dict[str, Any]) -> list[dict[str, Any]]:
    lines = LINES.get(point["workload"], 10)
    cold = point["cache_state"] == "cold"
    # A hot LLC of 1 MiB holds all but a tenth.
    missed = lines if cold else lines // 10 if point["llc"] < 2 << 20 else 0
    node = point["cpu_node"]
    places = {
        part: node if _active(point) and point[part] else MASTER for part in ("text", "rodata")
    }
    far = {place: point["dram"][node][place] - 1 for place in (0, 1)}
    # Another layout or seed only changes what hits L2; KPTI holds a little text twice.
    twice = point["pti"] and node != MASTER and places["text"] == node
    l2 = 30 + 5 * point["layout_seed"] + point["seed"] + (1 if twice else 0)
    l2 += 2 if point["layout"] == "captured" else 0
    return [
        _count("fetch", "text", "dram", places["text"], missed, 0, far[places["text"]]),
        _count(
            "load", "rodata", "dram", places["rodata"], 10 * cold, 5 * cold, far[places["rodata"]]
        ),
        _count("fetch", "text", "l2", node, l2, 0, 4.0),
        _count("load", "data", "l1", node, 500, 0, 0.0),
    ]


def _functions(counts: list[dict[str, Any]], base_ns: float) -> list[dict[str, Any]]:
    """Text is all do_exit's, data all memcpy's."""
    beyond = [count for count in counts if count["served_by"] != "l1"]
    base = {"access": "base", "served_by": "core", "node": 0, "leading": 0, "overlapped": 0}
    rows = [{"function": "do_exit"} | base | {"stall_ns": base_ns}]
    for count in beyond:
        kept = {key: value for key, value in count.items() if key not in ("region", "level")}
        rows.append({"function": "do_exit" if count["region"] == "text" else "memcpy"} | kept)
    return rows


def _count(
    access: str, region: str, served_by: str, node: int, leading: int, overlapped: int, ns: float
) -> dict[str, Any]:
    return {
        "access": access,
        "region": region,
        "served_by": served_by,
        "node": node,
        "level": 0,
        "leading": leading,
        "overlapped": overlapped,
        "stall_ns": leading * ns,
    }
