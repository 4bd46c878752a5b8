"""Signs besides the loss: dead gradients, logits that a clamp holds."""

from __future__ import annotations

import math
from typing import Any

from .level import Level
from .thresholds import (
    CLAMPED,
    CLAMPED_PATIENCE,
    DEAD,
    DEAD_PATIENCE,
    FIRST,
    WINDOW,
)

SUSPECT = 3  # in a row: no snapshot is taken from here on


class Signs:
    """Counts iterations in which a model cannot learn.

    Attributes:
        dead: Steps in a row with hardly any gradient.
        clamped: Iterations in a row with most of the logits bounded.
        dead_since: Iteration of the first of them, or None.
        clamped_since: Likewise.
        share: Of the logits that was bounded last.
    """

    def __init__(self) -> None:
        self.dead = self.clamped = 0
        self.dead_since: int | None = None
        self.clamped_since: int | None = None
        self.share = 0.0
        self._norms = Level(WINDOW)

    def add(
        self,
        iteration: int,
        grad_norm: float | None,
        clamped: float | None,
        above: bool,
        healthy: bool,
    ) -> None:
        """Take in an iteration.

        Args:
            iteration: Its number.
            grad_norm: Unscaled, or None where no step was made.
            clamped: Share of the logits, or None.
            above: Whether the loss is above its level.
            healthy: Whether the norm may be learned.
        """
        if grad_norm is not None and math.isfinite(grad_norm):
            known = len(self._norms) >= 2 * FIRST
            if above and known and grad_norm < DEAD * self._norms.median:
                self.dead += 1
                if self.dead_since is None:
                    self.dead_since = iteration
            else:
                self.dead, self.dead_since = 0, None
            if healthy:
                self._norms.add(grad_norm)
        if clamped is not None:
            self.share = clamped
            if above and clamped > CLAMPED:
                self.clamped += 1
                if self.clamped_since is None:
                    self.clamped_since = iteration
            else:
                self.clamped, self.clamped_since = 0, None

    @property
    def ill(self) -> bool:
        """Whether one of them has lasted."""
        return self.dead >= DEAD_PATIENCE or self.clamped >= CLAMPED_PATIENCE

    @property
    def suspect(self) -> bool:
        """Whether one of them may be beginning."""
        return self.dead >= SUSPECT or self.clamped >= CLAMPED_PATIENCE // 2

    def clear(self) -> None:
        """Begin anew; the usual norm is kept."""
        self.dead = self.clamped = 0
        self.dead_since = self.clamped_since = None

    def state(self) -> dict[str, Any]:
        """As plain numbers and lists."""
        return dict(
            counts=[self.dead, self.clamped, self.share],
            since=[self.dead_since, self.clamped_since],
            norms=self._norms.state(),
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.dead, self.clamped, self.share = state["counts"]
        self.dead_since, self.clamped_since = state["since"]
        self._norms.load_state(state["norms"])
