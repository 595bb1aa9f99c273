"""The traced kernel's events, replayed on the model: where replication's extra work arises.

An entry of a watched function is the event; `clues` says what it was about; the model's operation
gives the work, which is spliced in there, on the CPU that ran it.

| symbol | operation |
|---|---|
| pgd_alloc, pgd_free | `process.fork`, `process.leave` (R16) |
| __pud_alloc with 4 levels, __p4d_alloc with 5 | `process.fill_slot` (R18) |
| ___pud_free_tlb with 4 levels, ___p4d_free_tlb with 5 | `process.clear_slot` (R18) |
| switch_mm_irqs_off | `process.switch_to` (R20) |
| text_poke | `patching.poke` (R23): every phase of the INT3 protocol calls it |
| text_poke_copy, _set, _kgdb | the same for every page they write |
| load_module | `adopt.load_captured` (R26, R30), at the module's first protection change |
| free_module | `areas.free_area` of each of its areas (R28) |
| set_memory_ro, _rw, _x, _nx, _rox, _np, _global, _nonglobal | `protection.set_memory` (R25) |

Assumed, where a clue is missing: a new process's PGD lies on the CPU's node; the oldest process
exits; the youngest fills its first free slot. A module is of the size of `scenarios`, the oldest
is unloaded, the youngest one's text is protected, and the kernel's first text is patched; each of
these four gives a warning. A module's init sections are freed where the next one is loaded.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from numarep.linux.tables import PageTables, entry_pfn
from numarep.replication.adopt import INIT, load_captured
from numarep.replication.areas import free_area
from numarep.replication.clues import Clues
from numarep.replication.kernel import (
    ENTRIES_PER_LINE,
    KERNEL_HALF,
    Area,
    Cpu,
    Kernel,
    Mm,
    uncharged,
)
from numarep.replication.mitosis import mirror_stores
from numarep.replication.module_clues import FREE, LOAD, PROTECT, ModuleClues
from numarep.replication.modules import load
from numarep.replication.patching import poke
from numarep.replication.process import clear_slot, fill_slot, fork, leave, switch_to
from numarep.replication.protection import Change, set_memory
from numarep.replication.scenarios import SMALL_MODULE, disturb
from numarep.replication.splice import Splice
from numarep.replication.watch import COPIES, POKES, TEXT_POKE, ReplicationWarning, watched
from numarep.replication.work import Work
from numarep.spec import DisturbanceSpec
from numarep.units import LINE_BYTES, PAGE_SHIFT
from numarep.workload.trace import ITERATION, Trace


def _warn_of_guess(name: str, unknown: str, guess: str) -> None:
    warnings.warn(
        f"{name} is entered in the window, and nothing tells {unknown}: charged is {guess}",
        ReplicationWarning,
        stacklevel=2,
    )


@dataclass
class Replay:
    """A window's events on a booted kernel; `trace` is the window with their work in it."""

    kernel: Kernel
    window: Trace
    cpu: Cpu
    user_tables: frozenset[int] = frozenset()  # user page tables the snapshots hold
    disturbance: DisturbanceSpec | None = None
    alive: dict[int, Mm] = field(default_factory=dict)  # by pfn of the captured PGD
    processes: dict[int, Mm] = field(default_factory=dict)  # gone ones, too
    modules: list[list[Area]] = field(default_factory=list)  # those live, oldest first
    init_sections: list[Area] = field(default_factory=list)  # of the youngest
    at_end: PageTables | None = None  # the window's last snapshot
    unsealed: dict[int, int] = field(default_factory=dict)  # loads, and where each is mapped
    clues: Clues = field(init=False)
    module_clues: ModuleClues = field(init=False)

    def __post_init__(self) -> None:
        """Take over the processes that live when the window begins."""
        self.clues = Clues(self.window, self.kernel.bases, self.kernel.image)
        self.module_clues = ModuleClues(self.clues, self.kernel, self.at_end)
        first = int(self.window.pages.root[self.window.records.page[0]])
        with uncharged(self.kernel):
            for pgd in sorted(self._captured() - self._born()):
                self._adopt(pgd)
            switch_to(self.kernel, self.cpu, self._process(first))

    def _captured(self) -> set[int]:
        """List captured PGDs, in the snapshot's tables or the trace: first pages of their pairs."""
        levels, kernel = self.kernel.tables.levels, self.kernel
        ours = {pfn for own in kernel.own.values() for pfn in own.values()}
        ours |= {pgd for mm in kernel.mms for pgd in mm.pgd.values()}
        if kernel.poking is not None:
            ours |= set(kernel.poking.pgd.values())
        top = {t for t, level in kernel.tables.level_of.items() if level == levels}
        roots = {*np.unique(self.window.pages.root).tolist(), *top}
        return {root & ~1 for root in roots - ours} - {kernel.root & ~1} - ours

    def _born(self) -> set[int | None]:
        events = zip(self.window.event_record.tolist(), self.window.event_name, strict=True)
        births = (self.clues.new_pgd(at) for at, name in events if name == "pgd_alloc")
        known = set(self.kernel.tables.pages)
        return {pgd for pgd in births if pgd not in known}

    def _adopt(self, pgd: int) -> Mm:
        """Give a process that was born before its further PGDs."""
        entries = self.kernel.tables.pages.get(pgd, {}).items()
        filled = [(slot, entry) for slot, entry in entries if slot < KERNEL_HALF]
        mm, _ = fork(self.kernel, self.cpu, captured=pgd)
        for slot, entry in filled:
            fill_slot(self.kernel, self.cpu, mm, slot, captured=entry_pfn(entry))
        self.alive[pgd] = self.processes[pgd] = mm
        return mm

    def _process(self, root: int) -> Mm:
        pgd = root & ~1
        return self.alive.get(pgd, self.kernel.init_mm)

    def trace(self) -> Trace:
        """Run the events and return the window with their work spliced in."""
        splice = Splice(self.window, self.kernel)
        if not self.kernel.spec.active:
            return self._switched_off(splice)
        operations = watched(self.kernel.tables.levels)
        events = zip(self.window.event_record.tolist(), self.window.event_name, strict=True)
        for event, name in events:
            if name == ITERATION and self.disturbance is not None:
                splice.add(event, self.cpu, disturb(self.kernel, self.cpu, self.disturbance))
                continue
            for loading in [at for at, sealed in self.unsealed.items() if sealed == event]:
                splice.add(event, self.cpu, self._map_module(loading))
            if name in PROTECT:
                splice.add(event, self.cpu, self._protect(event, name))
            elif name in COPIES:
                splice.add(event, self.cpu, self._poke(event, name))
            elif name in operations:
                splice.add(event, self.cpu, getattr(self, f"_{operations[name]}")(event))
        if self.kernel.spec.user_tables:
            mirror_stores(splice, self.cpu, self.clues, self.user_tables)
        return splice.spliced()

    def _switched_off(self, splice: Splice) -> Trace:
        """Charge the code's own path at every watched event (R1)."""
        names = watched(self.kernel.tables.levels)
        events = zip(self.window.event_record.tolist(), self.window.event_name, strict=True)
        for event in [event for event, name in events if name in names]:
            work = Work()
            work.instructions(self.kernel.spec.instructions.switched_off)
            splice.add(event, self.cpu, work)
        return splice.spliced()

    def _birth(self, event: int) -> Work:
        pgd = self.clues.new_pgd(event)
        if pgd in self.alive:  # its end was on another CPU
            self._end(pgd)
        mm, work = fork(self.kernel, self.cpu, captured=pgd)
        key = mm.pgd[mm.original] if pgd is None else pgd
        self.alive[key] = self.processes[key] = mm
        return work

    def _death(self, event: int) -> Work:
        pgd = self.clues.freed_pgd(event, self.alive)
        if pgd is None:
            others = [key for key, mm in self.alive.items() if mm is not self.cpu.mm]
            pgd = others[0] if others else None
        if pgd is None:
            self._birth(event)
            pgd = next(reversed(self.alive))
        return self._end(pgd)

    def _end(self, pgd: int) -> Work:
        mm = self.alive.pop(pgd)
        for cpu in self.kernel.cpus:
            if cpu.mm is mm:
                switch_to(self.kernel, cpu, self.kernel.init_mm)
        slots = [i for i in self.kernel.tables.pages[mm.pgd[mm.original]] if i < KERNEL_HALF]
        for slot in slots:
            clear_slot(self.kernel, mm, slot)  # charged where the trace clears them
        return leave(self.kernel, mm)

    def _fill(self, event: int) -> Work:
        clue = self.clues.filled_slot(event, self.alive)
        pgd, line, table = clue or (next(reversed(self.alive)), 0, None)
        mm = self.alive[pgd]
        slot = self._slot(mm, line, filled=False)
        if self.kernel.tables.entry(mm.pgd[mm.original], slot):
            clear_slot(self.kernel, mm, slot)
        return fill_slot(self.kernel, self.cpu, mm, slot, captured=table)

    def _clear(self, event: int) -> Work:
        clue = self.clues.cleared_slot(event, self.alive)
        pgd, line = clue or (next(iter(self.alive)), 0)
        mm = self.alive[pgd]
        slot = self._slot(mm, line, filled=True)
        if not self.kernel.tables.entry(mm.pgd[mm.original], slot):
            fill_slot(self.kernel, self.cpu, mm, slot)
        return clear_slot(self.kernel, mm, slot)

    def _slot(self, mm: Mm, line: int, *, filled: bool) -> int:
        """Return the first slot of a PGD's line that is filled or empty, else the line's first."""
        slots = range(line * ENTRIES_PER_LINE, (line + 1) * ENTRIES_PER_LINE)
        entries = self.kernel.tables.pages[mm.pgd[mm.original]]
        return next((slot for slot in slots if (slot in entries) == filled), slots.start)

    def _switch(self, event: int) -> Work:
        root = self.clues.loaded_root(event)
        return Work() if root is None else switch_to(self.kernel, self.cpu, self._process(root))

    def _poke(self, event: int, name: str = TEXT_POKE) -> Work:
        """Repeat a write of text for every replica: of an instruction, or of all lines stored."""
        pages, whole_lines = dict[int, list[int]](), name in COPIES
        for pfn, line in self.clues.user_stores(event, self.module_clues.until(event, *POKES)):
            vpn = self.module_clues.text_at(pfn)
            if vpn is not None:
                pages.setdefault(vpn, []).append(line)
        if not pages:
            _warn_of_guess(name, "what it writes", "the first text")
            pages = {self.kernel.image.text.start >> PAGE_SHIFT: [0]}
        work = Work()
        for vpn, lines in list(pages.items())[: None if whole_lines else 1]:
            first = min(lines) if whole_lines else lines[0]
            size = (max(lines) + 1 - first) * LINE_BYTES if whole_lines else 1
            va = (vpn << PAGE_SHIFT) + first * LINE_BYTES
            work.extend(poke(self.kernel, self.cpu, va, b"\x90" * size))
        return work

    def _load(self, event: int) -> Work:
        """Map the module now, or note where it will be."""
        sealed = self.module_clues.sealed_at(event)
        if sealed == event:
            return self._map_module(event)
        self.unsealed[event] = sealed
        return Work()

    def _map_module(self, event: int) -> Work:
        self.unsealed.pop(event, None)
        work = Work()
        for area in self.init_sections:
            work.extend(free_area(self.kernel, area))
        self.init_sections = []
        parts = self.module_clues.loaded(event)
        if not parts:
            _warn_of_guess(LOAD, "its pages", f"a module of {sum(SMALL_MODULE)} pages")
            module, more = load(self.kernel, self.cpu, SMALL_MODULE)
            work.extend(more)
            self.modules.append(list(module.areas.values()))
            return work
        areas, more = load_captured(self.kernel, self.cpu, parts)
        work.extend(more)
        of = list(zip(areas, parts, strict=True))
        self.modules.append([area for area, part in of if part.what != INIT])
        self.init_sections = [area for area, part in of if part.what == INIT]
        return work

    def _unload(self, event: int) -> Work:
        place = self.module_clues.freed(event, self.modules)
        if place is None:
            _warn_of_guess(FREE, "its module", "the oldest one")
            if not self.modules:
                module, _ = load(self.kernel, self.cpu, SMALL_MODULE)
                self.modules.append(list(module.areas.values()))
            place = 0
        work = Work()
        for area in self.modules.pop(place):
            work.extend(free_area(self.kernel, area))
        return work

    def _protect(self, event: int, name: str) -> Work:
        change = cast(Change, name.removeprefix("set_memory_"))
        pages = self.module_clues.protected(event)
        if pages is None:
            _warn_of_guess(name, "its pages", "the youngest module's text")
            if not self.modules:
                module, _ = load(self.kernel, self.cpu, SMALL_MODULE)
                self.modules.append(list(module.areas.values()))
            pages = self.modules[-1][0].vpns
        return set_memory(self.kernel, pages.start, len(pages), change)


def page_table_frames(kernel: Kernel, processes: Mapping[int, Mm]) -> set[int]:
    """Return frames of page tables that replication added."""
    frames = {copy for own in kernel.own.values() for copy in own.values()}
    for mm in processes.values():
        frames |= {pgd + page for pgd in mm.pgd.values() for page in (0, 1)}
        frames |= set(mm.private.values())
    frames |= {copy for copies in kernel.user_copies.values() for copy in copies.values()}
    return frames
