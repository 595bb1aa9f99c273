"""The merging rules read aloud: one event after another, no arrays."""

import numpy as np

from numarep.capture.decode import (
    RAW_CR3,
    RAW_FETCH,
    RAW_FETCH_REP,
    RAW_FLUSH,
    RAW_INVLPG,
    RAW_ITERATION,
)

FETCH = 0
Key = tuple[int, int, int]  # kind, row, line


def merge(events: np.ndarray) -> list[tuple[int, int, int, int]]:
    """List (kind, raw row, line, count) of every record."""
    records: list[list[int]] = []
    last_fetch: int | None = None
    last_data: int | None = None
    rep_runs: dict[int, int] = {}  # by kind: the record its last element joined
    in_rep = False

    def touch(at: int | None, key: Key, count: int) -> int:
        if at is not None and tuple(records[at][:3]) == key:
            records[at][3] += count
            return at
        records.append([*key, count])
        return len(records) - 1

    for event in events:
        row, last_row, offset, kind, size = (int(field) for field in event)
        if kind == RAW_ITERATION or kind in (RAW_CR3, RAW_INVLPG, RAW_FLUSH):
            if kind != RAW_ITERATION:
                records.append([kind, row, 0, 1])
            last_fetch = last_data = None
            rep_runs.clear()
            continue
        last = offset + max(size, 1) - 1
        touched = [(row, offset >> 6)]
        if last >> 6 != offset >> 6:
            touched.append((last_row, (last & 4095) >> 6))
        if kind in (RAW_FETCH, RAW_FETCH_REP):
            for number, (at_row, line) in enumerate(touched):
                last_fetch = touch(last_fetch, (FETCH, at_row, line), int(number == 0))
            in_rep, rep_runs = kind == RAW_FETCH_REP, {}
            continue
        for at_row, line in touched:
            at = rep_runs.get(kind) if in_rep else None
            if at is not None and tuple(records[at][:3]) == (kind, at_row, line):
                records[at][3] += 1
                continue
            last_data = rep_runs[kind] = touch(last_data, (kind, at_row, line), 1)
    return [(k, r, n, c) for k, r, n, c in records]
