"""A run and its parts beside the machine: kernel, workload, replication.

>>> WorkloadSpec(kind="captured", name="fork", trace="fork", iterations=0)
Traceback (most recent call last):
    ...
numarep.spec.base.SpecError: iterations: expected a positive number, got 0
"""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from numarep.spec.base import Spec, require, require_positive
from numarep.spec.disturbance import DisturbanceSpec
from numarep.spec.machine import MachineSpec
from numarep.units import LINE_BYTES


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSpec(Spec):
    """Which captured kernel: a bundled dataset's name or a folder, and its KPTI state."""

    name: str
    dataset: str
    pti: bool
    # aligned: text and rodata in whole 2 MiB leaves (R6); permuted: re-linked on top of that
    layout: Literal["captured", "aligned", "permuted"]
    layout_seed: int  # of the permutation
    kasan: bool  # refused with replicas where the dataset has 5-level tables (R1)
    max_numnodes: int  # nodes it is built for: a PGD pointer each in every process (R15)
    # Of the base copy of the modules that were loaded before the window, and of the CPU that loaded
    # them (R29, R30); none: as captured, on the measured CPU's.
    module_node: int | None = None

    def __post_init__(self) -> None:
        """Refuse a kernel for no nodes."""
        require_positive(self, "max_numnodes")


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
        require_positive(self, "iterations")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BootSpec(Spec):
    """What the series adds to a boot, alone, on the kernel as a captured window begins (R14)."""

    kind: Literal["boot"]
    name: str
    trace: str

    @property
    def iterations(self) -> int:
        """A boot happens once."""
        return 1

    @property
    def disturbance(self) -> None:
        """Nothing else happens."""
        return


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChaseSpec(Spec):
    """A pointer chase through the lines of a buffer, in a random order; no kernel around.

    `order` is a cycle, each line once, or every line drawn anew (see `streams.chase`).
    The buffer lies on `home_node`: a number, or which of the nodes other than the CPU's, by
    `latency.dram_ns`, which becomes the number of the first such in a `RunSpec`.
    """

    kind: Literal["chase"]
    name: str
    footprint_bytes: int
    page: Literal["4K", "2M", "1G"]
    home_node: int | Literal["nearest", "farthest"]
    order: Literal["cycle", "drawn"]

    def __post_init__(self) -> None:
        """Refuse a buffer that can't be."""
        whole = self.footprint_bytes > 0 and self.footprint_bytes % LINE_BYTES == 0
        require(whole, f"footprint_bytes: expected whole {LINE_BYTES}-byte lines")
        is_none = isinstance(self.home_node, int) and self.home_node < 0
        require(not is_none, f"home_node: expected zero or more, got {self.home_node}")


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
    switched_off: int  # at every watched event of a kernel that has the code, but switched off (R1)
    switch: int  # a context switch selects its node's PGD (switch_mm_irqs_off)

    def __post_init__(self) -> None:
        """Refuse negative work."""
        for name, value in vars(self).items():
            require(value >= 0, f"{name}: expected zero or more, got {value}")


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
    built_in: bool  # the series' code is there, be it on or off (R1)
    master_node: int  # holds the image (R3), also where nothing is replicated
    # Of the boot CPU, which allocates the kernel's shared tables (R13, R14); none: as captured.
    boot_node: int | None
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
        require(
            self.tables or not wanted,
            f"tables: expected true, because {', '.join(wanted)} needs per-node tables",
        )
        require(
            self.built_in or not self.tables,
            "built_in: expected true, because per-node tables need the series' code",
        )
        require(
            self.aligned or not (self.text or self.rodata),
            "aligned: expected true, because a replicated unit is a 2 MiB leaf (R6)",
        )
        require(
            not self.user_tables or (self.tables and self.pgds == "eager"),
            "user_tables: expected tables true and pgds 'eager', because every node's PGD leads to "
            "its own tables",
        )
        own_ptes = self.modules or self.bpf or self.clone_ptes or self.area_ptes != "shared"
        require(
            self.pgds != "retarget" or not own_ptes,
            "pgds: retarget switches PMD entries only; expected no modules, bpf or clone_ptes, "
            "and area_ptes 'shared'",
        )

    @property
    def active(self) -> bool:
        """Whether anything is replicated at all."""
        return self.tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadSpec(Spec):
    """What else the machine does: further CPUs on every node doing the same (see loaded)."""

    cpus_per_node: int

    def __post_init__(self) -> None:
        """Refuse fewer CPUs than none."""
        require(
            self.cpus_per_node >= 0,
            f"cpus_per_node: expected zero or more, got {self.cpus_per_node}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OthersSpec(Spec):
    """CPUs that run the same workload at the same time, each its own capture of it."""

    nodes: tuple[int, ...]  # of theirs, none twice and none the measured CPU's
    quantum: int  # instructions that each runs before the next one's turn

    def __post_init__(self) -> None:
        """Refuse a node that is there twice, and turns without instructions."""
        require(
            len(set(self.nodes)) == len(self.nodes),
            f"nodes: expected every node once, got {list(self.nodes)}",
        )
        require_positive(self, "quantum")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec(Spec):
    """One point of a study, complete: the same spec always gives the same result."""

    machine: MachineSpec
    kernel: KernelSpec
    workload: Annotated[WorkloadSpec | BootSpec | ChaseSpec, Field(discriminator="kind")]
    replication: ReplicationSpec
    cache_state: Literal["hot", "cold", "cold_each", "cold_text"]  # see simulate.protocol
    home_llc: Literal["cold", "warm"]  # warm: the master node's LLC ran the same pass before
    cpu_node: int
    seed: int
    by_function: bool  # count by kernel function, too
    others: OthersSpec
    load: LoadSpec

    def __post_init__(self) -> None:
        """Refuse a CPU on a node the machine doesn't have; number a chase's node."""
        require(
            0 <= self.cpu_node < self.machine.nodes,
            f"cpu_node: expected 0 to {self.machine.nodes - 1} on {self.machine.name}, "
            f"got {self.cpu_node}",
        )
        require(
            all(0 <= node < self.machine.nodes for node in self.others.nodes),
            f"others.nodes: expected 0 to {self.machine.nodes - 1} on {self.machine.name}, got "
            f"{list(self.others.nodes)}",
        )
        require(
            self.cpu_node not in self.others.nodes,
            f"others.nodes: expected nodes beside the CPU's, cpu_node={self.cpu_node}",
        )
        require(
            self.cache_state in ("hot", "cold") or self.workload.kind != "chase",
            "cache_state: expected 'hot' or 'cold', because a chase has no iterations and no text",
        )
        require(
            not self.others.nodes or self.workload.kind == "captured",
            f"others.nodes: expected none, because {self.workload.name} is not captured",
        )
        require(
            0 <= self.replication.master_node < self.machine.nodes,
            f"replication.master_node: expected 0 to {self.machine.nodes - 1} on "
            f"{self.machine.name}, got {self.replication.master_node}",
        )
        require(
            self.replication.master_node not in self.machine.memoryless,
            f"replication.master_node: expected a node with memory on {self.machine.name}, got "
            f"{self.replication.master_node}",
        )
        require(
            self.replication.boot_node in (None, *range(self.machine.nodes)),
            f"replication.boot_node: expected null or 0 to {self.machine.nodes - 1} on "
            f"{self.machine.name}, got {self.replication.boot_node}",
        )
        require(
            self.kernel.module_node in (None, *range(self.machine.nodes)),
            f"kernel.module_node: expected null or 0 to {self.machine.nodes - 1} on "
            f"{self.machine.name}, got {self.kernel.module_node}",
        )
        require(
            self.load.cpus_per_node == 0 or self.machine.latency.loaded is not None,
            f"load.cpus_per_node: expected 0, because no loaded latencies of {self.machine.name} "
            "are known (machine.latency.loaded)",
        )
        most = self.machine.cores_per_node - 1
        require(
            self.load.cpus_per_node <= most,
            f"load.cpus_per_node: expected at most {most} beside the counted CPU, because a node "
            f"of {self.machine.name} has {most + 1} cores (machine.cores_per_node), got "
            f"{self.load.cpus_per_node}",
        )
        require(
            self.machine.nodes <= self.kernel.max_numnodes,
            f"kernel.max_numnodes: expected at least the {self.machine.nodes} nodes of "
            f"{self.machine.name}, got {self.kernel.max_numnodes}",
        )
        require(
            not self.replication.aligned or self.kernel.layout != "captured",
            "kernel.layout: expected 'aligned', because a replicated unit is a 2 MiB leaf (R6)",
        )
        if self.workload.kind == "captured" and self.workload.disturbance:
            self._check_disturbance(self.workload.disturbance)
        if isinstance(self.workload, ChaseSpec):
            chase = dataclasses.replace(self.workload, home_node=self._home_of(self.workload))
            object.__setattr__(self, "workload", chase)

    def _check_disturbance(self, disturbance: DisturbanceSpec) -> None:
        """Refuse nodes that aren't there, and threads that the policy keeps on one (2003)."""
        nodes = self.machine.nodes
        require(
            disturbance.nodes is None or disturbance.nodes <= nodes,
            f"workload.disturbance.nodes: expected at most the {nodes} of {self.machine.name}, got "
            f"{disturbance.nodes}",
        )
        several = min(disturbance.nodes or nodes, nodes - len(self.machine.memoryless)) > 1
        require(
            self.replication.pgds != "retarget"
            or disturbance.operation != "threads"
            or not several,
            "replication.pgds: expected another than 'retarget', because a process of its can't "
            "run on several nodes at once, which is what the threads of the workload do",
        )

    def _home_of(self, chase: ChaseSpec) -> int:
        """Return the number of the node where a chase's buffer lies."""
        nodes, row = range(self.machine.nodes), self.machine.latency.dram_ns[self.cpu_node]
        others = [node for node in nodes if node not in (self.cpu_node, *self.machine.memoryless)]
        known = {str(node): node for node in nodes}
        if others:
            known["nearest"] = min(others, key=lambda node: row[node])
            known["farthest"] = max(others, key=lambda node: row[node])
        require(
            str(chase.home_node) in known,
            f"workload.home_node: expected one of {', '.join(known)} on {self.machine.name}, got "
            f"{chase.home_node}",
        )
        return known[str(chase.home_node)]
