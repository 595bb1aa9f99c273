"""What booting costs: the steps' work against closed formulas, and as a workload (R14)."""

import dataclasses
import itertools
from contextlib import nullcontext
from pathlib import Path

import pytest

from numarep.linux.image import image_from_symbols
from numarep.linux.layout import Region
from numarep.memory.counts import Access, Event, Service
from numarep.memory.kinds import Kind
from numarep.replication.account import static_bytes, table_pages
from numarep.replication.areas import node_frame
from numarep.replication.boot import booted, publish, replicate, reserve, seal, start
from numarep.replication.boot_trace import boot_trace
from numarep.replication.invariants import violations
from numarep.replication.kernel import uncharged
from numarep.replication.modules import load, unload
from numarep.replication.patching import patch_boot, patch_boot_sites
from numarep.replication.process import fill_slot, fork
from numarep.replication.scenarios import SMALL_MODULE
from numarep.replication.work import Sync
from numarep.simulate import simulate
from numarep.spec import RunSpec, parse
from numarep.sweep.grid import expand
from numarep.units import LINE_BYTES, LINES_PER_PAGE, PAGE_SHIFT, PMD_BYTES
from numarep.workload.dataset import open_dataset
from tests.datasets import write_small_dataset
from tests.kernels import SERIES, SmallKernel
from tests.test_simulate import conf


