"""Run-length filter: consecutive records that are the same but for their repeats become one run.

A record of the same kind, page and line as the one before it adds to that one's accesses and does
no more: it finds its line and page the last used of their rows, hits, and changes nothing. So such
records are one run, which is the first one's function's. (With a prefetcher every record is one, as
what it brings may drive that line out.)

A trace that isn't run-length coded has a record for every reference, most of which begin no run. Of
those, 32 at a time are compared with the ones before them (see `masks`), and only those that begin
a run are looked at one by one. As none of them stands for several references, what passed before
one is where it stands, and the number of fetches before it: the bits set below its own. Proof
obligation: that is what adding up the repeats gives. It does because each makes max(repeats, 1) = 1
access and, if a fetch, `repeats` = 0 or 1 instructions. Records that repeat or serialise end it.

>>> column = np.arange(64) // 8
>>> stream = Stream(column * 0, column * 0, column, column * 0 + 1)
>>> pages, batch = np.zeros(16, np.int64), np.zeros(Batch.END, np.int64)
>>> merge(0, pages, batch, stream, 0, 60)  # 32 at once, then one by one
(60, 8)
>>> [int(each) for each in batch[Batch.PASSED : Batch.PASSED + 9]]
[0, 8, 16, 24, 32, 40, 48, 56, 60]
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.batch import BATCH, Batch, Stream, key_of
from numarep.memory.kinds import Kind
from numarep.memory.masks import ALL_OF_THEM, MANY, above, changes, ones
from numarep.memory.pages import NONE, PAGE_BITS
from numarep.memory.vector import at, lowest, prefetch

__all__ = ["merge"]

EXPECTED = 512  # records ahead that the host is asked for


@jit
def _put(
    pages: NDArray[np.int64],
    batch: NDArray[np.int64],
    stream: Stream,
    record: int,
    run: int,
    instructions: int,
    accesses: int,
) -> int:
    """Write the run that a record begins, in place; return its key."""
    page = int(stream.page[at(record)])
    key = key_of(page, int(stream.line[at(record)]), int(stream.kind[at(record)]))
    prefetch(pages, page << PAGE_BITS)
    batch[at(Batch.KEY + run)] = key
    batch[at(Batch.PASSED + run)] = instructions
    batch[at(Batch.ACCESSES + run)] = accesses
    if len(stream.function) > 0:
        batch[at(Batch.FUNCTION + run)] = stream.function[at(record)]
    return key


@jit
def _expect(stream: Stream, record: int) -> None:
    """Have the host fetch 32 records: by itself it stops at the end of each of its pages.

    Of columns of four bytes that is two of its lines. Beyond a column's end nothing happens.
    """
    for each in range(record, record + MANY, MANY // 2):
        prefetch(stream.page, each)
        prefetch(stream.repeats, each)
        prefetch(stream.function, each)
    prefetch(stream.kind, record)
    prefetch(stream.line, record)


@jit
def _merge_single(
    always: int,
    pages: NDArray[np.int64],
    batch: NDArray[np.int64],
    stream: Stream,
    start: int,
    stop: int,
) -> tuple[int, int, int]:
    """Make runs of records, 32 at a time, while none of them repeats or serialises; in place.

    Returns
    -------
    next, size, instructions : int
        The first record not taken, and the number of runs and instructions of those taken.
    """
    kind, page, line = NONE, NONE, NONE
    record, size, instructions = start, 0, 0
    while record + MANY <= stop and size + MANY <= BATCH:
        if above(stream.kind, record, Kind.STORE) | above(stream.repeats, record, 1) != 0:
            break
        _expect(stream, record + EXPECTED)
        begins = changes(stream.kind, record, kind) | changes(stream.page, record, page)
        begins |= changes(stream.line, record, line) | always * ALL_OF_THEM
        counted = above(stream.repeats, record, 0) & ~above(stream.kind, record, Kind.FETCH)
        while begins != 0:
            each = lowest(begins)
            begins &= begins - 1
            passed = instructions + ones(counted & ((1 << each) - 1))
            _put(pages, batch, stream, record + each, size, passed, record + each - start)
            size += 1
        instructions += ones(counted)
        record += MANY
        kind, page = int(stream.kind[at(record - 1)]), int(stream.page[at(record - 1)])
        line = int(stream.line[at(record - 1)])
    return record, size, instructions


@jit
def merge(
    always: int,
    pages: NDArray[np.int64],
    batch: NDArray[np.int64],
    stream: Stream,
    start: int,
    stop: int,
) -> tuple[int, int]:
    """Make runs of the records from `start` on until the batch is full or one serialises; in place.

    `always` is 1 if every record begins a run. What would be a run's is written for every record,
    and overwritten unless the record begins one: whether it does can't be foreseen. Returns the
    first record not taken and the number of runs.
    """
    record, size, instructions = _merge_single(always, pages, batch, stream, start, stop)
    accesses = record - start
    last = batch[at(Batch.KEY + size - 1)] if size > 0 else NONE
    while record < stop:
        kind = int(stream.kind[at(record)])
        key = key_of(int(stream.page[at(record)]), int(stream.line[at(record)]), kind)
        begins = always | (1 if key != last else 0)
        if kind > Kind.STORE or size + begins > BATCH:
            break
        last = _put(pages, batch, stream, record, size, instructions, accesses)
        repeats = int(stream.repeats[at(record)])
        instructions += repeats if kind == Kind.FETCH else 0
        accesses += max(repeats, 1)
        size += begins
        record += 1
    batch[at(Batch.PASSED + size)] = instructions
    batch[at(Batch.ACCESSES + size)] = accesses
    return record, size
