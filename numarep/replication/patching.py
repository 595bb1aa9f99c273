r"""Patching kernel text: every replica, through the poking mm, in the INT3 protocol (R22-R24).

Modelled are the bytes (`Kernel.contents`) and the work; `int3_phases` stops after every write, so
that what other CPUs could fetch in between can be looked at. In the window every memory node's
table is looked up and written through, also where several map the same page, as the series does.

>>> from tests.kernels import TEXT_VA, SmallKernel
>>> kernel = SmallKernel(nodes=3).booted()
>>> work = poke(kernel, kernel.cpus[0], TEXT_VA + 5, b"\xcc")
>>> len(work.events(Sync.CR3_LOAD)), [run.node for run in work.accesses() if run.vpn == POKING_VPN]
(4, [1, 2])
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum

from numarep.linux.tables import (
    LARGE,
    NO_EXECUTE,
    PRESENT,
    WRITABLE,
    entry_index,
)
from numarep.memory.kinds import Kind
from numarep.replication.areas import node_frame
from numarep.replication.kernel import (
    ENTRIES_PER_LINE,
    Cpu,
    Kernel,
    ReplicationError,
    has_replicas,
)
from numarep.replication.work import Run, Sync, Work
from numarep.units import (
    ENTRY_BYTES,
    LINE_BYTES,
    LINE_SHIFT,
    PAGE_BYTES,
    PAGE_SHIFT,
    PMD,
    PMD_BYTES,
    PTE,
)

INT3 = b"\xcc"
POKING_VPN = 0  # Assumed: the real one is random (poking_init); its tables are its own anyway
_PAGE_FLAGS = PRESENT | WRITABLE | NO_EXECUTE

Patch = tuple[int, bytes]  # va, new bytes


class Phase(IntEnum):
    """Phases of text_poke_bp_batch: each completes on all replicas before the next begins."""

    BREAKPOINT = 0
    TAIL = 1
    FIRST_BYTE = 2


def patch_boot(kernel: Kernel, va: int, data: bytes) -> Work:
    """Write text or rodata while the kernel boots: plainly, into every copy there is (R14c, R22).

    A module's text is written once, before it is replicated.
    """
    work = Work()
    for part, chunk in _by_page(va, data):
        frames = {node_frame(kernel, node, part >> PAGE_SHIFT) for node in kernel.replica_nodes}
        for pfn in sorted(frames):
            kernel.contents.write(pfn, part % PAGE_BYTES, chunk)
        _charge_boot(kernel, part, 1, 0, work)
    return work


def patch_boot_sites(kernel: Kernel, number: int) -> Work:
    """Return the work of patching so many sites of text while the kernel boots (R14c, R22).

    Assumed: they lie evenly over the text, in whole lines apart, and are patched in that order;
    each is written by one store, whichever of them this CPU needs written. What is written is not
    known, so contents stay.
    """
    work, text = Work(), kernel.image.text
    lines = text.bytes // LINE_BYTES
    number = min(number, lines)
    stride = lines // number if number else 1
    per_unit = PMD_BYTES // LINE_BYTES
    for start in range(0, number * stride, per_unit):
        first = -(-start // stride) * stride
        last = min(start + per_unit, number * stride)
        here = len(range(first, last, stride))
        if here:
            _charge_boot(kernel, text.start + first * LINE_BYTES, here, stride, work)
    return work


def _charge_boot(kernel: Kernel, va: int, sites: int, stride: int, work: Work) -> None:
    """Add writes of one large leaf's sites, `stride` lines apart, to every further copy.

    As text_poke_early for each: its page is looked up in the node's table, written through the
    direct map. Assumed: an instruction an access.
    """
    vpn, line = va >> PAGE_SHIFT, (va % PAGE_BYTES) >> LINE_SHIFT
    master, runs = node_frame(kernel, kernel.master, vpn), []
    for node in kernel.further_nodes:
        pfn = node_frame(kernel, node, vpn)
        if pfn == master:
            continue
        runs += [run._replace(lines=sites, stride=0) for run in _lookup(kernel, node, vpn)]
        store = kernel.run(Kind.STORE, pfn, line=line, lines=sites, times=1)
        runs.append(store._replace(stride=stride))
    if runs:
        work.burst(*runs, instructions=len(runs))


def poke(kernel: Kernel, cpu: Cpu, va: int, data: bytes) -> Work:
    """Write live text on every replica (text_poke; R23).

    Raises
    ------
    ReplicationError
        If there is no poking mm yet, or nothing is mapped there; then nothing has changed.
    """
    work = Work()
    for _ in _pokes(kernel, cpu, va, data, work):
        pass
    return work


def int3_phases(
    kernel: Kernel, cpu: Cpu, patches: Sequence[Patch], work: Work
) -> Iterator[tuple[Phase, int, int]]:
    """Patch live text; yield (phase, node, va) after every single write (R24).

    All CPUs are synchronised after each phase, as without replicas: that is no further work.
    """
    parts = {
        Phase.BREAKPOINT: [(va, INT3) for va, _ in patches],
        Phase.TAIL: [(va + 1, data[1:]) for va, data in patches if len(data) > 1],
        Phase.FIRST_BYTE: [(va, data[:1]) for va, data in patches],
    }
    for phase, writes in parts.items():
        for va, data in writes:
            for node in _pokes(kernel, cpu, va, data, work):
                yield phase, node, va


def patch_live(kernel: Kernel, cpu: Cpu, patches: Sequence[Patch]) -> Work:
    """Patch live text with the INT3 protocol: static keys, ftrace, kprobes, alternatives (R24)."""
    work = Work()
    for _ in int3_phases(kernel, cpu, patches, work):
        pass
    return work


def _by_page(va: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut a write at the page boundary."""
    room = PAGE_BYTES - va % PAGE_BYTES
    if len(data) > PAGE_BYTES:
        raise ReplicationError(f"a patch of {len(data)} bytes: expected at most a page")
    yield va, data[:room]
    if data[room:]:
        yield va + room, data[room:]


