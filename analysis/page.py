"""A report on disk: one self-contained page, figures, tables, and a summary for a mail.

Figures are drawn once for a page and once for a phone, as SVG whose colours are CSS variables;
nothing is loaded from anywhere and no library runs in the reader's browser.
"""

import functools
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from great_tables import GT, loc, style
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.section import Column, Figure, Section, Table
from analysis.style import Width, css_variables, png, svg, themed

ROWS_SHOWN, ROWS_PRINTED = 60, 24
MAIL_COLUMNS = 72
DIGITS = 9
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=%|(?:ns|\N{GREEK SMALL LETTER MU}s|[KM]iB|GB/s|points)\b)")
PAGE, SUMMARY = "report.html", "summary.md"
FIGURES, TABLES, FILES = "figures", "tables", "files"


@dataclass(frozen=True)
class Report:
    """Everything a page shows."""

    title: str
    subject: str  # what was run, in a line
    sections: Sequence[Section]
    notes: Sequence[str]  # what is wrong with the results
    command: str  # that makes this report


def write_report(report: Report, out: Path) -> None:
    """Write the page, its figures and tables, and the summary into a folder."""
    for folder in (out, out / FIGURES, out / TABLES, out / FILES):
        folder.mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for figure in section.figures:
            _write_figure(figure, out / FIGURES)
        for table in section.tables:
            _write_table(table, out / TABLES)
        for file in section.files:
            (out / FILES / file.name).write_text(file.text)
    (out / PAGE).write_text(_page(report))
    (out / SUMMARY).write_text(summary(report))


def _write_figure(figure: Figure, folder: Path) -> None:
    drawing = _svg(figure, Width.WIDE)
    (folder / f"{figure.name}.svg").write_text(drawing)
    (folder / f"{figure.name}.png").write_bytes(png(drawing))


@functools.lru_cache(maxsize=64)
def _svg(figure: Figure, width: Width) -> str:
    """Draw a figure once, for its file and for the page."""
    return svg(figure.draw(width))


def _write_table(table: Table, folder: Path) -> None:
    # Sums differ in their last digits from run to run.
    frame = table.frame.with_columns(pl.selectors.float().round_sig_figs(DIGITS))
    frame.write_csv(folder / f"{table.name}.csv")
    frame.write_parquet(folder / f"{table.name}.parquet")


def _page(report: Report) -> str:
    loader = PackageLoader("analysis", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"drawn": _drawn, "shown": _shown, "unbroken": unbroken}
    return environment.get_template("report.html.j2").render(
        report=report,
        light=Markup(css_variables(dark=False)),
        dark=Markup(css_variables(dark=True)),
        widths=Width,
        rows_shown=ROWS_SHOWN,
        rows_printed=ROWS_PRINTED,
        folders={"figures": FIGURES, "tables": TABLES, "files": FILES},
    )


def _drawn(figure: Figure, width: Width) -> Markup:
    drawing = themed(_svg(figure, width))
    # The picture scales with the page; its own size only sets the proportions.
    drawing = re.sub(r'width="[\d.]+" height="[\d.]+" ', "", drawing, count=1)
    # Ours: no text in it comes unescaped from anywhere but Vega's own renderer.
    return Markup(drawing)


def unbroken(text: str) -> str:
    r"""Keep numbers and their units on one line.

    >>> unbroken("8.7 ns of 2 runs")
    '8.7\xa0ns of 2 runs'
    """
    return _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)


def _shown(table: Table) -> Markup:
    """Return the body of a table as HTML, numbers aligned and with a real minus sign."""
    return Markup(table_html(table.frame.head(ROWS_SHOWN), table.columns))


def table_html(frame: pl.DataFrame, columns: Mapping[str, Column]) -> str:
    """Format a frame with great-tables; the style is the page's."""
    first, *_ = columns
    words = pl.selectors.boolean().replace_strict({True: "yes", False: "no"}, default=None)
    frame = frame.with_columns(words)
    shown = frame.select(_shown_as(name, column) for name, column in columns.items())
    table = GT(shown, rowname_col=first).tab_stubhead(columns[first].title)
    for name, column in columns.items():
        if column.decimals is not None and shown[name].dtype.is_numeric():
            table = table.fmt_number(columns=[name], decimals=column.decimals)
    right = [n for n, c in columns.items() if n != first and c.decimals is not None]
    table = table.cols_label({name: column.title for name, column in columns.items()})
    table = table.cols_align("right", right) if right else table
    for name, column in columns.items():
        if column.wraps:
            wrapped = style.css("white-space: normal; min-width: 14rem; overflow-wrap: anywhere")
            cells = loc.stub() if name == first else loc.body(columns=name)
            table = table.tab_style(wrapped, cells)
    html = table.sub_missing(missing_text="\N{EN DASH}").as_raw_html()
    # Only the table: every other one would repeat ten kilobytes of style, and ids besides.
    body = html[html.index("<table") : html.index("</table>") + len("</table>")]
    return re.sub(r' (?:id|headers|data-quarto-[a-z-]+|rowspan|colspan)="[^"]*"', "", body)


def _shown_as(name: str, column: Column) -> pl.Expr:
    """Return a column as shown: itself, rounded, or both ends of a range in one."""
    if column.decimals is None:
        return pl.col(name)
    low = _rounded(name, column.decimals)
    if not column.to:
        return low
    form = f"{{:.{column.decimals}f}}".format
    ends = [
        end.map_elements(form, pl.String).str.replace("-", "\N{MINUS SIGN}", literal=True)
        for end in (low, _rounded(column.to, column.decimals))
    ]
    both = pl.concat_str(ends, separator=" \N{HORIZONTAL ELLIPSIS} ")
    return pl.when(ends[0] == ends[1]).then(ends[0]).otherwise(both).alias(name)


def _rounded(name: str, decimals: int) -> pl.Expr:
    rounded = pl.col(name).cast(pl.Float64).round(decimals)
    return pl.when(rounded == 0).then(pl.lit(0.0)).otherwise(rounded).alias(name)  # no minus zero


def summary(report: Report) -> str:
    """Return the report as plain text for a mail, wrapped as kernel lists expect."""
    parts = [f"# {report.title}", _wrapped(report.subject)]
    parts += [_wrapped(f"NOTE: {note}") for note in report.notes]
    for section in report.sections:
        parts.append(f"## {section.number}. {section.title}")
        if section.answered:
            parts.append(_wrapped(section.answer))
            parts += [mail_table(table) for table in section.tables[:1] if table.mailed]
        if section.missing:
            lead = "Missing" if section.answered else "Not answered"
            parts.append(_wrapped(f"{lead}: {section.missing}."))
            parts += [f"    {command}" for command in section.commands]
    parts.append(_wrapped(f"Made by: {report.command}"))
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, MAIL_COLUMNS, break_long_words=False, break_on_hyphens=False)


def mail_table(table: Table) -> str:
    """Return the columns of a table that go into a mail as Markdown."""
    columns = {name: table.columns[name] for name in table.mailed}
    shown = table.frame.select(
        _text(name, column).alias(column.title) for name, column in columns.items()
    )
    with pl.Config(
        tbl_formatting="ASCII_MARKDOWN",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=200,
        fmt_str_lengths=60,
    ):
        return str(shown)


def _text(name: str, shown: Column) -> pl.Expr:
    if shown.decimals is None:
        return pl.col(name).cast(pl.String).fill_null("-")
    number = f"{{:.{shown.decimals}f}}".format
    return _rounded(name, shown.decimals).map_elements(number, pl.String).fill_null("-")
