"""What a run is: frozen, checked descriptions, parsed from plain mappings.

Shapes and checks live here, values live in conf/. `parse` turns a mapping (from YAML, Hydra or
JSON) into one of these dataclasses and refuses anything else with a `SpecError` that names the
offending path, what was expected and, for a misspelt name, the nearest valid one.

>>> parse(CacheSpec, {"size_bytes": 32768, "ways": 8}, "l1i").sets
64
>>> parse(CacheSpec, {"size_bytes": 32768, "wys": 8}, "l1i")
Traceback (most recent call last):
    ...
numarep.spec.SpecError: l1i.wys: no such key; did you mean 'ways'? (valid: size_bytes, ways)
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from numarep.units import LINE_BYTES

MOST_WAYS = 32  # the core compares all ways of a row at once (see memory.recency)

S = TypeVar("S")


class SpecError(ValueError):
    """A description that can't be run; the message names the offending path."""


class Spec:
    """Base of every described thing: no unknown keys, no silent conversions, no NaN."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def _require_positive(spec: object, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        _require(value > 0, f"{name}: expected a positive number, got {value}")


def _require_few_ways(ways: int) -> None:
    _require(ways <= MOST_WAYS, f"ways: expected at most {MOST_WAYS}, got {ways}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSpec(Spec):
    """A set-associative cache of 64-byte lines; the row is `line % sets`."""

    size_bytes: int
    ways: int

    def __post_init__(self) -> None:
        """Refuse a geometry that can't exist."""
        _require_positive(self, "size_bytes", "ways")
        _require_few_ways(self.ways)
        _require(
            self.size_bytes % (self.ways * LINE_BYTES) == 0,
            f"size_bytes: {self.size_bytes} is not a whole number of sets of {self.ways} ways "
            f"of {LINE_BYTES} bytes",
        )

    @property
    def sets(self) -> int:
        """Number of sets (need not be a power of two)."""
        return self.size_bytes // (self.ways * LINE_BYTES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TlbSpec(Spec):
    """A TLB or paging-structure cache; fully associative when `ways == entries`."""

    entries: int
    ways: int

    def __post_init__(self) -> None:
        """Refuse a geometry that can't exist."""
        _require_positive(self, "entries", "ways")
        _require_few_ways(self.ways)
        _require(
            self.entries % self.ways == 0,
            f"entries: {self.entries} is not a multiple of ways ({self.ways})",
        )

    @property
    def sets(self) -> int:
        """Number of sets."""
        return self.entries // self.ways


