"""The one visual language of all figures: colours, widths, keys and the theme.

Colour says who served an access, from near to far: blues for the CPU's own node, oranges for
another. Baseline and series are the same two colours everywhere. The colours tell apart with the
common kinds of colour blindness, and every one has a twin for dark pages: figures are drawn once in
light colours, a page replaces each by a CSS variable.

>>> colour("series").light
'#00856f'
>>> themed('<path fill="#00856f"/>')
'<path fill="var(--series)"/>'
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import altair as alt
import polars as pl
import vl_convert

Drawing = dict[str, Any]  # Vega-Lite


class Width(IntEnum):
    """Widths a figure is drawn for, in CSS pixels: a page or mail, and a phone."""

    WIDE = 720
    NARROW = 340


class Colour(NamedTuple):
    """One role of the palette and its colour on light and dark paper."""

    role: str
    light: str
    dark: str


PALETTE = (
    Colour("paper", "#fefefe", "#15181e"),
    Colour("ink", "#1d232e", "#e4e7ee"),
    Colour("muted", "#5c6575", "#9fa8b8"),
    Colour("grid", "#e4e7ec", "#2d333e"),
    Colour("zero", "#8a93a3", "#79828f"),
    Colour("band", "#d3d8e0", "#3d4553"),
    Colour("baseline", "#6b7484", "#98a1b1"),
    Colour("series", "#00856f", "#2fb89d"),
    Colour("series-band", "#a8d8cd", "#17594d"),
    Colour("base", "#c3c9d3", "#565f6e"),
    Colour("l1", "#cfe2f3", "#27435e"),
    Colour("l2", "#9cc4e4", "#2f6590"),
    Colour("llc", "#5b9bd0", "#4a8fc7"),
    Colour("peer", "#3f7db4", "#6bb3e4"),
    Colour("dram-local", "#1f5f99", "#8dbfe8"),
    Colour("remote-llc", "#f4b766", "#f8d59a"),
    Colour("remote-dirty", "#e58c3e", "#f0a45c"),
    Colour("dram-remote", "#d1590f", "#ea7530"),
    Colour("loss-3", "#9c4a08", "#f5a056"),
    Colour("loss-2", "#d08a4a", "#b8702f"),
    Colour("loss-1", "#f0d2b2", "#5a3c22"),
    Colour("even", "#f3f4f6", "#262b34"),
    Colour("gain-1", "#cde8e2", "#1c4a43"),
    Colour("gain-2", "#8fcdbf", "#24695d"),
    Colour("gain-3", "#46a895", "#2f8f7e"),
    Colour("gain-4", "#0b6e5e", "#4cc4ae"),
)
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
# Who served an access, near to far: name in figures, role of its colour.
SERVERS = {
    "base": "base",
    "L1": "l1",
    "L2": "l2",
    "own LLC": "llc",
    "other core": "peer",
    "own DRAM": "dram-local",
    "remote LLC": "remote-llc",
    "remote, changed": "remote-dirty",
    "remote DRAM": "dram-remote",
}


@dataclass(frozen=True)
class Glyph:
    """One entry of a figure's key."""

    label: str
    shape: str
    role: str
    hollow: bool = False


# Right of every plot, for labels and padding.
MARGIN = 16
ONE_X = {"resolve": {"scale": {"x": "shared"}}}  # of drawings side by side
TIP = alt.Description("tip:N")  # a mark's exact values
BAR = "M-1.6,-0.55H1.6V0.55H-1.6Z"
LINE = "M-1.6,-0.18H1.6V0.18H-1.6Z"


def colour(role: str) -> Colour:
    """Return one colour of the palette."""
    return next(entry for entry in PALETTE if entry.role == role)


def light(role: str) -> str:
    """Return a role's colour as figures are drawn."""
    return colour(role).light


def server_scale(present: Sequence[str]) -> alt.Scale:
    """Colour by who served, near to far."""
    shown = [name for name in SERVERS if name in present]
    return alt.Scale(domain=shown, range=[light(SERVERS[name]) for name in shown])


# Gains in %: the bins of maps, and the role of each bin's colour.
STEPS = (-10.0, -3.0, -0.5, 0.5, 3.0, 10.0, 20.0)
BINS = ("loss-3", "loss-2", "loss-1", "even", "gain-1", "gain-2", "gain-3", "gain-4")


def gain_scale() -> alt.Scale:
    """Colour by gain in %: losses orange, gains green, nothing grey."""
    return alt.Scale(type="threshold", domain=list(STEPS), range=[light(bin_) for bin_ in BINS])


