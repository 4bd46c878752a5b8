"""Has one step ruined the run? Its weights and those of before, on the same batch."""

from __future__ import annotations

import math
from typing import Any

from ..engine.condition import Condition, Costs, State
from .blame import are_worse
from .jump import Jump
from .level import Level
from .thresholds import (
    FIRST,
    START_EARLY,
    STEP_AGAIN,
    STEP_FAR,
    STEP_LOOK,
    STEP_WORSE,
    WINDOW,
)

# Batches differ. Much later it need not be that step's doing.
LOOKS = tuple(STEP_LOOK * i for i in range(1, 5))


class StepLook:
    """Looks at a run some iterations after a step with an enormous gradient.

    One batch whose loss is 10,000 times the others' is no illness, and with gradients
    that are clipped or an optimizer that divides by them it does no harm. Otherwise its
    step may undo half of what was learned, and the loss is x1.6 for some iterations.

    A start has looks of its own. And the harm heals in the end: where such steps come
    again and again, going back each time would use up all attempts.
    """

    def __init__(self) -> None:
        self._norms = Level(WINDOW)
        self.jump = Jump()
        self._found: list[Costs] = []  # at the looks
        self._acted: int | None = None  # at the last such step that was taken back

    def due(self, iteration: int, norm: float | None, cost: float | None) -> bool:
        """Take in an iteration; on all ranks alike, whatever their losses are.

        Args:
            iteration: The present one.
            norm: Of the gradient that was stepped with, the same on all ranks; None or
                not finite where there was no step.
            cost: Loss of the weights of now, where the run is healthy; of this rank.

        Returns:
            Whether the weights of now and those of before are to be compared now.
        """
        if norm is not None and math.isfinite(norm):
            largest = self._norms.largest if len(self._norms) >= FIRST else 0.0
            far = norm > STEP_FAR * largest > 0 and iteration >= START_EARLY
            again = self._acted is not None and iteration - self._acted < STEP_AGAIN
            if far and not again:
                self.jump.seen, self._found = (iteration, norm / largest), []
            self._norms.add(norm)
        if self.jump.seen is None:
            self.jump.cost = cost
            return False
        past = iteration - self.jump.seen[0]
        if past > LOOKS[-1]:
            self.forget()
        return past in LOOKS

    def ruined(self, costs: Costs | None) -> Condition | None:
        """What is to be said of it; ``None`` if it is well, or not known to be ill.

        Args:
            costs: Answer to the question. All of them decide, after the last.
        """
        if costs is not None and costs.compared and costs.comparable:
            self._found.append(costs)
        n = len(self._found)
        if self.jump.seen is None or n < len(LOOKS):
            return None
        if not are_worse(self._found, STEP_WORSE):
            return None
        since, times = self.jump.seen
        self._acted = since
        now, before = (sum(each) / n for each in list(zip(*self._found))[:2])
        why = (
            f"over {n} batches the weights of now cost {now:.3g}, and those of "
            f"iteration {self._found[-1].taken_at} {before:.3g}; the gradient norm was "
            f"x{times:.3g} at iteration {since}"
        )
        return Condition(State.ILL, since, why, now / before, sudden=True)

    def forget(self) -> None:
        """The run went back, or these are not its weights any more."""
        self.jump.seen, self._found = None, []

    def state(self) -> dict[str, Any]:
        """As plain numbers."""
        found = [list(costs) for costs in self._found]
        known = dict(norms=self._norms.state(), found=found, acted=self._acted)
        return dict(known, **self.jump.state())

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.jump.load_state(state)
        self._norms.load_state(state["norms"])
        self._found = [Costs(*costs) for costs in state["found"]]
        self._acted = state["acted"]
