"""Health over time: the worst of each stretch of iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np

from ...engine.condition import State
from ...engine.headroom import FP16_MAX
from ..judge.incidents import Incidents
from ..judge.metrics import metric_of
from ..read.curves import EMPTY, Array, Curve
from ..read.history import RunHistory

Reduce = Callable[[Array], float]
_NO_SCALE = -149.0  # log2 of the smallest float32: what a scale of 0 is published as
STATES = {State.HEALTHY: "healthy", State.WATCHED: "watched", State.ILL: "ill"}


def number(value: float) -> str:
    """A value in a table."""
    return f"{value:.3g}"


def scale_number(value: float) -> str:
    """A loss scale: ``65536``, not ``6.55e+04``."""
    return f"{value:.0f}" if 1 <= value < 1e8 else number(value)


def state(value: float) -> str:
    """A health state in words."""
    return STATES.get(State(int(value)), "") if value in {0, 1, 2} else number(value)


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
        least: A value below it is bad.
        most: A value above it is bad.
        span: The range of its axis, where that is known beforehand.
        text: How a value is written.
    """

    title: str
    unit: str
    short: str
    curve: Curve
    worst: Reduce
    log: bool = False
    band: tuple[Curve, Curve] | None = None
    least: float = -np.inf
    most: float = np.inf
    span: tuple[float, float] | None = None
    text: Callable[[float], str] = number

    def is_bad(self, value: float | None) -> bool:
        """Whether a value is one to look at: not finite, or out of bounds."""
        return value is not None and not self.least <= value <= self.most

    def written(self, value: float | None) -> str:
        """A value in a table; ``-`` where there is none."""
        if value is None:
            return "-"
        return self.text(value) if np.isfinite(value) else number(value)


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
            "health",
            "state",
            "health",
            EMPTY if always_well else health,
            np.max,
            most=State.WATCHED,
            span=(State.HEALTHY, State.ILL),
            text=state,
        ),
        Quantity(
            "loss scale",
            "loss scale",
            "scale",
            _scale(run),
            np.min,
            log=True,
            least=1.0,  # it makes gradients smaller than they are
            text=scale_number,
        ),
        Quantity(
            "largest |cls_score|",
            "logit",
            "|cls_score|",
            run.curve("amp/cls_score_absmax"),
            np.max,
            log=True,
            most=FP16_MAX,
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


def metric(run: RunHistory) -> Quantity | None:
    """The evaluations, by the metric that the run is judged by."""
    found = metric_of(run)
    if found is None:
        return None
    name, values = found
    return Quantity(name, "metric", name, Curve.of(values), np.min)


def _scale(run: RunHistory) -> Curve:
    """The loss scale as a number: its log2 is what is published."""
    log2 = run.curve("amp/scale_log2")
    values = np.exp2(np.clip(log2.values, None, 1023.0))
    return Curve(log2.iters, np.where(log2.values <= _NO_SCALE, 0.0, values))


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
