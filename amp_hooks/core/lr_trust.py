"""Whether a learning rate is to blame for an overflow."""

from __future__ import annotations

from typing import Any


class LRTrust:
    """Counts healthy iterations at a learning rate as high as now's.

    A learning rate that is too high overflows soon after it is reached; what happens
    long after has another cause: one batch, one number that a kernel got wrong.

    Args:
        after: So many clear it; ``None``: it is always to blame.
    """

    def __init__(self, after: int | None) -> None:
        self._after = after
        self._highest = 0.0
        self._healthy = 0

    @property
    def cleared(self) -> bool:
        """Whether it has gone well for long enough."""
        return self._after is not None and self._healthy >= self._after

    def healthy(self, lr: float | None, iterations: int) -> None:
        """Healthy iterations have passed.

        Args:
            lr: The learning rate of the last of them; ``None``: not known, which clears
                nothing.
            iterations: How many.
        """
        if lr is None:
            return
        if lr > self._highest:
            self._highest, self._healthy = lr, 0
        else:
            self._healthy += iterations

    def begin_anew(self) -> None:
        """After a fault."""
        self._highest, self._healthy = 0.0, 0

    def state(self) -> dict[str, Any]:
        """Plain numbers."""
        return dict(highest=self._highest, healthy=self._healthy)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._highest, self._healthy = float(state["highest"]), int(state["healthy"])
