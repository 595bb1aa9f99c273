"""Question 10: why believe these results: laws they must obey, null tests, and provenance.

Every law is checked on every finished run, from the stored columns alone, so that a fault in the
model, in pricing or in storage shows. A null test is exact: where replication can change nothing,
it must gain 0, to the last bit.

>>> evaluated = pl.DataFrame({"runs": [3], "violated": [0]})
>>> evaluated.select(_verdict()).item()
'holds'
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from analysis import agreement
from analysis.agreement import COMMAND as AGREEMENT
from analysis.pairs import pairs
from analysis.section import Column, Evidence, Section, Table
from analysis.staircase import COMMAND as STAIRCASE_STUDY
from analysis.staircase import plateaus, shown, staircase

# Relative, of sums of floats in another order than the model's.
ROUNDING = 1e-9
NULL_STUDY = "python -m numarep.sweep study=null_tests out={out}"
_CYCLES = ("cr3_write_cycles", "invlpg_cycles", "ipi_cycles", "stlb_cycles")


def laws(cases: pl.LazyFrame, events: pl.LazyFrame, counts: pl.LazyFrame) -> pl.DataFrame:
    """Check the laws of `numarep.memory.counts` and `numarep.price` on every finished run.

    Returns
    -------
    DataFrame
        `law`; `runs` it was checked on; `violated`, how many broke it; `worst`, the largest
        difference (relative for times); `verdict`.
    """
    served = _served(counts)
    finished = cases.filter(pl.col("status") == "ok")
    table = finished.join(events, on="run_id").join(served, on="run_id", how="left")
    differences = _differences()
    checked = table.select(
        quantity.abs().alias(law) for law, quantity in differences.items()
    ).collect(engine="streaming")
    rows = [
        {
            "law": law,
            "runs": checked[law].count(),
            "violated": (checked[law] > ROUNDING).sum(),
            "worst": checked[law].max(),
        }
        for law in differences
    ]
    return _judged(rows)


def nulls(cases: pl.LazyFrame) -> pl.DataFrame:
    """Check the exact null tests on every pair whose replicas cost nothing.

    Returns
    -------
    DataFrame
        As `laws`; `worst` is the largest gain A (or change), in %, where there must be none;
        `loss`, the largest loss, in %: a copy may have to be fetched where the original was
        cached, since waived costs leave the writing of copies out, too.
    """
    paired = pairs(cases)
    waived = paired.filter(pl.col("replication.costs") == "waived")
    equal, remote, pti = pl.col("rho") == 1, pl.col("remote"), pl.col("kernel.pti")
    change, gain = pl.col("a").abs(), pl.col("a").clip(0)
    tests = {
        "CPU on the kernel's node: replicas change nothing": (~remote, change),
        "equal latencies, KPTI off: replicas gain nothing": (equal & remote & ~pti, gain),
        "equal latencies, KPTI on: replicas gain nothing": (equal & remote & pti, gain),
    }
    rows = []
    for law, (applies, excess) in tests.items():
        found = waived.filter(applies).select(excess=excess, loss=(-pl.col("a")).clip(0)).collect()
        violated = int((found["excess"] != 0).sum())
        worst = {"worst": found["excess"].max(), "loss": found["loss"].max()}
        rows.append({"law": law, "runs": found.height, "violated": violated, **worst})
    return _judged(rows)


def _judged(rows: list[dict[str, Any]]) -> pl.DataFrame:
    numbers = {"runs": pl.Int64, "violated": pl.Int64, "worst": pl.Float64, "loss": pl.Float64}
    schema = {"law": pl.String, **numbers}
    return pl.DataFrame(rows, schema=schema).with_columns(_verdict())


def _verdict() -> pl.Expr:
    return (
        pl.when(pl.col("runs") == 0)
        .then(pl.lit("no such run"))
        .when(pl.col("violated") == 0)
        .then(pl.lit("holds"))
        .otherwise(pl.lit("BROKEN"))
        .alias("verdict")
    )


def _served(counts: pl.LazyFrame) -> pl.LazyFrame:
    """Sum up what each run's counts say of its references, fetches and stalls."""
    times = pl.col("leading") + pl.col("overlapped")
    itself = pl.col("level") == 0
    return counts.group_by("run_id").agg(
        served=times.filter(itself).sum(),
        fetched=times.filter(itself, pl.col("access") == "fetch").sum(),
        stalled_ns=pl.sum("stall_ns"),
    )


def _differences() -> dict[str, pl.Expr]:
    """Return what must be 0 for every run, by law."""
    fetches = pl.col("itlb_hits") + pl.col("itlb_misses")
    data = pl.col("dtlb_hits") + pl.col("dtlb_misses")
    walks = pl.col("fetch_walks") + pl.col("data_walks")
    begun = pl.sum_horizontal("psc_pmd_hits", "psc_pud_hits", "psc_pgd_hits", "psc_misses")
    span = pl.max_horizontal(
        0.0,
        pl.col("time_ns") - pl.col("time_serial_ns"),
        pl.col("time_overlapped_ns") - pl.col("time_ns"),
    ) / pl.col("time_ns").clip(1.0)
    laws = {
        "every reference is served once": pl.col("served") - pl.col("references"),
        "every fetch looks up the ITLB once": fetches - pl.col("fetched"),
        "every other reference looks up the DTLB once": data
        - (pl.col("references") - pl.col("fetched")),
        "every ITLB miss hits the STLB or walks": pl.col("itlb_misses")
        - pl.col("stlb_fetch_hits")
        - pl.col("fetch_walks"),
        "every DTLB miss hits the STLB or walks": pl.col("dtlb_misses")
        - pl.col("stlb_data_hits")
        - pl.col("data_walks"),
        "every walk begins at a paging-structure cache or the root": walks - begun,
        "time lies between its overlapped and serial bound": span,
    }
    return laws | {"time = base + stalls of leading misses": _unexplained()}


