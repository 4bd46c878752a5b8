"""The level of an untrained start, which a learning rate too high cannot spoil."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from .level import height
from .thresholds import (
    RANGE_LIMIT,
    START_EARLY,
    START_LATER,
    START_MOST,
    START_RANGE,
    START_RATE,
    START_SPREADS,
)

FIRST = 20  # a warm-up that is longer gives no better mean
NOISE = 21  # differences, whose median is not moved by a trend
APART = 3  # iterations: those of neighbours know nothing of a noise with memory
NOISE_FIRST = 10
# Median of |a - b| of two normal values, to their standard deviation.
TO_SIGMA = 1 / (0.6745 * math.sqrt(2))


class Start:
    """What the first batches cost before training has changed anything.

    That of the first batch, or the mean of those that came while the learning rate was
    at most a tenth of what it has reached since, if that is more. The learning rate may
    be unknown: then it is the first alone.

    Attributes:
        level: In the loss's units, or None before the first positive loss.
    """

    def __init__(self) -> None:
        self.level: float | None = None
        self.seen = 0
        self._added = 0.0
        self._largest = 0.0
        self._first: list[tuple[float, float]] = []  # loss, learning rate
        self._count = 1
        self._noise: deque[float] = deque(maxlen=NOISE)
        self._last: deque[float] = deque(maxlen=APART)

    def add(self, loss: float, lr: float | None, small: float | None) -> None:
        """Take in a finite loss; ``small`` as in :func:`height`."""
        if small is not None:
            now = height(loss, small)
            if len(self._last) == APART:
                self._noise.append(abs(now - self._last[0]))
            self._last.append(now)
        if self.level is None and loss <= 0:
            return  # a batch without objects, or a likelihood: no level
        self.seen += 1
        if len(self._first) < FIRST and loss > 0:
            self._first.append((loss - self._added, lr or 0.0))
            self._average()
        if lr is not None and lr > self._largest:
            self._largest = lr
            if self.seen < 20 * FIRST:
                self._average()

    def _average(self) -> None:
        losses = [self._first[0][0]]
        for loss, lr in self._first[1:]:
            if not 0 < lr <= START_RATE * self._largest:
                break
            losses.append(loss)
        self._count = len(losses)
        # The larger of the two: a batch that costs little makes no run ill.
        self.level = self._added + max(losses[0], sum(losses) / len(losses))

    @property
    def early(self) -> bool:
        """Whether it still is what the run is judged by in the first place."""
        return self.seen <= START_EARLY

    @property
    def noise_is_known(self) -> bool:
        """Whether there have been enough losses to tell."""
        return len(self._noise) >= NOISE_FIRST

    def edge(self) -> float | None:
        """Log of how far above its start a healthy loss may be; None: not known yet."""
        if self.level is None:
            return None
        if not self.noise_is_known:
            return RANGE_LIMIT
        noise = median(self._noise) * TO_SIGMA
        usual = START_RANGE if self.early else START_LATER
        return usual + min(START_MOST, START_SPREADS * noise / math.sqrt(self._count))

    def shift(self, by: float) -> None:
        """A new loss term is part of the total from now on."""
        if self.level is not None:
            self.level += by
            self._added += by

    def raise_to(self, level: float) -> None:
        """Accept a higher one."""
        if self.level is not None and level > self.level:
            self.shift(level - self.level)

    def state(self) -> dict[str, Any]:
        """As plain numbers."""
        return dict(
            level=self.level,
            seen=self.seen,
            added=self._added,
            largest=self._largest,
            first=[list(pair) for pair in self._first],
            count=self._count,
            noise=list(self._noise),
            last=list(self._last),
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.level, self.seen = state["level"], state["seen"]
        self._added, self._largest = state["added"], state["largest"]
        self._first = [(loss, lr) for loss, lr in state["first"]]
        self._count, self._last = state["count"], deque(state["last"], maxlen=APART)
        self._noise = deque(state["noise"], maxlen=NOISE)