def gain_key() -> list[Glyph]:
    """Return the key of `gain_scale`."""
    ends = [f"{step:g}".replace("-", "\N{MINUS SIGN}") for step in STEPS]
    inner = [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    labels = [f"below {ends[0]}", *inner, f"over {ends[-1]} %"]
    return [Glyph(label, "square", role) for label, role in zip(labels, BINS, strict=True)]


def key(glyphs: Sequence[Glyph], width: Width, indent: int = 0) -> Any:
    """Draw the key of a figure as a row, or rows where it is narrow.

    Parameters
    ----------
    glyphs : sequence of Glyph
    width : Width
    indent : int
        Width of the axis labels below it: plots are aligned, and the key starts left of them.
    """
    frame = pl.DataFrame(_placed(glyphs, width)).with_columns(pl.col("x") - indent)
    rows = 1 + max(frame["row"].to_list())
    plot = width - indent - MARGIN
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, plot], nice=False), axis=None)
    y = alt.Y("row:Q", scale=alt.Scale(domain=[rows - 0.5, -0.5], nice=False), axis=None)
    points = alt.Chart(frame).mark_point(size=90, opacity=1, aria=False)
    shapes = points.encode(
        x=x,
        y=y,
        shape=alt.Shape("shape:N", scale=None),
        fill=alt.Fill("fill:N", scale=None),
        stroke=alt.Stroke("stroke:N", scale=None),
    )
    texts = alt.Chart(frame).mark_text(align="left", dx=14, aria=False)
    labels = texts.encode(x=x, y=y, text=alt.Text("label:N"))
    return alt.layer(shapes, labels, width=plot, height=19 * rows, view=_NO_FRAME)


def beside(*charts: Any, **options: Any) -> Drawing:
    """Put charts and drawings side by side; the options are Vega-Lite's."""
    return _joined("hconcat", charts, options)


def stacked(*charts: Any, **options: Any) -> Drawing:
    """Put charts and drawings one below the other; the options are Vega-Lite's."""
    return _joined("vconcat", charts, options)


def _joined(how: str, charts: Sequence[Any], options: Mapping[str, Any]) -> Drawing:
    # Not by Altair, which copies all that its concatenations hold, at each level several times.
    datasets: dict[str, Any] = {}
    specs = []
    for chart in charts:
        spec = chart if isinstance(chart, dict) else chart.to_dict(validate=False)
        datasets |= spec.get("datasets", {})
        specs.append({k: v for k, v in spec.items() if k not in _OF_TOP})
    return {how: specs, **options, "datasets": datasets}


def in_rows(panels: Sequence[Any], columns: int, spacing: int) -> list[Drawing]:
    """Put panels side by side, so many a row."""
    starts = range(0, len(panels), columns)
    return [beside(*panels[at : at + columns], spacing=spacing) for at in starts]


def _placed(glyphs: Sequence[Glyph], width: Width) -> list[dict[str, Any]]:
    placed, x, row = [], 14.0, 0
    for glyph in glyphs:
        needs = 37 + sum(8.2 if letter.isupper() else 6.0 for letter in glyph.label)
        if x + needs > width + 12 and x > 14:
            x, row = 14.0, row + 1
        ink = light(glyph.role)
        fill = light("paper") if glyph.hollow else ink
        item = {"label": glyph.label, "shape": glyph.shape, "fill": fill, "stroke": ink}
        placed.append(item | {"x": x, "row": row})
        x += needs
    return placed


_OF_TOP = ("$schema", "config", "datasets")  # what a chart has only as a whole drawing
_NO_FRAME = alt.ViewConfig(stroke=None, fill=None)


def finished(drawing: Drawing) -> Drawing:
    """Add the theme of all figures, at the precision of a picture."""
    axis = {
        "domain": False,
        "ticks": False,
        "labelColor": light("ink"),
        "titleColor": light("muted"),
        "gridColor": light("grid"),
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 9,
        "labelLimit": 220,
        "labelFlush": False,
    }
    text = {"fontSize": 12, "color": light("ink")}
    datasets = {n: [_rounded(r) for r in rows] for n, rows in drawing["datasets"].items()}
    config = {
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis,
        "axisY": {"grid": False},
        "text": text,
        "title": {"fontSize": 13, "color": light("ink"), "anchor": "start", "fontWeight": "bold"},
        "header": {"labelFontSize": 13, "labelColor": light("ink"), "title": None},
        "concat": {"spacing": 14},
        "legend": {"labelColor": light("ink"), "titleColor": light("muted"), "labelFontSize": 12},
    }
    top = {"config": config, "background": light("paper"), "padding": 4, "datasets": datasets}
    return drawing | top


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Round to what a picture can show: sums differ in their last digits from run to run."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}


def svg(drawing: Drawing) -> str:
    """Draw as SVG, in light colours on light paper."""
    return str(vl_convert.vegalite_to_svg(finished(drawing)))


def png(drawing: str) -> bytes:
    """Turn a drawing into PNG, at twice its size for sharp screens and print."""
    return bytes(vl_convert.svg_to_png(drawing, scale=2))


def themed(drawing: str) -> str:
    """Replace the palette's colours in SVG by CSS variables, which a page sets light or dark."""
    for entry in PALETTE:
        drawing = drawing.replace(entry.light, f"var(--{entry.role})")
    return drawing


def css_variables(*, dark: bool) -> str:
    """Return the palette as CSS declarations."""
    return "".join(f"--{c.role}:{c.dark if dark else c.light};" for c in PALETTE)
