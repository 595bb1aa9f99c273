"""The machine: caches, TLBs, core and latencies, and what makes them impossible.

>>> TlbSpec(entries=64, ways=4).sets
16
"""

import dataclasses
import itertools
from typing import Any, Literal

from numarep.spec.base import Spec, require, require_positive
from numarep.units import LINE_BYTES

MOST_WAYS = 32  # the core compares all ways of a row at once (see memory.recency)
MOST_NODES = 256  # the core names a node in 8 bits (see memory.batch)
# Far more than any part has (EPYC 9684X: 1.1 GiB a socket, 3072 TLB entries), and still simulated.
MOST_CACHE_BYTES = 1 << 32
MOST_ENTRIES = 1 << 20


def _require_few_ways(ways: int) -> None:
    require(ways <= MOST_WAYS, f"ways: expected at most {MOST_WAYS}, got {ways}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSpec(Spec):
    """A set-associative cache of 64-byte lines; the row is `line % sets`.

    `replacement` is which line of a row makes room for another (see memory.replacement).
    """

    size_bytes: int
    ways: int
    replacement: Literal["lru", "tree_plru", "srrip"]

    def __post_init__(self) -> None:
        """Refuse a geometry that can't exist."""
        require_positive(self, "size_bytes", "ways")
        _require_few_ways(self.ways)
        require(
            self.size_bytes <= MOST_CACHE_BYTES,
            f"size_bytes: expected at most {MOST_CACHE_BYTES}, got {self.size_bytes}",
        )
        require(
            self.replacement != "tree_plru" or self.ways & (self.ways - 1) == 0,
            f"ways: expected a power of two of a cache with tree_plru, got {self.ways}",
        )
        require(
            self.size_bytes % (self.ways * LINE_BYTES) == 0,
            f"size_bytes: {self.size_bytes} is not a whole number of sets of {self.ways} ways "
            f"of {LINE_BYTES} bytes",
        )

    @property
    def sets(self) -> int:
        """Number of sets (need not be a power of two)."""
        return self.size_bytes // (self.ways * LINE_BYTES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlcSpec(CacheSpec):
    """A last-level cache, one for each node or each socket, and how it relates to the L2s above.

    inclusive: it holds every line that its CPUs' caches hold. victim: it is filled by what leaves
    the L2s, and a snoop filter holds the number of every line in them; `snoop_filter.size_bytes`
    is how much cache the filter can cover. clusters: of sub-NUMA clustering, one for each node of
    a socket, with an equal share of the slices each, LLC and snoop filter; lines of a node's memory
    lie in its cluster's only, whoever uses them, lines of other sockets' memory in all.
    """

    shared_by: Literal["node", "socket"]
    policy: Literal["inclusive", "victim"]
    clusters: int = 1
    snoop_filter: CacheSpec | None = None  # of a victim LLC only

    def __post_init__(self) -> None:
        """Refuse a geometry that can't exist, and a filter without need or a need without one."""
        super().__post_init__()
        is_victim, has_filter = self.policy == "victim", self.snoop_filter is not None
        require(not is_victim or has_filter, "snoop_filter: missing, a victim LLC needs one")
        require(
            is_victim or not has_filter,
            "snoop_filter: expected none, because an inclusive LLC knows what its L2s hold",
        )
        self._require_shares()

    def _require_shares(self) -> None:
        """Refuse clusters that can't have an equal share each."""
        require_positive(self, "clusters")
        require(
            self.clusters == 1 or self.shared_by == "socket",
            f"clusters: expected 1 of an LLC that is shared by a {self.shared_by}, got "
            f"{self.clusters}",
        )
        sliced = {"size_bytes": self, "snoop_filter.size_bytes": self.snoop_filter}
        for name, cache in sliced.items():
            require(
                cache is None or cache.sets % self.clusters == 0,
                f"{name}: {cache and cache.sets} sets are no equal share for each of "
                f"{self.clusters} clusters",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TlbSpec(Spec):
    """A TLB or paging-structure cache; fully associative when `ways == entries`."""

    entries: int
    ways: int

    def __post_init__(self) -> None:
        """Refuse a geometry that can't exist."""
        require_positive(self, "entries", "ways")
        _require_few_ways(self.ways)
        require(
            self.entries <= MOST_ENTRIES,
            f"entries: expected at most {MOST_ENTRIES}, got {self.entries}",
        )
        require(
            self.entries % self.ways == 0,
            f"entries: {self.entries} is not a multiple of ways ({self.ways})",
        )

    @property
    def sets(self) -> int:
        """Number of sets."""
        return self.entries // self.ways


@dataclasses.dataclass(frozen=True, kw_only=True)
class TlbsSpec(Spec):
    """First-level TLBs by page size, and the second level, shared by instructions and data.

    `stlb` holds 4K pages and, if `stlb_holds_2m`, 2M pages beside them; `stlb_1g` holds 1G pages,
    null: nothing beyond the first level does.
    """

    itlb_4k: TlbSpec
    itlb_2m: TlbSpec
    dtlb_4k: TlbSpec
    dtlb_2m: TlbSpec
    dtlb_1g: TlbSpec
    stlb: TlbSpec
    stlb_holds_2m: bool
    stlb_1g: TlbSpec | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PscSpec(Spec):
    """Paging-structure caches: non-leaf PGD, PUD and PMD entries (PML4E, PDPTE, PDE caches)."""

    pgd: TlbSpec
    pud: TlbSpec
    pmd: TlbSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoreSpec(Spec):
    """What the interval analysis needs to know of the core's pipeline."""

    ghz: float
    base_ipc: float  # instructions a cycle when every access hits L1 and its TLB
    reorder_window: int  # instructions under which later misses overlap a leading one

    def __post_init__(self) -> None:
        """Refuse a core that can't run."""
        require_positive(self, "ghz", "base_ipc", "reorder_window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefetchSpec(Spec):
    """Which hardware prefetchers into L2 are modelled (see memory.prefetch)."""

    next_line_fetch: bool  # the line after one that L1I missed
    adjacent_line: bool  # the other half of the 128-byte pair, on an L2 miss
    stream: bool  # lines ahead of L1 misses that go one way within 4 KiB


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedSpec(Spec):
    """How traffic slows a node's memory down: `added_ns` to a read at `memory_gb_per_s`.

    `link_gb_per_s` is the most that a link between two sockets carries one way (see `loaded`).
    """

    memory_gb_per_s: tuple[float, ...]
    added_ns: tuple[float, ...]
    link_gb_per_s: float

    def __post_init__(self) -> None:
        """Refuse a curve that falls, starts anywhere but at nothing, or doesn't end rising."""
        require_positive(self, "link_gb_per_s")
        traffic, added = self.memory_gb_per_s, self.added_ns
        require(
            len(traffic) == len(added) > 1,
            f"added_ns: expected one for each of two or more bandwidths, got {len(added)} for "
            f"{len(traffic)}",
        )
        require(traffic[0] == 0, f"memory_gb_per_s: expected 0.0 first, got {traffic[0]}")
        require(added[0] == 0, f"added_ns: expected 0.0 first, got {added[0]}")
        require(
            all(less < more for less, more in itertools.pairwise(traffic)),
            f"memory_gb_per_s: expected rising bandwidths, got {list(traffic)}",
        )
        require(
            all(less <= more for less, more in itertools.pairwise(added)) and added[-2] < added[-1],
            f"added_ns: expected never to fall and to end rising, got {list(added)}",
        )


Matrix = tuple[tuple[float, ...], ...]  # by node and node
_FORWARDS = ("remote_llc_ns", "remote_dirty_ns", "remote_dirty_away_ns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencySpec(Spec):
    """Idle load-to-use latencies; only pricing reads them, counting never does.

    `peer_ns` is a line that another core sharing the LLC has, or may have changed;
    `dram_ns[c][m]` a read by a CPU of node c from memory of node m; `remote_llc_ns[c][d]` a clean
    line forwarded to node c by the LLC of node d (the diagonal is not used). `remote_dirty_ns` the
    same of a line changed there which is one of d's memory, `remote_dirty_away_ns` of other memory,
    c's own or a third node's; null: as the table before. How a machine snoops is in these tables.
    """

    l1_cycles: float
    l2_cycles: float
    stlb_cycles: float
    llc_ns: float
    peer_ns: float
    remote_llc_ns: tuple[tuple[float, ...], ...]
    dram_ns: tuple[tuple[float, ...], ...]
    cr3_write_cycles: float
    invlpg_cycles: float
    ipi_cycles: float  # interrupting all other CPUs at once, and waiting for them
    remote_dirty_ns: tuple[tuple[float, ...], ...] | None = None
    remote_dirty_away_ns: tuple[tuple[float, ...], ...] | None = None
    loaded: LoadedSpec | None = None

    def __post_init__(self) -> None:
        """Refuse latencies out of order and matrices that are not square."""
        require_positive(self, "l1_cycles", "l2_cycles", "stlb_cycles", "llc_ns")
        require(
            min(self.cr3_write_cycles, self.invlpg_cycles, self.ipi_cycles) >= 0,
            "cr3_write_cycles, invlpg_cycles, ipi_cycles: expected zero or more",
        )
        require(
            self.l1_cycles <= self.l2_cycles,
            f"l2_cycles: {self.l2_cycles} is below l1_cycles ({self.l1_cycles})",
        )
        require(
            self.peer_ns >= self.llc_ns,
            f"peer_ns: another core's cache ({self.peer_ns} ns), found through the LLC, is nearer "
            f"than that ({self.llc_ns} ns)",
        )
        nodes = len(self.dram_ns)
        require(nodes <= MOST_NODES, f"dram_ns: expected at most {MOST_NODES} nodes, got {nodes}")
        told = [name for name in _FORWARDS if getattr(self, name) is not None]
        for name in ("dram_ns", *told):
            matrix = getattr(self, name)
            require(
                len(matrix) == nodes > 0 and all(len(row) == nodes for row in matrix),
                f"{name}: expected a square matrix of {nodes} x {nodes} nodes, got rows of "
                f"{', '.join(str(len(row)) for row in matrix) or 'none'}",
            )
            require(
                all(value > 0 for row in matrix for value in row),
                f"{name}: expected positive latencies",
            )
        for name, node in itertools.product(told, range(nodes)):
            others = [ns for other, ns in enumerate(getattr(self, name)[node]) if other != node]
            near = min(others, default=self.llc_ns)
            require(
                near >= self.llc_ns,
                f"{name}[{node}]: a remote LLC ({near} ns) is nearer than the local one "
                f"({self.llc_ns} ns)",
            )
        for node, row in enumerate(self.dram_ns):
            require(
                row[node] == min(row),
                f"dram_ns[{node}]: remote memory ({min(row)} ns) is nearer than local "
                f"({row[node]} ns)",
            )
            require(
                row[node] >= self.llc_ns,
                f"dram_ns[{node}]: local memory ({row[node]} ns) is nearer than the LLC "
                f"({self.llc_ns} ns)",
            )
        # No such law holds of other LLCs: lines changed there can take longer than any memory.
        farthest = max(map(max, self.dram_ns))
        require(
            self.peer_ns <= farthest,
            f"peer_ns: another core's cache ({self.peer_ns} ns), on the same die, is farther than "
            f"any memory ({farthest} ns)",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineSpec(Spec):
    """A machine of one or more sockets, each of one or more NUMA nodes.

    `sockets` names the socket of each node; unless given, each node is a socket of its own. So
    cluster-on-die is two nodes a socket and an LLC a node, and sub-NUMA clustering two nodes a
    socket and an LLC a socket, of two `clusters`.
    `memoryless` lists nodes of CPUs without memory, which use the memory of the nearest node: by
    `slit[c][m]`, the firmware's distances, or unless given by the latencies `dram_ns`.
    `populated` takes the machine's first nodes only: whatever is told by node is cut to those.
    """

    name: str
    populated: int | None = None
    sockets: tuple[int, ...] | None = None
    memoryless: tuple[int, ...] = ()
    slit: tuple[tuple[int, ...], ...] | None = None
    l1i: CacheSpec
    l1d: CacheSpec
    l2: CacheSpec
    llc: LlcSpec
    tlbs: TlbsSpec
    psc: PscSpec
    core: CoreSpec
    cores_per_node: int  # which only a run's load asks for
    latency: LatencySpec
    prefetch: PrefetchSpec
    pcid: bool  # a CR3 write drops nothing: entries are tagged by root

    def __post_init__(self) -> None:
        """Refuse sockets and distances that don't fit the nodes, and a hierarchy out of order."""
        require_positive(self, "cores_per_node")
        self._require_nodes()
        self._require_distances()
        self._require_order()
        if self.populated is not None:
            self._populate(self.populated)
            self._require_nodes()

    def _require_nodes(self) -> None:
        """Refuse sockets and nodes without memory that don't fit the nodes."""
        sockets = self.socket_of_node
        require(
            len(sockets) == self.nodes,
            f"sockets: expected the socket of each of {self.nodes} nodes, got {len(sockets)}",
        )
        require(
            set(sockets) == set(range(len(set(sockets)))),
            f"sockets: expected numbers from 0 on, none left out, got {list(sockets)}",
        )
        require(
            set(self.memoryless) < set(range(self.nodes)),
            f"memoryless: expected some of the nodes 0 to {self.nodes - 1}, not all, got "
            f"{list(self.memoryless)}",
        )
        clusters, most = self.llc.clusters, max(map(sockets.count, sockets))
        is_whole = all(sockets.count(socket) == clusters for socket in sockets)
        require(
            clusters == 1 or is_whole or (self.populated is not None and most <= clusters),
            f"llc.clusters: expected as many as every socket has nodes, got {clusters} for "
            f"sockets {list(sockets)}",
        )

    def _populate(self, nodes: int) -> None:
        """Cut everything told by node to the first ones."""
        require(
            0 < nodes <= self.nodes,
            f"populated: expected null or 1 to {self.nodes} nodes of {self.name}, got {nodes}",
        )

        def cut(matrix: Matrix) -> Matrix:
            return tuple(row[:nodes] for row in matrix[:nodes])

        told = ("dram_ns", *(name for name in _FORWARDS if getattr(self.latency, name) is not None))
        few: dict[str, Any] = {name: cut(getattr(self.latency, name)) for name in told}
        object.__setattr__(self, "latency", dataclasses.replace(self.latency, **few))
        if self.sockets is not None:
            object.__setattr__(self, "sockets", self.sockets[:nodes])
        if self.slit is not None:
            object.__setattr__(self, "slit", tuple(row[:nodes] for row in self.slit[:nodes]))
        first = tuple(node for node in self.memoryless if node < nodes)
        object.__setattr__(self, "memoryless", first)

    def _require_distances(self) -> None:
        """Refuse firmware's distances that are none."""
        require(
            self.slit is None or [len(row) for row in self.slit] == [self.nodes] * self.nodes,
            f"slit: expected a square matrix of {self.nodes} x {self.nodes} nodes",
        )
        for node, row in enumerate(self.slit or ()):
            require(
                0 < row[node] == min(row),
                f"slit[{node}]: expected the node itself ({row[node]}) to be nearest and distances "
                f"above 0, got {list(row)}",
            )

    def _require_order(self) -> None:
        """Refuse a hierarchy that doesn't grow outwards."""
        for name in ("l1i", "l1d"):
            size = getattr(self, name).size_bytes
            require(
                size <= self.l2.size_bytes,
                f"{name}.size_bytes: {size} is more than L2 has ({self.l2.size_bytes})",
            )
        require(
            self.llc.policy == "victim" or self.llc.size_bytes >= self.l2.size_bytes,
            "llc.size_bytes: an inclusive LLC can't be smaller than L2",
        )
        snoop_filter = self.llc.snoop_filter
        require(
            snoop_filter is None or snoop_filter.size_bytes >= self.l2.size_bytes,
            "llc.snoop_filter.size_bytes: a snoop filter can't cover less than one L2",
        )
        require(
            self.latency.llc_ns * self.core.ghz >= self.latency.l2_cycles,
            "latency.llc_ns: the LLC is nearer than L2",
        )
        farthest_cycles = max(map(max, self.latency.dram_ns)) * self.core.ghz
        require(
            self.latency.stlb_cycles <= farthest_cycles,
            f"latency.stlb_cycles: a TLB inside the core ({self.latency.stlb_cycles} cycles) is "
            f"farther than any memory ({farthest_cycles:g} cycles)",
        )

    @property
    def nodes(self) -> int:
        """Number of NUMA nodes."""
        return len(self.latency.dram_ns)

    @property
    def distance(self) -> tuple[tuple[float, ...], ...]:
        """How far memory is from CPUs, by node."""
        return self.latency.dram_ns if self.slit is None else self.slit

    @property
    def socket_of_node(self) -> tuple[int, ...]:
        """Socket of each node."""
        return tuple(range(self.nodes)) if self.sockets is None else self.sockets

    @property
    def llc_of_node(self) -> tuple[int, ...]:
        """Number of the LLC that the CPUs of each node share."""
        is_shared = self.llc.shared_by == "socket"
        return self.socket_of_node if is_shared else tuple(range(self.nodes))

    @property
    def cluster_of_node(self) -> tuple[int, ...]:
        """Place of each node among those of its socket."""
        sockets = self.socket_of_node
        return tuple(sockets[:node].count(socket) for node, socket in enumerate(sockets))

    @property
    def caches(self) -> tuple[CacheSpec, ...]:
        """Everything whose rows lines fall into."""
        snoop_filter = self.llc.snoop_filter
        one = (self.l1i, self.l1d, self.l2, self.llc)
        return one if snoop_filter is None else (*one, snoop_filter)
