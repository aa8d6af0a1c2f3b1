"""Line pictures of validations, drawn by matplotlib for a page or a file.

On a page colours are CSS variables, which follow light and dark, and text takes the page's font.
Over each validation lies a strip that a pointer, a finger or the arrow keys can reach.
"""

from __future__ import annotations

import html
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

COLORS = {
    "l": "#b3261e",
    "t": "#5b6570",
    "d": "#0a6ebd",
    "h": "#2e7d32",
    "a": "#b26a00",
    "mut": "#5b6571",
    "line": "#e4e7eb",
}
"""Colours by name, those of a page in light. No two are equal: a page finds them by their value."""

_DASHES = {"d": (6, 2), "h": (3, 1.5), "a": (6, 1.5, 1, 1.5), "mut": (1, 1.5)}
WIDE, NARROW = 8.2, 4.2
"""Inches of a picture on a page, and on that of a phone."""
LEFT, RIGHT = 0.62, 1.3
"""Inches beside the axes: for the numbers, and for the names of the lines."""
FINE = 60
"""Up to so many validations each has a dot."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: a value for each validation, NaN where nothing was measured."""

    name: str
    """Stands at its right end."""
    color: str
    """One of :data:`COLORS`."""
    values: Sequence[float]
    x: Sequence[float] | None = None
    """Its own x; None: that of the picture."""
    named: bool = True
    """Whether its name stands there."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Lines over a common x, with marks at some x."""

    key: str
    """Of letters and hyphens, unique on a page: the name of its file."""
    title: str
    text: str
    """A sentence that says what it shows."""
    x: Sequence[float]
    """Spending, >= 0; empty where each line has its own."""
    x_name: str
    series: Sequence[Series]
    marks: Mapping[str, float]
    """The name of each vertical line, and its x."""
    form: str = "{:g}"
    """Format of the numbers on the y axis."""
    log: bool = False
    height: float = 2.9
    """Inches."""


def save(picture: Picture, path: str | os.PathLike[str]) -> None:
    """Write a picture to a file, in the format of its ending (``.png``, ``.svg``)."""
    figure = figure_of(picture, background="white")
    figure.savefig(path, dpi=160, metadata={"Date": None} if str(path).endswith("svg") else None)


def figure_of(picture: Picture, width: float = WIDE, background: str = "none") -> Any:
    """Return the matplotlib figure of a picture, ``width`` inches wide."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullFormatter

    wide = width == WIDE
    # The object interface opens no window and leaves the user's pyplot state alone.
    figure = Figure(figsize=(width, picture.height), dpi=72, facecolor=background)
    inner = (width - LEFT - RIGHT) / width
    axes = figure.add_axes((LEFT / width, 0.2, inner, 0.68), facecolor="none")
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=COLORS["line"], linewidth=0.8)
    axes.tick_params(which="both", length=0, labelcolor=COLORS["mut"], labelsize=10)
    axes.set_xlabel(picture.x_name, color=COLORS["mut"], fontsize=10)
    for series in picture.series:
        strong = series.color == "l"
        axes.plot(
            picture.x if series.x is None else series.x,
            series.values,
            color=COLORS[series.color],
            dashes=_DASHES.get(series.color, (None, None)),
            linewidth=2.4 if strong else 1.5,
            marker="o" if len(series.values) <= FINE else None,
            markersize=3.6,
            zorder={"l": 4, "line": 2}.get(series.color, 3),
            clip_on=False,
        )
    known = [v for s in picture.series for v in s.values if math.isfinite(v)]
    if picture.log and known and min(known) > 0:
        axes.set_yscale("log")
        axes.set_yticks(_log_ticks(min(known), max(known)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5 if picture.height > 2.5 else 4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: picture.form.format(y)))
    axes.margins(x=0.0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6 if wide else 4))
    axes.xaxis.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))
    _draw_marks(axes, picture.marks)
    _name_the_ends(axes, picture)
    return figure


def _log_ticks(low: float, high: float) -> list[float]:
    """Return some three to eight round numbers that cover a range of a logarithmic axis."""
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), [x / 10 for x in range(10, 100)]):
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [s * 10.0**d for d in decades for s in steps]
        ticks = [t for t in ticks if low * 0.97 <= t <= high * 1.03]
        if len(ticks) >= 3:
            break
    return ticks[:: -(-len(ticks) // 8)]


def _draw_marks(axes: Any, marks: Mapping[str, float]) -> None:
    middle = sum(axes.get_xlim()) / 2
    for name, x in marks.items():
        axes.axvline(x, color=COLORS["mut"], linewidth=0.9, dashes=(2, 2), zorder=1)
        where = {"ha": "left" if x < middle else "right", "va": "bottom"}
        offset = (3 if x < middle else -3, 2)
        axes.annotate(
            name, (x, 1), offset, color=COLORS["mut"], fontsize=9.5,
            xycoords=axes.get_xaxis_transform(), textcoords="offset points", **where,
        )  # fmt: skip


def _name_the_ends(axes: Any, picture: Picture) -> None:
    """Write each line's name at its right end, apart enough to be read."""
    least, ends = 14 / (72 * picture.height * 0.68), []  # of the height of the axes
    for series in picture.series:
        xs = picture.x if series.x is None else series.x
        known = [(x, y) for x, y in zip(xs, series.values, strict=True) if math.isfinite(y)]
        if known and series.named:
            end = axes.transAxes.inverted().transform(axes.transData.transform(known[-1]))
            ends.append([end[1], end[0], series])
    ends.sort(key=lambda end: end[0])
    for i, above in enumerate(ends):
        beside = [y for y, x, _ in ends[:i] if abs(x - above[1]) < 0.25]
        above[0] = max([above[0], *(y + least for y in beside)])
    for y, x, series in ends:
        axes.annotate(
            series.name, (x, y), (5, 0), xycoords="axes fraction", textcoords="offset points",
            color=COLORS[series.color], fontsize=10.5, fontweight="bold", va="center",
        )  # fmt: skip


