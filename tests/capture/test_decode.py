from pathlib import Path

import numpy as np
import pytest

from numarep.capture.decode import (
    ENTRY,
    EVENT,
    RAW_BEGIN,
    RAW_END,
    DecodeError,
    decode_window,
    parse_symbols,
    read_log,
    split_windows,
    table_changes,
    watched_addresses,
)
from numarep.memory.kinds import Kind
from numarep.workload.trace import Trace, check
from tests.capture.naive import merge
from tests.capture.rawlog import RawLog


@pytest.fixture
def log() -> RawLog:
    return RawLog()


def decoded(log: RawLog, watched: dict[int, str] | None = None) -> Trace:
    trace = decode_window(log.events, log.rows, watched or {})
    check(trace, "test")
    return trace


def records(log: RawLog) -> list[tuple[str, int, int, int]]:
    """Kind, pages row, line and count of every record."""
    r = decoded(log).records
    columns = (r.kind.tolist(), r.page.tolist(), r.line.tolist(), r.count.tolist())
    return [(Kind(k).name, p, n, c) for k, p, n, c in zip(*columns, strict=True)]


def test_fetches_of_one_line_are_one_record_across_data(log: RawLog) -> None:
    text, data = log.page(-8), log.page(5)
    log.fetch(text, 0)
    log.load(data, 64)
    log.fetch(text, 60)
    log.fetch(text, 64)
    assert records(log) == [("FETCH", 0, 0, 2), ("LOAD", 1, 1, 1), ("FETCH", 0, 1, 1)]


def test_returning_to_a_line_is_a_new_record(log: RawLog) -> None:
    text = log.page(-8)
    for offset in (0, 64, 0):
        log.fetch(text, offset)
    assert records(log) == [("FETCH", 0, 0, 1), ("FETCH", 0, 1, 1), ("FETCH", 0, 0, 1)]


def test_data_merges_only_with_the_last_data_record(log: RawLog) -> None:
    text, data = log.page(-8), log.page(5)
    log.fetch(text, 0)
    log.load(data, 0)
    log.fetch(text, 64)
    log.load(data, 8)
    log.store(data, 8)
    log.load(data, 8)
    assert records(log) == [
        ("FETCH", 0, 0, 1),
        ("LOAD", 1, 0, 2),
        ("FETCH", 0, 1, 1),
        ("STORE", 1, 0, 1),
        ("LOAD", 1, 0, 1),
    ]


def test_an_instruction_on_two_lines_counts_in_its_first(log: RawLog) -> None:
    text = log.page(-8)
    log.fetch(text, 62, size=4)
    log.fetch(text, 66)
    assert records(log) == [("FETCH", 0, 0, 1), ("FETCH", 0, 1, 1)]


def test_an_instruction_on_two_pages_uses_both_translations(log: RawLog) -> None:
    first, second = log.page(-8, pfn=20), log.page(-7, pfn=90)
    log.fetch(first, 4094, size=4, last_row=second)
    assert records(log) == [("FETCH", 0, 63, 1), ("FETCH", 1, 0, 0)]
    assert decoded(log).pages.pfn.tolist() == [20, 90]


def test_data_on_two_lines_is_referenced_in_both(log: RawLog) -> None:
    text, data, after = log.page(-8), log.page(5), log.page(6)
    log.fetch(text, 0)
    log.load(data, 60, size=8)
    log.store(data, 4092, size=8, last_row=after)
    assert records(log)[1:] == [
        ("LOAD", 1, 0, 1),
        ("LOAD", 1, 1, 1),
        ("STORE", 1, 63, 1),
        ("STORE", 2, 0, 1),
    ]


def test_rep_elements_are_one_record_a_line_and_kind(log: RawLog) -> None:
    text, source, target = log.page(-8), log.page(5), log.page(6)
    log.fetch_rep(text, 0)
    for offset in range(0, 128, 8):
        log.load(source, offset)
        log.store(target, offset)
    log.fetch(text, 2)
    assert records(log) == [
        ("FETCH", 0, 0, 2),
        ("LOAD", 1, 0, 8),
        ("STORE", 2, 0, 8),
        ("LOAD", 1, 1, 8),
        ("STORE", 2, 1, 8),
    ]


