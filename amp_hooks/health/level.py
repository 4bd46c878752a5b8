"""The level of a series of losses and its spread, robust and cheap."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

# An 85 % quantile of a normal distribution lies so many standard deviations out. It
# also sees what a median of distances misses: a loss of two heights, one batch in five.
HIGH, HIGH_SIGMAS = 0.85, 1.036


def height(loss: float, small: float) -> float:
    """The logarithm of a loss, but for losses near or below 0, which it takes too.

    A difference of two is the logarithm of their ratio where both exceed ``small``.
    """
    return math.asinh(loss / small)


class Level:
    """Quantiles over the last values, kept sorted: a microsecond for each value.

    Args:
        window: How many values are kept.
    """

    def __init__(self, window: int) -> None:
        self._past: deque[float] = deque()
        self._sorted: list[float] = []
        self.window = window

    def __len__(self) -> int:
        return len(self._past)

    def add(self, value: float) -> None:
        """Take in a finite value."""
        if len(self._past) == self.window:
            oldest = self._past.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._past.append(value)
        insort(self._sorted, value)

    def quantile(self, share: float) -> float:
        """The value that ``share`` of the values lie below; there must be one."""
        return self._sorted[int(share * (len(self._sorted) - 1) + 0.5)]

    @property
    def median(self) -> float:
        """The middle value; there must be one."""
        return self._sorted[len(self._sorted) // 2]

    @property
    def largest(self) -> float:
        """There must be one."""
        return self._sorted[-1]

    def spread(self, small: float, level: float) -> float:
        """Standard deviation of the height above a level, as if it were normal."""
        return (height(self.quantile(HIGH), small) - level) / HIGH_SIGMAS

    def excess(self, small: float, level: float, clip: float, credit: float) -> float:
        """Mean height over a level, each clipped: 0 for symmetry about it."""
        over = [height(value, small) - level for value in self._past]
        return sum([max(-credit, min(clip, x)) for x in over]) / len(self._past)

    def shift(self, by: float) -> None:
        """Move every value: a new loss term is part of the total from now on."""
        self.load_state([value + by for value in self._past])

    def clear(self) -> None:
        """Forget everything."""
        self.load_state([])

    def state(self) -> list[float]:
        """The values, oldest first."""
        return list(self._past)

    def load_state(self, state: list[float]) -> None:
        """Take back what :meth:`state` gave."""
        self._past = deque(state[-self.window :])
        self._sorted = sorted(self._past)
