"""Write a captured dataset: one folder a boot, one set of symbols for the kernel.

The workloads run in a small static program, each in a process forked from it. Sixteen touched
pages where mmap(2) places new areas stand for the shared libraries of an ordinary one: without
them every mapping would build and free tables up to the PUD. A tick comes every 4 million
instructions, because the emulated CPU executes one a nanosecond; a real one does two or three
times that.

>>> [window.name for window in WINDOWS if window.iterations == 1]
['fork_1', 'kill', 'mount_proc']
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from numarep.capture.boot import NODES, Setting, Tools
from numarep.capture.decode import (
    ENTRY,
    EVENT,
    ROW,
    WATCHED,
    DecodeError,
    decode_window,
    parse_symbols,
    read_log,
    split_windows,
    table_changes,
    watched_addresses,
)
from numarep.memory.kinds import Kind
from numarep.workload.dataset import META, CaptureMeta, ModuleRange, WindowMeta, write_trace
from numarep.workload.trace import Trace, write_table

LOOP = 32  # ITERATIONS in guest/init.c
_OWN_PASS = "after one unmeasured pass of the same code in the same process"
_CPU_ENTRY_AREA = 0xFFFFFE0000000000  # fixed: Documentation/x86/x86_64/mm.rst
SEED_EFFECT = (
    "QEMU's -seed (the guest's random numbers: slab freelist order, user ASLR) and, before the "
    "workloads, 4 to 11 processes, now asleep, that took 8 MiB each, gave back about 40 % of the "
    "pages in an order drawn from the seed, and hold 8 to 23 pipes each"
)


@dataclass(frozen=True, slots=True)
class Window:
    """A workload as the guest runs it; its place in `WINDOWS` is its number in the marks."""

    name: str
    iterations: int
    description: str


WINDOWS = (
    Window(
        "fork_1",
        1,
        f"one fork(2), from before its entry to after its return in the parent; {_OWN_PASS}; the "
        "child exits and is reaped outside",
    ),
    Window(
        "fork_1024",
        LOOP,
        f"the loop of fork(2), timed around it; {_OWN_PASS}; children exit at once, running inside "
        "where the scheduler lets them; reaped outside",
    ),
    Window(
        "mmap_munmap",
        LOOP,
        "the loop of mmap(2) and munmap(2) of one private anonymous page, not touched, beside 16 "
        f"pages that are; {_OWN_PASS}",
    ),
    Window("mmap_locked", LOOP, f"as mmap_munmap, with MAP_LOCKED; {_OWN_PASS}"),
    Window("open_close", LOOP, f"the loop of open(2) and close(2) of /dev/null; {_OWN_PASS}"),
    Window(
        "kill",
        1,
        "from before kill(2) of SIGUSR1 to the handler's entry in a forked child that sleeps in "
        "pause(2), the sender waiting for it in wait4(2); after one unmeasured kill of another "
        "such child",
    ),
    Window(
        "mount_proc",
        1,
        f"one mount(2) of procfs on a temporary directory, procfs being mounted elsewhere; "
        f"{_OWN_PASS} on another directory",
    ),
    Window(
        "overlayfs",
        LOOP,
        "the loop of open, read and close of a file of the lower layer, and open(O_CREAT), write, "
        f"close, stat and unlink of another, in an overlay of two tmpfs folders; {_OWN_PASS}",
    ),
)


def write_capture(raw: Path, folder: Path, setting: Setting, tools: Tools) -> pa.Table:
    """Decode one boot's raw logs into a capture's folder, and return the kernel's symbols.

    Raises
    ------
    DecodeError
        If the logs are damaged, or hold other windows than those asked for.
    """
    check_zones(raw)
    symbols = parse_symbols((raw / "kallsyms").read_text())
    watched = watched_addresses(symbols)
    rows = read_log(raw / "rows.bin", ROW)
    wanted = [w.name for w in WINDOWS if not setting.workloads or w.name in setting.workloads]
    folder.mkdir(parents=True, exist_ok=True)
    described = {}
    for window in split_windows(read_log(raw / "events.bin", EVENT)):
        about = WINDOWS[window.workload]
        trace = decode_window(window.events, rows, watched)
        write_trace(folder, about.name, trace)
        described[about.name] = describe_window(about, trace)
    if list(described) != wanted:
        raise DecodeError(f"{raw}: windows {list(described)}, expected {wanted}")
    entries = table_changes(read_log(raw / "tables.bin", ENTRY), wanted)
    write_table(folder / "tables.parquet", entries, "tables")
    write_json(folder / META, asdict(describe_capture(raw, setting, tools, described)))
    return symbols


def describe_window(window: Window, trace: Trace) -> WindowMeta:
    """Count what one window holds."""
    kind, count = trace.records.kind, trace.records.count
    seen = Counter(trace.event_name)
    notes = [
        f"{times} {what}"
        for what, times in (
            ("timer ticks", seen["asm_sysvec_apic_timer_interrupt"]),
            ("context switches between processes", seen["switch_mm_irqs_off"]),
            ("exits", seen["do_exit"]),
        )
        if times
    ]
    return WindowMeta(
        window=window.description + (f". Inside: {', '.join(notes)}" if notes else ""),
        iterations=len(trace.iterations) - 1,
        records=len(kind),
        instructions=trace.instructions,
        loads=int(count[kind == Kind.LOAD].sum(dtype=np.int64)),
        stores=int(count[kind == Kind.STORE].sum(dtype=np.int64)),
    )


def describe_capture(
    raw: Path, setting: Setting, tools: Tools, workloads: dict[str, WindowMeta]
) -> CaptureMeta:
    """Collect what identifies one boot from the guest's own files."""
    bases = dict(line.split() for line in (raw / "bases").read_text().splitlines())
    return CaptureMeta(
        kernel_release=tools.kernel.release,
        kernel_package=tools.kernel.package,
        command_line=(raw / "cmdline").read_text().strip(),
        qemu=tools.qemu,
        seed=setting.seed,
        seed_effect=SEED_EFFECT,
        cpu_node=setting.cpu_node,
        pti=setting.pti,
        levels=4,
        tick_hz=tools.kernel.tick_hz(),
        memory=NODES,
        bases={
            "direct_map": f"0x{bases['page_offset_base']}",
            "vmalloc": f"0x{bases['vmalloc_base']}",
            "vmemmap": f"0x{bases['vmemmap_base']}",
            "cpu_entry_area": f"0x{_CPU_ENTRY_AREA:x}",
        },
        modules=tuple(_modules((raw / "modules").read_text().splitlines())),
        workloads=workloads,
        watched=WATCHED,
    )


