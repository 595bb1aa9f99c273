"""Raw logs as the plugin writes them, put together by hand."""

import numpy as np

from numarep.capture.decode import (
    EVENT,
    RAW_CR3,
    RAW_FETCH,
    RAW_FETCH_REP,
    RAW_FLUSH,
    RAW_INVLPG,
    RAW_ITERATION,
    RAW_LOAD,
    RAW_STORE,
    ROW,
)


class RawLog:
    """Events and translations in order; `row` numbers are those returned by `page`."""

    def __init__(self) -> None:
        self._events: list[tuple[int, int, int, int, int]] = []
        self._rows: list[tuple[int, int, tuple[int, ...], int, int]] = []

    def page(self, vpn: int, pfn: int = 7, leaf: int = 1, root: int = 100) -> int:
        self._rows.append((vpn, pfn, (root, 101, 102, 103 if leaf == 1 else -1), leaf, 3))
        return len(self._rows) - 1

    def root(self, pfn: int) -> int:
        self._rows.append((0, -1, (pfn, -1, -1, -1), 0, 0))
        return len(self._rows) - 1

    def fetch(self, row: int, offset: int, size: int = 4, last_row: int | None = None) -> None:
        self._put(RAW_FETCH, row, offset, size, last_row)

    def fetch_rep(self, row: int, offset: int) -> None:
        self._put(RAW_FETCH_REP, row, offset, 2, None)

    def load(self, row: int, offset: int, size: int = 8, last_row: int | None = None) -> None:
        self._put(RAW_LOAD, row, offset, size, last_row)

    def store(self, row: int, offset: int, size: int = 8, last_row: int | None = None) -> None:
        self._put(RAW_STORE, row, offset, size, last_row)

    def cr3(self, row: int) -> None:
        self._put(RAW_CR3, row, 0, 0, None)

    def invlpg(self, row: int) -> None:
        self._put(RAW_INVLPG, row, 0, 0, None)

    def flush(self, row: int) -> None:
        self._put(RAW_FLUSH, row, 0, 0, None)

    def iteration(self) -> None:
        self._put(RAW_ITERATION, 0, 0, 0, None)

    def _put(self, kind: int, row: int, offset: int, size: int, last_row: int | None) -> None:
        self._events.append((row, row if last_row is None else last_row, offset, kind, size))

    @property
    def events(self) -> np.ndarray:
        return np.array(self._events, dtype=EVENT)

    @property
    def rows(self) -> np.ndarray:
        return np.array(self._rows, dtype=ROW)