def test_two_rep_instructions_do_not_share_records(log: RawLog) -> None:
    text, source, target = log.page(-8), log.page(5), log.page(6)
    for _ in range(2):
        log.fetch_rep(text, 0)
        log.load(source, 0)
        log.store(target, 0)
    kinds = [record[0] for record in records(log)]
    assert kinds == ["FETCH", "LOAD", "STORE", "LOAD", "STORE"]


@pytest.mark.parametrize("kind", [Kind.CR3, Kind.INVLPG, Kind.FLUSH])
def test_flushes_end_all_runs(log: RawLog, kind: Kind) -> None:
    text, data, root = log.page(-8), log.page(5), log.root(300)
    log.fetch(text, 0)
    log.load(data, 0)
    getattr(log, kind.name.lower())(root)
    log.fetch(text, 4)
    log.load(data, 8)
    assert [record[0] for record in records(log)] == ["FETCH", "LOAD", kind.name, "FETCH", "LOAD"]
    assert decoded(log).pages.root.tolist()[2] == 300


def test_a_changed_translation_is_another_record(log: RawLog) -> None:
    old, new = log.page(5, pfn=40), log.page(5, pfn=41)
    text = log.page(-8)
    log.fetch(text, 0)
    log.load(old, 0)
    log.load(new, 0)
    assert records(log)[1:] == [("LOAD", 1, 0, 1), ("LOAD", 2, 0, 1)]


def test_equal_translations_share_a_row_in_order_of_use(log: RawLog) -> None:
    again = [log.page(5, pfn=40), log.page(6), log.page(5, pfn=40)]
    text = log.page(-8)
    log.fetch(text, 0)
    for row in again:
        log.load(row, 0)
    trace = decoded(log)
    assert trace.pages.vpn.tolist() == [-8, 5, 6]
    assert trace.records.page.tolist() == [0, 1, 2, 1]


def test_table_columns_are_by_level(log: RawLog) -> None:
    log.fetch(log.page(-8, leaf=2), 0)
    assert decoded(log).pages.table.tolist() == [[-1, 102, 101, 100, -1]]


def test_iterations_begin_records_of_their_own(log: RawLog) -> None:
    text = log.page(-8)
    log.fetch(text, 0)  # sets the loop up
    for _ in range(3):
        log.iteration()
        log.fetch(text, 4)
        log.fetch(text, 8)
    assert decoded(log).iterations.tolist() == [0, 2, 3, 4]


def test_a_window_without_marks_is_one_iteration(log: RawLog) -> None:
    log.fetch(log.page(-8), 0)
    assert decoded(log).iterations.tolist() == [0, 1]


def test_watched_entries_mark_the_record_that_holds_them(log: RawLog) -> None:
    text = log.page(-8)
    log.fetch(text, 0)
    log.fetch(text, 16)
    log.fetch(text, 64 + 62, size=4)  # on two lines: the first is its record
    trace = decoded(log, {(-8 << 12) + 16: "pgd_alloc", (-8 << 12) + 126: "pgd_free"})
    marks = list(zip(trace.event_record.tolist(), trace.event_name, strict=True))
    assert marks == [(0, "iteration"), (0, "pgd_alloc"), (1, "pgd_free")]


def test_counts_are_the_logs(log: RawLog) -> None:
    text, data = log.page(-8), log.page(5)
    rng = np.random.default_rng(1)
    for kind, offset in zip(rng.integers(0, 3, 500), rng.integers(0, 4000, 500), strict=True):
        (log.fetch, log.load, log.store)[kind](data if kind else text, int(offset), 1)
    trace, kinds = decoded(log), log.events["kind"]
    for kind in (Kind.FETCH, Kind.LOAD, Kind.STORE):
        assert trace.records.count[trace.records.kind == kind].sum() == (kinds == kind).sum()


def test_an_event_past_the_translations_is_refused(log: RawLog) -> None:
    log.page(-8)
    log.fetch(1, 0)
    with pytest.raises(DecodeError, match="past the 1 translations"):
        decode_window(log.events, log.rows, {})


