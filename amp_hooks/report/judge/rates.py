"""The learning rate where a run was bad or diverged, against where it was not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...rollback.policy import WARMUP_ITERS
from ..read.curves import Array, Curve
from ..read.history import RunHistory
from .incidents import Incidents
from .recipe import argument_of, precision


@dataclass(frozen=True)
class LearningRates:
    """The scheduled learning rate where the run was bad, against where it was not.

    What a hook did after a bad iteration says nothing of a learning rate: after a
    rollback every bad iteration lies above every later one, whatever the cause. So all
    are as the schedule has them, and iterations that a clamp, another precision or the
    warm-up after a rollback helped through are no evidence for a low one. Nor are those
    of a start in a precision in which none was bad.

    Attributes:
        first: At the first bad iteration.
        lowest: The lowest at which one was bad.
        bad: Bad iterations.
        at_or_above: Iterations whose learning rate was at least that.
        below: Iterations below it that nothing helped, all of them healthy.
        chance: How likely all streaks of bad iterations would fall elsewhere than
            among ``below`` if the learning rate had no part in it.
        changed: A rollback changed it, and what is here is the schedule's.
    """

    first: float
    lowest: float
    bad: int
    at_or_above: int
    below: int
    chance: float
    changed: bool = False

    @property
    def telling(self) -> bool:
        """Chance is no explanation, by the usual 5 %."""
        return self.chance < 0.05

    @property
    def name(self) -> str:
        """What it is."""
        return "scheduled learning rate" if self.changed else "learning rate"


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
    factor, helped = _interventions(run, every)
    helped |= _otherwise(run, every, found.bad)
    # Where it is warmed up again, nobody knows what the schedule asked for.
    inside = (curve.iters >= found.first) & (curve.iters <= found.last)
    iters, values = curve.iters[inside], curve.values[inside]
    known = factor[iters - found.first] > 0
    iters, values = iters[known], values[known] / factor[iters[known] - found.first]
    if not len(iters):
        return None
    rates = np.interp(every, iters, values)
    told = found.bad[_between(found.bad, iters, factor > 0, found.first)]
    if not len(told) or told[0] != found.bad[0]:
        return None
    bad = np.interp(told, iters, values)
    # Interpolation and float32 logs must not move an iteration across its own bound.
    above = rates >= bad.min() * (1 - 1e-5)
    below = int((~above & ~helped).sum())
    return LearningRates(
        first=float(bad[0]),
        lowest=float(bad.min()),
        bad=len(told),
        at_or_above=int(above.sum()),
        below=below,
        chance=(1 - below / len(every)) ** len(found.streaks),
        changed=bool((factor != 1).any()),
    )


def _interventions(run: RunHistory, every: Array) -> tuple[Array, Array]:
    """What hooks did to each iteration.

    Returns:
        The learning rate over the schedule's, 0 in the warm-up after a rollback, where
        it is not known; and whether something else than a low one helped it.
    """
    factor: Array = np.ones(len(every))
    helped: Array = np.zeros(len(every), dtype=bool)
    if not run.having("rollback", "recover", "resume", lost=False):
        # Without a ledger the scalar tells, of the last point before each iteration.
        scalar = run.curve("amp/lr_factor").finite
        place = np.searchsorted(scalar.iters, every, side="right") - 1
        if len(scalar):
            factor = np.where(place >= 0, scalar.values[place], 1.0)
    again = argument_of(run, "RollbackHook", "warmup_iters", WARMUP_ITERS)
    for h in run.having("rollback", "recover", "resume", lost=False):
        # A resume is told before its first iteration, the others after theirs.
        begin = max(0, h.iter - int(every[0]) + (h.event != "resume"))
        factor[begin:] = h.number("lr_factor", 1.0)
        if h.event == "rollback":
            factor[begin : begin + int(again)] = 0.0
            helped[begin : begin + int(again)] = True
    for h in run.having("replaced", lost=False)[:1]:  # bad samples, from then on
        helped[slice(*_places(every, h.iter, int(every[-1]) + 1))] = True
    for on, off in (("clamp_on", "clamp_off"), ("fallback", "fallback")):
        since: int | None = None
        for h in run.having(on, off, lost=False):
            if h.event == on and (on != off or "reason" in h.line):
                since = h.iter + 1 if since is None else since
            elif since is not None:
                helped[slice(*_places(every, since, h.iter + 1))] = True
                since = None
        if since is not None:
            helped[slice(*_places(every, since, int(every[-1]) + 1))] = True
    return factor, helped


def _between(wanted: Array, iters: Array, known: Array, first: int) -> Array:
    """Which iterations lie between two known rates with nothing unknown between those.

    Args:
        wanted: Iterations.
        iters: Those whose rate is known, rising.
        known: Of each iteration of the run, whether it may be.
        first: The first of the run.
    """
    unknown = np.cumsum(~known)
    places = np.searchsorted(iters, wanted)
    low = iters[(places - 1).clip(0, len(iters) - 1)] - first
    high = iters[places.clip(0, len(iters) - 1)] - first
    low = np.where(iters[0] > wanted, wanted - first, low)
    high = np.where(iters[-1] < wanted, wanted - first, high)
    whole: Array = unknown[high] == unknown[low]
    return whole


def _otherwise(run: RunHistory, every: Array, bad: Array) -> Array:
    """Whether each iteration was in another precision than all bad ones, by a resume.

    What ``fallback`` does within a start is told by the ledger.
    """
    begins = np.array([start.begins for start in run.starts])
    kinds = np.array([precision(s.start_line, s.config) for s in run.starts])
    of_each = kinds[np.searchsorted(begins, every, side="right").clip(1) - 1]
    of_bad = kinds[np.searchsorted(begins, bad, side="right").clip(1) - 1]
    otherwise: Array = ~np.isin(of_each, of_bad)
    return otherwise


def _places(every: Array, first: int, end: int) -> tuple[int, int]:
    return max(0, first - int(every[0])), max(0, end - int(every[0]))
