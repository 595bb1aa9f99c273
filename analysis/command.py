"""What the command lines of reports and comparisons share: make it, write it, say what it says."""

import sys
from collections.abc import Callable
from pathlib import Path

from analysis.page import PAGE, Report, write_report
from analysis.section import Section
from numarep.results import ResultsError

DONE, NO_REPORT = 0, 2


def publish(
    make: Callable[[], Report], out: Path, what: str, told: Callable[[Section], str]
) -> int:
    """Write a report and print its notes, a line a section and where it is.

    Parameters
    ----------
    make : callable
        Returns the report, or raises `ResultsError` where none can be made.
    out : Path
        The folder it goes to.
    what : str
        What it is called.
    told : callable
        Returns the line of a section, empty for none.

    Returns
    -------
    int
        The exit code.
    """
    try:
        report = make()
        write_report(report, out)
    except (ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_REPORT
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for line in filter(None, map(told, report.sections)):
        print(line)
    print(f"{what}: {out / PAGE}")
    return DONE
