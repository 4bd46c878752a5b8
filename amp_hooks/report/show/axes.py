"""One plot of a quantity over iterations, drawn with matplotlib."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator

from ...engine.headroom import FP16_MAX
from ..judge.incidents import Incidents
from ..read.curves import Curve
from .health import STATES, Quantity, scale_number
from .zoom import Window

# Okabe and Ito's colours, which colour-blind readers can tell apart, and four greys:
# roles, which the page's style sheet gives a colour on light and on dark.
INK, MUTED, GRID, PAGE = "#101112", "#606162", "#D0D1D2", "#F0F1F2"
CURVE = "#0072B2"
NOT_FINITE, OVERFLOW, HEALTHY = "#D55E00", "#56B4E9", "#009E73"
# Of loss terms, in this order; each has a line style as well.
TERMS = (CURVE, "#E69F00", "#009E73", "#CC79A7")
TERM_LINES = ("-", "--", "-.", ":")
_BINS = 100
_STRETCHES = 200  # marks of values that are not finite; more are pixels
_POINTS = 1400  # of a curve: two for each pixel column, the lowest and the highest
_LOWEST_RATE = 1e5  # times below the highest one
_DOUBLINGS = 30  # up to which a loss scale is labelled with powers of two
_NAME = 16  # letters of a loss term
_FEW = 150  # points, which get a marker each


def plain(text: str) -> str:
    """A name of the run's files, which may have what matplotlib takes for markup."""
    return re.sub("[^ -~]", "?", text).replace("$", r"\$")


def on_page(text: Any) -> None:
    """Have a text cover the lines that it crosses."""
    text.set_bbox(dict(facecolor=PAGE, edgecolor="none", pad=1.0))
    text.set_zorder(5)


def title(ax: Any, text: str) -> None:
    """The name of a plot."""
    on_page(
        ax.set_title(
            plain(text), loc="left", fontsize=9, fontweight="bold", pad=4, color=INK
        )
    )


def quantity(ax: Any, q: Quantity, window: Window) -> None:
    """A curve with its healthy range, limits, and what is not finite."""
    title(ax, q.title + (", on its healthy range" if q.band is not None else ""))
    if q.span is not None:
        _states(ax, q, window)
        return
    curve = around(q.curve, window)
    _axis(ax, q, curve)
    line(ax, curve, CURVE)
    if "cls_score" in q.title:
        ax.axhline(FP16_MAX, color=INK, lw=0.8, ls="--")
        on_page(ax.annotate(
            "FP16 ends: 65504", (1, FP16_MAX), xycoords=("axes fraction", "data"),
            xytext=(-2, -3), textcoords="offset points", ha="right", va="top",
            fontsize=7.5, color=MUTED,
        ))  # fmt: skip
    if q.band is not None:
        _healthy_range(ax, *q.band)
    edge_marks(ax, curve)


def metric(ax: Any, q: Quantity, window: Window) -> None:
    """Evaluations: a marker for each, with its value where there are few."""
    title(ax, q.title)
    curve = q.curve.within(window.first, window.last + 1)
    if not len(curve):
        ax.set_yticks([])
        text = "no evaluation in these iterations"
        where = dict(ha="center", va="center", transform=ax.transAxes)
        on_page(ax.text(0.5, 0.5, text, color=MUTED, fontsize=8, **where))
        return
    finite = around(q.curve, window).finite
    # A line through two points or more; the last of a run of weeks is on the axis.
    ax.plot(
        finite.iters, finite.values, color=CURVE, lw=1, marker="o", ms=4, clip_on=False
    )
    low, high = (finite.values.min(), finite.values.max()) if len(finite) else (0, 1)
    room = 0.25 * (high - low) or 0.25 * abs(high) or 1
    bottom = max(low - room, -0.05) if low >= 0 else low - room  # few are below 0
    top = high + 1.6 * room
    ax.set_ylim(bottom, min(top, 1.05) if 0 <= low <= high <= 1 else top)  # a share
    ax.yaxis.set_major_locator(MaxNLocator(3))
    best = int(finite.values.argmax()) if len(finite) else -1
    for i in {best, len(finite) - 1} - {-1}:
        right = finite.iters[i] > 0.9 * window.last
        ax.annotate(
            f"{finite.values[i]:.3f}", (finite.iters[i], finite.values[i]),
            xytext=(0, 4), textcoords="offset points", fontsize=7.5, color=INK,
            ha="right" if right else "center",
        )  # fmt: skip
    edge_marks(ax, curve)