def _unexplained() -> pl.Expr:
    """Return the share of a run's time that neither base nor stalls explain."""
    cr3, invlpg, ipi, stlb = (pl.col(f"machine.latency.{name}") for name in _CYCLES)
    cycles = (
        pl.col("instructions") / pl.col("machine.core.base_ipc")
        + (pl.col("cr3_writes") + pl.col("tlb_flushes")) * cr3
        + pl.col("invlpgs") * invlpg
        + pl.col("ipis") * ipi
        + pl.col("stlb_fetch_hits") * stlb
    )
    explained = cycles / pl.col("machine.core.ghz") + pl.col("stalled_ns")
    return (explained - pl.col("time_ns")) / pl.col("time_ns").clip(1.0)


def provenance(manifests: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """Return what made the results: an item and its value a row, for each folder."""
    rows = [
        {"folder": folder, "item": item, "value": value}
        for folder, manifest in manifests.items()
        for item, value in _items(manifest)
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(("folder", "item", "value"), pl.String))


def _items(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    git = manifest.get("git") or {}
    changed = " with local changes" if git.get("dirty") else ""
    libraries = manifest.get("libraries") or {}
    known = {
        "last study": manifest.get("study"),
        "model version": manifest.get("model_version"),
        "numarep revision": f"{git['revision']}{changed}" if git.get("revision") else None,
        **{f"dataset {name}": sum_ for name, sum_ in (manifest.get("datasets") or {}).items()},
        "capture seeds": ", ".join(map(str, manifest.get("seeds") or [])) or None,
        "Python": manifest.get("python"),
        "libraries": ", ".join(f"{name} {version}" for name, version in libraries.items()) or None,
    }
    return [(item, str(value)) for item, value in known.items() if value is not None]


def _seeds(cases: pl.LazyFrame) -> pl.DataFrame:
    """Return the capture seeds of all runs as a row of `provenance`: a manifest has the last's."""
    seeds = cases.select(pl.col("seed").drop_nulls().unique().sort()).collect()["seed"].to_list()
    shown = ", ".join(map(str, seeds[:_SEEDS_SHOWN])) + (
        ", ..." if len(seeds) > _SEEDS_SHOWN else ""
    )
    return pl.DataFrame({"folder": ["all runs"], "item": ["capture seeds"], "value": [shown]})


_SEEDS_SHOWN = 20


def section(evidence: Evidence) -> Section:
    """Answer question 10."""
    checked = pl.concat(
        [laws(evidence.cases, evidence.events, evidence.counts), nulls(evidence.cases)]
    )
    untested = checked.filter(verdict="no such run")["law"].to_list()
    origin = pl.concat(
        [
            provenance(evidence.manifests).filter(pl.col("item") != "capture seeds"),
            _seeds(evidence.cases),
        ]
    )
    tables = [Table("laws", "Laws and null tests, over all finished runs", checked, _COLUMNS)]
    tables.append(Table("provenance", "What made these results", origin, _ORIGIN))
    missing = [f"no run tests: {law}" for law in untested]
    commands = [NULL_STUDY] if any("replicas" in law for law in untested) else []
    if evidence.agreement.is_empty():
        missing.append("no comparison with independent simulators")
        commands.append(AGREEMENT)
    else:
        tables.insert(1, agreement.shown(evidence.agreement))
    figures = []
    steps = staircase(evidence.cases)
    if steps.is_empty():
        missing.append("no pointer chase, so no latency staircase")
        commands.append(STAIRCASE_STUDY)
    else:
        figure, steps_table = shown(steps, plateaus(steps, evidence.counts, evidence.cases))
        figures.append(figure)
        tables += steps_table
    return Section(
        10,
        "trust",
        "Why believe it",
        answer=_answer(checked, evidence.agreement),
        figures=tuple(figures),
        tables=tuple(tables),
        how=_HOW,
        missing="; ".join(missing),
        commands=tuple(commands),
    )


_COLUMNS = {
    "law": Column("law", wraps=True),
    "runs": Column("runs", 0),
    "violated": Column("violated", 0),
    "loss": Column("largest loss, %", 4),
    "verdict": Column("verdict"),
}
_ORIGIN = {"item": Column("what"), "value": Column("value", wraps=True), "folder": Column("folder")}
_HOW = (
    "Laws are recomputed from the stored counts and columns, times with a relative tolerance of "
    f"{ROUNDING:g}; null tests allow no gain at all. At equal latencies replicas can lose a "
    "little: with KPTI a CPU of another node holds the entry text twice, as the user's CR3 maps "
    "it and as the kernel's does, and a node's copy of a page table may have to be fetched where "
    "the original was just written. Simulators: pycachesim counts misses of L1D and L2 (it has no "
    "page walks and no inclusive LLC; equal: but for the reads of one walk); the twin is this "
    "project's own, plain Python that shares no code with the core, and counts everything: the "
    "tests compare with it on thousands of random machines."
)


def _answer(checked: pl.DataFrame, compared: pl.DataFrame) -> str:
    broken = checked.filter(verdict="BROKEN")
    tested = checked.filter(pl.col("runs") > 0)
    if broken.height:
        return f"DO NOT TRUST THESE RESULTS: {broken.height} of {tested.height} laws are broken."
    null = tested.filter(pl.col("law").str.contains("replicas"))
    text = f"All {tested.height - null.height} laws of counting and pricing hold for every run"
    if null.height:
        text += f", and all {sum(null['runs'])} null tests"
    return f"{text}. {agreement.sentence(compared)}." if compared.height else f"{text}."
