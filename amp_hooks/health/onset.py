"""How high the loss was where an illness began."""

from __future__ import annotations

_BEFORE = 5  # iterations: momentum works on after the batch is gone
_LAST = 300  # iterations; illness is seen before that


class Lifts:
    """The loss over its level, of the last iterations."""

    def __init__(self) -> None:
        self._lifts: dict[int, float] = {}

    def add(self, iteration: int, loss: float | None, level: float | None) -> None:
        """Take in an iteration; one whose loss or level is not known is left out."""
        if loss is not None and level:
            self._lifts[iteration] = loss / level
            self._lifts.pop(iteration - _LAST, None)

    def at(self, onset: int | None) -> float:
        """Where it left its range, or just before; 0: not known."""
        if onset is None:
            return 0.0
        near = range(onset - _BEFORE, onset + 1)
        return max(self._lifts.get(i, 0.0) for i in near)
