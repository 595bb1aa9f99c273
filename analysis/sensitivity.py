"""Question 9: which assumed parameters move the gain.

Morris' elementary effects by SALib: every assumed parameter is scaled between half and one and a
half of its value, one at a time along trajectories. mu* is the mean absolute effect of its whole
range on the gain, in points of %; sigma says how much that depends on the other parameters.
"""

import math
from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis.assumed import EXEMPT, HIGH, LOW, Parameter
from analysis.cases import settings_of
from analysis.design import TRAJECTORIES, design, problem, varied
from analysis.pairs import remote_pairs
from analysis.reference import POLICY
from analysis.section import Column, Evidence, Figure, Section, Table
from analysis.style import MARGIN, TIP, Drawing, Glyph, Width, key, light, stacked

COMMAND = "python -m analysis.design | python -m numarep.sweep study=sensitivity out={out} points=-"
_CELL = ("workload", "cache_state", "home_llc")


def sensitivity(cases: pl.LazyFrame, parameters: list[Parameter] | None = None) -> pl.DataFrame:
    """Return each assumed parameter's effect on the gain A, by workload and scenario.

    Parameters
    ----------
    cases : LazyFrame
        Of `analysis.cases`, with every point of `analysis.design`.
    parameters : list of Parameter, optional
        Those that were varied; by default what conf/ marks as assumed.

    Returns
    -------
    DataFrame
        `workload`, `cache_state`, `home_llc`, `parameter`, `mu_star`, `mu_star_conf` (95 %),
        `mu` and `sigma`, in points of %. Empty for cells that lack points.
    """
    known = varied() if parameters is None else parameters
    factors = design(known)
    found = remote_pairs(cases).filter(replication=POLICY)
    points = _points(known, factors)
    names = [name for name in points.columns if name in settings_of(found)]
    if found.is_empty() or not names:
        return _effects([])
    # A setting that never varies is no column: its value is every run's.
    typed = points.select("_point", *names).cast({name: found.schema[name] for name in names})
    together = typed.join(found, on=names, how="inner")
    cells = together.group_by(*_CELL, "_point").agg(pl.mean("a")).sort(*_CELL, "_point")
    rows = []
    for cell, gains in cells.group_by(*_CELL, maintain_order=True):
        if gains.height == len(factors):
            effects = _morris(known, factors, gains["a"].to_numpy())
            rows += [dict(zip(_CELL, cell, strict=True)) | effect for effect in effects]
    return _effects(rows)


def _effects(rows: list[dict[str, Any]]) -> pl.DataFrame:
    names = dict.fromkeys((*_CELL, "parameter"), pl.String)
    numbers = dict.fromkeys(("mu_star", "mu_star_conf", "mu", "sigma"), pl.Float64)
    table = pl.DataFrame(rows, schema={**names, **numbers})
    return table.sort("mu_star", *_CELL, "parameter", descending=[True, *[False] * 4])


def _points(parameters: list[Parameter], factors: NDArray[np.float64]) -> pl.DataFrame:
    """Return the settings of every point of the design, with its number in `_point`."""
    return pl.DataFrame(
        [
            {"_point": number}
            | {
                path: leaf
                for parameter, factor in zip(parameters, point, strict=True)
                for path, leaf in _leaves(parameter.path, parameter.scaled(factor))
            }
            for number, point in enumerate(factors.tolist())
        ]
    )


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    """Flatten a value as the columns of `cases` do."""
    if isinstance(value, Mapping):
        return [leaf for key, below in value.items() for leaf in _leaves(f"{path}.{key}", below)]
    if isinstance(value, list):
        return [leaf for i, below in enumerate(value) for leaf in _leaves(f"{path}.{i}", below)]
    return [(path, value)]


def _morris(
    parameters: list[Parameter], factors: NDArray[np.float64], gains: NDArray[np.float64]
) -> list[dict[str, Any]]:
    from SALib.analyze import morris  # late: it loads pandas and more

    found = morris.analyze(problem(parameters), factors, gains, num_levels=4, seed=1, scaled=False)
    columns = ("mu_star", "mu_star_conf", "mu", "sigma")
    return [
        {"parameter": name, **{column: float(found[column][i]) for column in columns}}
        for i, name in enumerate(found["names"])
    ]


def section(evidence: Evidence) -> Section:
    """Answer question 9."""
    title = "Which assumptions move the gain"
    parameters = varied()
    table = sensitivity(evidence.cases, parameters)
    if table.is_empty():
        lacks = f"not every point of the design over {len(parameters)} assumed parameters"
        return Section(9, "sensitivity", title, missing=lacks, commands=(COMMAND,))
    ranked = _ranked(table)
    return Section(
        9,
        "sensitivity",
        title,
        answer=_answer(ranked),
        figures=(Figure("sensitivity", _CAPTION, lambda width: _draw(ranked, width)),),
        tables=(
            Table("sensitivity", "Effect of every assumed parameter, by cell", table, _COLUMNS),
        ),
        how=_HOW,
        missing=_ONE_CELL if len(table.select(_CELL[:2]).unique()) == 1 else "",
        commands=(COMMAND,) if len(table.select(_CELL[:2]).unique()) == 1 else (),
    )