@dataclasses.dataclass(frozen=True, kw_only=True)
class TlbsSpec(Spec):
    """First-level TLBs by page size, and the second-level TLB shared by 4K and 2M pages."""

    itlb_4k: TlbSpec
    itlb_2m: TlbSpec
    dtlb_4k: TlbSpec
    dtlb_2m: TlbSpec
    dtlb_1g: TlbSpec
    stlb: TlbSpec


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
        _require_positive(self, "ghz", "base_ipc", "reorder_window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefetchSpec(Spec):
    """Which hardware prefetchers into L2 are modelled (see memory.prefetch)."""

    next_line_fetch: bool  # the line after one that L1I missed
    adjacent_line: bool  # the other half of the 128-byte pair, on an L2 miss


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencySpec(Spec):
    """Idle load-to-use latencies; only pricing reads them, counting never does.

    `dram_ns[c][m]` is a read by a CPU of node c from memory of node m; `remote_llc_ns[c][d]` a
    clean line forwarded to node c by the LLC of node d (the diagonal is not used).
    """

    l1_cycles: float
    l2_cycles: float
    stlb_cycles: float
    llc_ns: float
    remote_llc_ns: tuple[tuple[float, ...], ...]
    dram_ns: tuple[tuple[float, ...], ...]
    cr3_write_cycles: float
    invlpg_cycles: float

    def __post_init__(self) -> None:
        """Refuse latencies out of order and matrices that are not square."""
        _require_positive(self, "l1_cycles", "l2_cycles", "stlb_cycles", "llc_ns")
        _require(
            self.cr3_write_cycles >= 0 and self.invlpg_cycles >= 0,
            "cr3_write_cycles, invlpg_cycles: expected zero or more",
        )
        _require(
            self.l1_cycles <= self.l2_cycles,
            f"l2_cycles: {self.l2_cycles} is below l1_cycles ({self.l1_cycles})",
        )
        nodes = len(self.dram_ns)
        for name in ("dram_ns", "remote_llc_ns"):
            matrix = getattr(self, name)
            _require(
                len(matrix) == nodes > 0 and all(len(row) == nodes for row in matrix),
                f"{name}: expected a square matrix of {nodes} x {nodes} nodes",
            )
            _require(
                all(value > 0 for row in matrix for value in row),
                f"{name}: expected positive latencies",
            )
        for node, row in enumerate(self.remote_llc_ns):
            near = min((ns for other, ns in enumerate(row) if other != node), default=self.llc_ns)
            _require(
                near >= self.llc_ns,
                f"remote_llc_ns[{node}]: a remote LLC ({near} ns) is nearer than the local one "
                f"({self.llc_ns} ns)",
            )
        for node, row in enumerate(self.dram_ns):
            _require(
                row[node] == min(row),
                f"dram_ns[{node}]: remote memory ({min(row)} ns) is nearer than local "
                f"({row[node]} ns)",
            )
            _require(
                row[node] >= self.llc_ns,
                f"dram_ns[{node}]: local memory ({row[node]} ns) is nearer than the LLC "
                f"({self.llc_ns} ns)",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineSpec(Spec):
    """A multi-socket machine: one NUMA node and one inclusive LLC a socket (first version)."""

    name: str
    l1i: CacheSpec
    l1d: CacheSpec
    l2: CacheSpec
    llc: CacheSpec
    tlbs: TlbsSpec
    psc: PscSpec
    core: CoreSpec
    latency: LatencySpec
    prefetch: PrefetchSpec = PrefetchSpec(next_line_fetch=False, adjacent_line=False)
    pcid: bool = False  # a CR3 write drops nothing: entries are tagged by root

    def __post_init__(self) -> None:
        """Refuse a hierarchy that doesn't grow outwards."""
        _require(
            self.llc.size_bytes >= self.l2.size_bytes,
            "llc.size_bytes: an inclusive LLC can't be smaller than L2",
        )
        _require(
            self.latency.llc_ns * self.core.ghz >= self.latency.l2_cycles,
            "latency.llc_ns: the LLC is nearer than L2",
        )

    @property
    def nodes(self) -> int:
        """Number of NUMA nodes."""
        return len(self.latency.dram_ns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSpec(Spec):
    """Which captured kernel: a bundled dataset's name or a folder, and its KPTI state."""

    name: str
    dataset: str
    pti: bool
    # aligned: text and rodata in whole 2 MiB leaves (R6); permuted: re-linked on top of that
    layout: Literal["captured", "aligned", "permuted"]
    layout_seed: int  # of the permutation


Operation = Literal["patch", "module", "slots", "visitor", "threads", "fork_tree"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisturbanceSpec(Spec):
    """An operation done so many times in every captured iteration; see replication.scenarios."""

    operation: Operation
    per_iteration: int

    def __post_init__(self) -> None:
        """Refuse a disturbance that is none."""
        _require_positive(self, "per_iteration")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkloadSpec(Spec):
    """One captured window; loops are tiled to `iterations`, single calls have one."""

    kind: Literal["captured"]
    name: str
    trace: str
    iterations: int
    disturbance: DisturbanceSpec | None = None

    def __post_init__(self) -> None:
        """Refuse an empty loop."""
        _require_positive(self, "iterations")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChaseSpec(Spec):
    """A pointer chase: each line of a buffer loaded once, in a random order; no kernel around."""

    kind: Literal["chase"]
    name: str
    footprint_bytes: int
    page: Literal["4K", "2M", "1G"]
    home_node: int  # where the buffer lies

    def __post_init__(self) -> None:
        """Refuse a buffer that can't be."""
        whole = self.footprint_bytes > 0 and self.footprint_bytes % LINE_BYTES == 0
        _require(whole, f"footprint_bytes: expected whole {LINE_BYTES}-byte lines")
        _require(self.home_node >= 0, f"home_node: expected zero or more, got {self.home_node}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionSpec(Spec):
    """Instructions that replication adds to the kernel's operations, beside their accesses."""

    fork: int  # a further PGD allocated (pgd_alloc)
    exit: int  # a further PGD freed (pgd_free)
    slot_fill: int  # a user PGD slot written to the first further PGD (__pud_alloc, __p4d_alloc)
    slot_fill_further: int  # to every PGD after that
    slot_clear: int  # the same when it is torn down (___pud_free_tlb, ___p4d_free_tlb)
    slot_clear_further: int
    poke: int  # live-patched text written to the first further replica (__text_poke)
    poke_further: int  # to every replica after that
    area_page: int  # a page of a replicated area copied to a further node
    entry: int  # a leaf entry mapped, unmapped or protected in a further node's table
    switch: int  # a context switch selects its node's PGD (switch_mm_irqs_off)

    def __post_init__(self) -> None:
        """Refuse negative work."""
        for name, value in vars(self).items():
            _require(value >= 0, f"{name}: expected zero or more, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplicationSpec(Spec):
    """What every memory node gets its own copy of, when, and whether that is charged.

    pgds: who has a PGD on which node. eager, every process on every memory node; lazy, where it
    has run; lazy_shrink, where it runs; single_node, one, of its node's replicas while it runs on
    one node and of the master's else; retarget, one, with private PUD and PMD pages whose text and
    rodata entries are rewritten when it changes nodes.
    area_ptes: tables of areas mapped in the window after boot. shared by all nodes until an area
    is replicated; a node's own, taken from the loading CPU's node (loader) or its own (target).
    """

    name: str
    master_node: int  # holds the image (R3), also where nothing is replicated
    aligned: bool  # needs a kernel whose text and rodata are whole 2 MiB leaves (R6)
    tables: bool  # init PGDs, and the window's P4D, PUD and PMD pages (R10)
    text: bool
    rodata: bool
    modules: bool  # text and rodata of modules, 4 KiB leaves (R30)
    bpf: bool  # BPF images (R32)
    pgds: Literal["eager", "lazy", "lazy_shrink", "single_node", "retarget"]
    area_ptes: Literal["shared", "loader", "target"]  # R26, R29
    clone_ptes: bool  # arm64: PTE pages of the window are a node's own, too (R12)
    user_tables: bool  # Mitosis: every user page table on every node, too
    costs: Literal["charged", "waived"]  # waived is for the null tests only
    instructions: InstructionSpec

    def __post_init__(self) -> None:
        """Refuse copies no table could map."""
        copies = ("text", "rodata", "modules", "bpf", "clone_ptes")
        wanted = [name for name in copies if getattr(self, name)]
        _require(
            self.tables or not wanted,
            f"tables: expected true, because {', '.join(wanted)} needs per-node tables",
        )
        _require(
            self.aligned or not (self.text or self.rodata),
            "aligned: expected true, because a replicated unit is a 2 MiB leaf (R6)",
        )
        _require(
            not self.user_tables or (self.tables and self.pgds == "eager"),
            "user_tables: expected tables true and pgds 'eager', because every node's PGD leads to "
            "its own tables",
        )
        own_ptes = self.modules or self.bpf or self.clone_ptes or self.area_ptes != "shared"
        _require(
            self.pgds != "retarget" or not own_ptes,
            "pgds: retarget switches PMD entries only; expected no modules, bpf or clone_ptes, "
            "and area_ptes 'shared'",
        )

    @property
    def active(self) -> bool:
        """Whether anything is replicated at all."""
        return self.tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec(Spec):
    """One point of a study, complete: the same spec always gives the same result."""

    machine: MachineSpec
    kernel: KernelSpec
    workload: Annotated[WorkloadSpec | ChaseSpec, Field(discriminator="kind")]
    replication: ReplicationSpec
    cache_state: Literal["hot", "cold"]
    home_llc: Literal["cold", "warm"]  # warm: the master node's LLC ran the same pass before
    cpu_node: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a CPU on a node the machine doesn't have."""
        _require(
            0 <= self.cpu_node < self.machine.nodes,
            f"cpu_node: expected 0 to {self.machine.nodes - 1} on {self.machine.name}, "
            f"got {self.cpu_node}",
        )
        _require(
            0 <= self.replication.master_node < self.machine.nodes,
            f"replication.master_node: expected 0 to {self.machine.nodes - 1} on "
            f"{self.machine.name}, got {self.replication.master_node}",
        )
        _require(
            not self.replication.aligned or self.kernel.layout != "captured",
            "kernel.layout: expected 'aligned', because a replicated unit is a 2 MiB leaf (R6)",
        )


_KINDS: dict[Any, type[Spec]] = {"captured": WorkloadSpec, "chase": ChaseSpec}


def nearest(name: str, valid: Iterable[str]) -> str:
    """Phrase the nearest valid name to a misspelt one, and all valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (valid: {', '.join(names)})"


def _field_names(spec_type: Any, path: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the dataclass that lies at `path` below `spec_type`."""
    for step in path:
        if get_origin(spec_type) in (Union, UnionType):
            spec_type = _KINDS.get(step)
            continue
        if not dataclasses.is_dataclass(spec_type):
            return []
        spec_type = get_type_hints(spec_type).get(str(step))
        if get_origin(spec_type) is tuple:
            spec_type = get_args(spec_type)[0]
    fields = dataclasses.fields(spec_type) if dataclasses.is_dataclass(spec_type) else ()
    return [field.name for field in fields]


def _join(path: Iterable[Any]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _explain(spec_type: Any, error: Any, prefix: tuple[str, ...]) -> str:
    """One line for one pydantic error: path, what was expected, what was given."""
    path = tuple(error["loc"])
    # pydantic puts the kind of a workload into the path of what is wrong with it.
    where = _join(prefix + tuple(step for step in path if step not in _KINDS))
    if error["type"] == "unexpected_keyword_argument":
        return f"{where}: no such key{nearest(str(path[-1]), _field_names(spec_type, path[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{where}: missing (valid: {', '.join(_field_names(spec_type, path[:-1]))})"
    if error["type"].startswith("union_tag"):
        return f"{where}.kind: expected one of {', '.join(_KINDS)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{where}.{message}" if where else message
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{where}: expected {expected}, got {error['input']!r}"


@functools.cache
def _adapter(spec_type: Any) -> TypeAdapter[Any]:
    """Build a type's parser once: building takes a hundred times as long as parsing."""
    return TypeAdapter(spec_type)


def parse(spec_type: type[S], mapping: Mapping[str, Any], *prefix: str) -> S:
    """Parse a plain mapping into `spec_type`, checking every key, type and value.

    Parameters
    ----------
    spec_type : type
        One of this module's dataclasses.
    mapping : mapping
        Nested dicts, lists and scalars.
    *prefix : str
        Names put in front of the path in messages.

    Raises
    ------
    SpecError
        Naming the first offending path, what was expected there and what was found.
    """
    try:
        # As JSON, because strict parsing of Python objects would take only dataclass instances.
        parsed: S = _adapter(cast(Any, spec_type)).validate_json(json.dumps(mapping, default=str))
    except ValidationError as error:
        # A misspelt key also leaves its field missing: name the misspelling.
        first = min(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
        raise SpecError(_explain(spec_type, first, prefix)) from None
    return parsed


def as_mapping(spec: Any) -> dict[str, Any]:
    """Return the plain nested mapping of a spec: the inverse of `parse`."""
    mapping: dict[str, Any] = dataclasses.asdict(spec)
    return mapping
