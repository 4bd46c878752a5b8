"""Health over time: the worst of each stretch of iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np

from ..judge.incidents import Incidents
from ..read.curves import EMPTY, Array, Curve
from ..read.history import RunHistory

Reduce = Callable[[Array], float]


@dataclass(frozen=True)
class Quantity:
    """A curve that the report shows.

    Attributes:
        title: For a plot.
        unit: Of its values.
        short: For the head of a column.
        curve: Its points.
        worst: What a stretch shows of it.
        log: Its axis is logarithmic.
        band: Its healthy range: the lower and the upper edge.
    """

    title: str
    unit: str
    short: str
    curve: Curve
    worst: Reduce
    log: bool = False
    band: tuple[Curve, Curve] | None = None


def quantities(run: RunHistory) -> list[Quantity]:
    """The curves worth showing that the run has."""
    named = [n for n in run.curves if n.endswith("lr") and not n.startswith("amp/")]
    low, high = run.curve("amp/loss_low").finite, run.curve("amp/loss_high").finite
    health = run.curve("amp/health")
    always_well = not health.values.any()
    candidates = [
        Quantity(
            "loss",
            "loss",
            "loss",
            run.curve("loss", "amp/loss"),
            np.mean,
            log=True,
            band=(low, high) if len(low) and len(high) else None,
        ),
        Quantity(
            "health (0 healthy, 1 watched, 2 ill)",
            "state",
            "health",
            EMPTY if always_well else health,
            np.max,
        ),
        Quantity(
            "loss scale", "log2", "scale log2", run.curve("amp/scale_log2"), np.min
        ),
        Quantity(
            "largest |cls_score|",
            "logit",
            "|cls_score|",
            run.curve("amp/cls_score_absmax"),
            np.max,
            log=True,
        ),
        Quantity(
            "gradient norm before clipping",
            "L2 norm",
            "grad norm",
            run.curve("amp/gradnorm", "grad_norm"),
            np.max,
            log=True,
        ),
        Quantity(
            "learning rate", "rate", "lr", run.curve("lr", *named), np.max, log=True
        ),
    ]
    return [q for q in candidates if len(q.curve)]


@dataclass(frozen=True)
class Stretch:
    """A row of the health table.

    Attributes:
        first: First iteration.
        last: Last one.
        worst: One value per quantity; ``None`` where there is no point, NaN where none
            is finite.
        bad: Bad iterations; ``>=1`` where only a mean tells.
        overflows: Ordinary overflows of scaled gradients.
        rollbacks: Rollbacks.
        ill: The run was ill in it.
    """

    first: int
    last: int
    worst: list[float | None]
    bad: str
    overflows: int
    rollbacks: int
    ill: bool


def stretches(
    found: Incidents, shown: list[Quantity], limit: int = 16
) -> list[Stretch]:
    """Cut the run into at most ``limit`` stretches of about the same length."""
    number = min(limit, found.last - found.first + 1)
    edges = np.linspace(found.first, found.last + 1, number + 1).round().astype(int)
    return [
        Stretch(
            int(first),
            int(end) - 1,
            [_worst(q, first, end) for q in shown],
            _bad(found, first, end),
            _within(found.overflows, first, end),
            _within(found.rollbacks, first, end),
            _ill(found, first, end),
        )
        for first, end in zip(edges[:-1], edges[1:])
    ]


def _within(iterations: Array, first: int, end: int) -> int:
    return int(((iterations >= first) & (iterations < end)).sum())


def _bad(found: Incidents, first: int, end: int) -> str:
    bad = _within(found.bad, first, end)
    at_least = not bad and _within(found.poisoned, first, end)
    return ">=1" if at_least else str(bad)


def _ill(found: Incidents, first: int, end: int) -> bool:
    return any(
        d.since < end and (d.until is None or d.until >= first)
        for d in found.divergences
    )


def _worst(quantity: Quantity, first: int, end: int) -> float | None:
    points = quantity.curve.within(first, end)
    if not len(points):
        return None
    finite = points.finite.values
    return float(quantity.worst(finite)) if len(finite) else float("nan")


def number(value: float | None) -> str:
    """A value in a table."""
    if value is None:
        return "-"
    return f"{value:.3g}"
