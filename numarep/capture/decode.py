"""From the plugin's raw logs to traces, page-table changes and symbols.

The plugin logs one event an instruction and one a data access (`plugin/trace.c`). Here they are
merged as the trace format asks, window by window:

- instructions fetched one after another from one line and one translation are one FETCH record,
  whatever data they touched in between; an instruction that crosses a line counts in its first
  and adds a FETCH of no instruction to its second;
- data references to the line and kind of the last data record join it; inside one REP instruction
  loads and stores are merged apart, because MOVS alternates between two lines;
- a CR3 write, an INVLPG, a flush or an iteration's begin ends all runs.

Left out, because QEMU does not report them: what an exception or interrupt pushes and reads (its
frame, IDT, TSS) and the hardware walker's reads, which the simulator makes itself. A window holds
what the CPU executed: timer ticks, and the child where the scheduler let it run inside.

>>> event = np.zeros(3, EVENT)
>>> event["kind"], event["offset"], event["bytes"] = RAW_FETCH, [0, 4, 62], 4
>>> row = np.zeros(1, ROW)
>>> row["leaf"] = 1
>>> records = decode_window(event, row, {}).records
>>> records.line.tolist(), records.count.tolist()
([0, 1], [3, 0])
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from numarep.memory.kinds import Kind
from numarep.units import MAX_LEVELS
from numarep.workload.dataset import SYMBOLS, TABLES
from numarep.workload.trace import ITERATION, Pages, Records, Trace

# The layouts and numbers of plugin/trace.c.
EVENT = np.dtype(
    [("row", "<u4"), ("last_row", "<u4"), ("offset", "<u2"), ("kind", "u1"), ("bytes", "u1")]
)
ROW = np.dtype(
    [
        ("vpn", "<i8"),
        ("pfn", "<i8"),
        ("table", "<i8", (4,)),  # levels 4..1
        ("leaf", "<u4"),
        ("flags", "<u4"),
    ]
)
ENTRY = np.dtype(
    [("moment", "<u4"), ("level", "<u4"), ("table", "<u8"), ("index", "<u8"), ("value", "<u8")]
)
RAW_FETCH, RAW_LOAD, RAW_STORE, RAW_CR3, RAW_INVLPG, RAW_FLUSH = range(Kind.FLUSH + 1)
RAW_FETCH_REP, RAW_BEGIN, RAW_ITERATION, RAW_END = 6, 7, 8, 9

# Kernel functions whose entry becomes an event: what replication has to act on (R14-R31), and
# what shows that a window was disturbed. __pud_alloc and ___pud_free_tlb fill and clear a slot
# of a 4-level PGD, __p4d_alloc and ___p4d_free_tlb of a 5-level one.
WATCHED = (
    "pgd_alloc",
    "pgd_free",
    "__p4d_alloc",
    "__pud_alloc",
    "__pmd_alloc",
    "___p4d_free_tlb",
    "___pud_free_tlb",
    "___pmd_free_tlb",
    "text_poke",
    "text_poke_bp",
    "text_poke_bp_batch",
    "text_poke_copy",
    "text_poke_set",
    "text_poke_kgdb",
    "load_module",
    "free_module",
    "set_memory_ro",
    "set_memory_rw",
    "set_memory_x",
    "set_memory_nx",
    "set_memory_rox",
    "set_memory_np",
    "set_memory_global",
    "set_memory_nonglobal",
    "copy_process",
    "do_exit",
    "mmput",
    "exit_mmap",
    "switch_mm_irqs_off",
    "asm_exc_page_fault",
    "asm_sysvec_apic_timer_interrupt",
)

# Bounds of the image's sections, kept whatever their symbol type.
_BOUNDS = frozenset(
    (
        *("_text", "_stext", "_etext", "__entry_text_start", "__entry_text_end"),
        *("__start_rodata", "__end_rodata", "_sdata", "_edata", "__init_begin", "__init_end"),
        *("__bss_start", "__bss_stop", "__end_of_kernel_reserve", "_brk_start", "_end"),
    )
)
_LINE_SHIFT = 6
_PAGE_SHIFT = 12
_PAGE_MASK = (1 << _PAGE_SHIFT) - 1


class DecodeError(ValueError):
    """A raw log that can't be what the plugin wrote; the message says why."""


@dataclass(frozen=True, slots=True)
class RawWindow:
    """One measured window of the event log: the workload's number and its events."""

    workload: int
    events: NDArray[np.void]