def _pokes(kernel: Kernel, cpu: Cpu, va: int, data: bytes, work: Work) -> Iterator[int]:
    """Write through the poking mm, node by node; yield the node after each."""
    if kernel.poking is None:
        raise ReplicationError("patching live text: expected a booted kernel; see patch_boot")
    parts = list(_by_page(va, data))
    for part, _ in parts:
        node_frame(kernel, kernel.master, part >> PAGE_SHIFT)
    further = 0
    for node in kernel.replica_nodes if has_replicas(va >> PAGE_SHIFT) else (kernel.master,):
        charged = node != kernel.master and kernel.spec.active
        for part, chunk in parts:
            pfn = node_frame(kernel, node, part >> PAGE_SHIFT)
            kernel.contents.write(pfn, part % PAGE_BYTES, chunk)
            if charged:
                _charge(kernel, cpu, node, part, len(chunk), pfn, further, work)
        further += charged
        yield node
        if not kernel.own:
            return


def _charge(
    kernel: Kernel,
    cpu: Cpu,
    node: int,
    va: int,
    size: int,
    pfn: int,
    further: int,
    work: Work,
) -> None:
    """Add one further replica's write: lookup, map, switch, write, switch back, unmap, flush."""
    assert kernel.poking is not None
    costs = kernel.spec.instructions
    work.instructions(costs.poke_further if further else costs.poke)
    for run in _lookup(kernel, node, va >> PAGE_SHIFT):
        work.burst(run)
    root = kernel.poking.root(node)
    pte = dict(kernel.path(root, POKING_VPN, PTE))[PTE]
    index = entry_index(POKING_VPN, PTE)
    kernel.tables.set_entry(PTE, pte, index, pfn << PAGE_SHIFT | _PAGE_FLAGS)
    kernel.store_entry(work, pte, index)
    work.event(Sync.CR3_LOAD, cpu.number, root)
    line = (va % PAGE_BYTES) >> LINE_SHIFT
    lines = ((va + size - 1) % PAGE_BYTES >> LINE_SHIFT) + 1 - line
    owner, words = kernel.frames.node_of(pfn), -(-size // (lines * ENTRY_BYTES))
    work.burst(Run(Kind.STORE, POKING_VPN, pfn, owner, line, lines, words, root))
    kernel.tables.set_entry(PTE, pte, index, 0)
    kernel.store_entry(work, pte, index)
    work.event(Sync.CR3_LOAD, cpu.number, cpu.cr3)
    work.event(Sync.FLUSH_PAGE, cpu.number, POKING_VPN)


def _lookup(kernel: Kernel, node: int, vpn: int) -> Iterator[Run]:
    """Yield the loads of a software walk of one node's table, down to the leaf."""
    for level, table in kernel.path(kernel.pgd_numa(node), vpn, PTE):
        index = entry_index(vpn, level)
        line = index // ENTRIES_PER_LINE
        yield kernel.run(Kind.LOAD, table, line=line, times=1)
        if level <= PMD and kernel.tables.entry(table, index) & LARGE:
            return
