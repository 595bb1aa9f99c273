"""L1 runs ahead of the levels beyond it, and comes back where they take a line from it.

L1I and L1D settle a whole batch of operations (`run_ahead`) before L2 and the LLC see what missed:
a short loop without a branch that can't be foreseen, instead of a path through the whole hierarchy
at every access.

Proof obligation: the outcome is that of one access at a time. L1 depends on the levels beyond it
only through lines they take from it, and one CPU runs at a time: no other core loads or stores
meanwhile. So lines are taken only by what the running CPU's own misses evict from that which
includes L1: an inclusive LLC, or a snoop filter and the L2 above it (see `victim`). Whatever evicts
a line while miss t is settled calls `recall`, before it looks at L1, to ask whether L1 held the
line at t. If it did, it either still does, or has given it up at or after t, in which case the log
says so. So if neither is found, it held no such line and nothing changes. Otherwise the log is
undone, newest first, down to t: L1 is then exactly as it was before t; the line is dropped, and
`run_ahead` starts again at t. A second line evicted for the same miss finds the log undone already.
Every operation is logged with all that undoing it takes (see `replacement`): the row, the way
entered, what that held, and what the policy knew besides the order.

>>> word = used(first=800, way=11, is_hit=1)
>>> first_of(word), way_of(word), hit_of(word)
(800, 11, 1)
"""

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory.batch import Batch, kind_of, line_of, served_by
from numarep.memory.counts import Service
from numarep.memory.recency import FLAG_BITS, FLAGS, find, matches
from numarep.memory.replacement import counts_hits, enter, room, take_back
from numarep.memory.vector import LANES, at, lowest, match
from numarep.memory.view import (
    Ahead,
    View,
    first_in,
    first_in_eights,
    policy_in,
    row_of,
    ways_in,
)

WAY_BITS = 8


@jit
def used(first: int, way: int, is_hit: int) -> int:
    """Pack which way of a row an operation used, and whether that was a hit."""
    return (first << WAY_BITS | way) << 1 | is_hit


@jit
def first_of(used: int) -> int:
    """Return the first word of the row used."""
    return used >> (WAY_BITS + 1)


@jit
def way_of(used: int) -> int:
    """Return the way used."""
    return used >> 1 & ((1 << WAY_BITS) - 1)


@jit
def hit_of(used: int) -> int:
    """Return 1 if it was a hit, else 0."""
    return used & 1


@jit
def _policy_of(known: int | None, l1: NDArray[np.int64], kind: int) -> int | None:
    """Return the policy of the L1 that sees a kind of access: as `view` has it, None if known."""
    if known is None:
        return None
    return policy_in(l1, kind)


@jit
def _way_for(
    words: NDArray[np.int64], first: int, ways: int, policy: int | None, found: int
) -> int:
    """Return the way that an access uses, given a bit for each that has its line."""
    if policy is None:  # without a branch, as nobody can foresee hits
        return int(lowest(found | 1 << (ways - 1)))
    return int(lowest(found)) if found != 0 else room(words, first, ways, policy)


@jit
def _are_plain(view: View) -> bool:
    """Tell whether L1I and L1D are LRU rows of eight, a power of two of them, as most are."""
    if view.l1d.policy is not None:
        return False
    is_eight = view.l1i.ways == LANES and view.l1d.ways == LANES
    return is_eight and view.l1i.mask >= 0 and view.l1d.mask >= 0


@jit
def _row_for(ways: int | None, l1: NDArray[np.int64], kind: int, line: int) -> tuple[int, int]:
    """Return the first word of the row that sees an access, and its ways: any, or those known."""
    if ways is None:
        return first_in(l1, kind, line), ways_in(l1, kind)
    return first_in_eights(l1, kind, line), ways


