"""Speed of the latency core: `python -m tests.benchmarks.core`, one JSON object a line.

Streams: `hostile` jumps 64 bytes or more at every fetch over 2 MiB of Zipf text, with Zipf data
over 64 MiB and a stream of stores; `moderate` fetches runs of lines and touches the same data in
bursts of four words; `local` does so in 256 KiB. All are the run-length coded records of a trace.
Bundled traces follow. `raw` is the same stream with a record for every reference, none coded.
Where pycachesim is installed, its three cache levels (no TLB, no walks, no second socket, loads
only) run over the same references in the same process, in turns with ours, since hosts are shared;
`ratio` and `raw_ratio` are its time over ours. Times are CPU time, the best of all rounds.

Rows with `tree_plru` are each replacement policy in every cache (LLC of 16 ways), in turns.

The first line is what compiling takes: CPU time of a first run with an empty cache and with a
full one, imports set aside. The next says how a simulation grows: its state's bytes, time of twice
the records over that of once, and of four times the pages mapped but not touched. Then the memory
of whole runs, each in a new process with a full cache: its peak above what importing takes, which
is Python and libraries. The last are
every machine of conf/ over two streams, `of_fastest` its speed as a share of the fastest's.
"""

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numarep.memory.counts import new_counts
from numarep.memory.kinds import Kind
from numarep.memory.system import Stream, Translations, new_system, prepare, run_prepared
from numarep.spec import MachineSpec, RunSpec, parse
from numarep.sweep.grid import expand
from numarep.units import LINE_BYTES, LINES_PER_PAGE, MAX_LEVELS, TABLE_ENTRIES
from tests.memory.real import bundled

CONF = Path(__file__).parents[2] / "conf"
POLICIES = ("lru", "tree_plru", "srrip")
TEXT_PAGES, DATA_PAGES = 512, 16384
ZIPF = 0.9
# Whole runs whose memory is measured: the shortest and longest chase of the staircase, one CPU's,
# two CPUs' at once, and eight nodes' copies; these two by function, too.
RUNS = (
    ("workload=chase", "workload.footprint_bytes=4096"),
    ("workload=chase", "workload.footprint_bytes=1073741824"),
    ("workload=fork_1024", "replication=series", "cpu_node=1"),
    (
        *("workload=fork_1024", "replication=series", "cpu_node=1", "others.nodes=[0]"),
        "by_function=true",
    ),
    ("workload=boot", "replication=series", "machine=xeon_8s", "by_function=true"),
)
MOST_MB = 200  # that a run may take
SHORTEST_S = 0.02  # of what is timed: shorter passes are run several times
FUNCTIONS = 1000  # counted one by one; a bundled window runs some hundred


def machine_preset(name: str) -> MachineSpec:
    """Compose a machine of conf/, which may inherit from another."""
    (point,) = expand(["study=single", f"machine={name}"]).points
    return parse(MachineSpec, point["machine"])


