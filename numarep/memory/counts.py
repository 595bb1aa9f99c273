"""What the core counts, and the axes of the arrays it counts in.

Counting knows no latency: `served` says how often each kind of access was served by which level,
`events` how often everything else happened. `numarep.price` turns both into time. The lower-case
names of the enums are the names used in results.

Laws that hold for every `Counts`:

- every reference is served once: `served[FETCH..STORE, level 0]` sums to REFERENCES;
- every reference looks up its TLB once: ITLB hits + misses = fetches, DTLB hits + misses = data;
- every miss is settled once: ITLB misses = STLB_FETCH_HITS + FETCH_WALKS, and so for data;
- every walk starts somewhere: FETCH_WALKS + DATA_WALKS = hits of the three PSCs + PSC_MISSES;
- with functions counted, what L1 didn't serve: `functions` summed over functions is `served`
  summed over levels and regions, but for data and fetches served by L1.

>>> counts = new_counts(nodes=2, regions=3)
>>> counts.served.shape
(6, 6, 3, 8, 2, 2)
>>> Access.LOAD_WALK.name.lower(), len(counts.events) == len(Event)
('load_walk', True)
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numarep.units import MAX_LEVELS


class Access(IntEnum):
    """Who reads or writes memory: the first three as `Kind`, then the walks they cause."""

    FETCH = 0
    LOAD = 1
    STORE = 2
    FETCH_WALK = 3
    LOAD_WALK = 4
    STORE_WALK = 5


class Service(IntEnum):
    """Which level of the hierarchy served an access, from near to far."""

    L1 = 0
    L2 = 1
    LLC = 2
    PEER = 3  # another core that shares the LLC; node = that core's
    REMOTE_LLC = 4  # another LLC, a clean line; node = that of its first modelled CPU
    REMOTE_DIRTY = 5  # the same of a line changed there, which is a line of that LLC's memory
    REMOTE_DIRTY_AWAY = 6  # the same of a line of other memory: the reader's, or a third node's
    DRAM = 7  # node = the home node


FORWARDED = (Service.REMOTE_LLC, Service.REMOTE_DIRTY, Service.REMOTE_DIRTY_AWAY)


class Overlap(IntEnum):
    """Whether an access is exposed or hidden behind an earlier one (see `interval`)."""

    LEADING = 0
    OVERLAPPED = 1


class Event(IntEnum):
    """Everything counted that is not an access."""

    INSTRUCTIONS = 0
    REFERENCES = 1  # accesses made, a straddling instruction's second line included
    ITLB_HITS = 2
    ITLB_MISSES = 3
    DTLB_HITS = 4
    DTLB_MISSES = 5
    STLB_FETCH_HITS = 6
    STLB_DATA_HITS = 7
    FETCH_WALKS = 8
    DATA_WALKS = 9
    PSC_PMD_HITS = 10
    PSC_PUD_HITS = 11
    PSC_PGD_HITS = 12
    PSC_MISSES = 13  # walks that began at the root
    CR3_WRITES = 14
    INVLPGS = 15
    TLB_FLUSHES = 16
    L2_EVICTIONS = 17
    LLC_EVICTIONS = 18
    BACK_INVALIDATIONS = 19  # copies dropped because what includes them evicted the line
    UPGRADES = 20  # stores to a line the own LLC's CPUs held, but not alone
    REMOTE_INVALIDATIONS = 21  # other LLCs that lost a line, with all above them, to a store
    WRITEBACKS = 22  # of lines to DRAM
    PREFETCHES = 23  # lines brought into L2 that nobody asked for; served to nobody
    IPIS = 24  # rounds of interrupts to all other CPUs, each waited for
    PEER_INVALIDATIONS = 25  # copies in other cores under the own LLC dropped by stores
    FILTER_EVICTIONS = 26  # of snoop filter entries


class Counts(NamedTuple):
    """Counters, modified in place by the core.

    served : int64[access, level, region, served_by, node, overlap]; level 0 is the access itself,
        1 to 5 a walk's read of that level; region is that of the va accessed or translated.
    events : int64[event]
    functions : int64[function, access, served_by, node, overlap]; of the same accesses those that
        missed L1, by the function of the record (see `batch.Stream`); no rows if not wanted.
    """

    served: NDArray[np.int64]
    events: NDArray[np.int64]
    functions: NDArray[np.int64]


def new_counts(nodes: int, regions: int, functions: int = 0) -> Counts:
    """Return zeroed counters for so many nodes, address regions and functions."""
    place = (len(Service), nodes, len(Overlap))
    return Counts(
        np.zeros((len(Access), MAX_LEVELS + 1, regions, *place), np.int64),
        np.zeros(len(Event), np.int64),
        np.zeros((functions, len(Access), *place), np.int64),
    )
