"""Where everything lies: all caches in one array, and how one CPU sees them.

All mutable state of the caches, TLBs and PSCs is one int64 array, `words`: a block of `stride`
words for each modelled CPU, then one of `shared_stride` for each domain, that is, for each LLC with
the CPUs that share it. All blocks of a kind are laid out alike. A `Cache` says where in its block
its rows begin. One array and a few numbers are all that compiled functions pass around.

A line is pa >> 6; its row is `line % sets` at every level; an entry is
`line << FLAG_BITS | flags`. DIRTY is a flag at any level but L1I and the snoop filter.

What knows every line that a domain's cores hold is its directory: an inclusive LLC itself, or the
snoop filter of a victim LLC. Its entries also carry the domain's right to the line, as in MESIF:
neither flag = exclusive or modified (only this domain holds it), FORWARD = shared, and this domain
answers for it, SHARED = shared, another answers or nobody does; and, of an exclusive line, the
owner: 1 + the one CPU of the domain that may have changed it since, 0 = none has. Only exclusive
lines are dirty or owned. A line that only a victim LLC holds has its right there, without owner.

Assumed: `line % sets` in the LLC and the snoop filter, whose slice hash is undisclosed.

With sub-NUMA clusters the rows of a socket's LLC, and of its snoop filter, are in equal shares:
lines of a node's memory are in the one of its cluster, in row `line % share` of that, whichever
core of the socket uses them; lines of other sockets' memory are in all rows, as without clusters.
Source: Linux, arch/x86/kernel/smpboot.c, comment on intel_cod_cpu: the LLC is "shared for
off-package data access but private to the NUMA node (half of the package) for on-package access";
Luck, linux-kernel, 28 February 2023, "x86/resctrl: Add support for Sub-NUMA cluster (SNC) systems":
shares are of the index, not of the ways, and are used by the other node of the socket, too.

>>> place = placed([100, 100, 300], [0, 1, 0], [0, 0, 1])  # node 1 has no memory
>>> [int(home_of(pfn * LINES_PER_PAGE, place)) for pfn in (99, 100)]
[0, 2]
>>> is_memory_of(1, 2, place), is_memory_of(0, 2, place)
(True, False)
>>> [_row_in_share(5, 5, 4, 2**46, domain, place) for domain in (0, 1)]  # in the first of 2 shares
[1, 5]
>>> cache = new_cache(0, sets=6, ways=8)
>>> [row_number(line, cache) for line in (5, 6, 13, 2**52 - 1)], (2**52 - 1) % 6
([5, 0, 1, 3], 3)
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numarep.jit import jit, jit_rare
from numarep.memory.batch import NODE_BITS, OPS
from numarep.memory.recency import FLAG_BITS, find
from numarep.memory.replacement import Policy, counts_hits, words_of
from numarep.memory.vector import LANES, at, high
from numarep.units import LINES_PER_PAGE

DIRTY = 1
SHARED = 2
FORWARD = 4
NOT_ALONE = SHARED | FORWARD
OWNER_SHIFT = 3
OWNER = (1 << FLAG_BITS) - (1 << OWNER_SHIFT)
MOST_CPUS = (1 << (FLAG_BITS - OWNER_SHIFT)) - 1
ABSENT = -1
NODE_MASK = (1 << NODE_BITS) - 1
DOMAIN_BITS = NODE_BITS + 1  # for none, too
DOMAIN_MASK = (1 << DOMAIN_BITS) - 1
END_SHIFT = DOMAIN_BITS + NODE_BITS
LINE_OF_PAGE_BITS = LINES_PER_PAGE.bit_length() - 1

SHARE_BITS = 48
LISTED = 128  # lines that are flagged at once (see `dirty`)


class Cache(NamedTuple):
    """One cache's place in every block, of a CPU or of a domain."""

    offset: int
    sets: int
    ways: int
    mask: int  # sets - 1 of a power of two, else -1
    inverse: int  # see `row_number`
    shift: int
    pitch: int  # words from row to row
    policy: int | None  # see `replacement`; None is LRU, known when compiled
    share: int  # rows of each cluster
    shares: int  # see `_row_in_share`