def linear_translations(pages: int) -> Translations:
    """Consecutive 4K pages of one process from va 0, in consecutive frames above their tables."""
    index = np.arange(pages, dtype=np.int64)
    tables = -(-pages // TABLE_ENTRIES)
    table = np.full((pages, MAX_LEVELS), -1, np.int64)
    table[:, 0] = 3 + index // TABLE_ENTRIES
    table[:, 1:4] = [2, 1, 0]
    same = np.zeros(pages, np.int64)
    return Translations(index, 3 + tables + index, same + 1, same, same, table, same)


def zipf_lines(rng: np.random.Generator, lines: int, n: int) -> NDArray[np.int64]:
    """Lines drawn by Zipf's law, the popular ones scattered over the whole range."""
    weight = np.arange(1, lines + 1, dtype=float) ** -ZIPF
    rank = np.searchsorted(np.cumsum(weight), rng.random(n) * weight.sum())
    scattered: NDArray[np.int64] = rng.permutation(lines)[np.minimum(rank, lines - 1)]
    return scattered


def synthetic(name: str, n: int) -> tuple[Stream, Translations]:
    """About n records of the `hostile`, `moderate` or `local` stream."""
    rng = np.random.default_rng(1)
    text_lines, data_lines = TEXT_PAGES * LINES_PER_PAGE, DATA_PAGES * LINES_PER_PAGE
    kind = np.tile(np.array([0, 1, 0, 1, 0, 2], np.uint8), n // 6)
    n = len(kind)
    hot_lines = {"hostile": data_lines, "moderate": data_lines, "local": 4096}[name]
    line = zipf_lines(rng, hot_lines, n)
    if name == "hostile":
        line[kind == Kind.FETCH] = zipf_lines(rng, text_lines, n // 2)
        line[5::6] = np.arange(n // 6) // 8 % data_lines
    else:
        # About four in five fetch records follow on from the last.
        far = zipf_lines(rng, min(text_lines, hot_lines), n // 2)
        jump = rng.random(n // 2) < 0.2
        index = np.arange(n // 2)
        start = np.maximum.accumulate(np.where(jump, index, 0))
        line[kind == Kind.FETCH] = (far[start] + index - start) % text_lines
    line[kind != Kind.FETCH] += text_lines
    repeats = np.ones(n, np.int32) if name == "hostile" else np.full(n, 4, np.int32)
    page = (line // LINES_PER_PAGE).astype(np.int32)
    within = (line % LINES_PER_PAGE).astype(np.uint8)
    return Stream(kind, page, within, repeats), linear_translations(TEXT_PAGES + DATA_PAGES)


def bundled_streams() -> Iterator[tuple[str, Stream, Translations, NDArray[np.int64]]]:
    """Yield some bundled traces."""
    for capture, workload in (("pti-on_node1_seed1", "fork_1024"), ("pti-off_node0_seed1", "kill")):
        stream, translations, ends = bundled(capture, workload)
        yield f"{workload} ({capture})", stream, translations, ends


def raw(stream: Stream) -> Stream:
    """The stream with a record for every reference: a trace before it is run-length coded."""
    times = np.maximum(stream.repeats, 1)
    kind, page, line = (np.repeat(column, times) for column in stream[:3])
    return Stream(kind, page, line, np.repeat(np.minimum(stream.repeats, 1), times))


def ours(
    machine: MachineSpec, stream: Stream, translations: Translations, ends: NDArray[np.int64]
) -> Callable[[], None]:
    """Return a warm pass over the whole stream."""
    system = new_system(machine, tuple(range(machine.nodes)), ends)
    function = stream.page % FUNCTIONS
    stream = stream._replace(function=function)
    counts = new_counts(machine.nodes, int(translations.region.max()) + 1, FUNCTIONS)

    prepared = prepare(system, 0, stream, translations, counts)

    def once() -> None:
        run_prepared(system, prepared, 0, len(stream.kind))

    once()
    return once


def theirs(
    machine: MachineSpec, stream: Stream, translations: Translations
) -> Callable[[], None] | None:
    """Return a warm pass of pycachesim's three levels over the same references, all as loads.

    None without pycachesim. Its sets are a power of two: the LLC is rounded up.
    """
    try:
        cachesim: Any = importlib.import_module("cachesim")
    except ImportError:
        return None
    memory, below = cachesim.MainMemory(), None
    levels = []
    for name, spec in (("L3", machine.llc), ("L2", machine.l2), ("L1", machine.l1d)):
        sets = 1 << (spec.sets - 1).bit_length()
        below = cachesim.Cache(
            name, sets, spec.ways, LINE_BYTES, "LRU", store_to=below, load_from=below
        )
        levels.append(below)
    memory.load_to(levels[0])
    memory.store_from(levels[0])
    simulator = cachesim.CacheSimulator(levels[-1], memory)
    keep = stream.kind <= Kind.STORE
    page = stream.page[keep]
    pa = (translations.pfn[page] * LINES_PER_PAGE + stream.line[keep]) * LINE_BYTES
    references = np.repeat(pa, np.maximum(stream.repeats[keep], 1)).tolist()

    def once() -> None:
        simulator.load(references)

    once()
    return once


def best_of(rounds: int, passes: Sequence[Callable[[], None] | None]) -> list[float | None]:
    """Best CPU time of each, taking turns."""
    best: list[float | None] = [None] * len(passes)
    for _ in range(rounds):
        for place, once in enumerate(passes):
            if once is not None:
                start, done = time.process_time(), 0
                while not done or time.process_time() - start < SHORTEST_S:
                    once()
                    done += 1
                spent = (time.process_time() - start) / done
                best[place] = min(best[place] or spent, spent)
    return best


def growth(machine: MachineSpec, rounds: int, records: int) -> dict[str, object]:
    """Return the state's bytes, and ratios of CPU time as records and untouched pages grow."""
    stream, translations = synthetic("moderate", records)
    half = Stream(*(column[: len(stream.kind) // 2] for column in stream[:4]))
    more = Translations(*(np.concatenate([column] * 4) for column in translations))
    ends = np.arange(1, machine.nodes + 1) << 22
    one, two, untouched = best_of(
        rounds,
        [
            ours(machine, half, translations, ends),
            ours(machine, stream, translations, ends),
            ours(machine, stream, more, ends),
        ],
    )
    assert one is not None
    assert two is not None
    assert untouched is not None
    system = new_system(machine, tuple(range(machine.nodes)), ends)
    return {
        "machine": machine.name,
        "state_mb": round(system.words.nbytes / 1e6, 1),
        "time_of_twice_the_records": round(two / one, 2),
        "time_of_four_times_the_pages": round(untouched / two, 2),
    }


def presets(kind: str, rounds: int, records: int) -> Iterator[dict[str, object]]:
    """Yield every machine's speed over one kind of stream."""
    names = sorted(path.stem for path in (CONF / "machine").glob("*.yaml"))
    stream, translations = synthetic(kind, records)
    machines = [machine_preset(name) for name in names]
    passes = [
        ours(machine, stream, translations, np.arange(1, machine.nodes + 1) << 22)
        for machine in machines
    ]
    speeds = [len(stream.kind) / (spent or 1) / 1e6 for spent in best_of(rounds, passes)]
    for name, speed in zip(names, speeds, strict=True):
        yield {
            "preset": name,
            "stream": kind,
            "million_records_per_s": round(speed, 2),
            "of_fastest": round(speed / max(speeds), 2),
        }


def compile_seconds() -> dict[str, float]:
    """CPU time of a first run, in new processes, with an empty and with a full cache."""
    code = (
        "import time, numpy as np; from tests.benchmarks.core import *;"
        "m = machine_preset('e5_2690_v3'); s, t = synthetic('local', 600); b = time.process_time();"
        "ours(m, s, t, np.arange(1, 3) << 22); print(time.process_time() - b)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        return {
            name: round(
                float(subprocess.check_output([sys.executable, "-c", code], env=environment)), 2
            )
            for name in ("compile_cold_s", "compile_warm_s")
        }


def peak_bytes() -> int:
    """Most memory this process has had; Linux's own count, as rusage starts with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def simulate_and_tell(overrides: Sequence[str]) -> None:
    """Simulate one run and print its peak above what importing took, in bytes."""
    simulate = importlib.import_module("numarep.simulate").simulate
    (point,) = expand(["study=single", *overrides]).points
    spec = parse(RunSpec, point)
    imported = peak_bytes()
    simulate(spec)
    print(peak_bytes() - imported)


def memory(runs: Sequence[Sequence[str]] = RUNS) -> Iterator[dict[str, object]]:
    """Yield the memory of whole runs; the first of two compiles what isn't."""
    code = "import sys; from tests.benchmarks.core import *; simulate_and_tell(sys.argv[1:])"
    for overrides in runs:
        command = [sys.executable, "-c", code, *overrides]
        taken = [int(subprocess.check_output(command)) for _ in range(2)][-1]
        peak_mb = round(taken / 1e6)
        run = " ".join(overrides)
        yield {"run": run, "peak_above_imports_mb": peak_mb, "as_wanted": peak_mb < MOST_MB}


def with_policy(machine: MachineSpec, policy: str) -> MachineSpec:
    """The machine with one replacement policy in every cache; an inclusive LLC gets 16 ways."""
    sized = {"size_bytes": machine.llc.sets * 16 * LINE_BYTES, "ways": 16}
    caches: dict[str, Any] = {
        name: dataclasses.replace(getattr(machine, name), replacement=policy)
        for name in ("l1i", "l1d", "l2")
    }
    llc = dataclasses.replace(machine.llc, replacement=policy, **sized)
    return dataclasses.replace(machine, llc=llc, **caches)


def policy_row(
    machine: MachineSpec, name: str, stream: Stream, translations: Translations, rounds: int
) -> dict[str, Any]:
    """Speed of each replacement policy, taking turns; `ratio` is the slowest's to the fastest's."""
    ends = np.arange(1, machine.nodes + 1) << 22
    machines = [with_policy(machine, policy) for policy in POLICIES]
    best = best_of(rounds, [ours(each, stream, translations, ends) for each in machines])
    speed = {
        policy: round(len(stream.kind) / spent / 1e6, 2)
        for policy, spent in zip(POLICIES, best, strict=True)
        if spent is not None
    }
    ratio = round(min(speed.values()) / max(speed.values()), 2)
    return {"stream": name, "million_records_per_s": speed, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--machine", default="e5_2690_v3")
    arguments = parser.parse_args()
    machine = machine_preset(arguments.machine)
    ends = np.arange(1, machine.nodes + 1) << 22
    streams = [
        (name, *synthetic(name, arguments.records), ends)
        for name in ("hostile", "moderate", "local")
    ]
    print(json.dumps(compile_seconds()), flush=True)
    print(json.dumps(growth(machine, arguments.rounds, arguments.records // 4)), flush=True)
    for taken in memory():
        print(json.dumps(taken), flush=True)
    for name, stream, translations, _ in streams:
        row = policy_row(machine, name, stream, translations, arguments.rounds)
        print(json.dumps(row), flush=True)
    for name, stream, translations, ends in [*streams, *bundled_streams()]:
        passes = (
            ours(machine, stream, translations, ends),
            ours(machine, raw(stream), translations, ends),
            theirs(machine, stream, translations),
        )
        coded_s, raw_s, theirs_s = best_of(arguments.rounds, passes)
        assert coded_s is not None
        assert raw_s is not None
        references = int(np.maximum(stream.repeats, 1)[stream.kind <= Kind.STORE].sum())
        row = {
            "stream": name,
            "machine": machine.name,
            "records": len(stream.kind),
            "references": references,
            "million_records_per_s": round(len(stream.kind) / coded_s / 1e6, 2),
            "million_references_per_s": round(references / coded_s / 1e6, 2),
            "raw_million_references_per_s": round(references / raw_s / 1e6, 2),
            "load": round(os.getloadavg()[0], 1),
        }
        if theirs_s is not None:
            row["pycachesim_million_references_per_s"] = round(references / theirs_s / 1e6, 2)
            row["ratio"] = round(theirs_s / coded_s, 2)
            row["raw_ratio"] = round(theirs_s / raw_s, 2)
        print(json.dumps(row), flush=True)
    for kind in ("moderate", "local"):
        for each in presets(kind, arguments.rounds, arguments.records // 4):
            print(json.dumps(each), flush=True)


if __name__ == "__main__":
    main()
