"""A learning rate that jumps shortly before an onset."""

from __future__ import annotations

from typing import Any

ROSE = 3.0  # times the highest learning rate so far; a warm-up begins with less
NEARBY = 20  # iterations between a rise of the learning rate and the onset


class RateRise:
    """Remembers the last jump of the learning rate over all before.

    Attributes:
        last: Its iteration, and how many times the highest of before it was.
    """

    def __init__(self) -> None:
        self.last: tuple[int, float] | None = None
        self._highest, self._seen = 0.0, 0

    def add(self, iteration: int, lr: float) -> None:
        """Take in a learning rate."""
        if self._seen >= NEARBY and lr >= ROSE * self._highest > 0:
            self.last = iteration, lr / self._highest
        self._seen += 1
        self._highest = max(self._highest, lr)

    def near(self, since: int | None) -> float | None:
        """How much it jumped near that iteration; None: it did not."""
        if self.last is None or since is None:
            return None
        return self.last[1] if abs(self.last[0] - since) <= NEARBY else None

    def forget(self) -> None:
        """It has been answered."""
        self.last = None

    def state(self) -> dict[str, Any]:
        """As plain numbers."""
        rise = None if self.last is None else list(self.last)
        return dict(rise=rise, highest=self._highest, rates_seen=self._seen)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self._highest, self._seen = state["highest"], state["rates_seen"]
        rise = state["rise"]
        self.last = None if rise is None else (rise[0], rise[1])