def _modules(lines: Iterable[str]) -> Iterable[ModuleRange]:
    for line in lines:  # overlay 163840 0 - Live 0xffffffffc0401000
        name, size, *_, base = line.split()[:6]
        yield ModuleRange(name=name, base=base, size=int(size))


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write one JSON object; workloads stay in the order they ran, as in tables.parquet."""
    path.write_text(json.dumps(content, indent=1) + "\n")


def check_zones(raw: Path) -> None:
    """Refuse a guest whose memory is not where `NODES` says.

    Raises
    ------
    DecodeError
        If a zone of the guest lies across two of the ranges.
    """
    node_of_range: dict[int, set[str]] = {}
    for node, start, pages in _zones((raw / "zoneinfo").read_text()):
        homes = {n.node for n in NODES if n.start_pfn < start + pages and start < n.end_pfn}
        if len(homes) != 1:
            raise DecodeError(f"zone of Linux node {node} at pfn {start} lies in ranges {homes}")
        node_of_range.setdefault(homes.pop(), set()).add(node)
    if sorted(len(nodes) for nodes in node_of_range.values()) != [1] * len(NODES):
        raise DecodeError(f"memory ranges and Linux nodes do not match: {node_of_range}")


def _zones(zoneinfo: str) -> Iterable[tuple[str, int, int]]:
    """Yield (Linux's node number, first pfn, spanned pages) of every zone that has memory."""
    node, spanned = "", 0
    for line in zoneinfo.splitlines():
        words = line.replace(",", " ").replace(":", " ").split()
        if words[:1] == ["Node"]:
            node = words[1]
        elif words[:1] == ["spanned"]:
            spanned = int(words[1])
        elif words[:1] == ["start_pfn"] and spanned:
            yield node, int(words[1]), spanned
