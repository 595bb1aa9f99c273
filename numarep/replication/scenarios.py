"""Operations the captured windows don't hold, done at a rate in the middle of one.

A disturbed workload is a captured window in each of whose iterations an operation is done a number
of times on the replicated kernel; what replication adds to it is spliced in where the iteration
begins, on the window's own CPU. The operation's own work, which any kernel does, is left out: so
the difference to the undisturbed window is the price of replication, not the operation's.

- `patch`: text patched, one site a cache line, in batches that are one iteration's unless told; how
  depends on what is patched (`SITES`), by default the INT3 protocol on five bytes
- `module`: a module loaded and unloaded
- `bpf`: a BPF program loaded and unloaded (R32)
- `slots`: a user PGD slot filled and cleared (an mmap far from all others)
- `visitor`: a process switched in on every node in turn, and back
- `threads`: a process run on all nodes at once, then on none
- `fork_tree`: a line of descendants, each forked by the one before, that exit youngest first

Every operation ends in the state it began in, but for what the kernel keeps (PTE pages, lazily
made PGDs of a process that lives on). The birth and end of the visitor's and the threads' process
are left out, since `fork_tree` is their price. Assumed: work on other CPUs takes this one's time.

>>> sorted(OPERATIONS)
['bpf', 'fork_tree', 'module', 'patch', 'slots', 'threads', 'visitor']
>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=2).booted()
>>> forks = DisturbanceSpec(operation="fork_tree", per_iteration=3)
>>> disturb(kernel, kernel.cpus[0], forks).total_instructions()  # 3 x (610 + 200)
2430
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar, get_args

from numarep.replication.areas import free_area
from numarep.replication.kernel import KERNEL_HALF, Cpu, Kernel
from numarep.replication.modules import ModuleSize, load, load_bpf, unload
from numarep.replication.patching import INT3, Patch, patch_live, poke
from numarep.replication.process import clear_slot, fill_slot, fork, leave, switch_to
from numarep.replication.work import Work
from numarep.spec import DisturbanceSpec, Operation
from numarep.units import LINE_BYTES

T = TypeVar("T")

_CALL = b"\xe8\x00\x00\x00\x00"  # the five bytes of an ftrace or static-call site
# Assumed: a small driver.
SMALL_MODULE = ModuleSize(text=8, rodata=4, ro_after_init=1, data=3)
_PROGRAM_PAGES = 1  # Assumed: most programs are short


class Site(NamedTuple):
    """How one kind of text is patched: its bytes, sites a batch at most, and the protocol."""

    data: bytes
    at_once: int
    int3: bool  # else one plain text_poke


# Source: arch/x86/kernel/{alternative,jump_label,ftrace}.c and kprobes/core.c of Linux 6.1: static
# keys and ftrace queue sites, TP_VEC_MAX of 16 bytes in a page, for text_poke_bp_batch; a kprobe is
# armed alone, by text_poke of its one byte.
_QUEUE = 4096 // 16
SITES = {
    "static_key": Site(b"\xe9" + _CALL[1:], _QUEUE, int3=True),
    "ftrace": Site(_CALL, _QUEUE, int3=True),
    "kprobe": Site(INT3, 1, int3=False),
}


def disturb(kernel: Kernel, cpu: Cpu, spec: DisturbanceSpec) -> Work:
    """Do an operation a number of times and return what replication adds to it.

    Raises
    ------
    ReplicationError
        If the policy refuses it: `retarget` lets no process run on several nodes.
    """
    return OPERATIONS[spec.operation](kernel, cpu, spec)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _patch(kernel: Kernel, cpu: Cpu, spec: DisturbanceSpec) -> Work:
    work, times = Work(), spec.per_iteration
    how = SITES[spec.site] if spec.site else Site(_CALL, times, int3=True)
    first, size = kernel.image.text.start, kernel.image.text.bytes // LINE_BYTES
    data = how.data[: spec.site_bytes]
    sites = [(first + (number % size) * LINE_BYTES, data) for number in range(times)]
    for batch in _batches(sites, spec.at_once or how.at_once):
        work.extend(patch_live(kernel, cpu, batch) if how.int3 else _plain(kernel, cpu, batch))
    return work


def _plain(kernel: Kernel, cpu: Cpu, patches: Sequence[Patch]) -> Work:
    work = Work()
    for va, data in patches:
        work.extend(poke(kernel, cpu, va, data))
    return work


def _module(kernel: Kernel, cpu: Cpu, spec: DisturbanceSpec) -> Work:
    asked = {part: getattr(spec, f"{part}_pages") for part in ModuleSize._fields}
    size = SMALL_MODULE._replace(**{k: v for k, v in asked.items() if v is not None})
    work = Work()
    for _ in range(spec.per_iteration):
        module, more = load(kernel, cpu, size)
        work.extend(more)
        work.extend(unload(kernel, module))
    return work


def _bpf(kernel: Kernel, cpu: Cpu, spec: DisturbanceSpec) -> Work:
    work = Work()
    for _ in range(spec.per_iteration):
        image, more = load_bpf(kernel, cpu, spec.text_pages or _PROGRAM_PAGES)
        work.extend(more)
        work.extend(free_area(kernel, image))
    return work


def _slots(kernel: Kernel, cpu: Cpu, spec: DisturbanceSpec) -> Work:
    mm, work = fork(kernel, cpu)[0], Work()
    numbers = [number % KERNEL_HALF for number in range(spec.per_iteration)]
    for slots in _batches(numbers, spec.at_once or 1):
        for slot in slots:
            work.extend(fill_slot(kernel, cpu, mm, slot))
        for slot in slots:
            work.extend(clear_slot(kernel, mm, slot))
    leave(kernel, mm)
    return work


def _cpus(kernel: Kernel, cpu: Cpu, spec: DisturbanceSpec) -> list[Cpu]:
    """List the CPUs of the nodes asked for, the own one among them."""
    others = [other for other in kernel.cpus if other is not cpu]
    chosen = [cpu, *others][: spec.nodes]
    return [each for each in kernel.cpus if each in chosen]


def _visitor(kernel: Kernel, cpu: Cpu, spec: DisturbanceSpec) -> Work:
    before, (mm, _), work = cpu.mm or kernel.init_mm, fork(kernel, cpu), Work()
    for _ in range(spec.per_iteration):
        for other in (*_cpus(kernel, cpu, spec), cpu):
            work.extend(switch_to(kernel, other, mm))
            switch_to(kernel, other, before if other is cpu else kernel.init_mm)
    leave(kernel, mm)
    return work


def _threads(kernel: Kernel, cpu: Cpu, spec: DisturbanceSpec) -> Work:
    before, (mm, _), work = cpu.mm or kernel.init_mm, fork(kernel, cpu), Work()
    cpus = _cpus(kernel, cpu, spec)
    try:
        for _ in range(spec.per_iteration):
            for other in cpus:
                work.extend(switch_to(kernel, other, mm))
            for other in cpus:
                work.extend(switch_to(kernel, other, kernel.init_mm))
    finally:
        for other in kernel.cpus:
            if other.mm is mm:
                switch_to(kernel, other, kernel.init_mm)
        switch_to(kernel, cpu, before)
        leave(kernel, mm)
    return work


def _fork_tree(kernel: Kernel, cpu: Cpu, spec: DisturbanceSpec) -> Work:
    work, times = Work(), spec.per_iteration
    for line in _batches(range(times), spec.at_once or times):
        family = []
        for _ in line:
            mm, more = fork(kernel, cpu)
            work.extend(more)
            family.append(mm)
        for mm in reversed(family):
            work.extend(leave(kernel, mm))
    return work


OPERATIONS: dict[str, Callable[[Kernel, Cpu, DisturbanceSpec], Work]] = {
    "patch": _patch,
    "module": _module,
    "bpf": _bpf,
    "slots": _slots,
    "visitor": _visitor,
    "threads": _threads,
    "fork_tree": _fork_tree,
}
assert OPERATIONS.keys() == set(get_args(Operation))