@jit
def _run(
    view: View, batch: NDArray[np.int64], op: int, stop: int, missed: int, known: int | None
) -> int:
    """Run ahead, as below, through L1s of any kind, or plain ones of so many ways."""
    words, ahead, l1 = view.words, view.ahead, view.l1
    for each in range(op, stop):
        line, kind = line_of(batch[at(Batch.OP + each)]), kind_of(batch[at(Batch.OP + each)])
        tag = line << FLAG_BITS
        store = kind >> 1
        first, ways = _row_for(known, l1, kind, line)
        policy = _policy_of(view.l1d.policy, l1, kind)
        found = matches(words, first, ways, tag, ~FLAGS)
        is_hit = 1 if found != 0 else 0
        if counts_hits(policy):
            ahead[at(Ahead.HIGH + each)] = words[at(first + ways)]
            ahead[at(Ahead.LOW + each)] = words[at(first + ways + 1)]
        way = _way_for(words, first, ways, policy, found)
        old = words[at(first + way)]
        flags = old & is_hit
        enter(words, first, ways, policy, way, tag | flags | store, is_hit)
        ahead[at(Ahead.USED + each)] = used(first, way, is_hit)
        ahead[at(Ahead.OLD + each)] = old
        ahead[at(Ahead.MISSES + missed)] = each
        missed += (store & ~flags) | (is_hit ^ 1)
    return missed


@jit_apart
def run_ahead(view: View, batch: NDArray[np.int64], op: int, stop: int, missed: int) -> int:
    """Send operations [op, stop) through L1I and L1D; caches and log are modified in place.

    Parameters
    ----------
    batch : int64[Batch.END]
        OP is read; SERVED_BY becomes L1 for each, whatever they turn out to be.
    missed : int
        Number of misses logged already.

    Returns
    -------
    int
        Number of misses logged: accesses to be served by L2, and first stores to clean lines.
    """
    by_l1 = served_by(Service.L1.value, view.node)
    for each in range(op, stop):
        batch[at(Batch.SERVED_BY + each)] = by_l1
    view.ahead[Ahead.STOP] = stop
    # Of plain ones all is known when compiled: no questions, a whole run 2 to 3 % faster.
    if _are_plain(view):
        return _run(view, batch, op, stop, missed, LANES)
    return _run(view, batch, op, stop, missed, None)


@jit
def _was_given_up(view: View, line: int) -> bool:
    """Tell whether L1 gave a line up since the miss being settled."""
    ahead, tag = view.ahead, line << FLAG_BITS
    stop = int(ahead[Ahead.STOP])
    for op in range(ahead[Ahead.SETTLING], stop, LANES):
        found = match(ahead, Ahead.OLD + op, tag, ~FLAGS)
        if found & ((1 << min(stop - op, LANES)) - 1) != 0:
            return True
    return False


@jit
def _may_hold(view: View, line: int) -> bool:
    """Tell whether L1 may have held a line when the miss being settled occurred."""
    l1i = row_of(view, view.cpu, view.l1i, line)
    l1d = row_of(view, view.cpu, view.l1d, line)
    is_held = find(view.words, l1i, view.l1i.ways, line) >= 0
    is_held |= find(view.words, l1d, view.l1d.ways, line) >= 0
    return is_held or _was_given_up(view, line)


@jit
def recall(view: View, line: int) -> bool:
    """Bring L1 back to where the miss being settled occurred if it may have held a line then.

    Tell whether it may have; if not it doesn't hold the line now.
    """
    if not _may_hold(view, line):
        return False
    _take_back(view)
    return True


@jit_apart
def _take_back(view: View) -> None:
    """Bring L1 back to where the miss being settled occurred."""
    ahead, end_of_l1i = view.ahead, row_of(view, view.cpu, view.l1d, 0)
    for op in range(ahead[Ahead.STOP] - 1, ahead[Ahead.SETTLING] - 1, -1):
        word = ahead[Ahead.USED + op]
        first = first_of(word)
        l1 = view.l1i if first < end_of_l1i else view.l1d
        take_back(
            *(view.words, first, l1.ways, l1.policy, way_of(word)),
            *(ahead[Ahead.OLD + op], ahead[Ahead.HIGH + op], ahead[Ahead.LOW + op]),
        )
    ahead[Ahead.STOP] = ahead[Ahead.SETTLING]
