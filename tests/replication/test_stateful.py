"""Random sequences of all operations on random topologies; every invariant after each step.

520 runs of up to 50 operations: over 20,000 in all. Each run draws a machine of 1 to 8 nodes, some
without memory, 4 or 5 levels, KPTI on or off, and a policy. Any operation may be told to find no
memory at its n-th allocation, or few addresses; then it must have changed nothing but spare, empty
PTE pages.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from numarep.linux.frames import FrameError
from numarep.linux.layout import MODULES_END_VPN, MODULES_VPN
from numarep.linux.tables import entry_pfn
from numarep.replication import areas
from numarep.replication.areas import free_area, new_area, node_frame, page_of, replicate_area
from numarep.replication.hotplug import hotplug, lacking
from numarep.replication.invariants import violations
from numarep.replication.kernel import (
    KERNEL_HALF,
    Area,
    Cpu,
    Kernel,
    Mm,
    ReplicationError,
    has_replicas,
)
from numarep.replication.modules import Module, ModuleSize, load, load_bpf, unload
from numarep.replication.patching import int3_phases, poke
from numarep.replication.process import (
    clear_slot,
    efi_mm,
    execute,
    fill_slot,
    fork,
    go_lazy,
    leave,
    switch_to,
)
from numarep.replication.protection import Change, set_memory
from numarep.replication.work import Work
from numarep.units import PAGE_SHIFT, PAGES_PER_PMD, PMD_BYTES
from tests.kernels import SmallKernel
from tests.replication.test_process import failing

T = TypeVar("T")
EXAMPLES, STEPS = 520, 50
CHANGES: tuple[Change, ...] = ("ro", "rw", "x", "nx", "rox", "global", "nonglobal")

numbers = st.integers(0, 10**6)  # picks one of whatever there is
fail_at = st.one_of(st.none(), st.none(), st.integers(0, 12))
room = st.one_of(st.none(), st.none(), st.integers(0, 30))  # pages of the window's addresses left


@st.composite
def switches(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the switches of a policy that can exist."""
    flags = {name: draw(st.booleans()) for name in ("text", "rodata", "modules", "bpf")}
    pgds = draw(st.sampled_from(("eager", "lazy", "lazy_shrink", "single_node", "retarget")))
    if pgds == "retarget":
        off = {"modules": False, "bpf": False, "clone_ptes": False, "area_ptes": "shared"}
        return flags | off | {"pgds": pgds}
    flags["user_tables"] = pgds == "eager" and draw(st.booleans())
    ptes = draw(st.sampled_from(("shared", "loader", "target")))
    return flags | {"pgds": pgds, "area_ptes": ptes, "clone_ptes": draw(st.booleans())}


