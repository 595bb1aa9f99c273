"""Where a captured module's base copy lies, and what replicas are worth then (R29, R30)."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from numarep.linux.frames import Frames
from numarep.linux.layout import Region
from numarep.linux.module_node import move_modules, with_modules_moved
from numarep.memory.counts import Access, Service
from numarep.price import price
from numarep.simulate import simulate
from numarep.spec import RunSpec, SpecError, parse
from numarep.sweep.grid import expand
from numarep.units import PAGE_BYTES, PAGE_SHIFT, PTE
from numarep.workload.dataset import write_index
from numarep.workload.trace import Pages
from tests.datasets import write_small_dataset
from tests.kernels import MODULE_VA, SmallKernel
from tests.traces import kernel_trace

MODULE = range(MODULE_VA >> PAGE_SHIFT, (MODULE_VA >> PAGE_SHIFT) + 1)
CPU = 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset, of a kernel that knows the module it has mapped."""
    folder = write_small_dataset(tmp_path_factory.mktemp("small"))
    for path in folder.glob("*/capture.json"):
        meta = json.loads(path.read_text())
        base = f"{MODULE_VA + (1 << 64):#x}"
        meta["modules"] = [{"name": "small", "base": base, "size": PAGE_BYTES}]
        path.write_text(json.dumps(meta))
    write_index(folder, "small")
    return folder


def run(dataset: Path, policy: str, node: int | None, *, machine: str = "e5_2690_v3") -> RunSpec:
    options = (f"machine={machine}", f"replication={policy}", "kernel=debian_6_1_nopti")
    at = (f"kernel.dataset={dataset}", f"kernel.module_node={'null' if node is None else node}")
    window = ("workload.trace=quiet", "workload.iterations=2", "cache_state=cold")
    (point,) = expand(["study=single", *options, *at, *window, f"cpu_node={CPU}"]).points
    return parse(RunSpec, point)


def from_memory(
    spec: RunSpec, access: Access, level: int | slice = slice(None)
) -> NDArray[np.int64]:
    """Accesses to the module's text that DRAM serves, by node."""
    served = simulate(spec).counts.served[access, level]
    return served[..., Region.MODULE_TEXT, Service.DRAM, :, :].sum(
        axis=-1 if isinstance(level, int) else (0, -1)
    )


def time_ns(spec: RunSpec) -> float:
    return price(simulate(spec).counts, spec.machine, spec.cpu_node).time_ns


@pytest.mark.parametrize(
    ("machine", "node"), [("e5_2690_v3", 0), ("e7_4850_v3", 0), ("e7_4850_v3", 3)]
)
def test_r30_text_of_a_remote_module_becomes_local_with_replicas_and_only_then(
    dataset: Path, machine: str, node: int
) -> None:
    without, shared, copied = (
        run(dataset, policy, node, machine=machine) for policy in ("none", "tables_only", "modules")
    )
    for spec in (without, shared):
        found = from_memory(spec, Access.LOAD)
        assert found[node] == found.sum() > 0
    found = from_memory(copied, Access.LOAD)
    assert found[CPU] == found.sum() > 0
    assert time_ns(copied) < time_ns(shared)


def test_r30_replicas_of_a_local_module_gain_nothing(dataset: Path) -> None:
    own, shared = (run(dataset, policy, CPU) for policy in ("modules", "tables_only"))
    assert from_memory(own, Access.LOAD)[CPU] == from_memory(own, Access.LOAD).sum() > 0
    assert time_ns(own) == time_ns(shared)


@pytest.mark.parametrize("policy", ["none", "series"])
def test_a_modules_node_changes_nodes_and_nothing_else(dataset: Path, policy: str) -> None:
    captured, here, there = (
        simulate(run(dataset, policy, node)).counts.served for node in (None, CPU, 0)
    )
    if policy == "none":  # else PTE pages come from the loading CPU's node, as captured from CPU's
        np.testing.assert_array_equal(captured, there)  # the small module was captured on node 0
    np.testing.assert_array_equal(here.sum(4), there.sum(4))
    others = [r for r in Region if r not in (Region.MODULE_TEXT, Region.DIRECT_MAP)]
    np.testing.assert_array_equal(here[:3, :, others], there[:3, :, others])


@pytest.mark.parametrize(("area_ptes", "served"), [("shared", 3), ("loader", 3), ("target", CPU)])
def test_r29_pte_pages_come_from_the_loading_cpus_node_or_their_own(
    dataset: Path, area_ptes: str, served: int
) -> None:
    """Not even replicas of a module's text make the last step of its walk local."""
    spec = run(dataset, "modules", 3, machine="xeon_8s")
    if area_ptes == "shared":  # nobody has PTE pages of their own until an area is replicated
        spec = run(dataset, "tables_only", 3, machine="xeon_8s")
    policy = dataclasses.replace(spec.replication, area_ptes=area_ptes)
    found = from_memory(dataclasses.replace(spec, replication=policy), Access.LOAD_WALK, PTE)
    assert found[served] == found.sum() > 0


def test_a_moved_modules_direct_map_alias_moves_with_it() -> None:
    kernel = SmallKernel()
    trace = kernel_trace(kernel, kernel.roots[1], events=())
    first, root = kernel.bases["direct_map"] >> PAGE_SHIFT, kernel.roots[1]
    old = kernel.tables.walk(root, MODULE.start)
    assert old is not None
    alias = kernel.tables.walk(root, first + old.pfn)
    assert alias is not None
    alias_row = (first + old.pfn, old.pfn, alias.leaf, alias.flags, alias.table)
    names = ("vpn", "pfn", "leaf", "flags", "table")
    both = (
        np.concatenate([getattr(trace.pages, name), np.array([value])]).astype(
            getattr(trace.pages, name).dtype
        )
        for name, value in zip(names, alias_row, strict=True)
    )
    trace = dataclasses.replace(trace, pages=Pages(*both))
    frames = Frames(kernel.ranges, kernel.frames.in_use, colours=3)
    new = move_modules(kernel.tables, kernel.swapper, frames, 1, [MODULE])
    assert {frames.node_of(pfn) for pfn in new.values()} == {1}
    place = kernel.swapper, new, kernel.bases["direct_map"], [MODULE]
    after = with_modules_moved(trace, kernel.tables, *place).pages
    moved = np.flatnonzero(after.pfn != trace.pages.pfn)
    assert set(after.pfn[moved].tolist()) == {new[old.pfn]}
    assert sorted(after.vpn[moved].tolist()) == sorted([MODULE.start, first + new[old.pfn]])
    for row in moved.tolist():
        found = kernel.tables.walk(root, int(after.vpn[row]))
        assert found is not None
        assert found.pfn == after.pfn[row]
        assert found.table == tuple(after.table[row].tolist())


def test_a_module_node_the_machine_lacks_is_refused(dataset: Path) -> None:
    with pytest.raises(SpecError, match=r"kernel.module_node: expected null or 0 to 1 on e5_2690"):
        run(dataset, "none", 2)
