"""Every policy of conf/: it boots, keeps the invariants, and does in a run what it says."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from numarep.linux.frames import Frames
from numarep.linux.image import image_from_symbols
from numarep.linux.layout import Region
from numarep.linux.tables import tables_from_snapshot
from numarep.memory.counts import Access, Event, Service
from numarep.replication.adopt import adopt_module
from numarep.replication.boot import align_tables, booted, kernel_root_of, new_kernel
from numarep.replication.invariants import violations
from numarep.replication.modules import ModuleSize, load, load_bpf
from numarep.replication.patching import patch_live
from numarep.replication.process import fork, leave, switch_to
from numarep.replication.view import on_node
from numarep.simulate import Outcome, simulate
from numarep.spec import ReplicationSpec, RunSpec, SpecError, parse
from numarep.sweep.grid import expand
from numarep.units import PAGE_SHIFT
from numarep.workload.dataset import capture_name, open_dataset
from numarep.workload.trace import Flag
from tests.alone import ALONE
from tests.kernels import SERIES, TEXT_VA, SmallKernel, policy
from tests.test_simulate import conf, same_counts

NAMES = sorted(p.stem for p in (Path(__file__).parents[2] / "conf" / "replication").glob("*.yaml"))
REPLICATING = [name for name in NAMES if policy(name).active]


@pytest.mark.parametrize("name", NAMES)
def test_hydra_composes_what_the_tests_read(name: str) -> None:
    (point,) = expand(["study=single", f"replication={name}"]).points
    assert parse(ReplicationSpec, point["replication"]) == policy(name)
    assert policy(name).name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nodes", [1, 2, 8])
def test_r8_r9_every_policy_lives_through_a_day(name: str, nodes: int) -> None:
    kernel = SmallKernel(nodes=nodes, processes=(0,)).booted(**vars(policy(name)))
    cpu = kernel.cpus[-1]
    mm, _ = fork(kernel, cpu)
    switch_to(kernel, cpu, mm)
    load(kernel, cpu, ModuleSize(1, 1, 1, 1))
    load_bpf(kernel, cpu, 1)
    patch_live(kernel, cpu, [(TEXT_VA, b"\x90\x90")])
    assert violations(kernel) == []
    switch_to(kernel, cpu, kernel.init_mm)
    leave(kernel, mm)
    assert violations(kernel) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tables": False}, "tables: expected true"),
        ({"aligned": False}, "aligned: expected true"),
        ({"pgds": "retarget"}, "retarget switches PMD entries only"),
    ],
)
def test_r6_policies_that_cannot_exist_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        dataclasses.replace(SERIES, **changes)


@functools.cache
def outcome(name: str, window: str, cpu_node: int = 1, **changes: Any) -> Outcome:
    run = {
        "machine": conf("machine/e5_2690_v3.yaml"),
        "kernel": conf("kernel/debian_6_1_nopti.yaml"),
        "workload": conf(f"workload/{window}.yaml"),
        "replication": conf(f"replication/{name}.yaml") | changes,
        "cache_state": "cold",
        "home_llc": "cold",
        **ALONE,
        "cpu_node": cpu_node,
        "seed": 1,
    }
    spec = parse(RunSpec, run)
    workload = dataclasses.replace(spec.workload, iterations=1)
    return simulate(dataclasses.replace(spec, workload=workload))


def remote(name: str, region: Region, access: Access = Access.FETCH, window: str = "kill") -> int:
    served = outcome(name, window).counts.served
    return int(served[access, :, region, Service.DRAM, 0].sum())


@pytest.mark.parametrize("name", [name for name in REPLICATING if name != "retarget"])
def test_r3_null_on_the_master_node_no_policy_gains(name: str) -> None:
    """But for retarget: processes with private tables share no table lines in the caches."""
    ours = outcome(name, "kill", cpu_node=0, costs="waived")
    assert same_counts(ours.counts, outcome("none", "kill", cpu_node=0).counts)


@pytest.mark.parametrize("name", NAMES)
def test_r6_text_and_rodata_turn_local_where_the_policy_says(name: str) -> None:
    spec = policy(name)
    for region, copied, access in (
        (Region.TEXT, spec.text, Access.FETCH),
        (Region.RODATA, spec.rodata, Access.LOAD),
    ):
        assert remote("none", region, access) > 0
        assert (remote(name, region, access) == 0) is copied


@pytest.mark.parametrize("name", REPLICATING)
def test_r10_walks_of_the_window_turn_local_with_tables(name: str) -> None:
    assert remote("none", Region.TEXT, Access.FETCH_WALK) > 0
    assert remote(name, Region.TEXT, Access.FETCH_WALK) == 0


def instructions(name: str, window: str) -> int:
    events = outcome(name, window).counts.events - outcome("none", window).counts.events
    return int(events[Event.INSTRUCTIONS])


def test_r16_who_pays_for_a_fork() -> None:
    costs = SERIES.instructions
    slots = 2 * costs.slot_fill  # fork fills two user slots of the child
    assert instructions("series", "fork_1") == costs.fork + slots
    for name in ("lazy", "lazy_shrink", "single_node", "aligned_only"):
        assert instructions(name, "fork_1") == 0
    assert instructions("retarget", "fork_1") == costs.fork * 3 // 2  # three private tables


def test_r1_switched_off_costs_its_code_path_at_every_watched_event_and_nothing_else() -> None:
    assert same_counts(outcome("switched_off", "fork_1").counts, outcome("none", "fork_1").counts)
    asked = dict(vars(SERIES.instructions)) | {"switched_off": 100}
    ours = outcome.__wrapped__("switched_off", "fork_1", instructions=asked)
    more = ours.counts.events - outcome("none", "fork_1").counts.events
    assert more[Event.INSTRUCTIONS] == 3 * 100  # pgd_alloc, and two user slots filled
    assert {row.mechanism for row in ours.memory} == {"padding", "pointers"}


@pytest.mark.parametrize("name", ["none", "text", "modules", "series", "everything"])
def test_r30_modules_replicated_or_not_in_the_overlayfs_window(name: str) -> None:
    """Captured on node 1, whose CPU loaded the module: all its pages lie there (R29)."""
    served = outcome(name, "overlayfs").counts.served
    for region in (Region.MODULE_TEXT, Region.MODULE_RODATA):
        assert served[:, 0, region, Service.DRAM, 0].sum() == 0
        assert served[:, 0, region, Service.DRAM, 1].sum() > 0
    walks = served[Access.FETCH_WALK, 1, Region.MODULE_TEXT, :, 0]
    assert walks.sum() == 0  # the PTE page, too


@pytest.mark.parametrize(("name", "node"), [("text", 1), ("modules", 0), ("series", 0)])
def test_r30_a_cpu_of_another_node_fetches_the_modules_copy(name: str, node: int) -> None:
    dataset = open_dataset("debian-6.1")
    capture = capture_name(pti=False, cpu_node=1, seed=1)
    meta, pages = dataset.meta(capture), dataset.trace(capture, "overlayfs").pages
    image = image_from_symbols(dataset.symbols())
    tables = tables_from_snapshot(dataset.tables(capture), meta.levels, list(meta.workloads))
    root = kernel_root_of(tables, image)
    align_tables(tables, image, root)
    ranges = [(memory.start_pfn, memory.end_pfn) for memory in meta.memory]
    frames = Frames(ranges, {*pages.pfn.tolist(), *tables.pages}, colours=384)
    bases = {name: int(text, 16) - (1 << 64) for name, text in meta.bases.items()}
    kernel = booted(new_kernel(policy(name), image, tables, frames, bases=bases))
    (module,) = meta.modules
    first = (int(module.base, 16) - (1 << 64)) >> PAGE_SHIFT
    adopt_module(kernel, kernel.cpus[1], range(first, first + (module.size >> PAGE_SHIFT)))
    assert violations(kernel) == []
    rows = (pages.vpn >= first) & (pages.vpn < first + 40) & (pages.flags & Flag.WRITABLE == 0)
    moved = on_node(kernel, pages, 0, {})
    assert rows.any()
    assert {frames.node_of(pfn) for pfn in moved.pfn[rows].tolist()} == {node}
    assert {frames.node_of(pfn) for pfn in pages.pfn[rows].tolist()} == {1}


def test_r17_mitosis_walks_user_tables_locally_and_mirrors_every_store() -> None:
    """The process lies on its CPU's node already: nothing to gain, all the stores to pay."""
    names = ("none", "series", "mitosis")
    fork_stores = {
        name: int(outcome(name, "fork_1").counts.served[Access.STORE, 0, Region.PAGE_TABLES].sum())
        for name in names
    }
    assert fork_stores["mitosis"] - fork_stores["series"] > 500  # pages zeroed and filled
    assert instructions("mitosis", "open_close") == instructions("series", "open_close") == 0


@pytest.mark.parametrize("name", REPLICATING)
def test_r12_device_memory_stays_out_of_every_policys_view(name: str) -> None:
    """The loop's window holds the local APIC's page, which clone_ptes maps through a copy."""
    assert outcome(name, "fork_1024").counts.events[Event.REFERENCES] > 0
