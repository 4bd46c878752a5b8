"""What a run lost at each learning rate: a warm restart goes back to an old level."""

from __future__ import annotations

import math
from typing import Any

from .level import Level
from .thresholds import FIRST, NEW_RATE_FOR, NEW_RATE_MOST

KEPT = 31  # iterations that give a rate's level
# After a restart the loss climbs for some hundred iterations.
VISIT = 500
JUMP = 1.5  # a rate so much above all before is a new one


class Rates:
    """The level of the loss by learning rate, in powers of two."""

    def __init__(self) -> None:
        self._levels: dict[int, Level] = {}
        self._before: dict[int, float] = {}  # of the visit before this one
        self._rate: int | None = None
        self._visit = 0
        self._largest = 0.0
        self._new_for = 0

    @property
    def is_new(self) -> bool:
        """Whether the learning rate is higher than ever, for some iterations."""
        return self._new_for > 0

    def at(self, lr: float | None) -> float | None:
        """Go to this learning rate; returns what the loss was at it, if known."""
        if lr is None or not 0 < lr < math.inf:
            return None
        self._new_for = max(0, self._new_for - 1)
        if lr > JUMP * self._largest:
            steady = self._largest and lr <= NEW_RATE_MOST * self._largest
            self._new_for = NEW_RATE_FOR if steady else 0
            self._largest = lr
        rate = math.floor(math.log2(lr))
        self._visit += 1
        if rate != self._rate:
            self._rate, self._visit = rate, 0
            if rate in self._levels and len(self._levels[rate]) >= FIRST:
                self._before[rate] = self._levels[rate].median
        return self._known(rate)

    def _known(self, rate: int) -> float | None:
        # The next higher one stands for a rate not had; at worst the one just below.
        near = rate
        if not self._levels.get(rate):
            known = [r for r, level in self._levels.items() if r >= rate - 1 and level]
            if not known:
                return None
            near = min((r for r in known if r >= rate), default=rate - 1)
        level = self._levels[near].median
        if self._visit < VISIT and near in self._before:
            level = max(level, self._before[near])
        return level

    def learn(self, loss: float, lr: float | None) -> None:
        """Take in a healthy loss at a learning rate."""
        if lr is not None and 0 < lr < math.inf:
            rate = math.floor(math.log2(lr))
            if rate not in self._levels:
                self._levels[rate] = Level(KEPT)
            self._levels[rate].add(loss)

    def shift(self, by: float) -> None:
        """A new loss term is part of the total from now on."""
        for level in self._levels.values():
            level.shift(by)
        self._before = {rate: value + by for rate, value in self._before.items()}

    def state(self) -> dict[str, Any]:
        """As plain numbers, lists and strings."""
        return dict(
            levels={str(rate): x.state() for rate, x in self._levels.items()},
            before={str(rate): x for rate, x in self._before.items()},
            rate=self._rate,
            visit=self._visit,
            largest=self._largest,
            new_for=self._new_for,
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._levels = {int(rate): Level(KEPT) for rate in state["levels"]}
        for rate, level in self._levels.items():
            level.load_state(state["levels"][str(rate)])
        self._before = {int(rate): x for rate, x in state["before"].items()}
        self._rate, self._visit = state["rate"], state["visit"]
        self._largest, self._new_for = state["largest"], state["new_for"]
