"""Misses of L1I and L1D equal cachegrind's, reference by reference, on a real program.

valgrind's lackey lists every reference of a program, cachegrind simulates two levels of caches on
the same one. A reference that straddles two lines counts once there, and misses if either line
does, so each straddling one is a function of its own here. Beyond L1 the two differ by design:
cachegrind touches both lines of a straddling reference that missed with one.
"""

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from numarep.memory.counts import Access, Service
from numarep.memory.kinds import Kind
from numarep.spec import CacheSpec
from numarep.streams import count_stream, toy_machine
from numarep.units import LINE_BYTES
from tests.memory.cases import cache, llc

PROGRAM = "/bin/true"
# Lackey's letters. A modify is a load and a store; the store hits and cachegrind leaves it out.
KINDS = {"I": Kind.FETCH, "L": Kind.LOAD, "S": Kind.STORE, "M": Kind.LOAD}
SPAN = 1 << 20  # more than a cache's sets reach, so moving memory in such pieces moves no set

pytestmark = pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed")


class References(NamedTuple):
    kind: NDArray[np.uint8]
    address: NDArray[np.int64]
    straddler: NDArray[np.int32]  # 0: within one line; else a number of its own


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    log = tmp_path_factory.mktemp("lackey") / "log"
    valgrind("--tool=lackey", "--trace-mem=yes", f"--log-file={log}")
    lines = [line for line in log.read_text().splitlines() if not line.startswith("==")]
    kinds = np.array([KINDS[line[:2].strip()] for line in lines], np.uint8)
    places = [line[3:].split(",") for line in lines]
    first = packed(np.array([int(address, 16) for address, _ in places]))
    last = first + np.array([int(size) for _, size in places]) - 1
    straddles = first // LINE_BYTES != last // LINE_BYTES
    number = np.where(straddles, np.cumsum(straddles), 0).astype(np.int32)
    times = 1 + straddles
    second = np.flatnonzero(np.diff(np.repeat(np.arange(len(times)), times), prepend=-1) == 0)
    address = np.repeat(first, times)
    address[second] = last[straddles]
    return References(np.repeat(kinds, times), address, np.repeat(number, times))


def valgrind(*options: str) -> None:
    command = ["valgrind", *options, PROGRAM]
    subprocess.run(
        command, check=True, capture_output=True, env={}, executable=shutil.which(command[0])
    )


def packed(address: NDArray[np.int64]) -> NDArray[np.int64]:
    """Move the program's scattered memory together, so that one page holds it."""
    _, piece = np.unique(address // SPAN, return_inverse=True)
    return piece * SPAN + address % SPAN


@pytest.mark.parametrize(
    ("l1i", "l1d"),
    [
        (cache(8, 2), cache(8, 4)),
        (cache(64, 8), cache(64, 8)),
    ],
)
def test_l1_misses_are_cachegrinds(
    l1i: CacheSpec, l1d: CacheSpec, references: References, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    valgrind(
        "--tool=cachegrind",
        "--cache-sim=yes",
        f"--cachegrind-out-file={report}",
        *(
            f"--{name}={c.size_bytes},{c.ways},{LINE_BYTES}"
            for name, c in (("I1", l1i), ("D1", l1d))
        ),
        f"--LL={1 << 20},16,{LINE_BYTES}",
    )
    summary = [int(word) for word in report.read_text().splitlines()[-1].split()[1:]]
    _, fetch_misses, _, _, load_misses, _, _, store_misses, _ = summary
    roomy = {"l2": cache(1 << 15, 16), "llc": llc(1 << 16, 16)}
    machine = dataclasses.replace(toy_machine(), l1i=l1i, l1d=l1d, **roomy)
    kind, address, straddler = references
    counts = count_stream(machine, kind, address, page="1G", function=straddler).functions
    missed = counts[:, : Access.STORE + 1, Service.L2 :].sum(axis=(2, 3, 4))
    once = missed[0] + (missed[1:] > 0).sum(axis=0)
    assert once.tolist() == [fetch_misses, load_misses, store_misses]
