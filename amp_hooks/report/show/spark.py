"""A curve as one line of bars."""

from __future__ import annotations

from typing import Callable

import numpy as np

from ..read.curves import Array
from .health import Quantity

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
NOT_FINITE = "!"
_WHISKER = 3.0  # times the spread of the middle half; beyond it is an outlier
_LEAST = 0.05  # of the middle: the smallest range that is drawn over all bars
_APART = 2  # bars between an outlier and the rest


def spark(quantity: Quantity, bars: str, width: int) -> str:
    """One bar for the worst of each stretch; ``!`` where one has NaN or inf.

    The bars share the range of what is usual for the curve. What lies far outside is
    drawn as the highest or the lowest bar, so that one spike of 1e5 does not flatten
    everything else.
    """
    cells, broken = _cells(quantity, width)
    levels = _levels(cells, quantity, len(bars))
    return "".join(
        NOT_FINITE if not_finite else " " if level < 0 else bars[level]
        for level, not_finite in zip(levels, broken)
    )


def _levels(cells: Array, quantity: Quantity, number: int) -> list[int]:
    """Which of the bars each cell is; -1 where there is no point."""
    finite = cells[np.isfinite(cells)]
    if not len(finite):
        return [-1] * len(cells)
    low, high = quantity.span or _usual(finite, quantity.log)
    # Outliers keep the ends for themselves.
    bottom = _APART * bool((finite < low).any())
    top = number - 1 - _APART * bool((finite > high).any())
    levels = []
    for value in cells:
        if np.isnan(value):
            levels.append(-1)
        elif value < low:
            levels.append(0)
        elif value > high:
            levels.append(number - 1)
        elif low == high:
            levels.append(top if bottom else 0)
        else:
            share = (value - low) / (high - low)
            levels.append(min(bottom + int(share * (top - bottom + 1)), top))
    return levels


def _cells(quantity: Quantity, width: int) -> tuple[Array, Array]:
    """Heights of shape ``(cells,)``, NaN where there is no point; and who has NaN."""
    curve = quantity.curve
    height: Callable[[float], float] = (
        (lambda v: float(np.log10(max(v, 1e-12)))) if quantity.log else float
    )
    number = min(width, len(curve))
    edges = np.linspace(curve.iters[0], curve.iters[-1] + 1, number + 1)
    cells, broken = np.full(number, np.nan), np.zeros(number, dtype=bool)
    for i, (first, end) in enumerate(zip(edges[:-1], edges[1:])):
        points = curve.within(first, end)
        values = points.finite.values
        broken[i] = len(values) < len(points)
        if len(values):
            cells[i] = height(float(quantity.worst(values)))
    return cells, broken


def _usual(heights: Array, log: bool) -> tuple[float, float]:
    """The smallest and the largest height that are no outliers."""
    first, middle, third = np.percentile(heights, [25, 50, 75])
    least = float(np.log10(1 + _LEAST) if log else _LEAST * abs(middle))
    reach = max(_WHISKER * (third - first), least)
    inside = heights[(heights >= first - reach) & (heights <= third + reach)]
    low, high = float(inside.min()), float(inside.max())
    if high - low > least:
        return low, high
    # Noise of one percent is no mountain range; where it was lower at times, the rest
    # is the top.
    if (heights < low).any() and not (heights > high).any():
        return high - least, high
    return low, low + least
