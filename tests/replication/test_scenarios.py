"""Disturbed workloads: what replication adds to operations the captured windows don't hold."""

import dataclasses
import re
from typing import Any

import pytest

from numarep.memory.counts import Event
from numarep.memory.kinds import Kind
from numarep.replication import scenarios
from numarep.replication.invariants import violations
from numarep.replication.kernel import Cpu, Kernel, ReplicationError
from numarep.replication.scenarios import OPERATIONS, SITES
from numarep.replication.work import Sync, Work
from numarep.simulate import simulate
from numarep.spec import DisturbanceSpec, Operation, RunSpec, SpecError, parse
from numarep.sweep.grid import expand
from tests.alone import ALONE
from tests.kernels import SERIES, SmallKernel, policy
from tests.test_simulate import conf, same_counts

COSTS = SERIES.instructions
NAMES = (
    *("patch_storm", "module_churn", "bpf_churn", "slot_churn"),
    *("visitor", "threads", "fork_tree"),
)


def disturb(
    kernel: Kernel, cpu: Cpu, operation: Operation, per_iteration: int, **asked: Any
) -> Work:
    spec = DisturbanceSpec(operation=operation, per_iteration=per_iteration, **asked)
    return scenarios.disturb(kernel, cpu, spec)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("nodes", [1, 2, 8])
def test_r16_r38_an_operation_ends_where_it_began_and_costs_the_same_again(
    operation: Operation, nodes: int
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

    def instructions(operation: Operation) -> int:
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
        "bpf_churn": 0,  # shared: entries, which are stores
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


def counted(operation: Operation, times: int, **asked: Any) -> Work:
    """Work of an operation on three nodes, a CPU of the second."""
    kernel = SmallKernel(nodes=3).booted(bpf=True)
    work = disturb(kernel, kernel.cpus[1], operation, times, **asked)
    assert violations(kernel) == []
    return work


@pytest.mark.parametrize("site", SITES)
def test_r24_a_kind_of_site_is_patched_its_own_way(site: str) -> None:
    """Static keys and ftrace in three phases a batch, a kprobe by one poke of one byte."""
    phases = 1 if site == "kprobe" else 3
    work = counted("patch", 4, site=site)
    assert work.total_instructions() == 4 * phases * (COSTS.poke + COSTS.poke_further)
    assert len(work.events(Sync.CR3_LOAD)) == 4 * phases * 2 * 2


def test_r24_one_byte_has_no_tail_and_batches_change_the_order_only() -> None:
    assert counted("patch", 4, site_bytes=1).total_instructions() * 3 == (
        counted("patch", 4).total_instructions() * 2
    )
    alone, together = counted("patch", 4, at_once=1), counted("patch", 4)
    assert sorted(alone.accesses()) == sorted(together.accesses())
    assert list(alone.accesses()) != list(together.accesses())


def test_r30_r32_pages_of_modules_and_programs_are_copied_each() -> None:
    pages = {"text_pages": 5, "rodata_pages": 2, "data_pages": 0, "ro_after_init_pages": 7}
    assert counted("module", 1, **pages).total_instructions() == 7 * 2 * COSTS.area_page
    more = (counted("module", 1, **pages | {name: 9}) for name in ("data_pages", "text_pages"))
    copied = [work.total_instructions() // COSTS.area_page // 2 for work in more]
    assert copied == [7, 11]
    assert counted("bpf", 2, text_pages=3).total_instructions() == 2 * 3 * 2 * COSTS.area_page


def test_r32_a_shared_program_costs_entries_and_a_replicated_one_its_copies() -> None:
    kernels = [SmallKernel(nodes=3).booted(bpf=bpf) for bpf in (False, True)]
    shared, copied = (disturb(kernel, kernel.cpus[0], "bpf", 1) for kernel in kernels)
    assert shared.total_instructions() == 0 < shared.references(Kind.STORE)
    assert copied.total_instructions() == 2 * COSTS.area_page
    assert copied.references(Kind.STORE) > shared.references(Kind.STORE) + 2 * 512


@pytest.mark.parametrize("operation", ["visitor", "threads"])
def test_r20_r21_as_many_nodes_are_visited_as_asked(operation: Operation) -> None:
    """Lazy roots tell: each is made where the process first runs."""
    made = []
    for nodes in (1, 2, 4, None):
        kernel = SmallKernel(nodes=4).booted(pgds="lazy")
        work = disturb(kernel, kernel.cpus[2], operation, 2, nodes=nodes)
        made.append(work.total_instructions() // COSTS.fork)
    assert made == [0, 1, 3, 3]


def test_r16_r18_descendants_and_slots_at_once_take_frames_not_work() -> None:
    for operation, most in (("fork_tree", 8), ("slots", 8)):
        works = [counted(operation, 8, at_once=at_once) for at_once in (1, 2, most)]
        assert len({work.total_instructions() for work in works}) == 1
    assert counted("fork_tree", 8).steps == counted("fork_tree", 8, at_once=8).steps
    assert counted("slots", 8).steps == counted("slots", 8, at_once=1).steps
    assert counted("fork_tree", 8).steps != counted("fork_tree", 8, at_once=1).steps


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"operation": "slots", "nodes": 2},
            "nodes: expected null, because slots has at_once only",
        ),
        (
            {"operation": "patch", "text_pages": 2},
            "text_pages: expected null, because patch has site, site_bytes and at_once only",
        ),
        ({"operation": "bpf", "text_pages": 0}, "text_pages: expected a positive number, got 0"),
        ({"operation": "module", "data_pages": -1}, "data_pages: expected 0 to 16384, got -1"),
        (
            {"operation": "patch", "site_bytes": 6},
            "site_bytes: expected at most 5 of a site, got 6",
        ),
        (
            {"operation": "patch", "site": "kprobe", "site_bytes": 2},
            "site_bytes: expected at most 1 of a kprobe, got 2",
        ),
        (
            {"operation": "slots", "at_once": 257},
            "at_once: expected at most the 256 slots of a process, got 257",
        ),
        ({"operation": "threads", "nodes": 0}, "nodes: expected a positive number, got 0"),
    ],
)
def test_parameters_that_an_operation_has_not_are_refused(
    asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=f"^disturbance.{re.escape(message)}$"):
        parse(DisturbanceSpec, {"per_iteration": 1} | asked, "disturbance")


def test_every_parameter_can_be_typed_and_is_null_as_shipped() -> None:
    for name in NAMES:
        (point,) = expand(["study=single", f"workload={name}"]).points
        own = point["workload"]["disturbance"]
        spec = parse(DisturbanceSpec, own)
        assert spec.asked == ()
        for key in set(own) - {"operation", "per_iteration"}:
            value = "kprobe" if key == "site" else 1
            asked = dataclasses.replace(spec, **{key: value})
            assert asked.asked == (key,)


def test_r20_what_a_machine_or_policy_can_not_do_is_refused_before_it_runs() -> None:
    def point(*options: str) -> dict[str, Any]:
        return expand(["study=single", *options]).points[0]

    with pytest.raises(
        SpecError, match=r"^workload\.disturbance\.nodes: expected at most the 2 of"
    ):
        parse(RunSpec, point("workload=visitor", "workload.disturbance.nodes=3"))
    with pytest.raises(SpecError, match=r"^replication\.pgds: expected another than 'retarget'"):
        parse(RunSpec, point("workload=threads", "replication=retarget"))
    on_one = ("workload=threads", "replication=retarget", "workload.disturbance.nodes=1")
    assert parse(RunSpec, point(*on_one)).workload.disturbance is not None
