"""Golden tables of every question: `python -m tests.analysis.golden` writes them anew.

Do that only when a definition was meant to change, and read the difference.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import polars as pl

from analysis import (
    ablation,
    break_even,
    costs,
    events,
    functions,
    memory,
    nodes,
    operations,
    own,
    published,
    requirements,
    stalls,
    trust,
)
from analysis.compare import gains_changed, time_changed
from analysis.section import Evidence
from analysis.sources import open_sources
from tests.analysis import made

FOLDER = Path(__file__).parent / "tables"
DIGITS = 9  # beyond the rounding of sums in another order

TABLES: dict[str, Callable[[Evidence], pl.DataFrame]] = {
    "gains": lambda e: published.gains(e.cases),
    "requirements": lambda e: requirements.requirements(e.cases, e.counts),
    "stalls": lambda e: stalls.stalls(e.cases, e.counts),
    "events": lambda e: events.events(e.cases, e.events),
    "functions": lambda e: functions.functions(e.cases, e.functions),
    "ablation": lambda e: ablation.ablation(e.cases),
    "switches": lambda e: ablation.switches(e.cases),
    "alignment": lambda e: ablation.alignment(e.cases),
    "surface": lambda e: break_even.surface(e.cases),
    "break_even": lambda e: break_even.break_even(break_even.surface(e.cases)),
    "footprints": lambda e: break_even.footprints(e.cases, e.counts),
    "nodes": lambda e: nodes.nodes(e.cases),
    "traffic": lambda e: nodes.traffic(e.cases, e.counts),
    "memory": lambda e: memory.memory(e.cases, e.memory),
    "policies": lambda e: memory.policies(e.cases, e.memory),
    "costs": lambda e: operations.costs(e.cases),
    "used_up": lambda e: costs.used_up(e.cases),
    "laws": lambda e: trust.laws(e.cases, e.events, e.counts),
    "nulls": lambda e: trust.nulls(e.cases),
    "own": lambda e: own.own(e.cases),
    "gains_changed": lambda e: gains_changed(e.cases, e.cases),
    "time_changed": lambda e: time_changed(e, e),
}


def text(name: str, evidence: Evidence) -> str:
    """Return one table as it is kept."""
    table = TABLES[name](evidence).with_columns(pl.selectors.float().round(DIGITS) + 0.0)
    return table.write_csv()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = made.write(Path(folder) / "made", made.everything())
        found = open_sources([path]).evidence
        for name in TABLES:
            (FOLDER / f"{name}.csv").write_text(text(name, found))
    sys.stdout.write(f"wrote {FOLDER}; look at the differences before committing them\n")
