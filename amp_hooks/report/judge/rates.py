"""The learning rate where a run was bad or diverged, against where it was not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..read.curves import Curve
from ..read.history import RunHistory
from .incidents import Incidents


@dataclass(frozen=True)
class LearningRates:
    """The learning rate where the run was bad, against where it was not.

    Attributes:
        first: At the first bad iteration.
        lowest: The lowest at which one was bad.
        bad: Bad iterations.
        at_or_above: Iterations whose learning rate was at least that.
        below: Iterations below it, all of them healthy.
        chance: How likely all streaks of bad iterations would fall among
            ``at_or_above`` if the learning rate had no part in it.
    """

    first: float
    lowest: float
    bad: int
    at_or_above: int
    below: int
    chance: float

    @property
    def telling(self) -> bool:
        """Chance is no explanation, by the usual 5 %."""
        return self.chance < 0.05


@dataclass(frozen=True)
class OnsetRate:
    """The learning rate where the run diverged, against all before.

    Attributes:
        since: Iteration in which it began.
        there: The highest from then until it was certain.
        before: The highest before that; ``None`` if there was none.
    """

    since: int
    there: float
    before: float | None

    @property
    def rise(self) -> float:
        """By what it rose; 1.0 if it did not."""
        return max(1.0, self.there / self.before) if self.before else 1.0

    @property
    def words(self) -> str:
        """For a person."""
        before = f", at most {self.before:.3g} before" if self.before else ""
        return f"{self.there:.3g} where the run diverged (iteration {self.since})" + (
            before
        )


def _learning_rate(run: RunHistory) -> Curve:
    names = [n for n in run.curves if n.endswith("lr") and not n.startswith("amp/")]
    return run.curve("lr", *names).finite


def onset_rate(run: RunHistory, found: Incidents) -> OnsetRate | None:
    """Of the divergence before which it rose most; ``None`` if it is not known."""
    curve = _learning_rate(run)
    rates = []
    for d in found.divergences if len(curve) else ():
        there = curve.within(d.since, d.told + 1).values
        at = np.interp([d.since, d.told], curve.iters, curve.values)
        before = curve.within(0, d.since).values
        highest = float(before.max()) if len(before) else None
        rates.append(OnsetRate(d.since, float(max(*there, *at)), highest))
    return max(rates, key=lambda rate: rate.rise, default=None)


def bad_rates(run: RunHistory, found: Incidents) -> LearningRates | None:
    """Of the bad iterations; ``None`` if there are none, or it is not known."""
    curve = _learning_rate(run)
    if not (len(curve) and len(found.bad)):
        return None
    every = np.arange(found.first, found.last + 1)
    rates = np.interp(every, curve.iters, curve.values)
    bad = np.interp(found.bad, curve.iters, curve.values)
    # Interpolation and float32 logs must not move an iteration across its own bound.
    above = int((rates >= bad.min() * (1 - 1e-6)).sum())
    return LearningRates(
        first=float(bad[0]),
        lowest=float(bad.min()),
        bad=len(bad),
        at_or_above=above,
        below=len(every) - above,
        chance=(above / len(every)) ** len(found.streaks),
    )
