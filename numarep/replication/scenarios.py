"""Operations the captured windows don't hold, done at a rate in the middle of one.

A disturbed workload is a captured window in each of whose iterations an operation is done a number
of times on the replicated kernel; what replication adds to it is spliced in where the iteration
begins, on the window's own CPU. The operation's own work, which any kernel does, is left out: so
the difference to the undisturbed window is the price of replication, not the operation's.

- `patch`: text patched with the INT3 protocol (static keys, ftrace, kprobes), one site a cache line
- `module`: a module loaded and unloaded
- `slots`: a user PGD slot filled and cleared (an mmap far from all others)
- `visitor`: a process switched in on every node in turn, and back
- `threads`: a process run on all nodes at once, then on none
- `fork_tree`: a line of descendants, each forked by the one before, that exit youngest first

Every operation ends in the state it began in, but for what the kernel keeps (PTE pages, lazily
made PGDs of a process that lives on). The birth and end of the visitor's and the threads' process
are left out, since `fork_tree` is their price. Assumed: work on other CPUs takes this one's time.

>>> sorted(OPERATIONS)
['fork_tree', 'module', 'patch', 'slots', 'threads', 'visitor']
>>> from tests.kernels import SmallKernel
>>> kernel = SmallKernel(nodes=2).booted()
>>> disturb(kernel, kernel.cpus[0], "fork_tree", 3).total_instructions()  # 3 x (610 + 200)
2430
"""

from collections.abc import Callable
from typing import get_args

from numarep.replication.kernel import KERNEL_HALF, Cpu, Kernel
from numarep.replication.modules import ModuleSize, load, unload
from numarep.replication.patching import patch_live
from numarep.replication.process import clear_slot, fill_slot, fork, leave, switch_to
from numarep.replication.work import Work
from numarep.spec import Operation
from numarep.units import LINE_BYTES

_CALL = b"\xe8\x00\x00\x00\x00"  # the five bytes of an ftrace or static-call site
# Assumed: a small driver.
SMALL_MODULE = ModuleSize(text=8, rodata=4, ro_after_init=1, data=3)


def disturb(kernel: Kernel, cpu: Cpu, operation: Operation, times: int) -> Work:
    """Do an operation a number of times and return what replication adds to it.

    Raises
    ------
    ReplicationError
        If the policy refuses it: `retarget` lets no process run on several nodes.
    """
    return OPERATIONS[operation](kernel, cpu, times)


def _patch(kernel: Kernel, cpu: Cpu, times: int) -> Work:
    first, size = kernel.image.text.start, kernel.image.text.bytes // LINE_BYTES
    sites = [first + (number % size) * LINE_BYTES for number in range(times)]
    return patch_live(kernel, cpu, [(va, _CALL) for va in sites])


def _module(kernel: Kernel, cpu: Cpu, times: int) -> Work:
    work = Work()
    for _ in range(times):
        module, more = load(kernel, cpu, SMALL_MODULE)
        work.extend(more)
        work.extend(unload(kernel, module))
    return work


def _slots(kernel: Kernel, cpu: Cpu, times: int) -> Work:
    mm, work = fork(kernel, cpu)[0], Work()
    for number in range(times):
        slot = number % KERNEL_HALF
        work.extend(fill_slot(kernel, cpu, mm, slot))
        work.extend(clear_slot(kernel, mm, slot))
    leave(kernel, mm)
    return work


def _visitor(kernel: Kernel, cpu: Cpu, times: int) -> Work:
    before, (mm, _), work = cpu.mm or kernel.init_mm, fork(kernel, cpu), Work()
    for _ in range(times):
        for other in (*kernel.cpus, cpu):
            work.extend(switch_to(kernel, other, mm))
            switch_to(kernel, other, before if other is cpu else kernel.init_mm)
    leave(kernel, mm)
    return work


def _threads(kernel: Kernel, cpu: Cpu, times: int) -> Work:
    before, (mm, _), work = cpu.mm or kernel.init_mm, fork(kernel, cpu), Work()
    try:
        for _ in range(times):
            for other in kernel.cpus:
                work.extend(switch_to(kernel, other, mm))
            for other in kernel.cpus:
                work.extend(switch_to(kernel, other, kernel.init_mm))
    finally:
        for other in kernel.cpus:
            if other.mm is mm:
                switch_to(kernel, other, kernel.init_mm)
        switch_to(kernel, cpu, before)
        leave(kernel, mm)
    return work


def _fork_tree(kernel: Kernel, cpu: Cpu, times: int) -> Work:
    work, family = Work(), []
    for _ in range(times):
        mm, more = fork(kernel, cpu)
        work.extend(more)
        family.append(mm)
    for mm in reversed(family):
        work.extend(leave(kernel, mm))
    return work


OPERATIONS: dict[str, Callable[[Kernel, Cpu, int], Work]] = {
    "patch": _patch,
    "module": _module,
    "slots": _slots,
    "visitor": _visitor,
    "threads": _threads,
    "fork_tree": _fork_tree,
}
assert OPERATIONS.keys() == set(get_args(Operation))