class Machine(RuleBasedStateMachine):
    """One kernel and everything one can do with it."""

    kernel: Kernel
    operations = 0  # of all runs
    without_addresses = 0

    @initialize(
        nodes=st.integers(1, 8),
        memoryless=st.sets(st.integers(1, 7), max_size=3),
        levels=st.sampled_from((4, 5)),
        pti=st.booleans(),
        policy=switches(),
        places=st.tuples(numbers, numbers, numbers),
    )
    def boot(
        self,
        nodes: int,
        memoryless: set[int],
        levels: int,
        pti: bool,
        policy: dict[str, Any],
        places: tuple[int, int, int],
    ) -> None:
        without = tuple(node for node in memoryless if node < nodes)
        memory = [node for node in range(nodes) if node not in without]
        master, tables = (memory[place % len(memory)] for place in places[:2])
        first = places[2] % nodes
        small = SmallKernel(
            nodes=nodes,
            memoryless=without,
            levels=levels,
            pti=pti,
            processes=(),
            text_bytes=PMD_BYTES + 5,
            rodata_bytes=PMD_BYTES,
            master=master,
            boot=tables,
        )
        self.frames = failing(small)
        cpu_nodes = [first, *(node for node in range(nodes) if node != first)]
        self.kernel = small.booted(cpu_nodes=cpu_nodes, **policy)
        self.modules: list[Module] = []
        self.efi, _ = efi_mm(self.kernel, self.kernel.cpus[0])
        self.memory_changed = 0

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "kernel"):
            Machine.operations += 1
            assert violations(self.kernel) == []

    def cpu(self, number: int) -> Cpu:
        return self.kernel.cpus[number % len(self.kernel.cpus)]

    def mm(self, number: int) -> Mm:
        return self.kernel.mms[number % len(self.kernel.mms)]

    def loose_areas(self) -> list[Area]:
        inside = {id(area) for module in self.modules for area in module.areas.values()}
        return [area for area in self.kernel.areas if id(area) not in inside]

    def attempt(
        self, operation: Callable[[], T], fail_at: int | None, room: int | None = None
    ) -> T | None:
        """Run an operation that may find no memory, or no addresses in the window.

        None if it found none; then it has changed nothing.
        """
        before = self.essence()
        self.frames.fail_at = fail_at
        end = MODULES_END_VPN if room is None else MODULES_VPN + PAGES_PER_PMD + room
        try:
            with patch.object(areas, "MODULES_END_VPN", end):
                return operation()
        except FrameError:
            assert fail_at is not None
        except ReplicationError as error:
            if room is None or "no room" not in str(error):
                raise
            Machine.without_addresses += 1
        finally:
            self.frames.fail_at = None
        assert self.essence() == before
        return None

    def essence(self) -> object:
        """What must not change; spare PTE pages are the kernel's to keep."""
        kernel = self.kernel
        spare = kernel.held["shared"] + kernel.held["area_ptes"]
        mms = [(id(mm), dict(mm.pgd), mm.window, dict(mm.private)) for mm in kernel.mms]
        cpus = [(id(cpu.mm), cpu.lazy, cpu.cr3) for cpu in kernel.cpus]
        areas = [(id(a), a.start, dict(a.replicas)) for a in kernel.areas]
        return kernel.frames.taken - spare, mms, cpus, areas, dict(kernel.replicated)

    # Processes

    @rule(cpu=numbers, fail_at=fail_at)
    def fork(self, cpu: int, fail_at: int | None) -> None:
        if len(self.kernel.mms) < 6:
            self.attempt(lambda: fork(self.kernel, self.cpu(cpu)), fail_at)

    @precondition(lambda self: self.kernel.mms)
    @rule(mm=numbers)
    def exit(self, mm: int) -> None:
        process = self.mm(mm)
        if any(cpu.mm is process and not cpu.lazy for cpu in self.kernel.cpus):
            with pytest.raises(ReplicationError, match="still runs"):
                leave(self.kernel, process)
        else:
            leave(self.kernel, process)

    @precondition(lambda self: self.kernel.mms)
    @rule(mm=numbers, cpu=numbers, slot=st.integers(0, KERNEL_HALF - 1), fail_at=fail_at)
    def fill_or_clear(self, mm: int, cpu: int, slot: int, fail_at: int | None) -> None:
        process = self.mm(mm)
        if self.kernel.tables.entry(process.pgd[process.original], slot):
            clear_slot(self.kernel, process, slot)
        else:
            self.attempt(lambda: fill_slot(self.kernel, self.cpu(cpu), process, slot), fail_at)

    @precondition(lambda self: self.kernel.mms)
    @rule(mm=numbers)
    def clear_any(self, mm: int) -> None:
        process = self.mm(mm)
        for slot in list(self.kernel.tables.pages[process.pgd[process.original]]):
            if slot < KERNEL_HALF:
                clear_slot(self.kernel, process, slot)

    @precondition(lambda self: self.kernel.mms)
    @rule(mm=numbers, cpu=numbers, fail_at=fail_at)
    def switch(self, mm: int, cpu: int, fail_at: int | None) -> None:
        kernel, process, on = self.kernel, self.mm(mm), self.cpu(cpu)
        running = {kernel.node_home(c) for c in kernel.cpus if c.mm is process and not c.lazy}
        others = running - {kernel.node_home(on)}
        if kernel.spec.pgds == "retarget" and others:
            with pytest.raises(ReplicationError, match="several nodes"):
                switch_to(kernel, on, process)
        else:
            self.attempt(lambda: switch_to(kernel, on, process), fail_at)

    @rule(cpu=numbers, which=st.sampled_from(("init", "efi", "poking")))
    def switch_to_the_kernels_own(self, cpu: int, which: str) -> None:
        kernel = self.kernel
        mm = {"init": kernel.init_mm, "efi": self.efi, "poking": kernel.poking}[which]
        assert mm is not None
        switch_to(kernel, self.cpu(cpu), mm)

    @rule(cpu=numbers)
    def lazy(self, cpu: int) -> None:
        go_lazy(self.cpu(cpu))

    @rule(cpu=numbers, fail_at=fail_at)
    def exec(self, cpu: int, fail_at: int | None) -> None:
        on = self.cpu(cpu)
        alone = all(other.mm is not on.mm for other in self.kernel.cpus if other is not on)
        if on.mm in self.kernel.mms and not on.lazy and alone:
            self.attempt(lambda: execute(self.kernel, on), fail_at)
        elif on.mm not in self.kernel.mms or on.lazy:
            with pytest.raises(ReplicationError, match="runs no process"):
                execute(self.kernel, on)

    # Areas, modules, BPF

    @rule(
        cpu=numbers,
        pages=st.integers(1, 4),
        node=st.one_of(st.none(), numbers),
        window=st.booleans(),
        fail_at=fail_at,
        room=room,
    )
    def map_area(
        self,
        cpu: int,
        pages: int,
        node: int | None,
        window: bool,
        fail_at: int | None,
        room: int | None,
    ) -> None:
        nodes = self.kernel.replica_nodes
        bound = None if node is None else nodes[node % len(nodes)]
        if len(self.kernel.areas) < 12:
            self.attempt(
                lambda: new_area(self.kernel, self.cpu(cpu), pages, node=bound, window=window),
                fail_at,
                room,
            )

    @precondition(lambda self: self.loose_areas())
    @rule(area=numbers, cpu=numbers, fail_at=fail_at)
    def replicate(self, area: int, cpu: int, fail_at: int | None) -> None:
        areas = self.loose_areas()
        chosen = areas[area % len(areas)]
        shown = self.kernel.tables.walk(self.kernel.root, chosen.start) is not None
        free_to = chosen.node is not None and not chosen.replicas and shown
        if has_replicas(chosen.start) and free_to and self.kernel.spec.pgds != "retarget":
            self.attempt(lambda: replicate_area(self.kernel, self.cpu(cpu), chosen), fail_at)
        else:
            with pytest.raises(ReplicationError):
                replicate_area(self.kernel, self.cpu(cpu), chosen)

    @precondition(lambda self: self.loose_areas())
    @rule(area=numbers)
    def unmap_area(self, area: int) -> None:
        areas = self.loose_areas()
        chosen = areas[area % len(areas)]
        frames = {*chosen.frames, *(f for copies in chosen.replicas.values() for f in copies)}
        free_area(self.kernel, chosen)
        assert frames.isdisjoint(self.kernel.frames.in_use)
        with pytest.raises(ReplicationError, match="is not mapped"):
            page_of(self.kernel, chosen.start)

    @precondition(lambda self: self.kernel.areas)
    @rule(area=numbers, change=st.sampled_from(CHANGES))
    def protect(self, area: int, change: Change) -> None:
        chosen = self.kernel.areas[area % len(self.kernel.areas)]
        if self.kernel.tables.walk(self.kernel.root, chosen.start):
            set_memory(self.kernel, chosen.start, len(chosen.frames), change)

    @precondition(lambda self: self.kernel.areas)
    @rule(area=numbers)
    def hide_or_show(self, area: int) -> None:
        chosen = self.kernel.areas[area % len(self.kernel.areas)]
        shown = self.kernel.tables.walk(self.kernel.root, chosen.start)
        set_memory(self.kernel, chosen.start, len(chosen.frames), "np" if shown else "p")

    @rule(section=st.integers(0, 1), change=st.sampled_from(CHANGES))
    def protect_the_image(self, section: int, change: Change) -> None:
        whole = self.kernel.image.replicated[section]
        set_memory(self.kernel, whole.start >> PAGE_SHIFT, whole.pages, change)

    @rule(cpu=numbers, text=st.integers(1, 3), rest=st.integers(0, 2), fail_at=fail_at, room=room)
    def load_module(
        self, cpu: int, text: int, rest: int, fail_at: int | None, room: int | None
    ) -> None:
        if len(self.modules) < 3:
            size = ModuleSize(text, rest, rest, 1)
            loaded = self.attempt(lambda: load(self.kernel, self.cpu(cpu), size), fail_at, room)
            if loaded is not None:
                self.modules.append(loaded[0])
                wanted = self.kernel.spec.modules and loaded[0].replicated
                areas = loaded[0].areas
                further = wanted and len(self.kernel.replica_nodes) > 1
                assert bool(areas["text"].replicas) is further
                assert not areas["data"].replicas

    @precondition(lambda self: self.modules)
    @rule(module=numbers)
    def unload_module(self, module: int) -> None:
        unload(self.kernel, self.modules.pop(module % len(self.modules)))

    @rule(cpu=numbers, pages=st.integers(1, 2), fail_at=fail_at, room=room)
    def load_bpf(self, cpu: int, pages: int, fail_at: int | None, room: int | None) -> None:
        if len(self.kernel.areas) < 12:
            self.attempt(lambda: load_bpf(self.kernel, self.cpu(cpu), pages), fail_at, room)

    # Patching

    @rule(cpu=numbers, at=st.integers(0, 8000), data=st.binary(min_size=1, max_size=8))
    def poke_text(self, cpu: int, at: int, data: bytes) -> None:
        poke(self.kernel, self.cpu(cpu), self.kernel.image.text.start + at, data)

    @rule(cpu=numbers, at=st.integers(0, 8000), data=st.binary(min_size=1, max_size=8))
    def patch_with_int3(self, cpu: int, at: int, data: bytes) -> None:
        va = self.kernel.image.text.start + at
        phases = [p for p, _, _ in int3_phases(self.kernel, self.cpu(cpu), [(va, data)], Work())]
        assert phases == sorted(phases)
        for node in self.kernel.replica_nodes:
            for offset, byte in enumerate(data, va):
                pfn = node_frame(self.kernel, node, offset >> PAGE_SHIFT)
                assert self.kernel.contents.read(pfn, offset % 4096, 1) == (byte,)

    @precondition(lambda self: self.kernel.areas)
    @rule(area=numbers, cpu=numbers, data=st.binary(min_size=1, max_size=8))
    def poke_area(self, area: int, cpu: int, data: bytes) -> None:
        chosen = self.kernel.areas[area % len(self.kernel.areas)]
        va = chosen.start << PAGE_SHIFT
        if self.kernel.tables.walk(self.kernel.root, chosen.start):
            poke(self.kernel, self.cpu(cpu), va, data)
        else:
            with pytest.raises(ReplicationError, match="is not mapped"):
                poke(self.kernel, self.cpu(cpu), va, data)

    # The known gap

    @rule(cpu=numbers, slot=st.integers(KERNEL_HALF, 509), fail_at=fail_at)
    def hotplug(self, cpu: int, slot: int, fail_at: int | None) -> None:
        """Memory added at PGD level is not mirrored: a violation until the slot is filled (R39)."""
        kernel, level = self.kernel, self.kernel.tables.levels
        if kernel.tables.entry(kernel.root, slot):
            with pytest.raises(ReplicationError, match="filled already"):
                hotplug(kernel, self.cpu(cpu), slot)
            return
        if self.attempt(lambda: hotplug(kernel, self.cpu(cpu), slot), fail_at) is None:
            assert not kernel.tables.entry(kernel.root, slot)
            return
        further = kernel.further_nodes
        assert lacking(kernel) == ({slot: further} if further else {})
        named = [line for line in violations(kernel) if line.startswith("R39")]
        assert named == [
            f"R39: node {node}: kernel PGD slot {slot} is not the master's" for node in further
        ]
        entry = kernel.tables.entry(kernel.root, slot)  # mirrored, as nobody does, or taken away
        pgds = [pgd for mm in kernel.mms for pgd in mm.pgd.values()]
        for pgd in (*pgds, *(kernel.pgd_numa(node) for node in kernel.replica_nodes)):
            kernel.tables.set_entry(level, pgd, slot, entry if slot % 2 else 0)
        if slot % 2 == 0:
            kernel.free_table(entry_pfn(entry), "shared")


def test_r8_r9_r19_r25_r28_random_operations_keep_every_invariant() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate,),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Machine.operations >= 20_000
    assert Machine.without_addresses >= 50
