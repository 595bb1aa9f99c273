"""Random machines and streams small enough to fill, evict and share, made from a seed."""

import math
import random
from dataclasses import dataclass, replace

import numpy as np

from numarep.memory.counts import Access, Event, Overlap, Service, new_counts
from numarep.memory.kinds import Kind
from numarep.memory.system import Stream, Translations, new_system, run
from numarep.spec import (
    CacheSpec,
    CoreSpec,
    LatencySpec,
    LlcSpec,
    MachineSpec,
    PrefetchSpec,
    PscSpec,
    TlbSpec,
    TlbsSpec,
)
from tests.twin import Page, Record, Twin

FRAMES_PER_NODE = 24
REGIONS = 3
FUNCTIONS = 3
# Same PMD page, same PUD page, same PGD page, apart; user and kernel halves.
VPNS = [
    0,
    1,
    2,
    511,
    512,
    513,
    1 << 18,
    1 << 27,
    (1 << 27) + 5,
    -1,
    -2,
    -512,
    -(1 << 18),
    -(1 << 27),
]


def cache(sets: int, ways: int, **more) -> CacheSpec:
    return CacheSpec(**{"size_bytes": sets * ways * 64, "ways": ways, "replacement": "lru"} | more)


def llc(sets: int, ways: int, **more) -> LlcSpec:
    size = {"size_bytes": sets * ways * 64, "ways": ways}
    plain = {"replacement": "lru", "shared_by": "node", "policy": "inclusive"}
    return LlcSpec(**size | plain | more)


POLICIES = ("lru", "tree_plru", "srrip")


def with_policies(rng: random.Random, machine: MachineSpec) -> MachineSpec:
    """Give every cache any policy its ways allow."""

    def any_policy(spec):
        is_power = spec.ways & (spec.ways - 1) == 0
        return replace(spec, replacement=rng.choice(POLICIES if is_power else ["lru", "srrip"]))

    outer = any_policy(machine.llc)
    if outer.snoop_filter is not None:
        outer = replace(outer, snoop_filter=any_policy(outer.snoop_filter))
    inner = {name: any_policy(getattr(machine, name)) for name in ("l1i", "l1d", "l2")}
    return replace(machine, llc=outer, **inner)


def random_llc(rng: random.Random, l2: CacheSpec) -> LlcSpec:
    """Of either kind, from just as large as its spec allows."""
    shared_by = rng.choice(["node", "socket"])
    if rng.random() < 0.5:
        made = llc(rng.randint(1, 4), rng.randint(1, 4))
        snoop_filter = cache(rng.randint(1, 7), rng.randint(1, 5))
        while snoop_filter.size_bytes < l2.size_bytes:
            snoop_filter = cache(rng.randint(1, 7), rng.randint(1, 5))
        return replace(made, shared_by=shared_by, policy="victim", snoop_filter=snoop_filter)
    made = llc(rng.randint(1, 7), rng.randint(1, 5), shared_by=shared_by)
    while made.size_bytes < l2.size_bytes:
        made = llc(rng.randint(1, 7), rng.randint(1, 5), shared_by=shared_by)
    return made


