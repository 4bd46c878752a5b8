"""The highest learning rate that a run was well at."""

from __future__ import annotations

import math
from bisect import bisect_right

from mmengine.runner import Runner

from ..engine.condition import LR_ROSE
from ..engine.run import iter_wrappers, known_rates

MARGIN = 20  # iterations before an onset: the one that did it had come by then
_MOST = 1000


class HighestRate:
    """Remembers when the learning rate was higher than ever before."""

    def __init__(self) -> None:
        self._rises: list[tuple[int, float]] = []  # iteration, learning rate
        self._now = 0.0

    def add(self, iteration: int, lr: float | None, well: bool) -> None:
        """Take in the largest learning rate of an iteration, where it is known."""
        self._now = 0.0 if lr is None else lr
        if well and self._now > (self._rises[-1][1] if self._rises else 0.0):
            self._rises.append((iteration, self._now))
            if len(self._rises) > _MOST:
                del self._rises[1:-1:2]  # a long warm-up: every other one tells as much

    def rise(self, since: int | None) -> float:
        """That of now over the highest of before ``since``; 1 if it is not known."""
        highest = self._before(since) if since else None
        return 1.0 if highest is None else max(1.0, self._now / highest)

    def had_gone_well(self, since: int) -> bool:
        """Whether the run had been well before ``since`` at that of now."""
        highest = self._before(since)
        return highest is not None and self._now < LR_ROSE * highest

    def _before(self, since: int) -> float | None:
        n = bisect_right(self._rises, (since - MARGIN, math.inf))
        return self._rises[n - 1][1] if n else None

    def went_back(self, since: int | None) -> None:
        """What came shortly before ``since``, or later, has not gone well."""
        if since is not None:
            first = self._rises[:1]
            self._rises = [r for r in self._rises if r[0] <= since - MARGIN] or first

    def state(self) -> list[list[float]]:
        """As plain numbers."""
        return [[i, lr] for i, lr in self._rises]

    def load_state(self, state: list[list[float]]) -> None:
        """Take back what :meth:`state` gave."""
        self._rises = [(int(i), lr) for i, lr in state]


def largest_lr(runner: Runner) -> float | None:
    """The largest learning rate; None if it lives on a GPU, where to read it waits."""
    rates = known_rates(
        group
        for _, wrapper in iter_wrappers(runner.optim_wrapper)
        for group in wrapper.optimizer.param_groups
    )
    return max(rates) if rates else None
