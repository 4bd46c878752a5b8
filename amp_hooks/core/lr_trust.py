"""Whether a learning rate is to blame for an overflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class LRTrust:
    """Counts healthy iterations since the learning rate last rose.

    One that is too high overflows soon after it is reached; what happens long after has
    another cause: one batch, one number that a kernel got wrong.

    Args:
        after: So many clear it, not necessarily in a row; ``None``: it is always to
            blame.
    """

    def __init__(self, after: int | None) -> None:
        self._after = after
        self._last: list[float] = []
        self._healthy = 0

    @property
    def cleared(self) -> bool:
        """Whether it has gone well for long enough."""
        return self._after is not None and self._healthy >= self._after

    def healthy(self, rates: Sequence[float] | None, iterations: int) -> None:
        """Healthy iterations have passed.

        Args:
            rates: The learning rate of each param group in the last of them; ``None``:
                not known, which clears nothing.
            iterations: How many.
        """
        if rates is None:
            return
        last, self._last = self._last, list(rates)
        # By more than rounding: schedules compute each from the one before.
        rose = any(new > old * (1 + 1e-9) for new, old in zip(rates, last))
        if rose or len(last) != len(rates):
            self._healthy = 0
        else:
            self._healthy += iterations

    def begin_anew(self) -> None:
        """After a fault."""
        self._last, self._healthy = [], 0

    def state(self) -> dict[str, Any]:
        """Plain numbers."""
        return dict(last=list(self._last), healthy=self._healthy)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._last = [float(lr) for lr in state["last"]]
        self._healthy = int(state["healthy"])