def new_cache(
    offset: int, sets: int, ways: int, policy: int = Policy.LRU, clusters: int = 1
) -> Cache:
    """Return the place of a cache."""
    share = sets // clusters
    mask = sets - 1 if sets & (sets - 1) == 0 else -1
    shift = sets.bit_length() - 1
    inverse = -(-(1 << 64 + shift) // sets) - (1 << 64)  # as a signed word
    shares = -(-(1 << SHARE_BITS) // share)
    pitch = words_of(ways, policy)
    return Cache(offset, sets, ways, mask, inverse, shift, pitch, int(policy), share, shares)


class At(IntEnum):
    """Columns of a small table of where structures of one CPU lie, for choosing among them."""

    FIRST = 0  # word of its first row
    SETS = 1
    MASK = 2
    PITCH = 3
    WAYS = 4
    POLICY = 5  # of caches


AT_BITS = 3  # of the words a row of such a table is long


def table_of(start: int, structures: Sequence[Any]) -> NDArray[np.int64]:
    """Return where caches or TLBs of the CPU whose block is at `start` lie, int64[n * 8]."""
    table = np.zeros((len(structures), 1 << AT_BITS), np.int64)
    for row, each in enumerate(structures):
        policy = each.policy if isinstance(each, Cache) else None
        place = (start + each.offset, each.sets, each.mask, each.pitch, each.ways, policy or 0)
        table[row, : len(place)] = place
    return table.reshape(-1)


@jit
def first_in(table: NDArray[np.int64], which: int, number: int) -> int:
    """Return the first word of the row where a line or page belongs in one of the structures."""
    here = which << AT_BITS
    mask = table[at(here + At.MASK)]
    row = number & mask if mask >= 0 else number % table[at(here + At.SETS)]
    return int(table[at(here + At.FIRST)] + row * table[at(here + At.PITCH)])


@jit
def first_in_eights(table: NDArray[np.int64], which: int, number: int) -> int:
    """Return the same of one that is a power of two of rows, eight words apart."""
    here = which << AT_BITS
    return int(table[at(here + At.FIRST)] + (number & table[at(here + At.MASK)]) * LANES)


@jit
def ways_in(table: NDArray[np.int64], which: int) -> int:
    """Return how many ways one of the structures has."""
    return int(table[at((which << AT_BITS) + At.WAYS)])


@jit
def rows_in(table: NDArray[np.int64], which: int) -> int:
    """Return how many rows one of the structures has."""
    return int(table[at((which << AT_BITS) + At.SETS)])


@jit
def policy_in(table: NDArray[np.int64], which: int) -> int:
    """Return the replacement policy of one of the caches."""
    return int(table[at((which << AT_BITS) + At.POLICY)])


class Ahead(IntEnum):
    """Parts of the log of L1's run-ahead (see `ahead`), OPS words each, in one array.

    An entry for each operation, at its number, what the log itself has got to, and the lines that
    `dirty` lists. (One array, because compiled functions pass each array they are given as seven
    numbers.)
    """

    USED = 0  # see `ahead.used`
    OLD = OPS  # what it held
    ROW = 2 * OPS  # of a miss, the row in the own directory where its line belongs
    HIGH = 3 * OPS  # what the words behind the row's ways were, if its policy has any
    LOW = 4 * OPS
    MISSES = 5 * OPS  # in order, the operations that L1 couldn't settle
    STOP = 6 * OPS  # the operation that L1 has run up to
    SETTLING = 6 * OPS + 1  # the one whose miss is being settled
    PENDING = 6 * OPS + 2  # how many lines are listed
    DIRTIED = 6 * OPS + 3  # and which
    END = 6 * OPS + 3 + LISTED


class View(NamedTuple):
    """What an access by one CPU reads and modifies.

    What a machine lacks is None. That is a type, so it's known when compiled: Numba leaves out
    what follows `if victim is None: return` in a function that is passed it. So the plain machines
    have code of their own, compiled faster, without questions they needn't ask.

    words : int64[cpus * stride + domains * shared_stride]; events : int64[event], of the counts.
    cpu_place : int64[cpus], domain << 8 | node, see `domain_of`, `node_of`.
    node_place : int64[nodes], see `placed`.
    shared : where the domains' blocks begin. clusters : of each, 1 = none.
    cpu, node, domain : of the CPU that runs.
    directory : the inclusive LLC, or the snoop filter. victim : the LLC behind that filter.
    l1 : `table_of` L1 as fetches, loads and stores see it.
    ahead : int64[Ahead.END], what the run-ahead of L1 may have to take back.
    prefetch : see `prefetch`; streams : first word of the CPU's streams, see `streamer`.
    """

    words: NDArray[np.int64]
    events: NDArray[np.int64]
    cpu_place: NDArray[np.int64]
    node_place: NDArray[np.int64]
    stride: int
    shared: int
    shared_stride: int
    domains: int
    clusters: int
    cpu: int
    node: int
    domain: int
    l1i: Cache
    l1d: Cache
    l2: Cache
    directory: Cache
    victim: Cache | None
    ahead: NDArray[np.int64]
    l1: NDArray[np.int64]
    prefetch: int | None
    streams: int


@jit
def may_skip(view: View) -> bool:
    """Tell whether an access just like the one before it surely hits L1 and changes nothing.

    A prefetch may evict the very line that caused it from an LLC of few ways.
    """
    is_counted = counts_hits(view.l1i.policy) or counts_hits(view.l1d.policy)
    return view.prefetch is None and not is_counted


@jit
def node_of(view: View, cpu: int) -> int:
    """Return the node of a CPU."""
    return int(view.cpu_place[cpu] & NODE_MASK)


@jit
def domain_of(view: View, cpu: int) -> int:
    """Return the domain of a CPU."""
    return int(view.cpu_place[cpu] >> NODE_BITS)


@jit
def row_number(line: int, cache: Cache) -> int:
    """Return `line % sets` of a line that isn't negative, without a division.

    `inverse` is 2^(64 + shift) / sets rounded up, by e < sets <= 2^(shift + 1), modulo 2^64. So the
    product is too great by line * e / sets / 2^(64 + shift), less than the 1 / sets by which it
    would reach another quotient, for all lines below 2^63.
    """
    if cache.mask >= 0:
        return line & cache.mask
    return line - (high(line, cache.inverse) >> cache.shift) * cache.sets


@jit
def row_of(view: View, cpu: int, cache: Cache, line: int) -> int:
    """Return the first word of the row of a CPU's cache where a line belongs."""
    row = row_number(line, cache)
    return cpu * view.stride + cache.offset + row * cache.pitch


@jit
def shared_row_of(view: View, domain: int, cache: Cache, line: int) -> int:
    """Return the first word of the row of a domain's LLC or snoop filter where a line belongs."""
    row = row_number(line, cache)
    if view.clusters > 1:
        row = _row_in_share(line, row, cache.share, cache.shares, domain, view.node_place)
    return view.shared + domain * view.shared_stride + cache.offset + row * cache.pitch


@jit
def word_in(view: View, domain: int, cache: Cache | None, line: int) -> int:
    """Return the word that holds a line in a domain's cache, if there are both, or ABSENT."""
    if cache is None:
        return ABSENT
    first = shared_row_of(view, domain, cache, line)
    way = find(view.words, first, cache.ways, line)
    return first + way if way >= 0 else ABSENT


def placed(end_pfn: ArrayLike, cluster: ArrayLike, domain: ArrayLike) -> NDArray[np.int64]:
    """Pack what compiled code asks of each node's memory, int64[nodes].

    Where it ends, its cluster in its socket, and the domain of that socket or node, or ABSENT.
    """
    of_cpus = np.asarray(domain, np.int64) + 1
    return np.asarray(end_pfn, np.int64) << END_SHIFT | np.asarray(cluster) << DOMAIN_BITS | of_cpus


@jit
def home_of(line: int, node_place: NDArray[np.int64]) -> int:
    """Return the node whose memory holds a line: the first that ends above it."""
    pfn = line >> LINE_OF_PAGE_BITS
    node = 0
    while pfn >= node_place[node] >> END_SHIFT:
        node += 1
    return node


@jit
def is_memory_of(domain: int, node: int, node_place: NDArray[np.int64]) -> bool:
    """Tell whether a node's memory is that of a domain."""
    return bool(node_place[node] & DOMAIN_MASK == domain + 1)


@jit_rare
def _row_in_share(
    line: int, row: int, share: int, shares: int, domain: int, node_place: NDArray[np.int64]
) -> int:
    """Return the row of a domain's LLC where a line belongs, `row` if it weren't for clusters.

    `shares` is 2^48 / share rounded up: `row * shares >> 48` is `row // share` while the number of
    rows times `share` is below 2^48 (see `row_number`).
    """
    home = home_of(line, node_place)
    if not is_memory_of(domain, home, node_place):
        return row
    cluster = int(node_place[home] >> DOMAIN_BITS & NODE_MASK)
    return row + (cluster - (row * shares >> SHARE_BITS)) * share
