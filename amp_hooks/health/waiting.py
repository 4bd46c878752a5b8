"""Time that tells whether a run that is ill learns."""

from __future__ import annotations

import statistics
from collections import deque

from ..engine.condition import Condition
from .thresholds import AGAINST_EACH_OTHER, LEARNS, OPEN_FOR, START_LOOK


class Waiting:
    """A question that was left open, and the losses since.

    They are taken in blocks of as many iterations as it waits: ruined weights learn
    nothing, and what is learned slowly shows in a median of so many. What decides is
    the same on all ranks, for they ask together, of what they have agreed on.
    """

    def __init__(self) -> None:
        self._since: int | None = None  # the onset that it is about
        self._asked = 0
        self._losses: deque[float] = deque(maxlen=OPEN_FOR)
        self._least: float | None = None  # of the medians of the blocks before

    @property
    def median(self) -> float | None:
        """Of this rank's losses since the question was asked; None if there is none."""
        return statistics.median(self._losses) if self._losses else None

    def add(self, loss: float | None) -> None:
        """Take in a loss."""
        if self._since is not None and loss is not None:
            self._losses.append(loss)

    def is_open(self, iteration: int, ill: Condition) -> bool:
        """Whether the question need not be asked yet.

        Args:
            iteration: The present one.
            ill: What this rank knows now, which may be worse than when it was asked.
        """
        if self._since is None or ill.since != self._since:
            return False
        now = (ill.loss_ratio or 1.0) * (ill.level or 0.0)
        far = ill.start is not None and now > AGAINST_EACH_OTHER * ill.start
        wait = START_LOOK if far or ill.lr_rose else OPEN_FOR
        return iteration - self._asked < wait

    def learns(self, ill: Condition) -> bool:
        """Whether the loss has fallen since, or that is not known yet.

        Args:
            ill: As agreed, with the median of one rank.
        """
        known = ill.since == self._since and self._least is not None
        if not known or self._least is None or ill.median is None:
            return True
        return ill.median < LEARNS * self._least

    def ask_again(self, iteration: int, ill: Condition) -> None:
        """Leave it open for so long; what :attr:`median` was is remembered."""
        if ill.since != self._since:
            self._since, self._least = ill.since, None
        elif ill.median is not None:
            self._least = min(ill.median, self._least or ill.median)
        self._asked = iteration
        self._losses.clear()

    def end(self) -> None:
        """It is answered."""
        self._since = self._least = None
        self._losses.clear()
