"""Re-linking moves whole lines and nothing else."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from numarep.linux.relink import relink, shuffled_lines
from numarep.memory.kinds import Kind
from numarep.units import LINES_PER_PAGE
from numarep.workload.dataset import SYMBOLS
from numarep.workload.trace import Trace, check
from tests.kernels import SmallKernel
from tests.traces import kernel_trace


@st.composite
def units(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=30))
    starts = np.cumsum([0, *sizes[:-1]])
    return starts, sum(sizes)


@given(units(), st.integers(0, 99))
def test_units_move_whole_and_the_last_one_stays(case: tuple[np.ndarray, int], seed: int) -> None:
    starts, lines = case
    place = shuffled_lines(starts, lines, np.random.default_rng(seed))
    assert sorted(place.tolist()) == list(range(lines))
    for start, end in zip(starts, [*starts[1:], lines], strict=True):
        assert (np.diff(place[start:end]) == 1).all()
    np.testing.assert_array_equal(place[starts[-1] :], np.arange(starts[-1], lines))


def symbols_of(kernel: SmallKernel, *, step: int) -> pa.Table:
    text = kernel.image.text
    functions = list(range(text.start, text.end, step))
    names = [f"f{number}" for number in range(len(functions))]
    return pa.concat_tables(
        [
            kernel.symbols(),
            pa.table([functions, ["t"] * len(functions), names], schema=SYMBOLS),
        ]
    )


def lines_of(trace: Trace, rows: np.ndarray) -> np.ndarray:
    pages, records = trace.pages, trace.records
    line = pages.pfn[records.page] * LINES_PER_PAGE + records.line
    return line[rows]


@given(st.integers(0, 9), st.sampled_from((48, 64, 200, 4096)))
def test_the_same_lines_are_fetched_elsewhere(seed: int, step: int) -> None:
    kernel = SmallKernel()
    trace = kernel_trace(kernel, kernel.roots[1], events=((3, "pgd_alloc"),))
    moved = relink(kernel.image, symbols_of(kernel, step=step), seed).apply(trace)
    check(moved, "moved")
    np.testing.assert_array_equal(moved.records.kind, trace.records.kind)
    np.testing.assert_array_equal(moved.records.count, trace.records.count)
    np.testing.assert_array_equal(moved.event_record, trace.event_record)
    everything = trace.records.kind <= Kind.STORE
    before, after = lines_of(trace, everything), lines_of(moved, everything)
    # One to one: equal lines stay equal, different ones stay different.
    assert len(set(zip(before.tolist(), after.tolist(), strict=True))) == len(set(before.tolist()))
    assert len(set(after.tolist())) == len(set(before.tolist()))


def test_what_lies_outside_text_and_rodata_stays() -> None:
    kernel = SmallKernel()
    trace = kernel_trace(kernel, kernel.roots[1], events=())
    moved = relink(kernel.image, symbols_of(kernel, step=64), 1).apply(trace)
    text, rodata = kernel.image.replicated
    inside = text.holds(trace.pages.vpn) | rodata.holds(trace.pages.vpn)
    stays = ~inside[trace.records.page]
    assert stays.any()
    np.testing.assert_array_equal(lines_of(moved, stays), lines_of(trace, stays))
    assert (lines_of(moved, ~stays) != lines_of(trace, ~stays)).any()


def test_new_translations_are_those_of_the_kernels_own_tables() -> None:
    kernel = SmallKernel()
    trace = kernel_trace(kernel, kernel.roots[1], events=())
    pages = relink(kernel.image, symbols_of(kernel, step=64), 1).apply(trace).pages
    for row in range(len(trace.pages.vpn), len(pages.vpn)):
        found = kernel.tables.walk(int(pages.root[row]), int(pages.vpn[row]))
        assert found is not None
        assert (found.pfn, found.leaf, found.flags) == (
            pages.pfn[row],
            pages.leaf[row],
            pages.flags[row],
        )
        assert found.table == tuple(pages.table[row].tolist())


def test_equal_seeds_give_equal_layouts_and_others_differ() -> None:
    kernel = SmallKernel()
    symbols = symbols_of(kernel, step=64)
    one, again, other = (relink(kernel.image, symbols, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one.places, again.places, strict=True))
    assert any((a != b).any() for a, b in zip(one.places, other.places, strict=True))


def test_entry_text_stays_because_kpti_maps_it_by_address() -> None:
    kernel = SmallKernel(text_bytes=3 << 21)
    entry = kernel.image.text.start + (1 << 21) + 64
    symbols = pa.concat_tables(
        [
            symbols_of(kernel, step=64),
            pa.table([[entry], ["T"], ["__entry_text_start"]], schema=SYMBOLS),
        ]
    )
    plan = relink(kernel.image, symbols, 1)
    for section in plan.sections:
        assert entry < section.start or entry >= section.end
    assert len(plan.sections) == 3