@pytest.mark.parametrize("nodes", [1, 2, 8])
@pytest.mark.parametrize("levels", [4, 5])
def test_r14_r4_booting_copies_text_rodata_and_tables_to_every_further_node(
    nodes: int, levels: int
) -> None:
    kernel = SmallKernel(nodes=nodes, levels=levels, processes=(0,)).unbooted()
    reserve(kernel)
    tables_text, rodata, aliases = (step(kernel) for step in (replicate, seal, publish))
    sections = [section.bytes for section in kernel.image.replicated]
    # A PGD's second page is a table only where KPTI uses it.
    tables = (table_pages(levels) - 1) * LINES_PER_PAGE * LINE_BYTES
    for node in range(1, nodes):
        words = [(sections[0] + tables) // 8, sections[1] // 8]
        entries = [section // PMD_BYTES for section in sections]
        for work, copied, redirected in zip((tables_text, rodata), words, entries, strict=True):
            structs = table_pages(levels) - 1 if work is tables_text else 0
            direct_map = [r for r in work.accesses() if r.node == node and r.kind == Kind.STORE]
            stored = sum(run.times for run in direct_map)
            assert stored == copied + redirected + structs
    # Every 2 MiB of copies is dropped from the linear map, whose tables are the boot node's.
    static = (nodes - 1) * static_bytes(kernel.image, SERIES)
    assert (
        aliases.references(Kind.STORE) == aliases.references(Kind.STORE, 0) == static // PMD_BYTES
    )
    rounds = [len(work.events(Sync.IPI)) for work in (tables_text, rodata, aliases)]
    assert rounds == ([0, 1, 1] if nodes > 1 else [0, 0, 0])
    assert len(tables_text.events(Sync.CR3_LOAD)) == (nodes > 1)


def test_r14_what_happens_before_a_window_is_uncharged_and_otherwise_the_same() -> None:
    charged, free = (SmallKernel(nodes=3, processes=(0,)).unbooted() for _ in range(2))
    for step in (reserve, replicate, seal, publish):
        step(charged)
    for cpu in charged.cpus[1:]:
        start(charged, cpu)
    booted(free)
    for kernel in (charged, free):
        with uncharged(kernel) if kernel is free else nullcontext():
            (mm, forked), (module, loaded) = (
                fork(kernel, kernel.cpus[1]),
                load(kernel, kernel.cpus[2], SMALL_MODULE),
            )
            filled = fill_slot(kernel, kernel.cpus[1], mm, 7)
        for work in (forked, filled, loaded):
            assert any(work.accesses()) == (kernel is charged)
        assert any(unload(kernel, module).accesses())
        assert violations(kernel) == []
    assert charged.tables.pages == free.tables.pages
    assert charged.frames.in_use == free.frames.in_use
    assert charged.contents == free.contents
    assert charged.replicated == free.replicated


def test_r14_the_boots_trace_is_a_boot() -> None:
    kernel = SmallKernel(nodes=3, processes=(0,)).unbooted()
    trace = boot_trace(kernel)
    assert violations(kernel) == []
    copied = 2 * (static_bytes(kernel.image, SERIES) + 4 * 4096)
    assert trace.instructions == 1 + 2 * copied // 8


def test_r14_booting_as_a_workload_is_paid_by_whoever_replicates(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path)
    options = ("machine=xeon_8s", "workload=boot", "workload.trace=fork", "cpu_node=0")
    dataset = (f"kernel.dataset={folder}", "kernel=debian_6_1_nopti")
    (point,) = expand(["study=single", "cache_state=cold", *options, *dataset]).points
    spec = parse(RunSpec, point)
    series = parse(type(spec.replication), conf("replication/series.yaml"))
    alone = simulate(spec).counts.events
    ours = simulate(dataclasses.replace(spec, replication=series))
    assert alone[Event.INSTRUCTIONS] == 1
    stored = ours.counts.served[Access.STORE, 0, Region.DIRECT_MAP, Service.DRAM].sum(-1)
    lines = ours.replica_bytes_per_node[1] // LINE_BYTES
    assert stored[0] < 100
    assert all(lines <= each < lines + 400 for each in stored[1:])
    assert ours.counts.events[Event.IPIS] == 2


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("number", [0, 1, 100, 1000, 40_000, 10**6])
def test_r14_c_r22_every_copy_of_text_is_patched_at_as_many_sites_evenly(
    nodes: int, number: int
) -> None:
    kernel = SmallKernel(nodes=nodes, processes=(0,)).unbooted()
    reserve(kernel)
    replicate(kernel)
    text = kernel.image.text
    work = patch_boot_sites(kernel, number)
    sites = min(number, text.bytes // LINE_BYTES)
    # Down to a 2 MiB leaf of four levels: three entries read.
    assert work.references(Kind.LOAD) == (nodes - 1) * sites * 3
    assert work.total_instructions() == (nodes - 1) * sites * 4
    for node in range(1, nodes):
        assert work.references(Kind.STORE, node) == sites
        first = node_frame(kernel, node, text.start >> PAGE_SHIFT)
        stores = [run for run in work.accesses() if run.kind == Kind.STORE and run.node == node]
        lines = [(run.pfn - first) * LINES_PER_PAGE + run.line for run in stores]
        apart = {later - line for line, later in itertools.pairwise(lines)}
        assert lines[:1] in ([], [0])
        assert len(apart) <= 1
        assert all((each + 1) * sites > text.bytes // LINE_BYTES for each in apart)


def test_r14_c_r22_patching_costs_what_its_lookups_and_stores_do_and_without_copies_nothing() -> (
    None
):
    kernel = SmallKernel(nodes=3, processes=(0,)).unbooted()
    reserve(kernel)
    va = kernel.image.text.start + 4095
    assert patch_boot(kernel, va, b"\x90").steps == []  # there are no copies yet
    replicate(kernel)
    once, twice = (patch_boot(kernel, va, b"\x90" * size) for size in (1, 2))
    assert (once.references(Kind.STORE), twice.references(Kind.STORE)) == (2, 4)  # across pages
    shared = SmallKernel(nodes=3, processes=(0,)).unbooted(text=False)
    reserve(shared)
    replicate(shared)
    assert patch_boot_sites(shared, 100).steps == []


def test_r14_c_a_boot_patches_what_the_kernels_own_tables_list() -> None:
    image = image_from_symbols(open_dataset("debian-6.1").symbols())
    assert image.patched == (3679, 7861, 48084, 4468)
    kernel = SmallKernel(nodes=3, processes=(0,))
    plain = boot_trace(kernel.unbooted()).instructions
    kernel = SmallKernel(nodes=3, processes=(0,))
    kernel.image = dataclasses.replace(kernel.image, patched=(100, 7))
    assert boot_trace(kernel.unbooted()).instructions == plain + 2 * 107 * 4