def _ranked(table: pl.DataFrame) -> pl.DataFrame:
    """Return each parameter's largest effect, with the home LLC cold and warm, largest first."""
    most = table.unique(["parameter", "home_llc"], keep="first", maintain_order=True)
    overall = most.group_by("parameter").agg(pl.max("mu_star").alias("overall"))
    return most.join(overall, on="parameter").sort(
        "overall", "parameter", "home_llc", descending=[True, False, False]
    )


_COLUMNS = {
    "parameter": Column("parameter"),
    "workload": Column("workload"),
    "cache_state": Column("caches"),
    "home_llc": Column("home LLC"),
    "mu_star": Column("\N{GREEK SMALL LETTER MU}*, points", 2),
    "mu_star_conf": Column("\N{PLUS-MINUS SIGN} 95 %", 2),
    "mu": Column("\N{GREEK SMALL LETTER MU}", 2),
    "sigma": Column("\N{GREEK SMALL LETTER SIGMA}", 2),
}
_CAPTION = (
    "By how many points the gain A moves when one assumed value is scaled from half to one and a "
    "half of it: mean absolute elementary effect with its 95 % interval, in the workload it moves "
    "most (logarithmic; what moves less than 0.01 points is drawn there)."
)
_HOW = (
    f"Morris' method (SALib), {TRAJECTORIES} trajectories, each assumed value of conf/ scaled "
    f"from {LOW} to {HIGH} (a value assumed to be 0: up to 100), integers and cache sizes to the "
    "nearest that exists. \N{GREEK SMALL LETTER MU}: the signed mean; "
    "\N{GREEK SMALL LETTER SIGMA}: spread of the effect, from interaction with other parameters. "
    "Left out: " + "; ".join(f"{name} ({reason})" for name, reason in EXEMPT.items()) + "."
)


def _answer(ranked: pl.DataFrame) -> str:
    parts = []
    for (home,), rows in ranked.group_by("home_llc", maintain_order=True):
        first = rows.sort("mu_star", descending=True).row(0, named=True)
        parts.append(
            f"with a {home} home LLC {first['parameter']} moves the gain most, by "
            f"{first['mu_star']:.1f} points ({first['workload']}, {first['cache_state']} caches)"
        )
    small = ranked.unique("parameter").filter(pl.col("overall") < 1).height
    text = "; ".join(sorted(parts))
    total = ranked["parameter"].n_unique()
    return (
        f"{text[0].upper()}{text[1:]}; {small} of {total} assumed parameters never move any of "
        "these gains by a whole point."
    )


_ONE_CELL = "one workload and cache state only"
_SERVES = {"cold": "dram-remote", "warm": "remote-llc"}  # who then serves what is remote
_LEAST = 0.01


def _draw(ranked: pl.DataFrame, width: Width) -> Drawing:
    wide = width is Width.WIDE
    labels = 232 if wide else 150
    name = pl.col("parameter").str.split(".").list.tail(4 if wide else 2).list.join(".")
    shown = ranked.with_columns(
        name,
        at=pl.col("mu_star").clip(_LEAST),
        low=(pl.col("mu_star") - pl.col("mu_star_conf")).clip(_LEAST),
        high=(pl.col("mu_star") + pl.col("mu_star_conf")).clip(_LEAST),
        tip=pl.format(
            "{}: \N{GREEK SMALL LETTER MU}* {} \N{PLUS-MINUS SIGN} {} points, "
            "\N{GREEK SMALL LETTER SIGMA} {} ({} {}, home LLC {})",
            "parameter",
            *(pl.col(column).round(3) for column in ("mu_star", "mu_star_conf", "sigma")),
            *_CELL,
        ),
    )
    names = shown["parameter"].unique(maintain_order=True).to_list()
    axis = alt.Axis(minExtent=labels, labelLimit=labels)
    homes = [home for home in _SERVES if home in shown["home_llc"]]
    colours = alt.Scale(domain=homes, range=[light(_SERVES[home]) for home in homes])
    base = alt.Chart(shown).encode(
        y=alt.Y("parameter:N", sort=names, title=None, axis=axis),
        yOffset=alt.YOffset("home_llc:N", sort=homes),
        color=alt.Color("home_llc:N", scale=colours, legend=None),
        description=TIP,
    )

    def x(column: str) -> alt.X:
        ticks = alt.Axis(values=[0.01, 0.1, 1, 10, 100], format="~g")
        top = 10 ** math.ceil(math.log10(max(1.0, *shown["high"])))
        scale = alt.Scale(type="log", domain=[_LEAST, top])
        return alt.X(f"{column}:Q", title="effect on the gain, points", axis=ticks, scale=scale)

    ranges = base.mark_rule(strokeWidth=2).encode(x=x("low"), x2=alt.X2("high:Q"))
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(x=x("at"))
    chart = alt.layer(ranges, dots, width=width - labels - MARGIN, height=26 * len(names))
    glyphs = [Glyph(f"home LLC {home}", "circle", _SERVES[home]) for home in homes]
    return stacked(key(glyphs, width, labels), chart)
