"""What a question hands to the report: an answer, figures, tables and how it was computed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from analysis.style import Drawing, Width

# What reading a damaged file can end in: a footer may be sound and what lies behind it not.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
Draw = Callable[[Width], Drawing]


@dataclass(frozen=True)
class Evidence:
    """What a report reads: the runs as `analysis.cases`, their events, counts, and manifests.

    Beside `counts`, the other details of the results: by kernel function, and of memory.
    `agreement` is what independent simulators say (`analysis.agreement`).
    """

    cases: pl.LazyFrame
    events: pl.LazyFrame
    counts: pl.LazyFrame
    manifests: Mapping[str, Mapping[str, Any]]
    functions: pl.LazyFrame
    memory: pl.LazyFrame
    agreement: pl.DataFrame = field(default_factory=pl.DataFrame)


@dataclass(frozen=True)
class Column:
    """How a column of a table is shown."""

    title: str
    decimals: int | None = None  # of numbers; None shows the value as it is
    to: str = ""  # the column that ends a range this one begins; both are shown as one
    wraps: bool = False  # long text


@dataclass(frozen=True)
class Table:
    """One frame, stored whole as CSV and Parquet, shown with the columns named here."""

    name: str
    caption: str
    frame: pl.DataFrame
    columns: Mapping[str, Column]
    mailed: tuple[str, ...] = ()  # the columns that go into the summary for a mail


@dataclass(frozen=True)
class Figure:
    """One picture, drawn at the widths asked for; the caption states the finding."""

    name: str
    caption: str
    draw: Draw


@dataclass(frozen=True)
class Attached:
    """A file beside the page, for another program to open."""

    name: str
    caption: str
    text: str


@dataclass(frozen=True)
class Section:
    """One question answered, or, without an answer, what would produce it."""

    number: int  # of the question, as in the project's list
    name: str
    title: str
    answer: str = ""
    headline: str = ""  # the answer in few words, to open a report with
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    files: tuple[Attached, ...] = ()
    how: str = ""
    missing: str = ""  # what the results lack, in words
    commands: tuple[str, ...] = field(default=())  # that would produce it

    @property
    def answered(self) -> bool:
        """Whether the results held what the question needs."""
        return bool(self.answer)


def percent(value: float | None) -> str:
    """Write a gain in words.

    >>> percent(-0.04), percent(23.71), percent(None)
    ('0.0 %', '23.7 %', 'unknown')
    """
    if value is None:
        return "unknown"
    text = f"{value:.1f}".replace("-", "\N{MINUS SIGN}")
    return ("0.0" if text == "\N{MINUS SIGN}0.0" else text) + " %"


def first_line(error: BaseException) -> str:
    r"""Return an error's first line: Polars adds its plan below.

    >>> first_line(ValueError("what\nwhere"))
    'what'
    """
    return (str(error).splitlines() or [type(error).__name__])[0]


def listed(words: list[str]) -> str:
    """Join words as a sentence does.

    >>> listed(["a", "b", "c"]), listed([])
    ('a, b and c', 'none')
    """
    if len(words) < 2:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"
