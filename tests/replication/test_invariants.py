"""Every invariant can fail: a kernel is sabotaged, and the check names the behaviour."""

from collections.abc import Callable

import pytest

from numarep.replication.areas import new_area, ptes_of, replicate_area
from numarep.replication.invariants import violations
from numarep.replication.kernel import Kernel
from numarep.replication.process import fork, leave, switch_to
from numarep.units import PMD
from tests.kernels import SmallKernel


def busy() -> Kernel:
    """A kernel of three nodes with a process on CPU 1 and a replicated area."""
    kernel = SmallKernel(nodes=3).booted(area_ptes="target")
    mm, _ = fork(kernel, kernel.cpus[1])
    switch_to(kernel, kernel.cpus[1], mm)
    area, _ = new_area(kernel, kernel.cpus[0], pages=2, node=0)
    replicate_area(kernel, kernel.cpus[0], area)
    assert violations(kernel) == []
    return kernel


def master_has_copies(kernel: Kernel) -> None:
    kernel.own[0] = {kernel.root: kernel.root}


def a_node_without_memory_serves(kernel: Kernel) -> None:
    kernel.home = (0, 7, 2)


def a_table_copy_lies_elsewhere(kernel: Kernel) -> None:
    pmd = kernel.window_tables()[-1][1]
    kernel.own[1][pmd], kernel.own[2][pmd] = kernel.own[2][pmd], kernel.own[1][pmd]


def an_entry_is_missing(kernel: Kernel) -> None:
    table, index = ptes_of(kernel, kernel.areas[0].vpns)[0]
    kernel.tables.set_entry(1, kernel.own[2][table], index, 0)


def a_leaf_copy_is_not_aligned(kernel: Kernel) -> None:
    key = next(k for k in kernel.replicated if kernel.tables.level_of[k[0]] == PMD)
    kernel.replicated[key][1] += 1


def a_process_lacks_a_node(kernel: Kernel) -> None:
    kernel.mms[0].pgd.pop(2)


def a_pgd_lies_elsewhere(kernel: Kernel) -> None:
    pgd = kernel.mms[0].pgd
    pgd[0], pgd[2] = pgd[2], pgd[0]


def a_cpu_runs_who_has_left(kernel: Kernel) -> None:
    mm = kernel.mms[0]
    switch_to(kernel, kernel.cpus[1], kernel.init_mm)
    leave(kernel, mm)
    kernel.cpus[1].mm, kernel.cpus[1].cr3 = mm, mm.root(1)


def an_area_is_replicated_on_some_nodes(kernel: Kernel) -> None:
    kernel.areas[0].replicas.pop(2)


def a_replica_page_lies_elsewhere(kernel: Kernel) -> None:
    replicas = kernel.areas[0].replicas
    replicas[1], replicas[2] = replicas[2], replicas[1]


def an_area_outside_the_window_has_replicas(kernel: Kernel) -> None:
    kernel.areas[0].start -= 1 << 30


def a_frame_is_forgotten(kernel: Kernel) -> None:
    kernel.frames.allocate(1, like=5)


def a_frame_is_held_by_nothing(kernel: Kernel) -> None:
    kernel.held["areas"] += 1


@pytest.mark.parametrize(
    ("sabotage", "behaviour"),
    [
        (master_has_copies, "R3"),
        (a_node_without_memory_serves, "R2"),
        (a_table_copy_lies_elsewhere, "R10"),
        (an_entry_is_missing, "R26"),
        (a_leaf_copy_is_not_aligned, "R6"),
        (a_process_lacks_a_node, "R16"),
        (a_pgd_lies_elsewhere, "R16"),
        (a_cpu_runs_who_has_left, "R21"),
        (an_area_is_replicated_on_some_nodes, "R31"),
        (a_replica_page_lies_elsewhere, "R27"),
        (an_area_outside_the_window_has_replicas, "R27"),
        (a_frame_is_forgotten, "R28"),
        (a_frame_is_held_by_nothing, "R28"),
    ],
)
def test_r2_r3_r6_r10_r16_r21_r26_r27_r28_r31_sabotage_is_named(
    sabotage: Callable[[Kernel], None], behaviour: str
) -> None:
    kernel = busy()
    sabotage(kernel)
    assert behaviour in {line.split(":")[0] for line in violations(kernel)}
