"""Where the machines of conf/ lie: latency ratio and LLC, as a CPU of another socket has them.

A preset of several nodes a socket has a node 1 in the kernel's own socket, which is hardly any
farther than its own memory. So the CPU is on the first node of another socket than node 0's.

>>> node_of_another_socket([0, 0, 1, 1], 4), node_of_another_socket(None, 2)
(2, 1)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from analysis.assumed import conf_folder


def presets(conf: Path | None = None) -> pl.DataFrame:
    """Return every machine of conf/ that has another socket than the kernel's.

    Returns
    -------
    DataFrame
        `machine`; `cpu_node`, where the CPU is; `rho`, the kernel's node's idle DRAM latency over
        its own; `llc_mib`, the LLC it sees; `own_mib`, how much of that lines of its own node's
        memory can have, which is less with sub-NUMA clusters.
    """
    files = sorted(((conf or conf_folder()) / "machine").glob("*.yaml"))
    rows = [_row(composed(file)) for file in files]
    schema = {"machine": pl.String, "cpu_node": pl.Int64}
    schema |= dict.fromkeys(("rho", "llc_mib", "own_mib"), pl.Float64)
    return pl.DataFrame([row for row in rows if row], schema=schema).sort("rho", "machine")


def node_of_another_socket(sockets: Sequence[int] | None, nodes: int) -> int | None:
    """Return the first node that isn't in the socket of node 0; None if there is none."""
    of_node = range(nodes) if sockets is None else sockets
    return next((node for node, socket in enumerate(of_node) if socket != of_node[0]), None)


def _row(machine: dict[str, Any]) -> dict[str, Any] | None:
    dram = machine["latency"]["dram_ns"]
    node = node_of_another_socket(machine.get("sockets"), len(dram))
    if node is None:
        return None
    llc_mib = machine["llc"]["size_bytes"] / 2**20
    return {
        "machine": machine["name"],
        "cpu_node": node,
        "rho": dram[node][0] / dram[node][node],
        "llc_mib": llc_mib,
        "own_mib": llc_mib / machine["llc"].get("clusters", 1),
    }


def composed(file: Path) -> dict[str, Any]:
    """Read a machine with those it builds on below it, as Hydra's `defaults` say."""
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    bases = [base for base in content.pop("defaults", []) if base != "_self_"]
    whole: dict[str, Any] = {}
    for base in bases:
        whole = _over(whole, composed(file.with_name(f"{base}.yaml")))
    return _over(whole, content)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        nested = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _over(dict(old or {}), value) if nested else value
    return merged
