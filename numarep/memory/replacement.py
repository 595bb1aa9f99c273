"""Which line of a row a cache gives up: LRU, tree-PLRU, SRRIP.

The one home of the policies: `enter` is an access to a way, `room` the way a new line goes to,
`drop` an invalidation, `take_back` undoes an `enter`. A row is its ways and, if the policy keeps
more than their order, `MORE_WORDS` behind them. Equal rows behave alike from now on.

- LRU (see `recency`): the order of use, empty ways last.
- TREE_PLRU: a binary tree over the ways; each node points at one half, away from the last used.
  The victim is the way the pointers lead to. Of empty ways the one goes first that the pointers,
  followed as far as that is possible, lead to. Hardware keeps lines in place and turns pointers;
  here each node's halves are exchanged instead when the pointer would turn, so that all pointers
  always lead to the last way: the order of the row is all there is, as of any permutation policy.
  The way used goes to the front, by an exchange of halves at each node where it is in the back one,
  from the root on. An invalidation leaves the tree alone, so gaps stay where they are.
- SRRIP, hit priority, two bits: each way has a prediction of how far off its next use is, 0 to 3. A
  line enters at 2 ("long"), a hit sets 0. The victim is the first way at 3; if there is none all
  grow by one until there is. Empty ways are filled first, the first of them, and nothing grows. The
  words behind the ways hold the high and the low bits, a bit a way; those of empty ways, and all
  beyond the row's ways, are set. (So both are negative, and match no line.)

A second access to the last line used changes nothing, but for the first hit after a fill in SRRIP:
an entry at the front of an LRU row stays there; the way at a PLRU row's front is in no back half;
0 is set to 0. So `runs` may skip it, except where `counts_hits` says otherwise.

Where the policy is None it is LRU, and the others aren't compiled.

Source: Abel and Reineke, "Measurement-based Modeling of the Cache Replacement Policy", RTAS 2013
(PLRU as a permutation policy); Jaleel et al., "High Performance Cache Replacement Using Re-
Reference Interval Prediction", ISCA 2010 (SRRIP-HP). Assumed: what is filled when ways are empty,
in PLRU; prefetches enter like any other line; writebacks and snoops are no uses. PLRU's ways are a
power of two, as what hardware does with others is not public (`spec` refuses them). A record of a
trace, however many references it stands for, is one use of its line.

>>> words = np.full(words_of(4, Policy.SRRIP), EMPTY)
>>> enter(words, 0, 4, Policy.SRRIP, room(words, 0, 4, Policy.SRRIP), 5 << FLAG_BITS, 0)
>>> [int(words[4] & 1), int(words[5] & 1), room(words, 0, 4, Policy.SRRIP)]
[1, 0, 1]
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit, jit_apart
from numarep.memory import recency
from numarep.memory.recency import ALL, EMPTY, FLAG_BITS, matches, move, pitch_of
from numarep.memory.vector import at, lowest

__all__ = [
    "FLAG_BITS",
    "MORE_WORDS",
    "Policy",
    "counts_hits",
    "drop",
    "enter",
    "push",
    "room",
    "take_back",
    "touch",
    "words_of",
]

MORE_WORDS = 2  # behind a row's ways in SRRIP: the predictions' high and low bits


class Policy(IntEnum):
    """Replacement policies by the names of `CacheSpec.replacement`."""

    LRU = 0
    TREE_PLRU = 1
    SRRIP = 2


def words_of(ways: int, policy: int) -> int:
    """Return how many words rows of so many ways lie apart under a policy."""
    return pitch_of(ways + MORE_WORDS if policy == Policy.SRRIP else ways)


@jit
def counts_hits(policy: int | None) -> bool:
    """Tell whether a hit on the last line used, just filled, changes something."""
    if policy is None:
        return False
    return policy == Policy.SRRIP


@jit
def _exchange(words: NDArray[np.int64], first: int, half: int, way: int) -> None:
    """Exchange two neighbours of `half` words each if `way` is in the second, in place."""
    mask = 0 - (way // half & 1)
    for word in range(first, first + half):
        changed = (words[at(word)] ^ words[at(word + half)]) & mask
        words[at(word)] ^= changed
        words[at(word + half)] ^= changed


@jit
def _to_front(words: NDArray[np.int64], first: int, ways: int, way: int) -> None:
    """Turn all pointers on the path to `way` away from it, in place."""
    if ways > 8:
        if ways > 16:
            _exchange(words, first, 16, way)
        _exchange(words, first, 8, way)
    _exchange(words, first, 4, way)
    _exchange(words, first, 2, way)
    _exchange(words, first, 1, way)


@jit
def _from_front(words: NDArray[np.int64], first: int, ways: int, way: int) -> None:
    """Take `_to_front` back, in place."""
    _exchange(words, first, 1, way)
    _exchange(words, first, 2, way)
    _exchange(words, first, 4, way)
    if ways > 8:
        _exchange(words, first, 8, way)
        if ways > 16:
            _exchange(words, first, 16, way)


@jit
def _oldest(words: NDArray[np.int64], first: int, ways: int) -> int:
    """Return the first way of a full SRRIP row at 3, once all have grown as needed; in place."""
    high, low = words[at(first + ways)], words[at(first + ways + 1)]
    beyond = -1 << ways
    while high & low & ~beyond == 0:
        high, low = high ^ low | beyond, ~low | beyond
    words[at(first + ways)], words[at(first + ways + 1)] = high, low
    return int(lowest(high & low))


@jit
def room(words: NDArray[np.int64], first: int, ways: int, policy: int | None) -> int:
    """Return the way that a new line goes to; predictions of the row may grow, in place."""
    if policy is None:
        return ways - 1
    if policy == Policy.LRU:
        return ways - 1
    empty = matches(words, first, ways, EMPTY, ALL) & ~(-1 << ways)
    if policy == Policy.SRRIP:
        return int(lowest(empty)) if empty != 0 else _oldest(words, first, ways)
    way = ways - 1
    while empty != 0 and empty >> way & 1 == 0:
        way -= 1
    return way


@jit
def enter(
    words: NDArray[np.int64],
    first: int,
    ways: int,
    policy: int | None,
    way: int,
    entry: int,
    is_hit: int,
) -> None:
    """Let a way of a row hold `entry`, just used, in place.

    `way` is where the line was (`is_hit` 1) or what `room` returned (0).
    """
    if policy is None:
        move(words, first, ways, way, entry)
        return
    if policy == Policy.LRU:
        move(words, first, ways, way, entry)
        return
    words[at(first + way)] = entry
    if policy == Policy.TREE_PLRU:
        _to_front(words, first, ways, way)
        return
    words[at(first + ways)] = words[at(first + ways)] & ~(1 << way) | (1 - is_hit) << way
    words[at(first + ways + 1)] &= ~(1 << way)


@jit
def take_back(
    words: NDArray[np.int64],
    first: int,
    ways: int,
    policy: int | None,
    way: int,
    old: int,
    high: int,
    low: int,
) -> None:
    """Undo `room` and `enter`, in place.

    `old` is what `way` held, `high` and `low` are what the words behind the ways were, if any.
    """
    if policy is None:
        recency.take_back(words, first, way, old)
        return
    if policy == Policy.LRU:
        recency.take_back(words, first, way, old)
        return
    if policy == Policy.TREE_PLRU:
        _from_front(words, first, ways, way)
    else:
        words[at(first + ways)], words[at(first + ways + 1)] = high, low
    words[at(first + way)] = old


@jit_apart
def _touch(words: NDArray[np.int64], first: int, ways: int, policy: int, way: int) -> int:
    enter(words, first, ways, policy, way, words[at(first + way)], 1)
    return way if policy == Policy.SRRIP else 0


@jit_apart
def _push(words: NDArray[np.int64], first: int, ways: int, policy: int, entry: int) -> int:
    way = room(words, first, ways, policy)
    victim = words[at(first + way)]
    enter(words, first, ways, policy, way, entry, 0)
    return int(victim)


@jit_apart
def _drop(words: NDArray[np.int64], first: int, ways: int, policy: int, way: int) -> None:
    if policy == Policy.LRU:
        recency.drop(words, first, ways, way)
        return
    words[at(first + way)] = EMPTY
    if policy == Policy.SRRIP:
        words[at(first + ways)] |= 1 << way
        words[at(first + ways + 1)] |= 1 << way


@jit
def touch(words: NDArray[np.int64], first: int, ways: int, policy: int | None, way: int) -> int:
    """Use the entry at `way` of a row, in place; return its way from then on."""
    if policy is None:
        recency.touch(words, first, ways, way)
        return 0
    return _touch(words, first, ways, policy, way)


@jit
def push(words: NDArray[np.int64], first: int, ways: int, policy: int | None, entry: int) -> int:
    """Fill `entry` into a row, in place; return the victim or EMPTY."""
    if policy is None:
        return recency.push(words, first, ways, entry)
    return _push(words, first, ways, policy, entry)


@jit
def drop(words: NDArray[np.int64], first: int, ways: int, policy: int | None, way: int) -> None:
    """Remove the entry at `way` of a row, in place."""
    if policy is None:
        recency.drop(words, first, ways, way)
        return
    _drop(words, first, ways, policy, way)