def read_log(path: Path, layout: np.dtype[np.void]) -> NDArray[np.void]:
    """Read one of the plugin's logs.

    Raises
    ------
    DecodeError
        If the file is missing, or not a whole number of entries.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DecodeError(f"{path}: {error.strerror}") from None
    if size % layout.itemsize:
        raise DecodeError(f"{path}: {size} bytes is no multiple of {layout.itemsize}: truncated")
    return np.fromfile(path, layout)


def split_windows(events: NDArray[np.void]) -> Iterator[RawWindow]:
    """Yield the windows between begin and end marks, in the order they ran.

    Raises
    ------
    DecodeError
        If begin and end marks do not alternate.
    """
    begins = np.flatnonzero(events["kind"] == RAW_BEGIN)
    ends = np.flatnonzero(events["kind"] == RAW_END)
    if len(begins) != len(ends) or (begins >= ends).any() or (begins[1:] <= ends[:-1]).any():
        raise DecodeError(f"{len(begins)} windows begin, {len(ends)} end, or they overlap")
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        yield RawWindow(int(events["row"][begin]), events[begin + 1 : end])


@dataclass(slots=True)
class _Touches:
    """Touched lines: parallel arrays; `place` is the position of the event in its window."""

    place: NDArray[np.int64]
    kind: NDArray[np.int64]
    row: NDArray[np.int64]
    line: NDArray[np.int64]
    count: NDArray[np.int64]
    run: NDArray[np.int64]  # changes where runs must end

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "_Touches":
        """Return the chosen touches, in the given order."""
        return _Touches(*(getattr(self, name)[index] for name in self.__slots__))

    def merged(self, starts: NDArray[np.bool_]) -> "_Touches":
        """Join each touch to the last one that starts a record; counts add up."""
        out = self.take(starts)
        if len(self.place):
            out.count = np.add.reduceat(self.count, np.flatnonzero(starts))
        return out


def _changes(*columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a row differs from the one before it; the first always does."""
    changed = np.zeros(len(columns[0]), dtype=np.bool_)
    changed[:1] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return changed


def _concatenate(parts: list[_Touches]) -> _Touches:
    joined = (np.concatenate([getattr(p, name) for p in parts]) for name in _Touches.__slots__)
    return _Touches(*joined)


def _touches(events: NDArray[np.void], run: NDArray[np.int64], is_fetch: bool) -> _Touches:
    """Lines touched by fetches or by data, a crossing one as two touches in a row."""
    kinds = (RAW_FETCH, RAW_FETCH_REP) if is_fetch else (RAW_LOAD, RAW_STORE)
    place = np.flatnonzero(np.isin(events["kind"], kinds))
    chosen = events[place]
    offset = chosen["offset"].astype(np.int64)
    last = offset + np.maximum(chosen["bytes"].astype(np.int64), 1) - 1
    crosses = offset >> _LINE_SHIFT != last >> _LINE_SHIFT
    times = 1 + crosses
    second = np.zeros(int(times.sum()), dtype=np.bool_)
    second[np.cumsum(times)[crosses] - 1] = True
    index = np.repeat(np.arange(len(place)), times)
    kind = np.zeros_like(offset) if is_fetch else chosen["kind"].astype(np.int64)
    return _Touches(
        place=place[index],
        kind=kind[index],
        row=np.where(second, chosen["last_row"][index], chosen["row"][index]).astype(np.int64),
        line=(np.where(second, last[index], offset[index]) & _PAGE_MASK) >> _LINE_SHIFT,
        count=np.where(second & is_fetch, 0, 1).astype(np.int64),
        run=run[place][index],
    )


def _rep_numbers(events: NDArray[np.void]) -> NDArray[np.int64]:
    """Tell which REP instruction each event lies in, by its place; -1 outside one."""
    is_fetch = np.isin(events["kind"], (RAW_FETCH, RAW_FETCH_REP))
    owner = np.maximum.accumulate(np.where(is_fetch, np.arange(len(events)), -1))
    in_rep = (owner >= 0) & (events["kind"][owner] == RAW_FETCH_REP)
    return np.where(in_rep, owner, -1)


def _merge_rep(data: _Touches, rep: NDArray[np.int64]) -> _Touches:
    """Merge the elements of each REP instruction, loads and stores apart."""
    number = rep[data.place]
    inside, outside = np.flatnonzero(number >= 0), np.flatnonzero(number < 0)
    order = inside[np.lexsort((inside, data.kind[inside], number[inside]))]
    elements, number = data.take(order), number[order]
    starts = _changes(number, elements.run, elements.kind, elements.row, elements.line)
    both = _concatenate([elements.merged(starts), data.take(outside)])
    return both.take(np.argsort(both.place, kind="stable"))


