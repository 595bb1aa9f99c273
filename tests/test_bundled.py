"""The bundled dataset: complete, small, consistent with its own page tables, and null-tested."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from numarep.linux.image import image_from_symbols
from numarep.linux.tables import PRESENT, PageTables
from numarep.memory.counts import Access
from numarep.memory.kinds import Kind
from numarep.price import price
from numarep.simulate import simulate
from numarep.spec import RunSpec, WorkloadSpec, parse
from numarep.units import PAGES_PER_PMD, PMD
from numarep.workload.dataset import BUNDLED, Dataset, capture_name, open_dataset
from tests.alone import ALONE
from tests.test_simulate import conf, same_counts, series

NAME = "debian-6.1"
WINDOWS = ("fork_1", "fork_1024", "mmap_munmap", "mmap_locked", "open_close", "kill", "mount_proc")
LOOPS = {"fork_1024", "mmap_munmap", "mmap_locked", "open_close", "overlayfs"}
CAPTURES = [
    capture_name(pti=pti, cpu_node=node, seed=seed)
    for pti, node, seed in itertools.product((True, False), (0, 1), (1, 2))
]
# One capture of every kind is enough for what takes seconds; the rest differ in the seed.
SAMPLE = [name for name in CAPTURES if name.endswith("seed1")]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return open_dataset(NAME)


def test_all_windows_of_all_captures_are_there_in_12_mb(dataset: Dataset) -> None:
    assert set(CAPTURES) <= set(dataset.captures())
    for capture in CAPTURES:
        assert {*WINDOWS, "overlayfs"} <= set(dataset.meta(capture).workloads)
    size = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
    assert size <= 12e6


@pytest.mark.parametrize("capture", CAPTURES)
def test_traces_hold_what_their_metadata_says(dataset: Dataset, capture: str) -> None:
    meta = dataset.meta(capture)
    assert capture == capture_name(pti=meta.pti, cpu_node=meta.cpu_node, seed=meta.seed)
    for name, window in meta.workloads.items():
        trace = dataset.trace(capture, name)
        kinds = [int(trace.records.count[trace.records.kind == kind].sum()) for kind in range(3)]
        assert kinds == [window.instructions, window.loads, window.stores]
        assert len(trace.records.kind) == window.records
        assert len(trace.iterations) - 1 == window.iterations
        assert window.iterations >= (32 if name in LOOPS else 1)


@pytest.mark.parametrize("capture", SAMPLE)
def test_translations_are_those_of_the_page_table_snapshots(dataset: Dataset, capture: str) -> None:
    meta = dataset.meta(capture)
    for name, states in snapshots(dataset, capture):
        if name == "fork_1024":
            continue  # its children's tables are gone before the window's end
        pages = dataset.trace(capture, name).pages
        for row in np.flatnonzero(pages.leaf).tolist():
            found = [tables.walk(int(pages.root[row]), int(pages.vpn[row])) for tables in states]
            wanted = (
                pages.pfn[row],
                pages.leaf[row],
                pages.flags[row],
                tuple(pages.table[row].tolist()),
            )
            assert wanted in found, f"{name}: row {row}"
    assert meta.levels == 4


def snapshots(dataset: Dataset, capture: str) -> Iterator[tuple[str, list[PageTables]]]:
    """Yield the tables at each window's begin and end."""
    meta = dataset.meta(capture)
    table = dataset.tables(capture)
    names = ("workload", "moment", "level", "table", "index", "value")
    rows = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
    now = PageTables(meta.levels)
    moments = [key for key, _ in itertools.groupby(rows, key=lambda row: row[:2])]
    order = list(dict.fromkeys(name for name, _ in moments))
    for name in order:
        states = []
        for moment in ("begin", "end"):
            for _, _, level, pfn, index, value in (r for r in rows if r[:2] == (name, moment)):
                now.set_entry(level, pfn, index, value)
            states.append(copied(now))
        yield name, states


def copied(tables: PageTables) -> PageTables:
    copy = PageTables(tables.levels)
    for pfn, page in tables.pages.items():
        for index, entry in page.items():
            copy.set_entry(tables.level_of[pfn], pfn, index, entry | PRESENT)
    return copy