def test_an_empty_window_is_refused(log: RawLog) -> None:
    with pytest.raises(DecodeError, match="empty"):
        decode_window(log.events, log.rows, {})


def test_a_truncated_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.bin").write_bytes(bytes(EVENT.itemsize + 1))
    with pytest.raises(DecodeError, match=r"events\.bin: 13 bytes .* truncated"):
        read_log(tmp_path / "events.bin", EVENT)


def test_windows_lie_between_marks(log: RawLog) -> None:
    text = log.page(-8)
    for workload in (3, 1):
        log._put(RAW_BEGIN, workload, 0, 0, None)
        log.fetch(text, 0)
        log._put(RAW_END, 0, 0, 0, None)
    windows = list(split_windows(log.events))
    assert [(w.workload, len(w.events)) for w in windows] == [(3, 1), (1, 1)]
    with pytest.raises(DecodeError, match="2 windows begin, 1 end"):
        list(split_windows(log.events[:-1]))


def test_table_dumps_become_changes() -> None:
    dumps = [
        [(4, 100, 511, 0x65), (1, 103, 5, 0x8000000000000063)],
        [(4, 100, 511, 0x65), (1, 103, 5, 0x8000000000000023), (1, 103, 6, 0x41)],
        [(4, 100, 511, 0x65)],
        [(4, 100, 511, 0x65)],
    ]
    entries = [(moment, *entry) for moment, dump in enumerate(dumps) for entry in dump]
    table = table_changes(np.array(entries, dtype=ENTRY), ["kill", "fork_1"])
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == [
        ("kill", "begin", 1, 103, 5, 0x8000000000000063 - (1 << 64)),
        ("kill", "begin", 4, 100, 511, 0x65),
        ("kill", "end", 1, 103, 5, 0x8000000000000023 - (1 << 64)),
        ("kill", "end", 1, 103, 6, 0x41),
        ("fork_1", "begin", 1, 103, 5, 0),
        ("fork_1", "begin", 1, 103, 6, 0),
    ]


def test_symbols_are_text_rodata_and_bounds() -> None:
    kallsyms = (
        "0000000000000000 A __per_cpu_start\n"
        "ffffffff82000000 D __start_rodata\n"
        "ffffffff81000040 T pgd_alloc\n"
        "ffffffff82000100 r some_table\n"
        "ffffffff82b00000 D jiffies\n"
        "ffffffffc0401000 t ovl_open\t[overlay]\n"
    )
    symbols = parse_symbols(kallsyms)
    assert symbols.column("name").to_pylist() == [
        "pgd_alloc",
        "__start_rodata",
        "some_table",
        "ovl_open",
    ]
    assert watched_addresses(symbols) == {0xFFFFFFFF81000040 - (1 << 64): "pgd_alloc"}


@pytest.mark.parametrize("seed", range(40))
def test_merging_is_what_the_plain_rules_give(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log = RawLog()
    text = [log.page(-8), log.page(-7)]
    data = [log.page(5), log.page(6)]
    root = log.root(300)
    log.fetch(text[0], 0)
    for choice in rng.choice(9, 300, p=(0.3, 0.2, 0.2, 0.2, 0.02, 0.02, 0.02, 0.02, 0.02)):
        offset = int(rng.choice([0, 8, 56, 60, 64, 100, 4088, 4094]))
        page = int(rng.integers(2))
        if choice <= 1:
            (log.fetch, log.fetch_rep)[choice](text[page], offset)
        elif choice <= 3:
            (log.load, log.store)[choice - 2](data[page], offset, 8, data[1])
        elif choice <= 6:
            (log.cr3, log.invlpg, log.flush)[choice - 4](root)
        else:
            log.iteration()
            log.fetch(text[0], 0)
    r = decoded(log).records
    pages = decoded(log).pages.vpn[r.page]
    ours = list(
        zip(r.kind.tolist(), pages.tolist(), r.line.tolist(), r.count.tolist(), strict=True)
    )
    plain = [(k, int(log.rows["vpn"][row]), n, c) for k, row, n, c in merge(log.events)]
    assert ours == plain