def _controls(events: NDArray[np.void], run: NDArray[np.int64]) -> _Touches:
    place = np.flatnonzero(np.isin(events["kind"], (RAW_CR3, RAW_INVLPG, RAW_FLUSH)))
    chosen = events[place]
    nothing = np.zeros(len(place), dtype=np.int64)
    return _Touches(
        place=place,
        kind=chosen["kind"].astype(np.int64),
        row=chosen["row"].astype(np.int64),
        line=nothing,
        count=nothing + 1,
        run=run[place],
    )


def _merge(events: NDArray[np.void]) -> tuple[_Touches, NDArray[np.int64]]:
    """Return the window's records in order, and which of them each fetch event fell into."""
    barrier = np.isin(events["kind"], (RAW_CR3, RAW_INVLPG, RAW_FLUSH, RAW_ITERATION))
    run = np.cumsum(barrier).astype(np.int64)
    fetches = _touches(events, run, is_fetch=True)
    data = _merge_rep(_touches(events, run, is_fetch=False), _rep_numbers(events))
    fetch_starts = _changes(fetches.run, fetches.row, fetches.line)
    data_starts = _changes(data.run, data.kind, data.row, data.line)
    parts = [fetches.merged(fetch_starts), data.merged(data_starts), _controls(events, run)]
    joined = _concatenate(parts)
    # Stable: of one event's two lines the first stays first.
    order = np.argsort(joined.place, kind="stable")
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    record_of = np.full(len(events), -1, dtype=np.int64)
    group = np.cumsum(fetch_starts) - 1
    # Written backwards, so that an instruction on two lines belongs to its first.
    record_of[fetches.place[::-1]] = position[group[::-1]]
    return joined.take(order), record_of


def _pages(rows: NDArray[np.void], used: NDArray[np.int64]) -> tuple[Pages, NDArray[np.int32]]:
    """Keep the distinct translations used, in order of first use, and renumber `used`."""
    numbers, first, inverse = np.unique(used, return_index=True, return_inverse=True)
    content = rows[numbers]
    flat = np.column_stack(
        [content["vpn"], content["pfn"], content["table"], content["leaf"], content["flags"]]
    ).astype(np.int64)
    distinct, same = np.unique(flat, axis=0, return_inverse=True)
    same = same.reshape(-1)
    first_use = np.full(len(distinct), len(used))
    np.minimum.at(first_use, same, first)
    order = np.argsort(first_use)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    kept = distinct[order]
    table = np.full((len(kept), MAX_LEVELS), -1, dtype=np.int64)
    table[:, :4] = kept[:, 5:1:-1]
    pages = Pages(
        vpn=kept[:, 0].copy(),
        pfn=kept[:, 1].copy(),
        leaf=kept[:, 6].astype(np.uint8),
        flags=kept[:, 7].astype(np.uint8),
        table=table,
    )
    return pages, rank[same][inverse.reshape(-1)]


def _marks(
    events: NDArray[np.void],
    rows: NDArray[np.void],
    places: NDArray[np.int64],
    record_of: NDArray[np.int64],
    watched: Mapping[int, str],
) -> list[tuple[int, str]]:
    """List (record, name) of iterations and watched functions, in order."""
    starts = np.flatnonzero(events["kind"] == RAW_ITERATION)
    records = np.searchsorted(places, starts[1:])
    # What sets a loop up belongs to its first iteration.
    records = np.concatenate([np.zeros(1, dtype=np.int64), records])
    marks = [(int(record), ITERATION) for record in records]
    va = (rows["vpn"][events["row"]] << _PAGE_SHIFT) | events["offset"]
    entered = (record_of >= 0) & np.isin(va, np.array(list(watched), dtype=np.int64))
    marks += [(int(record_of[p]), watched[int(va[p])]) for p in np.flatnonzero(entered)]
    return sorted(marks, key=lambda mark: mark[0])


