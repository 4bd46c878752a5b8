"""Time that tells whether a run that is ill learns."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

from ..engine.condition import Condition
from .thresholds import AGAINST_EACH_OTHER, LEARNS, OPEN_FOR, RISE_LOOK


class Waiting:
    """A question that was left open, and the losses since.

    They are taken in blocks of as many iterations as it waits: ruined weights learn
    nothing, and what is learned slowly shows in a median of so many. What decides is
    the same on all ranks, for they ask together, of what they have agreed on.
    """

    def __init__(self) -> None:
        self._asked: int | None = None  # at that iteration; None: nothing is open
        self._losses: deque[float] = deque(maxlen=OPEN_FOR)
        self._least: float | None = None  # of the medians of the blocks before
        self._learned = False

    @property
    def median(self) -> float | None:
        """Of this rank's losses since the question was asked; None if there is none."""
        return statistics.median(self._losses) if self._losses else None

    def add(self, loss: float | None) -> None:
        """Take in a loss."""
        if self._asked is not None and loss is not None:
            self._losses.append(loss)

    def is_open(self, iteration: int, ill: Condition) -> bool:
        """Whether the question need not be asked yet.

        Args:
            iteration: The present one.
            ill: What this rank knows now, which may be worse than when it was asked.
        """
        if self._asked is None or not self._is_about(ill.since):
            return False
        now, start = (ill.loss_ratio or 1.0) * (ill.level or 0.0), ill.start or 0.0
        far = now > AGAINST_EACH_OTHER * start > 0
        wait = RISE_LOOK if far or ill.lr_rose else OPEN_FOR
        return iteration - self._asked < wait

    def learns(self, ill: Condition) -> bool:
        """Whether the loss has fallen since, or that is not known yet.

        Args:
            ill: As agreed, with the median of one rank.
        """
        if not self._is_about(ill.since) or self._least is None or ill.median is None:
            return True
        return ill.median < self._least - (1 - LEARNS) * abs(self._least)

    def ask_again(self, iteration: int, ill: Condition) -> None:
        """Leave it open for so long; what :attr:`median` was is remembered."""
        if not self._is_about(ill.since):
            self.end()
        elif ill.median is not None:
            self._learned = self._least is not None
            least = ill.median if self._least is None else self._least
            self._least = min(ill.median, least)
        self._asked = iteration
        self._losses.clear()

    def end(self) -> None:
        """It is answered."""
        self._asked = self._least = None
        self._learned = False
        self._losses.clear()

    def has_learned(self, since: int | None) -> bool:
        """Whether the loss had fallen when it was asked last, of an onset."""
        return self._learned and self._is_about(since)

    def _is_about(self, since: int | None) -> bool:
        # Each rank has an onset of its own, and any may be the one that is agreed on.
        return self._asked is not None and (since or 0) <= self._asked

    def state(self) -> dict[str, Any]:
        """As plain numbers."""
        return dict(asked=self._asked, least=self._least, learned=int(self._learned))

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._asked, self._least = state["asked"], state["least"]
        self._learned = bool(state["learned"])