# ---------------------------------------------------------------------- for a page


def svg_of(picture: Picture, readings: Sequence[str], width: float = WIDE) -> str:
    """Return a picture as an SVG element of a page.

    Args:
        picture: what to draw.
        readings: a text for each validation, or for each line where each has its own x, shown while
            it is pointed at.
        width: inches.
    """
    from matplotlib import rc_context

    kind = "wide" if width == WIDE else "narrow"
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": picture.key}):
        figure = figure_of(picture, width)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg)
    svg = re.sub(r"(\.\d)\d+", r"\1", svg)  # tenths of a point are enough
    svg = re.sub(r"\s*\n\s*", " ", svg)
    own = f"{picture.key}-{kind}-"  # or a picture would use the dots of another
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{own}", svg)
    label = html.escape(f"{picture.title}. {picture.text}", quote=True)
    head = f'<svg class="{kind}" role="img" tabindex="0" aria-label="{label}" '
    strips = (_strips if picture.x else _lines)(figure, picture, readings)
    return svg.replace("<svg ", head, 1).replace("</svg>", f"{strips}</svg>").strip()


def _strips(figure: Any, picture: Picture, readings: Sequence[str]) -> str:
    """Return a transparent strip for each validation, with its reading and a line to mark it."""
    (axes,) = figure.axes
    box, height = axes.get_window_extent(), figure.bbox.height
    at = [axes.transData.transform((x, 1))[0] for x in picture.x]
    edges = [box.x0, *((a + b) / 2 for a, b in pairwise(at)), box.x1]
    top, bottom = height - box.y1, height - box.y0
    found = []
    for i, (x, reading) in enumerate(zip(at, readings, strict=True)):
        left, right = sorted((edges[i], edges[i + 1]))
        found.append(
            f'<g class="at" data-i="{i}"><title>{html.escape(reading)}</title>'
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"/><path d="M{x:.1f} {top:.1f}V{bottom:.1f}"/></g>'
        )
    return "".join(found)


def _lines(figure: Any, picture: Picture, readings: Sequence[str]) -> str:
    """Return a broad transparent copy of each line that has a reading."""
    (axes,), height, found = figure.axes, figure.bbox.height, []
    for i, (series, reading) in enumerate(zip(picture.series, readings, strict=False)):
        points = zip(series.x or (), series.values, strict=True)
        at = [axes.transData.transform(p) for p in points if all(map(math.isfinite, p))]
        path = "L".join(f"{x:.1f} {height - y:.1f}" for x, y in at)
        found.append(
            f'<g class="at line" data-i="{i}"><title>{html.escape(reading)}</title>'
            f'<path d="M{path}"/></g>'
        )
    return "".join(found)