def terms(ax: Any, curves: dict[str, Curve], window: Window) -> None:
    """Several loss terms in one plot, with their names where there is room."""
    title(ax, "loss terms")
    shown = [around(curve, window) for curve in curves.values()]
    values = np.concatenate([c.finite.values for c in shown])
    if _wide(values):
        _log(ax, values)
    for i, curve in enumerate(shown):
        line(ax, curve, TERMS[i], TERM_LINES[i])
    for i, curve in enumerate(shown):
        edge_marks(ax, curve, TERMS[i], i)
    if not window.whole:
        return
    ax.legend(
        # With a space before it no name is one that matplotlib leaves out.
        [f" {plain(name)[:_NAME]}" for name in curves], loc="lower right",
        ncols=len(curves), bbox_to_anchor=(1.01, 0.98), frameon=False, fontsize=7.5,
        borderpad=0.1, handletextpad=0.2, columnspacing=1, handlelength=2.2,
    )  # fmt: skip


def bad_iterations(ax: Any, found: Incidents, window: Window) -> None:
    """How many iterations were not finite, or overflowed, in each stretch."""
    title(ax, "bad iterations, in each bar")
    first, number = window.first, window.last - window.first + 1
    step = -(-number // _BINS)
    edges = np.arange(first, first + number + step, step) - 0.5
    bad = np.histogram(np.concatenate([found.bad, found.poisoned]), edges)[0]
    overflows = np.histogram(found.overflows, edges)[0]
    ax.stairs(bad, edges, fill=True, color=NOT_FINITE, lw=0)
    ax.stairs(bad + overflows, edges, baseline=bad, fill=True, color=OVERFLOW, lw=0)
    ax.set_ylim(0, max(1.05 * (bad + overflows).max(), 1))
    ax.yaxis.set_major_locator(MaxNLocator(2, integer=True))


def around(curve: Curve, window: Window) -> Curve:
    """The points within, and one before and after, so that the line goes on."""
    begin, end = np.searchsorted(curve.iters, [window.first, window.last + 1])
    keep = slice(max(begin - 1, 0), end + 1)
    return Curve(curve.iters[keep], curve.values[keep])


def line(ax: Any, curve: Curve, colour: str, style: Any = "-") -> None:
    """A curve; of many points the lowest and the highest of each pixel column."""
    thin = curve.thinned(_POINTS)
    values = thin.values
    if ax.get_yscale() == "log":  # which knows no 0
        values = np.where(values > 0, values, np.nan)
    # A line breaks at NaN; markers keep the points that stand alone between two.
    marker = "." if len(thin) < _FEW else ""
    ax.plot(thin.iters, values, color=colour, lw=1, ls=style, marker=marker, ms=3)


def edge_marks(ax: Any, curve: Curve, colour: str = NOT_FINITE, row: int = 0) -> None:
    """Mark at the edge of the axis what has no place in it: NaN, infinities, 0."""
    bad = ~np.isfinite(curve.values)
    below = curve.values == -np.inf
    if ax.get_yscale() == "log":
        below |= curve.values <= 0
    for where, at, shape in ((bad & ~below, 1 - 0.09 * row, "v"), (below, 0.0, "^")):
        firsts, lasts = _stretches(curve, where)
        if not len(firsts):
            continue
        place = ax.get_xaxis_transform()
        ax.hlines(
            [at] * len(firsts), firsts - 0.5, lasts + 0.5, colors=colour, lw=3,
            transform=place,
        )  # fmt: skip
        ax.plot(
            firsts, [at] * len(firsts), ls="", marker=shape, ms=5, color=colour,
            transform=place, clip_on=False,
        )  # fmt: skip


def _stretches(curve: Curve, where: Any) -> tuple[Any, Any]:
    """First and last iteration of each row of points; those pixels apart are one."""
    found = np.flatnonzero(where)
    if not len(found):
        return np.array([]), np.array([])
    apart = (curve.iters[-1] - curve.iters[0]) // _STRETCHES
    gaps = (np.diff(found) > 1) & (np.diff(curve.iters[found]) > apart)
    firsts = found[np.append(0, np.flatnonzero(gaps) + 1)]
    lasts = found[np.append(np.flatnonzero(gaps), len(found) - 1)]
    return curve.iters[firsts], curve.iters[lasts]


def _axis(ax: Any, q: Quantity, curve: Curve) -> None:
    values = curve.finite.values
    if q.short == "scale":
        _scale_axis(ax, values)
    elif "cls_score" in q.title:
        _log(ax, np.append(values, FP16_MAX))
    elif q.log and _wide(values):
        _log(ax, values)
    else:
        ax.yaxis.set_major_locator(MaxNLocator(3))
    if q.short == "lr" and _span(values) > _LOWEST_RATE:
        # A cosine ends at nearly nothing, which is no reason to squeeze the rest.
        ax.set_ylim(values.max() / _LOWEST_RATE, 2 * values.max())


def _scale_axis(ax: Any, values: Any) -> None:
    """Labelled with powers of two; one that collapses leaves the axis downwards."""
    if _span(values) >= 2**_DOUBLINGS:  # on the way to 0 there is no number to know
        values = values[values > values.max() / 2**_DOUBLINGS]
        ax.set_ylim(values.max() / 2**_DOUBLINGS, 2 * values.max())
    _log(ax, values, base=2 if _span(values) > 1 else 10)
    if len(set(values)) == 1:
        ax.yaxis.set_major_locator(FixedLocator(values[:1]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: scale_number(v)))


def _span(values: Any) -> float:
    """The largest over the smallest that is above 0."""
    positive = values[values > 0]
    return float(positive.max() / positive.min()) if len(positive) else 1.0


def _wide(values: Any) -> bool:
    """Within one decade a logarithmic axis has no round numbers to show."""
    return _span(values) >= 10


def _log(ax: Any, values: Any, base: int = 10) -> None:
    ax.set_yscale("log", base=base)
    # Over less than two decades there might be a single power of ten.
    subs = (1.0, 3.0) if base == 10 and _span(values) < 100 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(base, subs=subs, numticks=4))
    ax.yaxis.set_minor_locator(FixedLocator([]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.0e}".replace("e+0", "e")


def _states(ax: Any, q: Quantity, window: Window) -> None:
    curve = around(q.curve, window).finite.thinned(_POINTS)
    # A point is the worst since the one before.
    ax.step(curve.iters, curve.values, where="pre", color=CURVE, lw=1)
    ax.fill_between(
        curve.iters, curve.values, step="pre", color=CURVE, alpha=0.15, lw=0
    )
    ax.set_ylim(-0.15, 2.3)
    ax.yaxis.set_major_locator(FixedLocator(list(STATES)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: STATES.get(v, "")))


def _healthy_range(ax: Any, low: Curve, high: Curve) -> None:
    """What HealthHook has learned of the loss, behind its curve."""
    iters = np.intersect1d(low.iters, high.iters)
    iters = iters[:: len(iters) // _POINTS + 1]  # it changes slowly
    edges = [c.values[np.searchsorted(c.iters, iters)] for c in (low, high)]
    if ax.get_yscale() == "log":
        edges = [np.maximum(values, np.finfo(float).tiny) for values in edges]
    bottom, top = ax.get_ylim()
    ax.fill_between(iters, *edges, color=HEALTHY, alpha=0.2, lw=0)
    ax.set_ylim(bottom, top)  # the curve is what it is about
