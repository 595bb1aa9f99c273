"""Disturbed workloads: what replication adds to operations the captured windows don't hold."""

import dataclasses

import pytest

from numarep.memory.counts import Event
from numarep.memory.kinds import Kind
from numarep.replication.invariants import violations
from numarep.replication.kernel import ReplicationError
from numarep.replication.scenarios import OPERATIONS, disturb
from numarep.replication.work import Sync
from numarep.simulate import simulate
from numarep.spec import RunSpec, parse
from tests.alone import ALONE
from tests.kernels import SERIES, SmallKernel, policy
from tests.test_simulate import conf, same_counts

COSTS = SERIES.instructions
NAMES = ("patch_storm", "module_churn", "slot_churn", "visitor", "threads", "fork_tree")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("nodes", [1, 2, 8])
def test_r16_r38_an_operation_ends_where_it_began_and_costs_the_same_again(
    operation: str, nodes: int
) -> None:
    kernel = SmallKernel(nodes=nodes, processes=(0,)).booted()
    cpu = kernel.cpus[-1]
    disturb(kernel, cpu, operation, 2)
    frames, cr3 = kernel.frames.in_use, [cpu.cr3 for cpu in kernel.cpus]
    first, second = (disturb(kernel, cpu, operation, 3) for _ in range(2))
    assert first.total_instructions() == second.total_instructions()
    assert kernel.frames.in_use == frames
    assert [cpu.cr3 for cpu in kernel.cpus] == cr3
    assert violations(kernel) == []
    if nodes == 1:
        assert first.total_instructions() == 0


def test_r24_r18_r30_what_each_costs_with_three_nodes() -> None:
    kernel = SmallKernel(nodes=3).booted()
    cpu = kernel.cpus[0]

    def instructions(operation: str) -> int:
        return disturb(kernel, cpu, operation, 1).total_instructions()

    assert instructions("patch") == 3 * (COSTS.poke + COSTS.poke_further)
    assert instructions("module") == 2 * 12 * COSTS.area_page
    assert instructions("slots") == 125 + 48
    assert instructions("fork_tree") == 2 * (COSTS.fork + COSTS.exit)
    for free in ("visitor", "threads"):  # eager: migration copies nothing (R21)
        assert disturb(kernel, cpu, free, 1).references(Kind.STORE) == 0


@pytest.mark.parametrize(
    ("name", "stores"),
    [("series", 0), ("lazy", 1), ("lazy_shrink", 3), ("single_node", 1), ("retarget", 1)],
)
def test_r20_r21_a_visitor_pays_by_policy(name: str, stores: int) -> None:
    kernel = SmallKernel(nodes=4, processes=()).booted(**vars(policy(name)))
    once, thrice = (disturb(kernel, kernel.cpus[0], "visitor", n) for n in (1, 3))
    paid = [work.references(Kind.STORE) for work in (once, thrice)]
    if stores == 0:
        assert paid == [0, 0]
    elif name == "lazy":
        assert paid[0] == paid[1] > 0  # the PGDs stay
    else:
        assert paid[1] > paid[0] > 0
    assert bool(once.events(Sync.FLUSH_PAGE)) is (name == "retarget")
    assert violations(kernel) == []


def test_r20_threads_on_all_nodes_are_refused_by_retarget_and_undone() -> None:
    kernel = SmallKernel(nodes=2).booted(**vars(policy("retarget")))
    with pytest.raises(ReplicationError, match="several nodes"):
        disturb(kernel, kernel.cpus[0], "threads", 1)
    assert kernel.mms == []
    assert violations(kernel) == []


@pytest.mark.parametrize("name", NAMES)
def test_r38_a_disturbed_window_differs_by_the_work_of_replication_only(name: str) -> None:
    workload = conf(f"workload/{name}.yaml")
    run = {
        "machine": conf("machine/e5_2690_v3.yaml"),
        "kernel": conf("kernel/debian_6_1_pti.yaml"),
        "workload": workload | {"iterations": 32},
        "replication": conf("replication/series.yaml"),
        "cache_state": "cold",
        "home_llc": "cold",
        **ALONE,
        "cpu_node": 1,
        "seed": 1,
    }
    spec = parse(RunSpec, run)
    calm = dataclasses.replace(spec, workload=dataclasses.replace(spec.workload, disturbance=None))
    more = simulate(spec).counts.events - simulate(calm).counts.events
    per_iteration = {
        "patch_storm": 4 * 3 * COSTS.poke,
        "module_churn": 12 * COSTS.area_page,
        "slot_churn": 125,
        "fork_tree": 8 * (COSTS.fork + COSTS.exit),
    }.get(name, 0)
    assert more[Event.INSTRUCTIONS] == 32 * per_iteration
    assert more[Event.CR3_WRITES] == (32 * 4 * 3 * 2 if name == "patch_storm" else 0)
    none = parse(RunSpec, run | {"replication": conf("replication/none.yaml")})
    untouched = dataclasses.replace(
        none, workload=dataclasses.replace(none.workload, disturbance=None)
    )
    assert same_counts(simulate(none).counts, simulate(untouched).counts)
