"""Where everything lies: all CPUs' caches in one array, and how one CPU sees them.

All mutable state of the caches, TLBs and PSCs is one int64 array, `words`: a block of `stride`
words a modelled CPU, its socket's LLC included, all blocks laid out alike. A `Cache` says where in
a block its rows begin. One array and a few numbers are all that compiled functions pass around.

A line is pa >> 6; its row is `line % sets` at every level; an entry is
`line << FLAG_BITS | flags`. Flags: DIRTY at any level but L1I; in the LLC also the socket's right
to the line, as in MESIF: neither flag = exclusive or modified (only this socket holds it),
FORWARD = shared, and this socket answers for it, SHARED = shared, another answers or nobody does.
A dirty line is always exclusive.

Assumed: `line % sets` in the LLC, whose slice hash is undisclosed.

>>> ends = np.array([100, 100, 300])  # node 1 has no memory
>>> [int(home_of(pfn * LINES_PER_PAGE, ends)) for pfn in (99, 100)]
[0, 2]
>>> [int(row_number(line, sets, mask)) for line, sets, mask in ((13, 8, 7), (13, 6, -1))]
[5, 1]
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.units import LINES_PER_PAGE

DIRTY = 1
SHARED = 2
FORWARD = 4


class Cache(NamedTuple):
    """One cache's place in every CPU's block; mask is sets - 1 of a power of two, else -1."""

    offset: int
    sets: int
    ways: int
    mask: int


class View(NamedTuple):
    """What an access by one CPU reads and modifies.

    words : int64[cpus * stride]; events : int64[event], of the counts in use.
    cpu_node : int64[cpus]; node_end_pfn : int64[nodes], see `system.new_system`.
    This version models one CPU a socket, so a CPU's number is also that of its LLC.
    """

    words: NDArray[np.int64]
    events: NDArray[np.int64]
    cpu_node: NDArray[np.int64]
    node_end_pfn: NDArray[np.int64]
    stride: int
    cpu: int
    node: int
    l1i: Cache
    l1d: Cache
    l2: Cache
    llc: Cache


@jit
def row_number(number: int, sets: int, mask: int) -> int:
    """Return `number % sets`, without a division where sets is a power of two."""
    return number & mask if mask >= 0 else number % sets


@jit
def row_of(view: View, cpu: int, cache: Cache, line: int) -> int:
    """Return the first word of the row of a CPU's cache where a line belongs."""
    row = row_number(line, cache.sets, cache.mask)
    return cpu * view.stride + cache.offset + row * cache.ways


@jit
def home_of(line: int, node_end_pfn: NDArray[np.int64]) -> int:
    """Return the node whose memory holds a line: the first that ends above it."""
    pfn = line // LINES_PER_PAGE
    node = 0
    while pfn >= node_end_pfn[node]:
        node += 1
    return node
