"""Where a run was ill: all its numbers finite, and out of their healthy range."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from ...engine.condition import State
from ..read.curves import Curve
from ..read.history import Happening, RunHistory


@dataclass(frozen=True)
class Divergence:
    """A time in which a run was ill.

    Attributes:
        since: Iteration in which it began.
        told: Iteration in which it was certain.
        until: Iteration of the rollback, or in which the run was well again; ``None``
            if it never was.
        why: HealthHook's sentence; empty if it is not known.
        went_back: A rollback ended it.
    """

    since: int
    told: int
    until: int | None
    why: str = ""
    went_back: bool = False

    @property
    def words(self) -> str:
        """When, and why."""
        return f"iteration {self.told}" + (f": {self.why}" if self.why else "")


def divergences(run: RunHistory) -> list[Divergence]:
    """By the ledger; of a run without one, or whose ledger is full, by the scalar."""
    found, health = _of_ledger(run), run.curve("amp/health")
    if not len(health):
        return found
    if not run.happenings:
        return _of_scalar(health)
    last, before = int(health.iters[-1]), int(health.iters[:-1].max(initial=-1))
    is_open = bool(found) and found[-1].until is None
    if is_open and last > found[-1].told and health.values[-1] == State.HEALTHY:
        found[-1] = dataclasses.replace(found[-1], until=last)
    # A point is the worst since the one before: it may be from before the rollback.
    ends = [h.iter for h in run.having("rollback", "well", lost=False)]
    cured = any(before < i <= last for i in ends)
    if not is_open and health.values[-1] == State.ILL and not cured:
        found += _of_scalar(health)[-1:]
    return found


def _of_ledger(run: RunHistory) -> list[Divergence]:
    found: list[Divergence] = []
    for h in run.having("diverged", "rollback", "well", lost=False):
        is_open = bool(found) and found[-1].until is None
        if h.event == "diverged":
            if not is_open:  # a resumed run may say it again
                found.append(Divergence(_since(h), h.iter, None, _why(h)))
            continue
        went_back = h.event == "rollback"
        if is_open:
            found[-1] = dataclasses.replace(
                found[-1], until=h.iter, went_back=went_back
            )
        elif went_back and h.line.get("verdict") == "DIVERGED":
            # It was another rank's loss, and the ledger is rank 0's.
            found.append(Divergence(h.iter, h.iter, h.iter, _why(h), True))
    return found


def _of_scalar(health: Curve) -> list[Divergence]:
    ill = health.values == State.ILL
    edges = np.diff(ill.astype(int), prepend=0, append=0)
    firsts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    iters = [*map(int, health.iters)]
    return [
        Divergence(
            iters[first], iters[first], None if end == len(iters) else iters[end]
        )
        for first, end in zip(firsts, ends)
    ]


def _since(h: Happening) -> int:
    since = h.number("since", h.iter)
    return min(int(since), h.iter) if math.isfinite(since) else h.iter


def _why(h: Happening) -> str:
    return str(h.line.get("why") or "").rstrip(".")