@pytest.mark.parametrize("capture", SAMPLE)
def test_kernel_text_lies_on_node_0_and_the_process_on_the_cpus_node(
    dataset: Dataset, capture: str
) -> None:
    meta = dataset.meta(capture)
    image = image_from_symbols(dataset.symbols())
    trace = dataset.trace(capture, "open_close")
    first, last = meta.memory[0].start_pfn, meta.memory[0].end_pfn
    text = image.text.holds(trace.pages.vpn) & (trace.pages.leaf > 0)
    assert text.any()
    assert ((trace.pages.pfn[text] >= first) & (trace.pages.pfn[text] < last)).all()
    assert (trace.pages.leaf[text] == PMD).any()
    assert image.text.start // 4096 % PAGES_PER_PMD == 0
    users = (trace.pages.vpn >= 0) & (trace.pages.leaf > 0)
    home = meta.memory[meta.cpu_node]
    inside = (trace.pages.pfn[users] >= home.start_pfn) & (trace.pages.pfn[users] < home.end_pfn)
    assert inside.all()


@pytest.mark.parametrize("pti", [True, False])
def test_kpti_switches_roots_at_every_entry_and_exit(dataset: Dataset, pti: bool) -> None:
    capture = capture_name(pti=pti, cpu_node=1, seed=1)
    trace = dataset.trace(capture, "open_close")
    writes = int((trace.records.kind == Kind.CR3).sum())
    calls = 2 * dataset.meta(capture).workloads["open_close"].iterations
    assert writes >= 2 * calls if pti else writes == 0


def run_of(window: str, **changes: object) -> RunSpec:
    run = {
        "machine": conf("machine/e5_2690_v3.yaml"),
        "kernel": conf("kernel/debian_6_1_nopti.yaml"),
        "workload": conf(f"workload/{window}.yaml"),
        "replication": conf("replication/none.yaml"),
        "cache_state": "hot",
        "home_llc": "cold",
        **ALONE,
        "cpu_node": 1,
        "seed": 1,
    }
    return parse(RunSpec, run | changes)


def at_equal_latencies(run: RunSpec) -> RunSpec:
    near = run.machine.latency.dram_ns[1][1]
    latency = dataclasses.replace(
        run.machine.latency,
        dram_ns=((near, near), (near, near)),
        remote_llc_ns=((near, near), (near, near)),
        remote_dirty_ns=None,
        remote_dirty_away_ns=None,
    )
    return dataclasses.replace(run, machine=dataclasses.replace(run.machine, latency=latency))


@pytest.mark.parametrize("kernel", ["debian_6_1_pti", "debian_6_1_nopti"])
@pytest.mark.parametrize("window", ["kill", "open_close"])
def test_null_a_cpu_on_the_master_node_gains_nothing(window: str, kernel: str) -> None:
    run = run_of(window, kernel=conf(f"kernel/{kernel}.yaml"), cpu_node=0)
    assert same_counts(simulate(series(run)).counts, simulate(run).counts)


@pytest.mark.parametrize("window", ["kill", "open_close", "mmap_munmap", "mount_proc"])
@pytest.mark.parametrize("state", ["hot", "cold"])
def test_null_equal_latencies_give_no_gain(window: str, state: str) -> None:
    run = at_equal_latencies(run_of(window, cache_state=state))
    before, after = (
        price(simulate(spec).counts, run.machine, 1) for spec in (run, series(run, costs="waived"))
    )
    assert before == after


def test_null_but_for_roots_that_the_kernel_reads_itself() -> None:
    """fork copies page tables from mm->pgd, so that page's lines are cached and a node's aren't."""
    run = run_of("fork_1024", cache_state="cold")
    before, after = (simulate(s).counts for s in (run, series(run, costs="waived")))
    moved = (after.served - before.served).sum(axis=4)
    of_roots = moved[Access.FETCH_WALK :, 4]
    assert np.abs(moved).sum() == np.abs(of_roots).sum() == 2  # one read, elsewhere
    assert (after.events == before.events).all()


def test_cold_text_turns_local_and_the_run_faster() -> None:
    run = run_of("kill", cache_state="cold")
    before, after = (price(simulate(s).counts, s.machine, 1) for s in (run, series(run)))
    assert after.time_ns < before.time_ns
    assert after.time_serial_ns < before.time_serial_ns


def test_a_tile_is_the_captured_loop_once_over() -> None:
    run = run_of("open_close", cache_state="cold")
    loop = WorkloadSpec(kind="captured", name="loop", trace="open_close", iterations=32)
    once = simulate(dataclasses.replace(run, workload=loop)).counts
    trace = open_dataset(NAME).trace(capture_name(pti=False, cpu_node=1, seed=1), "open_close")
    assert once.events[0] == trace.instructions
