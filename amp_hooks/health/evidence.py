"""Evidence that a series has left its range for good (Page's CUSUM, 1954)."""

from __future__ import annotations

from typing import Any

from .thresholds import CREDIT

# A run long ill must not need as long to prove that it is well.
MOST = 1.2


class Evidence:
    """Adds up by how much a series exceeds its range, in shares of a patience.

    Attributes:
        value: 0 is none, 1 is the whole patience.
        since: Iteration at which it last left 0, or None.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self.since: int | None = None

    def add(self, iteration: int, excess: float, clip: float, patience: float) -> None:
        """Take in one iteration.

        Args:
            iteration: Its number.
            excess: Log of the loss over the edge of its range; below 0 inside.
            clip: At most so much of it counts.
            patience: Excess times iterations that make 1.
        """
        step = max(-CREDIT, min(clip, excess)) / patience
        value = min(MOST, self.value + step)
        if value <= 0:
            self.clear()
            return
        if self.since is None:
            self.since = iteration
        self.value = value

    def clear(self) -> None:
        """Begin anew."""
        self.value, self.since = 0.0, None

    def state(self) -> dict[str, Any]:
        """As plain numbers."""
        return dict(value=self.value, since=self.since)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.value, self.since = float(state["value"]), state["since"]
