"""Command line of reports: `python -m analysis.report RESULTS... [--out DIR]`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import polars as pl

from analysis import (
    ablation,
    break_even,
    costs,
    functions,
    memory,
    nodes,
    own,
    published,
    sensitivity,
    stalls,
    trust,
)
from analysis.command import publish
from analysis.page import Report
from analysis.section import UNREADABLE, Evidence, Section, first_line, listed
from analysis.sources import Sources, open_sources

TITLE = "Replicating a kernel's read-only memory on every NUMA node: gain and cost"
QUESTIONS: tuple[ModuleType, ...] = (
    published,
    stalls,
    functions,
    ablation,
    break_even,
    nodes,
    memory,
    costs,
    sensitivity,
    trust,
    own,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        `sys.argv` by default.
    """
    options = _parser().parse_args(arguments)
    out = options.out or options.results[0] / "report"

    def make() -> Report:
        return build_report(open_sources(options.results), [str(path) for path in options.results])

    return publish(make, out, "report", lambda section: section.headline)


def build_report(sources: Sources, paths: Sequence[str]) -> Report:
    """Ask every question of the evidence."""
    evidence = sources.evidence
    answered = [_asked(question, sources) for question in QUESTIONS]
    return Report(
        TITLE,
        _subject(evidence),
        [
            replace(section, commands=tuple(c.replace("{out}", paths[0]) for c in section.commands))
            for section in answered
        ],
        sources.notes,
        f"python -m analysis.report {' '.join(paths)}",
    )


def _asked(question: ModuleType, sources: Sources) -> Section:
    """Ask one question; where what it needs is damaged, say so and let the others be answered."""
    try:
        answer: Section = question.section(sources.evidence)
        return answer
    except UNREADABLE as error:
        number, name = QUESTIONS.index(question) + 1, question.__name__.rpartition(".")[2]
        said = f"what it needs can't be read: {first_line(error)}"
        sources.notes.append(f"question {number}: {said}")
        return Section(number, name, "Not answered", missing=said)


def _subject(evidence: Evidence) -> str:
    """Say what was run, in a line."""
    names = ("machine", "kernel", "workload", "replication")
    row = evidence.cases.select(
        pl.len().alias("runs"), *(pl.col(name).drop_nulls().unique().implode() for name in names)
    )
    found = row.collect().row(0, named=True)
    machines, kernels, workloads, policies = (sorted(found[name]) for name in names)
    return (
        f"{found['runs']:,} runs: {listed(workloads)}; replication {listed(policies)}; "
        f"kernel {listed(kernels)}; machine {listed(machines)}. Simulated from traces of a real "
        "kernel; nothing is fitted to measurements of replication."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description="Turn results folders into a self-contained report, figures, tables and a "
        "summary for a mail.",
        epilog="exit codes: 0 a report was made, with notes on whatever is missing; 2 none could "
        "be made",
    )
    parser.add_argument(
        "results", nargs="+", type=Path, help="folders written by python -m numarep.sweep"
    )
    parser.add_argument("--out", type=Path, help="where it goes (default: RESULTS/report)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
