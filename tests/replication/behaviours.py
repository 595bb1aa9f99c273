"""The behaviours R1 to R39 in a line each, and the tests that cite them, as a page of the docs.

A test cites a behaviour by an id in its name: `test_r16_r18_...`. `python -m
tests.replication.behaviours` writes docs/behaviours.md anew; a test fails where a behaviour has no
test or the page is stale.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "behaviours.md"
BEHAVIOURS = {
    1: "Needs NUMA and an MMU; refused with KASAN on 5 levels; off, every node aliases one PGD",
    2: "Replica nodes are the nodes with memory; a memoryless one uses the nearest",
    3: "The master node holds the image: its replica is the original",
    4: "Static copies are mandatory: a node without room is named, with the size",
    5: "Whether an address may have replicas is a test of the address: the top 2 GiB",
    6: "Text and rodata are replicated in whole 2 MiB leaves",
    7: "Data, modules' data, vmalloc, direct map, vmemmap and user memory are never replicated",
    8: "A mutable address resolves to the same frame on every node",
    9: "Outside a patch all replicas of an address are byte-identical, with equal permissions",
    10: "Every memory node has its own PGD and, for the window, P4D, PUD and PMD pages",
    11: "Four levels: a PGD, a PUD page and two PMD pages a node",
    12: "PTE pages stay shared; a copied PMD page differs in text and rodata only (arm64: cloned)",
    13: "All other kernel PGD entries lead to shared tables",
    14: "The boot's order: reserve, copy text, patch all copies, start CPUs, copy rodata, publish",
    15: "An mm has one PGD pointer a node",
    16: "fork and exec make a PGD a memory node, exit frees them; each kernel half is its node's",
    17: "User tables below the PGD are single, first touch",
    18: "A user PGD slot is filled and cleared in all PGDs",
    19: "User halves are equal, kernel halves are the node's",
    20: "A context switch loads the CPU's own node's PGD (but for the poking mm)",
    21: "Migration copies nothing; threads run on several nodes; lazy TLB is node-correct",
    22: "Boot-time patching writes every copy; module text before its replication once",
    23: "Live patching: per node look up, map in the poking mm, write, unmap, flush",
    24: "INT3 protocol: each phase completes on all replicas before the next",
    25: "Protection changes go to all tables; no replica is more permissive than the master",
    26: "An area in the window is mapped everywhere to the same pages, elsewhere once",
    27: "Replicating a range: refusals, own 4 KiB pages on every other node, a flush",
    28: "Free walks all tables and frees all replicas; address-to-page gives the master's",
    29: "New PTE pages come from the loading CPU's node",
    30: "A module's text and rodata are replicated, after relocation, before protection",
    31: "A module whose replication fails is shared: nothing leaked, nothing half mapped",
    32: "BPF images are mapped everywhere and shared, unless the policy replicates them",
    33: "KASLR moves the image, not the window",
    34: "KPTI: entry text under the user CR3 is one copy on every node",
    35: "KASAN's shadow is shared",
    36: "EFI has one PGD for all nodes",
    37: "Diagnostics: each node's tables of a range, and statistics",
    38: "The complete list of what synchronises tables",
    39: "Known gap: hotplug at PGD level is not mirrored and shows as a violation",
}


def cited(name: str) -> list[int]:
    """List the behaviours a test's name cites."""
    found = re.match(r"test_((?:r\d+_)+(?:[a-f]_)?(?:r\d+_)*)", name)
    return [int(number) for number in re.findall(r"r(\d+)_", found[1])] if found else []


def citing() -> Iterator[tuple[str, str, list[int]]]:
    """Yield (file, test, behaviours) of every test that cites one."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and cited(node.name):
                yield str(path.relative_to(ROOT)), node.name, cited(node.name)


def page() -> str:
    """Return the page: id, behaviour, tests."""
    by_id: dict[int, list[str]] = {number: [] for number in BEHAVIOURS}
    for file, name, numbers in citing():
        for number in numbers:
            by_id[number].append(f"[{name}](../{file})")
    lines = [
        "# Behaviours and their tests",
        "",
        "Generated from the tests' names by `python -m tests.replication.behaviours`; do not edit.",
        "",
        "| id | behaviour | tests |",
        "|---|---|---|",
    ]
    lines += [
        f"| R{number} | {text} | {'<br>'.join(by_id[number])} |"
        for number, text in BEHAVIOURS.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    sys.stdout.write(f"wrote {PAGE}\n")
