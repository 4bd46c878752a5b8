"""Plots of a run over its iterations, as SVG drawings that need nothing else."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any, Callable

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from . import axes
from .marks import STYLES, Label, Mark, placed
from .page import Page
from .zoom import Window

_SIZE, _LABEL = 8.5, 7.5  # points
_ROW, _TITLE = 78.0, 19.0  # points: a plot, and above each its title
_LEFT, _RIGHT, _BOTTOM = 52.0, 8.0, 32.0
_LABEL_ROW, _MOST_ROWS = 11.0, 5
# A role, and the variable of the style sheet that has its colour.
_VARIABLES = {
    axes.INK: "ink",
    axes.MUTED: "muted",
    axes.GRID: "grid",
    axes.PAGE: "page",
    axes.CURVE: "curve",
    axes.NOT_FINITE: "vermilion",
    axes.OVERFLOW: "sky",
    axes.HEALTHY: "green",
    "#E69F00": "orange",
    "#CC79A7": "purple",
}

_LONG = re.compile(r"(\.\d\d)\d+")

Draw = Callable[[Any, Window], None]


@dataclass(frozen=True)
class _Sheet:
    """A drawing to be: of which iterations, how wide in points, with which labels."""

    window: Window
    width: float
    labels: list[Label]


def draw(
    page: Page,
    shown: list[Mark],
    windows: list[tuple[Window, float]],
    anchors: set[int],
) -> list[str]:
    """The same plots below each other, once for each window.

    Args:
        page: Of which run.
        shown: Its events, the most telling first.
        windows: Each with the width of its drawing in points.
        anchors: Iterations that the page has an element ``i<iteration>`` for.

    Returns:
        An ``<svg>`` element for each, of the same height, referring to nothing but
        those anchors. Colours are variables of the page's style sheet.
    """
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: searched, read aloud, small
        "svg.hashsalt": "amp_hooks",
        "font.size": _SIZE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": axes.MUTED,
        "xtick.color": axes.MUTED,
        "ytick.color": axes.MUTED,
        "text.color": axes.INK,
        "axes.linewidth": 0.7,
    }
    plots = _plots(page)
    sheets = [
        _Sheet(window, width, _labels(shown, window, width))
        for window, width in windows
    ]
    rows = max((x.row + 1 for sheet in sheets for x in sheet.labels), default=0)
    enlarged = [sheet.window for sheet in sheets if not sheet.window.whole]
    with matplotlib.rc_context(settings):
        drawn = []
        for sheet in sheets:
            inside = enlarged if sheet.window.whole else []
            figure = _figure(sheet, plots, rows, shown, inside)
            _write_labels(figure, sheet, rows, anchors)
            drawn.append(_as_element(figure))
        return drawn


def _plots(page: Page) -> list[Draw]:
    """How well it does first, then what is behind it."""
    known = {q.short: q for q in page.shown if len(q.curve.finite)}
    out: list[Draw] = []

    def add(name: str) -> None:
        if name in known:
            quantity = known[name]
            out.append(lambda ax, window: axes.quantity(ax, quantity, window))

    if page.metric is not None:
        metric = page.metric
        out.append(lambda ax, window: axes.metric(ax, metric, window))
    add("loss")
    if page.terms:
        out.append(lambda ax, window: axes.terms(ax, page.terms, window))
    for name in ("health", "scale", "|cls_score|", "grad norm", "lr"):
        add(name)
    out.append(lambda ax, window: axes.bad_iterations(ax, page.found, window))
    return out


def _labels(shown: list[Mark], window: Window, width: float) -> list[Label]:
    room = width - _LEFT - _RIGHT
    scale = room / max(window.last - window.first + 1, 1)
    inside = [m for m in shown if window.first <= m.iter <= window.last]
    places = [(m, (m.iter - window.first + 0.5) * scale) for m in inside]
    return placed(places, room, _LABEL, _MOST_ROWS)


def _figure(
    sheet: _Sheet,
    plots: list[Draw],
    rows: int,
    shown: list[Mark],
    enlarged: list[Window],
) -> Figure:
    """The plots of a window, below room for ``rows`` rows of labels."""
    window, width = sheet.window, sheet.width
    top = rows * _LABEL_ROW + 4
    height = top + len(plots) * _ROW + _BOTTOM
    figure = Figure(figsize=(width / 72, height / 72))
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    for i, plot in enumerate(plots, 1):
        bottom = (height - top - i * _ROW) / height
        room = (width - _LEFT - _RIGHT) / width
        ax = figure.add_axes((_LEFT / width, bottom, room, (_ROW - _TITLE) / height))
        ax.patch.set_visible(False)
        ax.set_xlim(window.first - 0.5, window.last + 0.5)
        ax.grid(axis="y", color=axes.GRID, lw=0.6)
        ax.set_axisbelow(True)
        plot(ax, window)
        for other in enlarged:
            place = other.first, other.last
            ax.axvspan(*place, color=axes.GRID, alpha=0.45, lw=0, zorder=0)
        for mark in reversed(shown):
            if window.first <= mark.iter <= window.last:
                _, colour, style = STYLES[mark.event]
                ax.axvline(mark.iter, color=colour, ls=style, lw=0.9, alpha=0.9)
        ax.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
        ax.ticklabel_format(axis="x", style="plain", useOffset=False)
        if i < len(plots):
            ax.tick_params(axis="x", labelbottom=False, length=0)
    ax.set_xlabel("iteration (from 0)", color=axes.MUTED)
    return figure


def _write_labels(figure: Figure, sheet: _Sheet, rows: int, anchors: set[int]) -> None:
    """Each with a line from the plots up to it."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    base = height - rows * _LABEL_ROW - 4
    for label in sheet.labels:
        _, colour, style = STYLES[label.mark.event]
        x = (_LEFT + label.mark_x) / width
        up = base + (label.row + 1) * _LABEL_ROW - 2
        y = (base - _TITLE) / height, up / height
        # Below the titles and the other labels, which cover it.
        line = Line2D((x, x), y, color=colour, ls=style, lw=0.9, zorder=-1)
        figure.add_artist(line)
        text = figure.text(
            (_LEFT + label.x) / width,
            (base + label.row * _LABEL_ROW + 1) / height,
            label.mark.label,
            ha="right" if label.right else "left",
            va="bottom",
            fontsize=_LABEL,
        )
        axes.on_page(text)
        if label.mark.iter in anchors:
            text.set_url(f"#i{label.mark.iter}")


def variable(colour: str) -> str:
    """How the style sheet names a colour."""
    return f"var(--{_VARIABLES[colour]})"


def _as_element(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # Dublin Core and style, which a drawing within a page does not need, and names of
    # groups, which two drawings of a page would share.
    for element in ("metadata", "style"):
        text = re.sub(rf"<{element}.*?</{element}>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="\w+?_\d+"', "<g", text)
    # A hundredth of a point is enough of a place.
    text = re.sub(r' (d|x|y)="[^"]*"', lambda m: _LONG.sub(r"\1", m[0]), text)
    for colour in _VARIABLES:
        text = text.replace(colour.lower(), variable(colour))
    return text
