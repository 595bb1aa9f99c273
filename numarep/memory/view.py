"""How one CPU sees the caches: its own, bound once, and everybody's, for coherence.

A cache is int64[sets, ways] per CPU (L1I, L1D, L2) or per socket (LLC) in recency order; an entry
is `line << FLAG_BITS | flags`. A line is pa >> 6 and its row `line % sets` at every level.

Flags: DIRTY at any level but L1I; in the LLC also the socket's right to the line, as in MESIF:
neither flag = exclusive or modified (only this socket holds it), FORWARD = shared, and this socket
answers for it, SHARED = shared, another answers or nobody does. A dirty line is always exclusive.

Assumed: `line % sets` in the LLC, whose slice hash is undisclosed.

>>> ends = np.array([100, 100, 300])  # node 1 has no memory
>>> [int(home_of(pfn * LINES_PER_PAGE, ends)) for pfn in (99, 100)]
[0, 2]
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.jit import jit
from numarep.units import LINES_PER_PAGE

DIRTY = 1
SHARED = 2
FORWARD = 4


class Caches(NamedTuple):
    """All caches of all modelled CPUs, each int64[cpus, sets, ways].

    This version models one CPU a socket, so a CPU's number is also that of its LLC.
    """

    l1i: NDArray[np.int64]
    l1d: NDArray[np.int64]
    l2: NDArray[np.int64]
    llc: NDArray[np.int64]


class View(NamedTuple):
    """What an access by one CPU reads and modifies.

    l1i, l1d, l2, llc : int64[sets, ways] of this CPU, slices of `caches`.
    cpu_node : int64[cpus]; node_end_pfn : int64[nodes], see `system.new_system`.
    events : int64[event] of the counts in use.
    """

    cpu: int
    node: int
    l1i: NDArray[np.int64]
    l1d: NDArray[np.int64]
    l2: NDArray[np.int64]
    llc: NDArray[np.int64]
    caches: Caches
    cpu_node: NDArray[np.int64]
    node_end_pfn: NDArray[np.int64]
    events: NDArray[np.int64]


@jit
def home_of(line: int, node_end_pfn: NDArray[np.int64]) -> int:
    """Return the node whose memory holds a line: the first that ends above it."""
    pfn = line // LINES_PER_PAGE
    node = 0
    while pfn >= node_end_pfn[node]:
        node += 1
    return node
