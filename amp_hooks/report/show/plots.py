"""Plots of a run over its iterations, as one SVG drawing."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...engine.headroom import FP16_MAX
from ..judge.incidents import Incidents
from ..read.curves import Curve
from ..read.history import RunHistory
from .health import Quantity
from .page import Page

# Okabe and Ito's colours, which colour-blind readers can tell apart; each event has a
# line style of its own as well.
_MARKS: dict[str, tuple[str, str, str]] = {
    "rollback": ("rollback", "#D55E00", "-"),
    "clamp_on": ("head clamp on", "#009E73", "--"),
    "clamp_off": ("head clamp off", "#009E73", ":"),
    "fallback": ("precision changed", "#CC79A7", "-."),
    "early_warning": ("early warning", "#E69F00", ":"),
    "resumed": ("resumed", "#555555", "--"),
    "diverged": ("diverged", "#000000", ":"),
    "abort": ("ended by an exception", "#000000", "-"),
}
_MOST_MARKS = 50  # of one kind; more would be a wall
_CURVE, _NOT_FINITE, _OVERFLOW = "#0072B2", "#D55E00", "#56B4E9"
_HEALTHY = "#009E73"
_BINS = 100
_SHADES = 300
_WIDTH, _HEIGHT = 10.5, 1.75  # inches, of each plot


def draw(page: Page) -> str:
    """All plots below each other, with the same iterations and events.

    Returns:
        An ``<svg>`` element that refers to nothing outside of it.
    """
    panels = [q for q in page.shown if len(q.curve.finite)]
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: searched, read aloud, small
        "svg.hashsalt": "amp_hooks",
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        number = len(panels) + 1
        figure = Figure(figsize=(_WIDTH, _HEIGHT * number + 0.6))
        FigureCanvasSVG(figure)
        axes = figure.subplots(number, 1, sharex=True, squeeze=False)[:, 0]
        for ax, quantity in zip(axes, panels):
            _curve(ax, quantity)
        _histogram(axes[-1], page.found)
        handles = _events(axes, page.run)
        if any(len(q.curve.finite) < len(q.curve) for q in panels):
            handles["not finite"] = Patch(color=_NOT_FINITE, alpha=0.25)
        axes[-1].set_xlabel("iteration (from 0)")
        axes[-1].ticklabel_format(axis="x", style="plain")
        axes[-1].set_xlim(page.found.first, max(page.found.last, page.found.first) + 1)
        if handles:
            figure.legend(
                handles.values(),
                handles.keys(),
                loc="upper center",
                ncols=len(handles),
                frameon=False,
            )
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / (_HEIGHT * number + 0.6)))
        return _as_element(figure)


def _curve(ax: Any, quantity: Quantity) -> None:
    curve = quantity.curve
    finite = curve.finite
    positive = finite.values[finite.values > 0]
    # Within one decade a logarithmic axis has no round numbers to show.
    wide = len(positive) and positive.max() >= 10 * positive.min()
    if quantity.log and (wide or "cls_score" in quantity.title):
        ax.set_yscale("log")
    thin = curve.thinned()
    # A line breaks at NaN; markers keep the points that stand alone between two.
    marker = "." if len(thin) < 200 else ","
    ax.plot(thin.iters, thin.values, color=_CURVE, lw=1, marker=marker, ms=3)
    if len(finite) < len(curve):
        _shade(ax, curve)
    if "cls_score" in quantity.title:
        ax.axhline(FP16_MAX, color="#000000", lw=1, ls="--")
        ax.annotate(
            "FP16 ends: 65504", (1, FP16_MAX), xycoords=("axes fraction", "data"),
            xytext=(-2, -3), textcoords="offset points", ha="right", va="top",
            fontsize=8,
        )  # fmt: skip
    title = quantity.title
    if quantity.band is not None:
        _healthy_range(ax, *quantity.band)
        title += ", on its healthy range"
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=3)
    ax.set_ylabel(quantity.unit)
    ax.grid(axis="y", alpha=0.25)


def _healthy_range(ax: Any, low: Curve, high: Curve) -> None:
    """What HealthHook has learned of the loss, behind its curve."""
    iters = np.intersect1d(low.iters, high.iters)
    edges = [c.values[np.isin(c.iters, iters)] for c in (low, high)]
    if ax.get_yscale() == "log":  # which knows no 0
        edges = [np.maximum(values, np.finfo(float).tiny) for values in edges]
    bottom, top = ax.get_ylim()
    ax.fill_between(iters, *edges, color=_HEALTHY, alpha=0.18, lw=0)
    ax.set_ylim(bottom, top)  # the curve is what it is about


def _shade(ax: Any, curve: Curve) -> None:
    """Mark where a curve has no finite value."""
    bad = np.flatnonzero(~np.isfinite(curve.values))
    # Stretches closer than a few pixels are drawn as one, or a drawing has no end.
    apart = (curve.iters[-1] - curve.iters[0]) // _SHADES
    gaps = (np.diff(bad) > 1) & (np.diff(curve.iters[bad]) > apart)
    firsts = bad[np.append(0, np.flatnonzero(gaps) + 1)]
    lasts = bad[np.append(np.flatnonzero(gaps), len(bad) - 1)]
    for first, last in zip(curve.iters[firsts], curve.iters[lasts]):
        ax.axvspan(first - 0.5, last + 0.5, color=_NOT_FINITE, alpha=0.25, lw=0)


def _histogram(ax: Any, found: Incidents) -> None:
    number = max(found.last - found.first + 1, 1)
    edges = np.linspace(found.first, found.first + number, min(_BINS, number) + 1)
    ax.hist(
        [np.concatenate([found.bad, found.poisoned]), found.overflows],
        bins=edges,
        stacked=True,
        color=[_NOT_FINITE, _OVERFLOW],
        label=["not finite", "ordinary overflow of scaled gradients"],
    )
    ax.set_title("bad iterations", loc="left", fontsize=10, fontweight="bold", pad=3)
    ax.set_ylabel("iterations")
    ax.set_ylim(0, max(ax.get_ylim()[1], 1))
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False
    )


def _events(axes: Any, run: RunHistory) -> dict[str, Any]:
    """Vertical lines through all plots; returns one of each kind by its label."""
    handles: dict[str, Any] = {}
    places = {e: [h.iter for h in run.having(e, lost=False)] for e in _MARKS}
    places["resumed"] = [start.begins for start in run.starts[1:]]
    for event, (label, colour, style) in _MARKS.items():
        for iteration in places[event][:_MOST_MARKS]:
            for ax in axes:
                handles[label] = ax.axvline(
                    iteration, color=colour, ls=style, lw=1.1, alpha=0.8
                )
    return handles


def _as_element(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # Dublin Core, which a drawing within a page does not need.
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
