"""Plots of a run over its iterations, as SVG drawings that need nothing else."""

from __future__ import annotations

import io
import re
from functools import partial
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
    labels = [_labels(shown, *window) for window in windows]
    rows = max((x.row + 1 for found in labels for x in found), default=0)
    enlarged = [window for window, _ in windows[1:]]
    with matplotlib.rc_context(settings):
        return [
            _figure(
                plots, shown, found, window, width, rows, enlarged * (i == 0), anchors
            )
            for i, ((window, width), found) in enumerate(zip(windows, labels))
        ]


def _plots(page: Page) -> list[Draw]:
    """How well it does first, then what is behind it."""
    known = {q.short: q for q in page.shown if len(q.curve.finite)}
    out: list[Draw] = []

    def add(name: str) -> None:
        if name in known:
            out.append(partial(_quantity, known[name]))

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


def _quantity(quantity: Any, ax: Any, window: Window) -> None:
    axes.quantity(ax, quantity, window)


def _labels(shown: list[Mark], window: Window, width: float) -> list[Label]:
    room = width - _LEFT - _RIGHT
    scale = room / max(window.last - window.first + 1, 1)
    inside = [m for m in shown if window.first <= m.iter <= window.last]
    places = [(m, (m.iter - window.first + 0.5) * scale) for m in inside]
    return placed(places, room, _LABEL, _MOST_ROWS)


def _figure(
    plots: list[Draw],
    shown: list[Mark],
    labels: list[Label],
    window: Window,
    width: float,
    rows: int,
    enlarged: list[Window],
    anchors: set[int],
) -> str:
    top = rows * _LABEL_ROW + 4
    height = top + len(plots) * _ROW + _BOTTOM
    figure = Figure(figsize=(width / 72, height / 72))
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    for i, plot in enumerate(plots):
        above = height - top - i * _ROW
        box = (_LEFT, above - _ROW, width - _LEFT - _RIGHT, _ROW - _TITLE)
        ax = figure.add_axes(
            (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        )
        ax.patch.set_visible(False)
        ax.set_xlim(window.first - 0.5, max(window.last, window.first) + 0.5)
        ax.grid(axis="y", color=axes.GRID, lw=0.6)
        ax.set_axisbelow(True)
        plot(ax, window)
        for other in enlarged:
            ax.axvspan(
                other.first, other.last, color=axes.GRID, alpha=0.45, lw=0, zorder=0
            )
        for mark in reversed(shown):
            if window.first <= mark.iter <= window.last:
                _, colour, style = STYLES[mark.event]
                ax.axvline(mark.iter, color=colour, ls=style, lw=0.9, alpha=0.9)
        ax.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
        ax.ticklabel_format(axis="x", style="plain", useOffset=False)
        if i < len(plots) - 1:
            ax.tick_params(axis="x", labelbottom=False, length=0)
    ax.set_xlabel("iteration (from 0)", color=axes.MUTED)
    for label in labels:
        text = figure.text(
            (_LEFT + label.x) / width,
            (height - top + label.row * _LABEL_ROW + 1) / height,
            label.mark.label,
            ha="right" if label.right else "left",
            va="bottom",
            fontsize=_LABEL,
        )
        axes.on_page(text)
        x = (_LEFT + label.mark_x) / width
        up = (label.row + 1) * _LABEL_ROW - 2
        _, colour, style = STYLES[label.mark.event]
        figure.add_artist(
            Line2D(
                (x, x),
                ((height - top - _TITLE) / height, (height - top + up) / height),
                color=colour,
                ls=style,
                lw=0.9,
                zorder=-1,
            )
        )
        if label.mark.iter in anchors:
            text.set_url(f"#i{label.mark.iter}")
    return _as_element(figure)


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
