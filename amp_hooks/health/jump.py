"""Something has jumped: when, how much, and what the weights cost before it."""

from __future__ import annotations

from typing import Any

from ..engine.condition import Condition, State


class Jump:
    """What a look at a run some iterations later needs to know.

    Attributes:
        seen: Iteration of the jump, and how many times the highest of before it was.
        cost: Loss of the weights shortly before it, where the run was healthy.
    """

    def __init__(self) -> None:
        self.seen: tuple[int, float] | None = None
        self.cost: float | None = None

    @property
    def question(self) -> Condition:
        """What is asked of a second opinion."""
        since = self.seen[0] if self.seen is not None else 0
        return Condition(State.ILL, since=since, level=self.cost)

    def state(self) -> dict[str, Any]:
        """As plain numbers."""
        seen = None if self.seen is None else list(self.seen)
        return dict(seen=seen, cost=self.cost)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        seen, self.cost = state["seen"], state["cost"]
        self.seen = None if seen is None else (seen[0], seen[1])
