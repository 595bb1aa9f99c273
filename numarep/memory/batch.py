"""Scratch of the stages: what they hand each other about a batch of records.

The loop works on batches of at most `BATCH` records, each stage on the whole batch before the next
(see `loop`). Words are packed, since what a stage costs is mostly what it writes.

>>> word = operation(line=5, record=3, kind=2)
>>> line_of(word), record_of(word), kind_of(word)
(5, 3, 2)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.vector import at
from numarep.units import MAX_LEVELS

BATCH = 128
RECORD_BITS = 7
MARK_BITS = 5
MARKS = 1 << MARK_BITS  # of records in a word
KIND_BITS = 2
KIND_MASK = (1 << KIND_BITS) - 1
NODE_BITS = 8


class Stream(NamedTuple):
    """Records of one CPU in order, n of them.

    kind : uint8[n], see `Kind`; page : int32[n], row of the translations;
    line : uint8[n], line within the page; repeats : int32[n].
    function : int32[n], small number of the code the record belongs to, opaque here; empty if
    counts by function are not wanted.
    """

    kind: NDArray[np.uint8]
    page: NDArray[np.int32]
    line: NDArray[np.uint8]
    repeats: NDArray[np.int32]
    function: NDArray[np.int32] = np.empty(0, np.int32)


class Batch(NamedTuple):
    """What the stages hand each other; nothing in it outlives a batch.

    Of each record (run, rather: see `front`), int64[BATCH]:
    what : page << 2 | kind; passed : instructions of the records before it (and one more, of all);
    reads : table entries its walk reads; chain : its first operation, if any record walked;
    function : of `Stream`;
    marked : a bit for each that did anything but hit L1 without a walk (see `mark`), int64[BATCH];
    `tally` leaves both 0.
    missed, walks : records that missed the first TLB, and that walk.
    Of each walk, int64[5 * BATCH]: walk_line, walk_level : what it reads.
    Of each operation (the reads of a record's walk, then the access itself), int64[6 * BATCH]:
    ops : see `operation`; level : of a walk's read; served_by : service << 8 | node;
    cells : places in the counts by function.
    """

    what: NDArray[np.int64]
    function: NDArray[np.int64]
    passed: NDArray[np.int64]
    reads: NDArray[np.int64]
    chain: NDArray[np.int64]
    marked: NDArray[np.int64]
    missed: NDArray[np.int64]
    walks: NDArray[np.int64]
    walk_line: NDArray[np.int64]
    walk_level: NDArray[np.int64]
    ops: NDArray[np.int64]
    level: NDArray[np.int64]
    served_by: NDArray[np.int64]
    cells: NDArray[np.int64]


def new_batch() -> Batch:
    """Return scratch for one CPU at a time."""
    sizes = [1, 1, 2, *[1] * 5, *[MAX_LEVELS] * 2, *[MAX_LEVELS + 1] * 4]
    return Batch(*(np.zeros(size * BATCH, np.int64) for size in sizes))


@jit
def operation(line: int, record: int, kind: int) -> int:
    """Pack an operation: an access of a kind to a line on behalf of a record."""
    return (line << RECORD_BITS | record) << KIND_BITS | kind


@jit
def served_by(service: int, node: int) -> int:
    """Pack which level served an operation, and on which node."""
    return service << NODE_BITS | node


@jit
def mark(batch: Batch, record: int) -> None:
    """Have `tally` visit a record, in place."""
    batch.marked[at(record >> MARK_BITS)] |= 1 << (record & (MARKS - 1))


@jit
def line_of(op: int) -> int:
    """Return an operation's line."""
    return op >> (RECORD_BITS + KIND_BITS)


@jit
def record_of(op: int) -> int:
    """Return the record an operation belongs to."""
    return op >> KIND_BITS & (BATCH - 1)


@jit
def kind_of(op: int) -> int:
    """Return an operation's kind: how L1 sees it, so walks load."""
    return op & KIND_MASK
