"""The latency core's plain twin: the same machine told again in dicts and lists, slowly.

It shares nothing with `numarep.memory` but the machine description. Counts are a `Counter` keyed
by plain words, so that neither enum values nor array shapes are taken over. It is written from
the model's rules, not from the core's code: states are words, a window is "instructions since",
holders of a line are found by asking everybody. What a domain (an LLC and the CPUs that share it)
may do with a line, and which CPU owns it, are dictionaries of the domain, not flags of entries.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from numarep.spec import MachineSpec

FETCH, LOAD, STORE = "fetch", "load", "store"
CR3, INVLPG, FLUSH, IPI = "cr3", "invlpg", "flush", "ipi"
FAR = ("llc", "peer", "remote_llc", "remote_dirty", "remote_dirty_away", "dram")
EVERYBODY = "global"


class Record(NamedTuple):
    kind: str
    page: int
    line: int
    repeats: int
    function: int = 0


class Page(NamedTuple):
    vpn: int
    pfn: int
    leaf: int  # 1, 2, 3; 0 = none
    is_global: bool
    root: int
    table: dict[int, int]  # level -> pfn
    region: int


@dataclass
class Line:
    dirty: bool = False


class LruRow(OrderedDict):
    """From oldest to newest; the oldest goes."""

    def __init__(self, ways):
        super().__init__()
        self.ways = ways

    def use(self, key):
        self.move_to_end(key)

    def insert(self, key, value):
        """Insert as newest; return the (key, value) that had to go, if any."""
        gone = self.popitem(last=False) if len(self) == self.ways else None
        self[key] = value
        return gone


class PlacedRow:
    """Lines stay in the way they came to, and leave it empty; `choose` and `used` are policy."""

    def __init__(self, ways):
        self.ways = ways
        self.clear()

    def clear(self):
        self.held = [None] * self.ways  # (key, value)

    def where(self, key):
        found = [way for way, held in enumerate(self.held) if held and held[0] == key]
        return found[0] if found else None

    def get(self, key):
        way = self.where(key)
        return None if way is None else self.held[way][1]

    def use(self, key):
        self.used(self.where(key), is_new=False)

    def insert(self, key, value):
        way = self.choose()
        gone, self.held[way] = self.held[way], (key, value)
        self.used(way, is_new=True)
        return gone

    def pop(self, key, default):
        way = self.where(key)
        if way is None:
            return default
        gone, self.held[way] = self.held[way], None
        return gone[1]


class TreeRow(PlacedRow):
    """A tournament: nodes over (first way, ways) remember which half was not used last.

    Abel and Reineke, RTAS 2013. Empty ways are chosen among as lines are.
    """

    def clear(self):
        super().clear()
        self.points_right = {}

    def choose(self):
        wanted = [way for way, held in enumerate(self.held) if held is None] or range(self.ways)
        first, size = 0, self.ways
        while size > 1:
            size //= 2
            halves = {
                True: range(first + size, first + 2 * size),
                False: range(first, first + size),
            }
            right = self.points_right.get((first, 2 * size), False)
            right = right if any(way in halves[right] for way in wanted) else not right
            first = halves[right].start
        return first

    def used(self, way, is_new):
        first, size = 0, self.ways
        while size > 1:
            half = size // 2
            is_right = way >= first + half
            self.points_right[first, size] = not is_right
            first, size = first + half * is_right, half


class RripRow(PlacedRow):
    """Two-bit SRRIP with hit priority: Jaleel et al., ISCA 2010, figure 4."""

    def clear(self):
        super().clear()
        self.distance = [None] * self.ways

    def choose(self):
        if None in self.held:
            return self.held.index(None)
        while 3 not in self.distance:
            self.distance = [distance + 1 for distance in self.distance]
        return self.distance.index(3)

    def used(self, way, is_new):
        self.distance[way] = 2 if is_new else 0


class Rows:
    def __init__(self, sets, ways, kind=LruRow):
        self.sets, self.ways = sets, ways
        self.rows = [kind(ways) for _ in range(sets)]

    def row(self, number):
        return self.rows[number % self.sets]

    def insert(self, number, key, value):
        return self.row(number).insert(key, value)

    def empty(self):
        for row in self.rows:
            row.clear()


class Cache(Rows):
    def __init__(self, spec):
        kind = {"lru": LruRow, "tree_plru": TreeRow, "srrip": RripRow}[spec.replacement]
        super().__init__(spec.size_bytes // 64 // spec.ways, spec.ways, kind)

    def get(self, line):
        return self.row(line).get(line)

    def newest(self, line):
        self.row(line).use(line)

    def lose(self, line):
        return self.row(line).pop(line, None)


class Slices(Cache):
    """A cache cut into one list of rows for each node of its socket, if clustered.

    `homes` are the nodes whose lines have a list of their own, `home` tells a line's.
    """

    def __init__(self, spec, homes, home):
        super().__init__(spec)
        self.home, self.parts = home, {}
        for place, node in enumerate(homes):
            size = self.sets // len(homes)
            self.parts[node] = self.rows[place * size : (place + 1) * size]

    def row(self, number):
        rows = self.parts.get(self.home(number), self.rows) if self.parts else self.rows
        return rows[number % len(rows)]


class Tlb(Rows):
    """Keys are (page number, size, owner); owner is a root or EVERYBODY."""

    def __init__(self, spec):
        super().__init__(spec.entries // spec.ways, spec.ways)

    def discard_if(self, unwanted):
        for row in self.rows:
            for key in [key for key in row if unwanted(*key)]:
                del row[key]

    def hit(self, number, size, root):
        row = self.row(number)
        for key in reversed(row):
            if key[:2] == (number, size) and key[2] in (root, EVERYBODY):
                row.move_to_end(key)
                return True
        return False

    def add(self, number, size, owner):
        self.insert(number, (number, size, owner), None)


def page_number(vpn, size):
    """Page numbers are those of a 57-bit unsigned va."""
    return (vpn % (1 << 45)) >> (9 * {"4k": 0, "2m": 1, "1g": 2, "512g": 3}[size])


SIZE = {1: "4k", 2: "2m", 3: "1g"}


class Stream:
    """What a stream prefetcher remembers of a frame: Intel's streamer, see `memory.streamer`."""

    def __init__(self, line):
        self.last, self.way, self.frontier = line, 0, line

    def ask(self, line):
        """Return the lines to prefetch after a request for one."""
        if line == self.last:
            return []
        way = 1 if line > self.last else -1
        goes_on, self.last, self.way = way == self.way, line, way
        if not goes_on:
            self.frontier = line
            return []
        if (self.frontier - line) * way < 0:
            self.frontier = line
        wanted = [self.frontier + way, self.frontier + 2 * way]
        wanted = [x for x in wanted if x // 64 == line // 64 and abs(x - line) <= 20]
        self.frontier = (wanted or [self.frontier])[-1]
        return wanted


class Domain:
    """An LLC, a snoop filter if it is a victim cache, and the CPUs that share it.

    `right` is "exclusive", "forward" or "shared" of every line the domain has.
    """

    def __init__(self, machine: MachineSpec, number, home):
        self.number = number
        homes = []
        if machine.llc.clusters > 1:
            homes = [node for node, socket in enumerate(machine.sockets) if socket == number]
        self.llc, self.filter = Slices(machine.llc, homes, home), None
        if machine.llc.policy == "victim":
            self.filter = Slices(machine.llc.snoop_filter, homes, home)
        self.cpus: list[Cpu] = []
        self.right: dict[int, str] = {}
        self.owner: dict[int, Cpu] = {}

    def has(self, line):
        return self.llc.get(line) or any(cpu.copies(line) for cpu in self.cpus)

    def copies(self, line):
        found = [self.llc.get(line)] + [copy for cpu in self.cpus for copy in cpu.copies(line)]
        return [copy for copy in found if copy]

    def forget_if_gone(self, line):
        if not self.has(line):
            self.right.pop(line, None)
            self.owner.pop(line, None)

    def lose(self, line):
        """Everything about a line, at once."""
        self.llc.lose(line)
        if self.filter:
            self.filter.lose(line)
        for cpu in self.cpus:
            cpu.lose(line)
        self.forget_if_gone(line)

    def empty(self):
        for cache in [self.llc] + ([self.filter] if self.filter else []):
            cache.empty()
        self.right.clear()
        self.owner.clear()


class Cpu:
    def __init__(self, machine: MachineSpec, node: int, domain: Domain):
        self.node, self.domain = node, domain
        domain.cpus.append(self)
        self.l1i, self.l1d = Cache(machine.l1i), Cache(machine.l1d)
        self.l2 = Cache(machine.l2)
        tlbs = machine.tlbs
        self.itlb = {"4k": Tlb(tlbs.itlb_4k), "2m": Tlb(tlbs.itlb_2m)}
        self.dtlb = {"4k": Tlb(tlbs.dtlb_4k), "2m": Tlb(tlbs.dtlb_2m), "1g": Tlb(tlbs.dtlb_1g)}
        self.stlb = {"4k": Tlb(tlbs.stlb)}  # by what it holds
        if tlbs.stlb_holds_2m:
            self.stlb["2m"] = self.stlb["4k"]
        if tlbs.stlb_1g:
            self.stlb["1g"] = Tlb(tlbs.stlb_1g)
        psc = machine.psc
        self.psc = {2: Tlb(psc.pmd), 3: Tlb(psc.pud), 4: Tlb(psc.pgd)}
        self.streams = LruRow(32)  # by frame
        self.since_leading = None  # instructions since the window opened; None = closed

    @property
    def tlbs(self):
        return [*self.itlb.values(), *self.dtlb.values(), *self.stlb.values()]

    @property
    def inner(self):
        return [self.l1i, self.l1d, self.l2]

    def copies(self, line):
        return [copy for cache in self.inner if (copy := cache.get(line))]

    def lose(self, line):
        """Return the copies lost."""
        return [copy for cache in self.inner if (copy := cache.lose(line))]

    def forget(self):
        for structure in [*self.tlbs, *self.psc.values(), *self.inner]:
            structure.empty()
        self.streams.clear()
        self.since_leading = None


class Twin:
    def __init__(self, machine: MachineSpec, cpu_nodes, node_end_pfn):
        self.machine = machine
        self.node_end_pfn = [int(end) for end in node_end_pfn]
        domains: dict[int, Domain] = {}
        self.cpus = []
        for node in cpu_nodes:
            number = self.llc_number(node)
            domain = domains.setdefault(number, Domain(machine, number, self.home))
            self.cpus.append(Cpu(machine, node, domain))
        self.domains = list(domains.values())
        self.served = Counter()
        self.functions = Counter()  # what missed L1, by the record's function
        self.events = Counter()

    def llc_number(self, node):
        sockets = self.machine.sockets
        is_one_of_many = self.machine.llc.shared_by == "socket" and sockets is not None
        return sockets[node] if is_one_of_many else node

    def home(self, line):
        return next(node for node, end in enumerate(self.node_end_pfn) if end > line // 64)

    def flush(self):
        for cpu in self.cpus:
            cpu.forget()
        for domain in self.domains:
            domain.empty()

    def flush_lines(self, lines):
        for domain in self.domains:
            for line in lines:
                domain.lose(line)
            for cpu in domain.cpus:
                cpu.since_leading = None

    def run(self, cpu_number, records, pages):
        cpu = self.cpus[cpu_number]
        for record in records:
            page = pages[record.page]
            if record.kind in (CR3, INVLPG, FLUSH, IPI):
                self.serialise(cpu, record.kind, page)
            else:
                self.reference(cpu, record, page)

    # ------------------------------------------------------------------ one record

    def serialise(self, cpu, kind, page):
        cpu.since_leading = None
        if kind == IPI:
            self.events["ipis"] += 1
            return
        if kind == CR3 and self.machine.pcid:
            self.events["cr3_writes"] += 1
            return
        for psc in cpu.psc.values():
            psc.empty()
        if kind == CR3:
            self.events["cr3_writes"] += 1
            for tlb in cpu.tlbs:
                tlb.discard_if(lambda number, size, owner: owner != EVERYBODY)
        elif kind == FLUSH:
            self.events["tlb_flushes"] += 1
            for tlb in cpu.tlbs:
                tlb.empty()
        else:
            self.events["invlpgs"] += 1

            def covers(number, size, owner):
                if size == "splinter of 1g":
                    return number >> 9 == page_number(page.vpn, "1g")
                return number == page_number(page.vpn, size)

            for tlb in cpu.tlbs:
                tlb.discard_if(covers)

    def reference(self, cpu, record, page):
        kind = record.kind
        accesses = record.repeats or 1
        self.events["references"] += accesses
        side = "itlb" if kind == FETCH else "dtlb"
        walked = self.translate(cpu, side, page)
        # Whatever the first did, the rest of the run hits, and is no further use of the line.
        self.events[f"{side}_hits"] += accesses - 1

        chain = []
        for level in walked or ():
            table, index = page.table[level], (page.vpn >> (9 * (level - 1))) % 512
            service = self.access(cpu, cpu.l1d, (table * 4096 + index * 8) // 64, False)
            chain.append((f"{kind}_walk", level, service))
        l1 = cpu.l1i if kind == FETCH else cpu.l1d
        own_service = self.access(cpu, l1, page.pfn * 64 + record.line, kind == STORE)

        services = [service for _, _, service in chain]
        if kind != STORE:
            services.append(own_service)
        overlap = self.overlap(cpu, kind, any(level in FAR for level, _ in services))
        for access, level, service in chain:
            self.served[access, level, page.region, *service, overlap] += 1
            self.functions[record.function, access, *service, overlap] += 1
        own_overlap = "overlapped" if kind == STORE else overlap
        self.served[kind, 0, page.region, *own_service, own_overlap] += 1
        if own_service[0] != "l1":
            self.functions[record.function, kind, *own_service, own_overlap] += 1
        if accesses > 1:
            rest = "leading" if kind == FETCH else "overlapped"
            self.served[kind, 0, page.region, "l1", cpu.node, rest] += accesses - 1

        if kind == FETCH:
            self.events["instructions"] += record.repeats
            if cpu.since_leading is not None:
                cpu.since_leading += record.repeats

    def overlap(self, cpu, kind, is_long):
        if kind == FETCH:
            if is_long:
                cpu.since_leading = None
            return "leading"
        window = self.machine.core.reorder_window
        if not is_long:
            return "overlapped"
        if cpu.since_leading is not None and cpu.since_leading < window:
            return "overlapped"
        cpu.since_leading = 0
        return "leading"

    # ------------------------------------------------------------------ translation

    def translate(self, cpu, side, page):
        """Return the levels a walk reads, or None if a TLB had the page."""
        owner = EVERYBODY if page.is_global else page.root
        size = SIZE[page.leaf]
        if side == "itlb":
            array = cpu.itlb["4k" if size == "4k" else "2m"]
            number = page_number(page.vpn, "4k" if size == "4k" else "2m")
            name = "splinter of 1g" if size == "1g" else size
        else:
            array, number, name = cpu.dtlb[size], page_number(page.vpn, size), size
        if array.hit(number, name, page.root):
            self.events[f"{side}_hits"] += 1
            return None
        self.events[f"{side}_misses"] += 1
        array.add(number, name, owner)
        who = "fetch" if side == "itlb" else "data"
        if size in cpu.stlb:
            number = page_number(page.vpn, size)
            if cpu.stlb[size].hit(number, size, page.root):
                self.events[f"stlb_{who}_hits"] += 1
                return None
            cpu.stlb[size].add(number, size, owner)
        self.events[f"{who}_walks"] += 1
        return self.walk(cpu, page)

    def walk(self, cpu, page):
        above = {2: "2m", 3: "1g", 4: "512g"}
        levels = [level for level in (5, 4, 3, 2, 1) if level in page.table and level >= page.leaf]
        for level in (2, 3, 4):
            number = page_number(page.vpn, above[level])
            if level > page.leaf and cpu.psc[level].hit(number, level, page.root):
                self.events[f"psc_{ {2: 'pmd', 3: 'pud', 4: 'pgd'}[level] }_hits"] += 1
                levels = [lower for lower in levels if lower < level]
                break
        else:
            self.events["psc_misses"] += 1
        for level in levels:
            if level in above and level != page.leaf:
                cpu.psc[level].add(page_number(page.vpn, above[level]), level, page.root)
        return levels

    # ------------------------------------------------------------------ caches

    def access(self, cpu, l1, line, store):
        service = self.lookup(cpu, l1, line, store)
        entry = l1.get(line)
        if store and not entry.dirty:
            self.own(cpu, line)
            entry.dirty = True
        self.prefetch(cpu, l1, line, service[0])
        return service

    def own(self, cpu, line):
        """Leave the CPU that is about to store alone with a line."""
        domain = cpu.domain
        if domain.right[line] == "exclusive" and domain.owner.get(line) is cpu:
            return
        if domain.right[line] != "exclusive":
            self.events["upgrades"] += 1
            self.take_from_others(domain, line)
        for other in domain.cpus:
            if other is not cpu:
                self.events["peer_invalidations"] += len(other.lose(line))
        if domain.filter:
            copy = domain.llc.lose(line)
            if copy and copy.dirty:
                cpu.l2.get(line).dirty = True
        domain.right[line], domain.owner[line] = "exclusive", cpu

    def prefetch(self, cpu, l1, line, served_by):
        """L2 gets the other half of 128 bytes, the next line of code in its 4 KiB, and streams."""
        wanted = []
        if self.machine.prefetch.adjacent_line and served_by in FAR:
            wanted.append(line + 1 if line % 2 == 0 else line - 1)
        if self.machine.prefetch.next_line_fetch and l1 is cpu.l1i and served_by != "l1":
            wanted += [line + 1] if line % 64 < 63 else []
        if self.machine.prefetch.stream and served_by != "l1":
            stream = cpu.streams.get(line // 64)
            if stream:
                cpu.streams.use(line // 64)
                wanted += stream.ask(line)
            else:
                cpu.streams.insert(line // 64, Stream(line))
        for other in wanted:
            if not cpu.l2.get(other):
                self.events["prefetches"] += 1
                self.into_l2(cpu, other, store=False)

    def lookup(self, cpu, l1, line, store):
        """Bring a line into L1 as newest; return (service, node)."""
        if l1.get(line):
            l1.newest(line)
            return "l1", cpu.node
        if cpu.l2.get(line):
            cpu.l2.newest(line)
            service = "l2", cpu.node
        else:
            service = self.into_l2(cpu, line, store)
        gone = l1.insert(line, line, Line())
        if gone and gone[1].dirty:
            (cpu.l2.get(gone[0]) or cpu.domain.llc.get(gone[0])).dirty = True
        return service

    def into_l2(self, cpu, line, store):
        domain, copy = cpu.domain, Line()
        if domain.filter:
            service, copy.dirty = self.find_beside_victims(cpu, line, store)
        elif domain.llc.get(line):
            domain.llc.newest(line)
            service = "llc", cpu.node
            owner = domain.owner.get(line)
            if owner not in (cpu, None):
                service = "peer", owner.node
                domain.llc.get(line).dirty |= self.disown(domain, line)
        else:
            service = self.fetch_from_afar(cpu, line, store)
            gone = domain.llc.insert(line, line, Line())
            if gone:
                self.leave_inclusive(domain, *gone)
        gone = cpu.l2.insert(line, line, copy)
        if gone:
            self.events["l2_evictions"] += 1
            if domain.filter:
                self.leave_l2(cpu, *gone)
            elif gone[1].dirty:
                domain.llc.get(gone[0]).dirty = True
        return service

    def disown(self, domain, line):
        """Clean the owner's copies; return whether it had changed the line."""
        copies = domain.owner.pop(line).copies(line)
        changed = any(copy.dirty for copy in copies)
        for copy in copies:
            copy.dirty = False
        return changed

    def leave_inclusive(self, domain, line, entry):
        """A line leaves an inclusive LLC, and everything above it."""
        self.events["llc_evictions"] += 1
        lost = [copy for cpu in domain.cpus for copy in cpu.lose(line)]
        self.events["back_invalidations"] += len(lost)
        self.events["writebacks"] += entry.dirty or any(copy.dirty for copy in lost)
        domain.forget_if_gone(line)

    # ------------------------------------------------------------------ a victim LLC

    def find_beside_victims(self, cpu, line, store):
        """Return ((service, node), whether L2's copy is dirty); the filter tracks it after."""
        domain = cpu.domain
        if domain.filter.get(line):
            domain.filter.newest(line)
            owner = domain.owner.get(line)
            if owner:
                changed = self.disown(domain, line)
                if changed and not store:
                    self.allocate(domain, line, True)
                return ("peer", owner.node), changed and store
            if domain.llc.get(line):
                domain.llc.newest(line)
                return ("llc", cpu.node), False
            return ("peer", self.holders(domain, line)[0].node), False
        copy = domain.llc.lose(line)
        if copy:
            service, dirty = ("llc", cpu.node), copy.dirty
            if domain.right[line] == "exclusive":
                domain.owner[line] = cpu
        else:
            service, dirty = self.fetch_from_afar(cpu, line, store), False
        gone = domain.filter.insert(line, line, True)
        if gone:
            self.leave_filter(domain, gone[0])
        return service, dirty

    def holders(self, domain, line):
        return [cpu for cpu in domain.cpus if cpu.l2.get(line)]

    def leave_filter(self, domain, line):
        self.events["filter_evictions"] += 1
        lost = [copy for cpu in domain.cpus for copy in cpu.lose(line)]
        self.events["back_invalidations"] += len(lost)
        domain.owner.pop(line, None)
        if any(copy.dirty for copy in lost):
            self.allocate(domain, line, True)
        domain.forget_if_gone(line)

    def leave_l2(self, cpu, line, entry):
        domain = cpu.domain
        lost = cpu.lose(line)
        self.events["back_invalidations"] += len(lost)
        if not self.holders(domain, line):
            domain.filter.lose(line)
            domain.owner.pop(line, None)
        self.allocate(domain, line, entry.dirty or any(copy.dirty for copy in lost))

    def allocate(self, domain, line, dirty):
        """Put a line into a victim LLC as newest, or dirty the copy it has."""
        copy = domain.llc.get(line)
        if copy:
            copy.dirty = copy.dirty or dirty
            return
        gone = domain.llc.insert(line, line, Line(dirty))
        if gone:
            self.events["llc_evictions"] += 1
            self.events["writebacks"] += gone[1].dirty
            domain.forget_if_gone(gone[0])

    # ------------------------------------------------------------------ between domains

    def others(self, domain, line):
        return [other for other in self.domains if other is not domain and other.has(line)]

    def take_from_others(self, domain, line):
        for other in self.others(domain, line):
            self.events["remote_invalidations"] += 1
            other.lose(line)

    def fetch_from_afar(self, cpu, line, store):
        """Return (service, node); the CPU's domain gets its right."""
        domain = cpu.domain
        holders = self.others(domain, line)
        forwarders = [other for other in holders if other.right[line] != "shared"]
        assert len(forwarders) <= 1
        home = self.home(line)
        service = "dram", home
        for one in forwarders:
            name = "remote_llc"
            if any(copy.dirty for copy in one.copies(line)):
                is_its_own = self.llc_number(home) == one.number
                name = "remote_dirty" if is_its_own else "remote_dirty_away"
            service = name, one.cpus[0].node
        if store:
            self.take_from_others(domain, line)
            holders = []
        for other in holders:
            copies = other.copies(line)
            self.events["writebacks"] += any(copy.dirty for copy in copies)
            for copy in copies:
                copy.dirty = False
            other.right[line] = "shared"
            other.owner.pop(line, None)
        domain.right[line] = "forward" if holders else "exclusive"
        if not holders:
            domain.owner[line] = cpu
        return service