def decode_window(
    events: NDArray[np.void], rows: NDArray[np.void], watched: Mapping[int, str]
) -> Trace:
    """Merge one window's events into a trace.

    Parameters
    ----------
    events : EVENT[n]
        Without its begin and end marks.
    rows : ROW[m]
        Translations the events point at.
    watched : mapping of int64 to str
        Entry addresses (sign-extended) whose execution becomes an event, and their names.

    Raises
    ------
    DecodeError
        If an event points outside `rows`, or has an unknown kind.
    """
    if len(events) == 0:
        raise DecodeError("an empty window")
    if max(events["row"].max(), events["last_row"].max()) >= len(rows):
        raise DecodeError(f"an event points past the {len(rows)} translations logged")
    if events["kind"].max() > RAW_ITERATION or (events["kind"] == RAW_BEGIN).any():
        raise DecodeError("an unknown kind of event inside a window")
    touched, record_of = _merge(events)
    pages, page = _pages(rows, touched.row)
    marks = _marks(events, rows, touched.place, record_of, watched)
    records = Records(
        kind=touched.kind.astype(np.uint8),
        page=page,
        line=touched.line.astype(np.uint8),
        count=touched.count.astype(np.int32),
    )
    event_record = np.array([record for record, _ in marks], dtype=np.int64)
    return Trace(records, pages, event_record, tuple(name for _, name in marks))


def table_changes(entries: NDArray[np.void], workloads: list[str]) -> pa.Table:
    """Turn whole dumps of all page tables into the first one and the changes since.

    Parameters
    ----------
    entries : ENTRY[n]
        `moment` is 2 x the window's place in `workloads`, + 1 at its end.

    Returns
    -------
    Table of schema `TABLES`; value 0 says that the entry is no longer present.
    """
    known = np.zeros(0, dtype=np.uint64)
    values = np.zeros(0, dtype=np.int64)
    parts = []
    for moment in range(2 * len(workloads)):
        now = entries[entries["moment"] == moment]
        key = (now["level"].astype(np.uint64) << np.uint64(60)) | (
            now["table"] << np.uint64(9) | now["index"]
        )
        order = np.argsort(key)
        key, value = key[order], now["value"][order].view(np.int64)
        changed_key, changed_value = _difference(known, values, key, value)
        parts.append(_change_table(changed_key, changed_value, workloads[moment // 2], moment % 2))
        known, values = key, value
    return pa.concat_tables(parts).combine_chunks() if parts else TABLES.empty_table()


def _difference(
    old_key: NDArray[np.uint64],
    old_value: NDArray[np.int64],
    key: NDArray[np.uint64],
    value: NDArray[np.int64],
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys (sorted, unique) whose value is new or other now, and 0 for those gone."""
    at = np.searchsorted(old_key, key)
    inside = np.minimum(at, max(len(old_key) - 1, 0))
    same = np.zeros(len(key), dtype=np.bool_)
    if len(old_key):
        same = (old_key[inside] == key) & (old_value[inside] == value)
    gone = old_key[~np.isin(old_key, key)]
    changed_key = np.concatenate([key[~same], gone])
    changed_value = np.concatenate([value[~same], np.zeros(len(gone), dtype=np.int64)])
    order = np.argsort(changed_key)
    return changed_key[order], changed_value[order]


def _change_table(
    key: NDArray[np.uint64], value: NDArray[np.int64], workload: str, at_end: int
) -> pa.Table:
    columns = [
        pa.array([workload] * len(key), pa.string()),
        pa.array(["end" if at_end else "begin"] * len(key), pa.string()),
        (key >> np.uint64(60)).astype(np.uint8),
        ((key >> np.uint64(9)) & np.uint64((1 << 51) - 1)).astype(np.int64),
        (key & np.uint64(511)).astype(np.int32),
        value,
    ]
    return pa.table(columns, schema=TABLES)


def parse_symbols(kallsyms: str) -> pa.Table:
    """Keep a kernel's text symbols, rodata objects and section bounds, sorted by address.

    Returns
    -------
    Table of schema `SYMBOLS`; addresses are sign-extended, modules' symbols included.
    """
    kept = set()
    for entry in kallsyms.splitlines():
        address, kind, name = entry.split()[:3]
        if (kind in "tTrRwW" and int(address, 16) >> 63) or name in _BOUNDS:
            kept.add((int(address, 16) - (1 << 64), kind, name))
    address_list, kinds, names = zip(*sorted(kept), strict=True) if kept else ((), (), ())
    return pa.table([list(address_list), list(kinds), list(names)], schema=SYMBOLS)


def watched_addresses(symbols: pa.Table) -> dict[int, str]:
    """Map the entry addresses of the watched functions a kernel has to their names."""
    pairs = zip(
        symbols.column("address").to_pylist(), symbols.column("name").to_pylist(), strict=True
    )
    return {address: name for address, name in pairs if name in WATCHED}