def with_clusters(rng: random.Random, machine: MachineSpec) -> MachineSpec:
    """Give sockets as many nodes each, which their LLC has a share of rows for."""
    wanted = [count for count in range(2, machine.nodes + 1) if machine.nodes % count == 0]
    if not wanted or rng.random() < 0.5:
        return machine
    clusters = rng.choice(wanted)
    sockets = [*range(machine.nodes // clusters)] * clusters
    rng.shuffle(sockets)

    def larger(spec):
        times = rng.choice([clusters, clusters // math.gcd(spec.sets, clusters)])
        return replace(spec, size_bytes=spec.size_bytes * times)

    last = larger(machine.llc)
    if last.snoop_filter is not None:
        last = replace(last, snoop_filter=larger(last.snoop_filter))
    last = replace(last, shared_by="socket", clusters=clusters)
    return replace(machine, sockets=tuple(sockets), llc=last)


def random_ends(rng: random.Random, nodes: int) -> np.ndarray:
    """Where nodes end: each has as much memory, or some less and some more, often none."""
    if rng.random() < 0.5:
        return np.cumsum([FRAMES_PER_NODE] * nodes)
    frames = nodes * FRAMES_PER_NODE
    ends = rng.choices(range(0, frames + 1, FRAMES_PER_NODE // 2), k=nodes - 1)
    return np.array([*sorted(ends), frames])


def random_sockets(rng: random.Random, nodes: int) -> tuple[int, ...] | None:
    """Sockets of one or more nodes, in any order; or left to the default."""
    count = rng.randint(1, nodes)
    sockets = [*range(count), *(rng.randrange(count) for _ in range(nodes - count))]
    rng.shuffle(sockets)
    return tuple(sockets) if rng.random() < 0.7 else None


def small_machine(rng: random.Random, nodes: int, core: CoreSpec | None = None) -> MachineSpec:
    def tlb() -> TlbSpec:
        ways = rng.randint(1, 3)
        return TlbSpec(entries=ways * rng.randint(1, 3), ways=ways)

    def level(most_sets: int, most_ways: int) -> CacheSpec:
        return cache(rng.randint(1, most_sets), rng.randint(1, most_ways))

    l1i, l1d, l2 = level(3, 3), level(3, 3), level(4, 3)
    while l2.size_bytes < max(l1i.size_bytes, l1d.size_bytes):
        l2 = level(4, 3)
    llc_ns = rng.choice([10.0, 21.2])
    far = [[rng.uniform(50, 200) for _ in range(nodes)] for _ in range(nodes)]
    dram = [[far[c][m] + (0 if c == m else 200) for m in range(nodes)] for c in range(nodes)]
    return MachineSpec(
        name="small",
        l1i=l1i,
        l1d=l1d,
        l2=l2,
        sockets=random_sockets(rng, nodes),
        llc=random_llc(rng, l2),
        tlbs=TlbsSpec(
            **{name: tlb() for name in ("itlb_4k", "itlb_2m", "dtlb_4k", "dtlb_2m", "dtlb_1g")},
            stlb=tlb(),
            stlb_holds_2m=rng.random() < 0.8,
            stlb_1g=rng.choice([None, tlb()]),
        ),
        psc=PscSpec(pgd=tlb(), pud=tlb(), pmd=tlb()),
        core=core
        or CoreSpec(ghz=2.0, base_ipc=rng.choice([1.0, 1.7]), reorder_window=rng.randint(1, 40)),
        cores_per_node=5,
        latency=LatencySpec(
            l1_cycles=4,
            l2_cycles=12,
            stlb_cycles=7,
            llc_ns=llc_ns,
            peer_ns=rng.choice([22.0, 47.0]),
            remote_llc_ns=tuple(map(tuple, far)),
            dram_ns=tuple(map(tuple, dram)),
            cr3_write_cycles=100,
            invlpg_cycles=90,
            ipi_cycles=5000,
        ),
        prefetch=PrefetchSpec(
            next_line_fetch=rng.random() < 0.3,
            adjacent_line=rng.random() < 0.3,
            stream=rng.random() < 0.3,
        ),
        pcid=rng.random() < 0.3,
    )


def random_pages(rng: random.Random, nodes: int, count: int) -> list[Page]:
    frames = nodes * FRAMES_PER_NODE
    five_levels = rng.random() < 0.3
    roots = [rng.randrange(frames) for _ in range(rng.randint(1, 3))]
    # Few frames and tables, so that lines are shared, and walks meet data.
    pool = [rng.randrange(frames) for _ in range(rng.randint(2, 8))]
    pages = []
    for _ in range(count):
        leaf = rng.choice([1, 1, 1, 2, 2, 3])
        root = rng.choice(roots)
        table = {level: rng.choice(pool) for level in range(leaf, 4)}
        if five_levels:
            table[4], table[5] = rng.choice(pool), root
        else:
            table[4] = root
        pages.append(
            Page(
                vpn=rng.choice(VPNS) + rng.choice([0, 0, 1]),
                pfn=rng.choice(pool),
                leaf=leaf,
                is_global=rng.random() < 0.3,
                root=root,
                table=table,
                region=rng.randrange(REGIONS),
            )
        )
    return pages


def random_records(rng: random.Random, pages: int, count: int) -> list[Record]:
    lines = rng.randint(1, 6)
    serialising = rng.choice([0, 0.02, 0.1])
    stride = rng.choice([0, 0, 0, 1, -1, 2])  # lines from record to record of a stream, if any
    records = []
    for index in range(count):
        kind = rng.choice(["fetch", "load", "load", "store"])
        if rng.random() < serialising:
            kind = rng.choice(["cr3", "invlpg", "flush", "ipi"])
        repeats = rng.choice([0, 1, 1, 2, 9]) if kind == "fetch" else rng.choice([1, 1, 3])
        page, line = rng.randrange(pages), rng.choice([9 * rng.randrange(lines)] * 3 + [62, 63])
        if stride and rng.random() < 0.9:
            page, line = 0, index * stride % 64
        records.append(
            Record(
                kind,
                page,
                line,
                repeats,
                rng.randrange(FUNCTIONS),
            )
        )
    return records


def as_stream(records: list[Record]) -> Stream:
    kinds = np.array([Kind[record.kind.upper()] for record in records], np.uint8)
    return Stream(
        kinds,
        np.array([record.page for record in records], np.int32),
        np.array([record.line for record in records], np.uint8),
        np.array([record.repeats for record in records], np.int32),
        np.array([record.function for record in records], np.int32),
    )


def as_translations(pages: list[Page]) -> Translations:
    def column(values: list[int]) -> np.ndarray:
        return np.array(values, np.int64)

    return Translations(
        vpn=column([page.vpn for page in pages]),
        pfn=column([page.pfn for page in pages]),
        leaf=column([page.leaf for page in pages]),
        is_global=column([int(page.is_global) for page in pages]),
        root=column([page.root for page in pages]),
        table=column([[page.table.get(level, -1) for level in range(1, 6)] for page in pages]),
        region=column([page.region for page in pages]),
    )


@dataclass
class Case:
    """A machine, its CPUs, pages, and turns of (cpu, records)."""

    machine: MachineSpec
    cpu_nodes: tuple[int, ...]
    ends: np.ndarray
    pages: list[Page]
    turns: list[tuple[int, list[Record]]]

    def system(self):
        return new_system(self.machine, self.cpu_nodes, self.ends)

    def counts(self):
        return new_counts(self.machine.nodes, REGIONS, FUNCTIONS)


def random_case(seed: int, records: int) -> Case:
    rng = random.Random(seed)
    nodes = rng.randint(1, 4)
    pages = random_pages(rng, nodes, rng.randint(1, 10))
    cpu_nodes = tuple(rng.choices(range(nodes), k=rng.randint(1, 5)))
    turns = []
    while records > 0:
        size = min(records, rng.randint(1, 60))
        turns.append((rng.randrange(len(cpu_nodes)), random_records(rng, len(pages), size)))
        records -= size
    machine = small_machine(rng, nodes)
    if rng.random() < 0.7:
        machine = with_policies(rng, machine)
    machine = with_clusters(rng, machine)
    return Case(machine, cpu_nodes, random_ends(rng, nodes), pages, turns)


def run_core(case: Case, system=None):
    """Return the system and counts after all turns, each run in two slices."""
    system = system or case.system()
    counts = case.counts()
    translations = as_translations(case.pages)
    for cpu, records in case.turns:
        stream, half = as_stream(records), len(records) // 2
        run(system, cpu, stream, translations, 0, half, counts)
        run(system, cpu, stream, translations, half, len(records), counts)
    return system, counts


def run_twin(case: Case) -> Twin:
    twin = Twin(case.machine, case.cpu_nodes, case.ends)
    for cpu, records in case.turns:
        twin.run(cpu, records, case.pages)
    return twin


def functions_by_name(counts) -> dict[tuple, int]:
    """Nonzero cells by function, keyed by the words the twin uses."""
    return {
        (
            function,
            Access(access).name.lower(),
            Service(service).name.lower(),
            node,
            Overlap(overlap).name.lower(),
        ): int(counts.functions[function, access, service, node, overlap])
        for function, access, service, node, overlap in np.argwhere(counts.functions).tolist()
    }


def served_by_name(counts) -> dict[tuple, int]:
    """Nonzero cells keyed by the words the twin uses."""
    cells = {}
    for index in np.argwhere(counts.served):
        access, level, region, service, node, overlap = map(int, index)
        key = (
            Access(access).name,
            level,
            region,
            Service(service).name,
            node,
            Overlap(overlap).name,
        )
        cells[tuple(word.lower() if isinstance(word, str) else word for word in key)] = int(
            counts.served[tuple(index)]
        )
    return cells


def events_by_name(counts) -> dict[str, int]:
    return {
        event.name.lower(): int(counts.events[event]) for event in Event if counts.events[event]
    }
