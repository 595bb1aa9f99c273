"""Scratch of the stages: what they hand each other about a batch of records.

The loop works on batches of at most `BATCH` runs of records, each stage on the whole batch before
the next (see `loop`). Words are packed, since what a stage costs is mostly what it writes.

>>> word = operation(line=5, run=3, kind=2)
>>> line_of(word), run_of(word), kind_of(word)
(5, 3, 2)
>>> word = key_of(page=9, line=63, kind=1)
>>> page_of(word), line_within(word), kind_of(word)
(9, 63, 1)
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.memory.vector import LANES, at, new_words
from numarep.units import LINES_PER_PAGE, MAX_LEVELS

BATCH = 1024
RUN_BITS = 10
MARK_BITS = 4
MARKS = 1 << MARK_BITS  # runs of a word
KIND_BITS = 2
KIND_MASK = (1 << KIND_BITS) - 1
LINE_BITS = LINES_PER_PAGE.bit_length() - 1
NODE_BITS = 8
# A word more than there are runs, for sums; not a whole page of the host apart from the next part.
RUNS = BATCH + LANES
OPS = BATCH * (MAX_LEVELS + 1) + LANES  # likewise


class Stream(NamedTuple):
    """Records of one CPU in order, n of them.

    kind : uint8[n], see `Kind`; page : int32[n], row of the translations;
    line : uint8[n], line within the page; repeats : int32[n].
    function : int32[n], small number of the code the record belongs to, opaque here; empty if
    counts by function are not wanted.

    A column of a smaller type, or of one value (`np.broadcast_to`), takes less memory and hardly
    more time (see `checked.Parts`).
    """

    kind: NDArray[np.uint8]
    page: NDArray[np.int32]
    line: NDArray[np.uint8]
    repeats: NDArray[np.int32]
    function: NDArray[np.int32] = np.empty(0, np.int32)


class Batch(IntEnum):
    """Parts of what the stages hand each other, in one array; nothing in it outlives a batch.

    (One array, because compiled functions pass each array they are given as seven numbers.)
    """

    # Of each run (see `runs`):
    KEY = 0  # see `key_of`
    PASSED = RUNS  # instructions of the runs before it; and one more, of all
    ACCESSES = 2 * RUNS  # likewise
    FUNCTION = 3 * RUNS  # of `Stream`
    ACCESS = 4 * RUNS  # its own, see `operation`
    READS = 5 * RUNS  # table entries its walk reads; `tally` leaves 0
    OVERLAP = 6 * RUNS  # of those that `tally` visits
    # Runs that missed the first TLB, and that walk:
    MISSED = 7 * RUNS
    WALKS = 8 * RUNS
    # A bit for each run that did anything but hit L1 without a walk (see `mark`), and, MARKS above,
    # one for each that went beyond L2 with more than a store; `tally` leaves 0:
    MARKED = 9 * RUNS
    # Of each operation (the reads of a run's walk, then the access itself):
    OP = 10 * RUNS  # see `operation`
    LEVEL = OP + OPS  # of a walk's read
    SERVED_BY = OP + 2 * OPS  # see `served_by`
    CELLS = OP + 3 * OPS  # places in the counts by function
    END = OP + 4 * OPS


def new_batch() -> NDArray[np.int64]:
    """Return scratch for one CPU at a time."""
    batch = new_words(Batch.END)
    batch.fill(0)
    return batch


@jit
def key_of(page: int, line: int, kind: int) -> int:
    """Pack all that tells one run from another."""
    return (page << LINE_BITS | line) << KIND_BITS | kind


@jit
def page_of(key: int) -> int:
    """Return a run's page, a row of the translations."""
    return key >> (LINE_BITS + KIND_BITS)


@jit
def line_within(key: int) -> int:
    """Return a run's line within its page."""
    return key >> KIND_BITS & (LINES_PER_PAGE - 1)


@jit
def kind_of(word: int) -> int:
    """Return the kind of a run, or of an operation: how L1 sees it, so walks load."""
    return word & KIND_MASK


@jit
def operation(line: int, run: int, kind: int) -> int:
    """Pack an operation: an access of a kind to a line on behalf of a run."""
    return (line << RUN_BITS | run) << KIND_BITS | kind


@jit
def line_of(op: int) -> int:
    """Return an operation's line."""
    return op >> (RUN_BITS + KIND_BITS)


@jit
def run_of(op: int) -> int:
    """Return the run an operation belongs to."""
    return op >> KIND_BITS & (BATCH - 1)


@jit
def served_by(service: int, node: int) -> int:
    """Pack which level served an operation, and on which node."""
    return service << NODE_BITS | node


@jit
def mark(batch: NDArray[np.int64], run: int, is_long: int) -> None:
    """Have `tally` visit a run; `is_long` is 1 if that goes beyond L2 but for a store; in place."""
    marks = (1 | is_long << MARKS) << (run & (MARKS - 1))
    batch[at(Batch.MARKED + (run >> MARK_BITS))] |= marks
