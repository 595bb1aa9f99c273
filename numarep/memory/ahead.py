"""L1 runs ahead of the levels beyond it, and comes back where they take a line from it.

L1I and L1D settle a whole batch of operations (`run_ahead`) before L2 and the LLC see what missed:
a short loop whose one branch asks whether the line is the last used of its row, instead of
a path through the whole hierarchy at every access.

Proof obligation: the outcome is that of one access at a time. L1 depends on the levels beyond it
only through lines they take from it, and one CPU runs at a time: no other core loads or stores
meanwhile. So lines are taken only by what the running CPU's own misses evict from that which
includes L1: an inclusive LLC, or a snoop filter and the L2 above it (see `victim`). Whatever evicts
a line while miss t is settled calls `recall`, before it looks at L1, to ask whether L1 held the
line at t. If it did, it either still does, or has given it up at or after t, in which case the log
says so. So if neither is found, it held no such line and nothing changes. Otherwise the log is
undone, newest first, down to t: L1 is then exactly as it was before t; the line is dropped, and
`run_ahead` starts again at t. A second line evicted for the same miss finds the log undone already.
Every operation that changes a row is logged with all that undoing it takes: the row, the way that
came to the front, and what that way held.

>>> words = np.arange(8) << FLAG_BITS  # a row of three and what lies beyond
>>> move(words, 0, 3, 2, 9 << FLAG_BITS)  # a fill
>>> _undo(words, 0, 2, 2 << FLAG_BITS)
>>> (words >> FLAG_BITS).tolist()
[0, 1, 2, 3, 4, 5, 6, 7]
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.batch import Batch, kind_of, line_of, served_by
from numarep.memory.counts import Service
from numarep.memory.recency import FLAG_BITS, FLAGS, find, matches, move
from numarep.memory.vector import at, lowest
from numarep.memory.view import DIRTY, Ahead, View, first_in, row_of, ways_in


@jit_apart
def run_ahead(
    view: View,
    batch: Batch,
    op: int,
    stop: int,
    missed: int,
) -> int:
    """Send operations [op, stop) through L1I and L1D; caches and log are modified in place.

    Parameters
    ----------
    batch : Batch
        `ops` is read; `served_by` becomes L1 for each, whatever they turn out to be.
    missed : int
        Number of misses logged already.

    Returns
    -------
    int
        Number of misses logged: accesses to be served by L2, and first stores to clean lines.
    """
    words, ahead, l1 = view.words, view.ahead, view.l1
    logged = ahead[Ahead.LENGTH]
    by_l1 = served_by(Service.L1.value, view.node)
    for each in range(op, stop):
        line, kind = line_of(batch.ops[at(each)]), kind_of(batch.ops[at(each)])
        batch.served_by[at(each)] = by_l1
        tag = line << FLAG_BITS
        store = kind >> 1
        first = first_in(l1, kind, line)
        if words[at(first)] | store ^ DIRTY == tag | DIRTY:
            continue
        ways = ways_in(l1, kind)
        found = matches(words, first, ways, tag, ~FLAGS)
        is_hit = 1 if found != 0 else 0
        way = lowest(found | 1 << (ways - 1))
        old = words[at(first + way)]
        flags = old & is_hit
        move(words, first, ways, way, tag | flags | store)
        ahead[at(Ahead.FIRST + logged)] = first
        ahead[at(Ahead.WAY + logged)] = way
        ahead[at(Ahead.OLD + logged)] = old
        ahead[at(Ahead.OP + logged)] = each << 1 | is_hit
        ahead[at(Ahead.MISSES + missed)] = logged
        logged += 1
        missed += (store & ~flags) | (is_hit ^ 1)
    ahead[Ahead.LENGTH] = logged
    return missed


@jit
def _undo(words: NDArray[np.int64], first: int, way: int, old: int) -> None:
    """Take back that `way` came to the front of a row, in place."""
    for word in range(first, first + way):
        words[word] = words[word + 1]
    words[first + way] = old


@jit
def _may_hold(view: View, line: int) -> bool:
    """Tell whether L1 may have held a line when the miss being settled occurred."""
    ahead = view.ahead
    for place in range(ahead[Ahead.SETTLING], ahead[Ahead.LENGTH]):
        if ahead[at(Ahead.OLD + place)] >> FLAG_BITS == line:
            return True
    first = row_of(view, view.cpu, view.l1i, line)
    if find(view.words, first, view.l1i.ways, line) >= 0:
        return True
    first = row_of(view, view.cpu, view.l1d, line)
    return bool(find(view.words, first, view.l1d.ways, line) >= 0)


@jit_apart
def recall(view: View, line: int) -> None:
    """Bring L1 back to where the miss being settled occurred if it may have held a line then."""
    if not _may_hold(view, line):
        return
    ahead = view.ahead
    for place in range(ahead[Ahead.LENGTH] - 1, ahead[Ahead.SETTLING] - 1, -1):
        first, way = ahead[Ahead.FIRST + place], ahead[Ahead.WAY + place]
        _undo(view.words, first, way, ahead[Ahead.OLD + place])
    ahead[Ahead.LENGTH] = ahead[Ahead.SETTLING]
